//! Where jobs wait for threads: first come, first served, without a bound of its own.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, PoisonError},
    time::Instant,
};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// An empty queue, of which both ends can be cloned.
pub(super) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let ends = Ends { items: VecDeque::new(), n_senders: 1, n_receivers: 1, n_waiting: 0 };
    let shared = Arc::new(Shared { ends: Mutex::new(ends), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

struct Shared<T> {
    ends: Mutex<Ends<T>>,
    /// Something came, or the last sender went.
    changed: Condvar,
}

struct Ends<T> {
    items: VecDeque<T>,
    n_senders: usize,
    n_receivers: usize,
    /// Receivers that wait for something to come. To wake a thread costs a system call, also where none waits.
    n_waiting: usize,
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
pub(super) struct Receiver<T>(Arc<Shared<T>>);

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
        let is_awaited = ends.n_waiting > 0;
        drop(ends);
        if is_awaited {
            self.0.changed.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// What came first, as soon as there is something; `None` once nothing will come any more.
    pub(super) fn recv(&self) -> Option<T> {
        let mut ends = self.0.lock();
        loop {
            if let Some(item) = ends.items.pop_front() {
                return Some(item);
            }
            if ends.n_senders == 0 {
                return None;
            }
            ends.n_waiting += 1;
            ends = self.0.changed.wait(ends).unwrap_or_else(PoisonError::into_inner);
            ends.n_waiting -= 1;
        }
    }

    /// What came first, if there is something until then. What is there already is taken however late it is.
    pub(super) fn recv_until(&self, until: Instant) -> Result<T, Nothing> {
        let mut ends = self.0.lock();
        loop {
            if let Some(item) = ends.items.pop_front() {
                return Ok(item);
            }
            if ends.n_senders == 0 {
                return Err(Nothing::Anymore);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Nothing::Yet);
            }
            ends.n_waiting += 1;
            ends = self.0.changed.wait_timeout(ends, left).unwrap_or_else(PoisonError::into_inner).0;
            ends.n_waiting -= 1;
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.0.lock().items.len()
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
        self.0.lock().n_receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut ends = self.0.lock();
        ends.n_senders -= 1;
        let is_last = ends.n_senders == 0;
        drop(ends);
        if is_last {
            self.0.changed.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut ends = self.0.lock();
        ends.n_receivers -= 1;
        let left = if ends.n_receivers == 0 { std::mem::take(&mut ends.items) } else { VecDeque::new() };
        // What is dropped with them may send in its turn.
        drop(ends);
        drop(left);
    }
}
