//! The model checker's.

pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Lets other threads go on: what comes next can be seen by them apart from what came before.
pub(crate) fn between_steps() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}
