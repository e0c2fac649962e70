//! The sessions that compute a matrix product, one for each worker.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    thread,
};

use crate::{
    heads::{Digest, Weights},
    onnx::{Features, OnnxError, Provider, Scorer, ScorerSpec, Scores, SessionOptions},
};

/// So many weights, 4 MB of them, have been read before another thread has begun to help.
const WEIGHTS_PER_THREAD: usize = 1 << 20;

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

/// Raw scores, by the digest of the weights that they come from.
pub(super) type Products = HashMap<Digest, Scores>;

impl TakenScorers {
    /// The raw scores of `features` under each of the weights of `pools`, once for all pools that share them.
    ///
    /// Heads are bound by memory: of a few rows the time is that of reading `C·D` weights, which two cores do nearly twice as
    /// fast as one. So where `n_idle` other workers have nothing to do, as many threads help.
    pub(super) fn products<'a>(
        &mut self,
        pools: impl Iterator<Item = &'a Arc<ScorerPool>>,
        features: &Features,
        worker: usize,
        n_idle: usize,
    ) -> Result<Products, OnnxError> {
        let mut wanted = HashSet::new();
        for pool in pools {
            let digest = pool.weights.digest();
            if wanted.insert(digest) && !self.taken.contains_key(&digest) {
                self.taken.insert(digest, (Arc::downgrade(pool), pool.take(worker)?));
            }
        }
        let mut scorers: Vec<(Digest, &mut Scorer)> = self
            .taken
            .iter_mut()
            .filter(|(digest, _)| wanted.contains(*digest))
            .map(|(digest, (_, scorer))| (*digest, scorer))
            .collect();
        let n_weights: usize = scorers.iter().map(|(_, scorer)| scorer.num_classes() * scorer.feature_dim()).sum();
        let on_cpu = scorers.iter().all(|(_, scorer)| scorer.provider() == Provider::Cpu);
        let n_threads = (n_weights / WEIGHTS_PER_THREAD).min(scorers.len()).min(1 + n_idle);
        if n_threads < 2 || !on_cpu {
            return scorers.iter_mut().map(|(digest, scorer)| Ok((*digest, scorer.run(features)?))).collect();
        }
        run_with_helpers(scorers, features, n_threads - 1)
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

/// Runs all of the sessions, each on this thread or on one of so many others, whichever comes first.
fn run_with_helpers(
    scorers: Vec<(Digest, &mut Scorer)>,
    features: &Features,
    n_helpers: usize,
) -> Result<Products, OnnxError> {
    let left = Mutex::new(scorers.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (done, products) = mpsc::channel();
    let work = |done: mpsc::Sender<_>| {
        while let Some((digest, scorer)) = next() {
            // The other end is there until all are done.
            let _ = done.send(scorer.run(features).map(|scores| (digest, scores)));
        }
    };
    let work = &work;
    thread::scope(|scope| {
        for _ in 0..n_helpers {
            let done = done.clone();
            // Where no thread can be had, the others do its part.
            let _ = thread::Builder::new().name("heads".to_owned()).spawn_scoped(scope, move || work(done));
        }
        work(done);
    });
    products.into_iter().collect()
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::{heads::FeatureMap, onnx::DeviceChoice};

    #[test]
    fn heads_answer_alike_whoever_helps() {
        // Each head is worth a thread.
        let (n_classes, feature_dim) = (1024, WEIGHTS_PER_THREAD / 1024);
        let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
        let pool = |seed: usize| {
            let matrix = Array2::from_shape_fn((n_classes, feature_dim), |(class, feature)| {
                ((class * 31 + feature * 17 + seed) % 101) as f32 / 50.0 - 1.0
            });
            let weights = Arc::new(Weights::new(matrix, FeatureMap::Identity, seed % 2 == 1));
            Arc::new(ScorerPool::build(weights, &options, 1).unwrap())
        };
        let pools: Vec<_> = (0..5).map(pool).collect();
        let rows = (0..3 * feature_dim).map(|i| (i % 29) as f32).collect();
        let features = Features::from_host(rows, 3, feature_dim).unwrap();
        let mut taken = TakenScorers::default();
        let twice = || pools.iter().chain(&pools);
        let alone = taken.products(twice(), &features, 0, 0).unwrap();
        assert_eq!(alone.len(), pools.len());
        for pool in &pools {
            let scores = &alone[&pool.weights.digest()];
            let own = Scorer::build(&ScorerSpec::of(&pool.weights), &options).unwrap().run(&features).unwrap();
            assert_eq!(scores, &own);
        }
        for n_idle in [1, 3, 9] {
            assert_eq!(taken.products(twice(), &features, 0, n_idle).unwrap(), alone, "with {n_idle} idle");
        }
        let short = Features::from_host(vec![1.0; 4], 1, 4).unwrap();
        for n_idle in [0, 1] {
            let error = taken.products(twice(), &short, 0, n_idle).unwrap_err();
            assert!(matches!(error, OnnxError::FeatureShape { .. }), "{error}");
        }
        assert_eq!(taken.products(pools[..1].iter(), &features, 0, 1).unwrap().len(), 1);
    }
}
