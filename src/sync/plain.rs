//! The standard library's.

pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Nothing.
#[inline]
pub(crate) fn between_steps() {}
