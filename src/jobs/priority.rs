//! Work that gives way to what serves.

use crate::telemetry::panic_message;

/// How much less than what serves it is favoured: as much as can be. At 10 a fit still made the slowest answers wait.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 19;

/// Runs `work` on a thread of its own, which has the lowest priority, as have those that it starts.
///
/// # Errors
/// What it said if it panicked, or why there is no thread.
pub(super) fn at_low_priority<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let spawned = thread.spawn_scoped(scope, || {
            lower_priority();
            work()
        });
        match spawned {
            Ok(thread) => thread.join().map_err(|panic| format!("the {name} panicked: {}", panic_message(&*panic))),
            Err(error) => Err(format!("its thread cannot be started: {error}")),
        }
    })
}

fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::warn!(%error, "the priority of a fit cannot be lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_words() {
        assert_eq!(at_low_priority("fit", || 1), Ok(1));
        for (panic, words) in [
            (at_low_priority("fit", || panic!("of text")), "the fit panicked: of text"),
            (at_low_priority("fit", || panic!("of {}", 1)), "the fit panicked: of 1"),
        ] {
            assert_eq!(panic, Err::<(), _>(words.to_owned()));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn its_thread_has_the_lowest_priority_and_the_caller_keeps_its_own() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let before = priority();
        assert_eq!(at_low_priority("evaluation", priority), Ok(NICENESS));
        assert_eq!(priority(), before);
    }
}
