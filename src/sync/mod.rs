//! What the threads of the batcher and of the registry meet at.
//!
//! With the feature `shuttle`, which only `make interleavings` turns on, it is that of the model checker of that name: the
//! tests called `interleavings` then run the same code in many orders of its steps.

#[cfg(feature = "shuttle")]
#[path = "checked.rs"]
mod primitives;
#[cfg(not(feature = "shuttle"))]
#[path = "plain.rs"]
mod primitives;

use std::sync::Arc;

use arc_swap::ArcSwap;

pub(crate) use primitives::*;

/// A value that many read and one replaces. Whoever has read it keeps what was there then.
#[derive(Debug)]
pub(crate) struct Snapshot<T>(ArcSwap<T>);

impl<T> Snapshot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(ArcSwap::from_pointee(value))
    }

    pub(crate) fn load(&self) -> Arc<T> {
        between_steps();
        self.0.load_full()
    }

    pub(crate) fn store(&self, value: Arc<T>) {
        between_steps();
        self.0.store(value);
    }
}
