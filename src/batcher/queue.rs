//! Where jobs wait for threads: first come, first served, without a bound of its own.
//!
//! Of the threads that wait, the one that began last goes on first: its session is the one whose memory the caches still hold,
//! and where one thread is enough the others' sessions stay untouched. With EfficientNet-Lite0 and one request at a time on two
//! cores that saves 1 of 12 ms over taking turns.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, PoisonError},
    time::Instant,
};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// An empty queue, of which both ends can be cloned.
pub(super) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let ends = Ends { items: VecDeque::new(), n_senders: 1, n_receivers: 1, waiting: Vec::new() };
    let shared = Arc::new(Shared { ends: Mutex::new(ends) });
    (Sender(Arc::clone(&shared)), Receiver { shared, called: Arc::default() })
}

struct Shared<T> {
    ends: Mutex<Ends<T>>,
}

struct Ends<T> {
    items: VecDeque<T>,
    n_senders: usize,
    n_receivers: usize,
    /// Receivers that wait for something to come, by what calls each; the one that began last is last. Whoever is called is not
    /// in it any more.
    waiting: Vec<Arc<Condvar>>,
}

impl<T> Shared<T> {
    // Nothing is done under the lock that could panic half-way.
    fn lock(&self) -> MutexGuard<'_, Ends<T>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end where things go in. When the last one is dropped, receivers take what is there, and then the end.
pub(super) struct Sender<T>(Arc<Shared<T>>);

/// The end where things come out. When the last one is dropped, what waits is dropped, and nothing more is taken in.
pub(super) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// This one's own.
    called: Arc<Condvar>,
}

/// Why there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nothing {
    /// Nothing came in time.
    Yet,
    /// Nothing will come: all senders are gone.
    Anymore,
}

impl<T> Sender<T> {
    /// Puts something in, or gives it back if nobody is there to take it.
    pub(super) fn send(&self, item: T) -> Result<(), T> {
        let mut ends = self.0.lock();
        if ends.n_receivers == 0 {
            return Err(item);
        }
        ends.items.push_back(item);
        let last = ends.waiting.pop();
        drop(ends);
        if let Some(last) = last {
            last.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// What came first, as soon as there is something; `None` once nothing will come any more.
    pub(super) fn recv(&mut self) -> Option<T> {
        self.next(None).ok()
    }

    /// What came first, if there is something until then. What is there already is taken however late it is.
    pub(super) fn recv_until(&mut self, until: Instant) -> Result<T, Nothing> {
        self.next(Some(until))
    }

    // `&mut`, because only one thread may wait to be called by what is this one's own.
    fn next(&mut self, until: Option<Instant>) -> Result<T, Nothing> {
        let mut ends = self.shared.lock();
        loop {
            if let Some(item) = ends.items.pop_front() {
                return Ok(item);
            }
            if ends.n_senders == 0 {
                return Err(Nothing::Anymore);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Nothing::Yet);
            }
            ends.waiting.push(Arc::clone(&self.called));
            ends = match left {
                None => self.called.wait(ends).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.called.wait_timeout(ends, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            // It may have gone on without being called.
            ends.waiting.retain(|other| !Arc::ptr_eq(other, &self.called));
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.shared.lock().items.len()
    }

    /// How many receivers wait for something to come.
    pub(super) fn n_idle(&self) -> usize {
        self.shared.lock().waiting.len()
    }
}

// Without what waits, which need not be printable.
impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().n_senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.lock().n_receivers += 1;
        Self { shared: Arc::clone(&self.shared), called: Arc::default() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut ends = self.0.lock();
        ends.n_senders -= 1;
        let waiting = if ends.n_senders == 0 { std::mem::take(&mut ends.waiting) } else { Vec::new() };
        drop(ends);
        for receiver in waiting {
            receiver.notify_one();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut ends = self.shared.lock();
        ends.n_receivers -= 1;
        let left = if ends.n_receivers == 0 { std::mem::take(&mut ends.items) } else { VecDeque::new() };
        // What is dropped with them may send in its turn.
        drop(ends);
        drop(left);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn of_those_who_wait_the_last_one_goes_on_first_and_who_waits_no_longer_is_not_called() {
        let (sender, receiver) = queue();
        let (taken, order) = mpsc::channel();
        let n_waiting = || sender.0.lock().waiting.len();
        let wait = |name, mut receiver: Receiver<u32>| {
            let (taken, n) = (taken.clone(), n_waiting());
            let thread = thread::spawn(move || taken.send((name, receiver.recv())).unwrap());
            while n_waiting() == n {
                thread::yield_now();
            }
            thread
        };
        let threads =
            [wait("first", receiver.clone()), wait("second", receiver.clone()), wait("third", receiver.clone())];
        let mut impatient = receiver;
        assert_eq!(impatient.recv_until(Instant::now() + std::time::Duration::from_millis(5)), Err(Nothing::Yet));
        for (item, name) in [(1, "third"), (2, "second")] {
            sender.send(item).unwrap();
            assert_eq!(order.recv().unwrap(), (name, Some(item)));
        }
        drop(sender);
        assert_eq!(order.recv().unwrap(), ("first", None));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(impatient.recv(), None);
    }
}
