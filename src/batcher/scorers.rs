//! The sessions that compute a matrix product, one for each worker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    heads::{Digest, Weights},
    onnx::{OnnxError, Scorer, ScorerSpec, SessionOptions},
};

/// Weights, and a session of them for every worker to take.
///
/// Why a box for each worker and no mutex around a session? A session belongs to one thread. Whoever publishes a head
/// builds and warms the sessions on its own thread, leaves each in its worker's box, and only then swaps the snapshot: no
/// request waits while a session is made.
#[derive(Debug)]
pub struct ScorerPool {
    weights: Arc<Weights>,
    options: SessionOptions,
    boxes: Vec<Mutex<Option<Scorer>>>,
}

impl ScorerPool {
    /// Builds and warms a session for each of `n_workers`.
    ///
    /// # Errors
    /// Those of ONNX Runtime.
    pub fn build(weights: Arc<Weights>, options: &SessionOptions, n_workers: usize) -> Result<Self, OnnxError> {
        let scorers = Scorer::build_several(&weights, options, n_workers)?;
        let boxes = scorers.into_iter().map(|scorer| Mutex::new(Some(scorer))).collect();
        Ok(Self { weights, options: options.clone(), boxes })
    }

    /// The weights.
    pub fn weights(&self) -> &Arc<Weights> {
        &self.weights
    }

    /// What waits in the worker's box, or a session made now if the worker lost the one that was there.
    fn take(&self, worker: usize) -> Result<Scorer, OnnxError> {
        let waiting =
            self.boxes.get(worker).and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        waiting.map_or_else(|| Scorer::build(&ScorerSpec::of(&self.weights), &self.options), Ok)
    }
}

/// The sessions that one worker has taken.
#[derive(Debug, Default)]
pub(super) struct TakenScorers {
    taken: HashMap<Digest, (Weak<ScorerPool>, Scorer)>,
}

impl TakenScorers {
    /// The session of `pool` for this worker.
    pub(super) fn get(&mut self, pool: &Arc<ScorerPool>, worker: usize) -> Result<&mut Scorer, OnnxError> {
        use std::collections::hash_map::Entry;
        match self.taken.entry(pool.weights.digest()) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().1),
            Entry::Vacant(entry) => Ok(&mut entry.insert((Arc::downgrade(pool), pool.take(worker)?)).1),
        }
    }

    /// Drops all of them: they may be broken.
    pub(super) fn clear(&mut self) {
        self.taken.clear();
    }

    /// Drops the sessions whose heads are gone.
    pub(super) fn forget_dead(&mut self) {
        self.taken.retain(|_, (pool, _)| pool.strong_count() > 0);
    }
}
