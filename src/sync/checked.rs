//! The model checker's.

pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Lets other threads go on: what comes next can be seen by them apart from what came before.
pub(crate) fn between_steps() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

/// Runs a test in that many orders of its steps drawn at random, and in as many with few changes between threads, at the places
/// that matter.
#[cfg(test)]
pub(crate) fn in_many_orders(n_orders: usize, test: impl Fn() + Send + Sync + 'static) {
    let test = std::sync::Arc::new(test);
    let again = std::sync::Arc::clone(&test);
    shuttle::check_random(move || again(), n_orders);
    shuttle::check_pct(move || test(), n_orders, 3);
}
