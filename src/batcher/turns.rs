//! Whose turn it is on a core.

use std::time::{Duration, Instant};

use crate::sync::thread;

/// A turn of others that takes longer is not that of a thread which speaks HTTP.
const LONG: Duration = Duration::from_millis(1);
/// So long nobody is let go first after a long turn.
const PAUSE: Duration = Duration::from_millis(100);

/// Lets the threads that speak HTTP go first, between one piece of a worker's work and the next.
///
/// There is a worker for each core, so under load they have to get in between. Linux (since 6.6) does not always put a thread
/// that wakes before the one that runs; if not, it looks again at the next tick of its clock, up to four milliseconds later.
/// Meanwhile all who have an answer wait for it, and nobody's next image comes.
///
/// Whoever else has the core for long, another program's computation perhaps, would take it each time: then nobody is let go first
/// for a while, and the worker has its fair share.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Nobody is let go first before.
    pause_until: Option<Instant>,
}

impl Turns {
    /// Whoever waits for this core goes first.
    pub(super) fn give(&mut self) {
        let start = Instant::now();
        if self.is_given(start) {
            thread::yield_now();
            self.took(start, Instant::now());
        }
    }

    fn is_given(&self, now: Instant) -> bool {
        self.pause_until.is_none_or(|until| until <= now)
    }

    /// Somebody had a turn from `start` to `end`.
    fn took(&mut self, start: Instant, end: Instant) {
        if end.saturating_duration_since(start) > LONG {
            self.pause_until = Some(end + PAUSE);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn after_a_long_turn_nobody_goes_first_for_a_while() {
        let (mut turns, start) = (Turns::default(), Instant::now());
        assert!(turns.is_given(start));
        turns.took(start, start + LONG);
        assert!(turns.is_given(start + LONG));
        let end = start + 2 * LONG;
        turns.took(start, end);
        assert!(!turns.is_given(end));
        assert!(!turns.is_given(end + PAUSE - LONG));
        assert!(turns.is_given(end + PAUSE));
    }
}
