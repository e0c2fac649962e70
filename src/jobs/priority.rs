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
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS).map_err(Into::into).and_then(|()| idle()) {
        tracing::warn!(%error, "the priority of a fit cannot be lowered");
    }
}

/// Linux's policy for what has the cores when nobody else wants them.
///
/// Niceness alone tells Linux how to share a core. A core on which only this runs counts as busy, so that a thread that wakes waits on
/// another one, behind what serves there, until the two are evened out some 20 ms later; by this policy it counts as free.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn idle() -> std::io::Result<()> {
    // SAFETY: all of it are numbers.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: it reads the parameters, which are there.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
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
    #[allow(unsafe_code)]
    fn its_threads_have_the_lowest_priority_and_the_caller_keeps_its_own() {
        fn priority() -> (i32, i32) {
            // SAFETY: it reads and writes no memory.
            (rustix::process::getpriority_process(None).unwrap(), unsafe { libc::sched_getscheduler(0) })
        }
        let before = priority();
        let of_both = || (priority(), std::thread::spawn(priority).join().unwrap());
        let lowest = (NICENESS, libc::SCHED_IDLE);
        assert_eq!(at_low_priority("evaluation", of_both), Ok((lowest, lowest)));
        assert_eq!(priority(), before);
    }
}
