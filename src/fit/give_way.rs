//! A fit beside what serves.

/// Lets whoever waits for this core have it at once, if this thread has a low priority; called after every piece of
/// work, of about a hundred microseconds, rarely more than a millisecond.
///
/// Why is the priority not enough? Linux (since 6.6) does not always prefer a thread of a higher one as soon as it wakes, and
/// then looks again at the next tick of its clock, up to four milliseconds later: ten times what a small network takes.
pub(super) fn give_way() {
    #[cfg(target_os = "linux")]
    if linux::HAS_LOW_PRIORITY.with(|has_low_priority| *has_low_priority) {
        std::thread::yield_now();
    }
}

#[cfg(target_os = "linux")]
mod linux {
    #![allow(unsafe_code)] // A system call, so that the mathematics alone needs no crate for it.

    thread_local! {
        /// As it is when this is first asked; a thread that a fit starts has its priority.
        pub(super) static HAS_LOW_PRIORITY: bool = {
            // SAFETY: it reads and writes no memory.
            let niceness = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
            niceness > 0
        };
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(unsafe_code)] // A system call.

    use std::thread;

    use super::linux::HAS_LOW_PRIORITY;

    #[test]
    fn a_thread_of_low_priority_is_known_and_so_is_one_that_it_starts() {
        let has_low_priority = || HAS_LOW_PRIORITY.with(|has| *has);
        let of_low = thread::spawn(move || {
            // SAFETY: it reads and writes no memory.
            assert_eq!(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }, 0);
            (has_low_priority(), thread::spawn(has_low_priority).join().expect("its answer"))
        });
        assert_eq!(of_low.join().expect("its answers"), (true, true));
        // SAFETY: as above.
        let is_low_here = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } > 0;
        assert_eq!(thread::spawn(has_low_priority).join().expect("its answer"), is_low_here);
    }
}
