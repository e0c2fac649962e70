//! A loaded model: what it is, and the one way in which its state becomes another.

use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Change, Edit, FeatureSetStore, FitFiles, ModelState, RegistryError, StateError, Tuning, builder::HeadBuilder,
    edit::now, manifest::Manifest, replica::Replica, store::ModelStore,
};
use crate::{
    batcher::Batcher,
    dataset::Shot,
    onnx::Provider,
    sync::{Mutex, MutexGuard, Snapshot, thread},
};

/// How long a change is tried again while other servers are faster.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest pause between two tries; the first are shorter.
const MAX_PAUSE: Duration = Duration::from_millis(200);

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    pub(super) labels: Vec<String>,
    pub(super) shots: Vec<Shot>,
    pub(super) train_counts: Option<Vec<u64>>,
    pub(super) provider: Provider,
    pub(super) threads: usize,
    pub(super) lone_threads: usize,
    pub(super) tuning: Option<Arc<Tuning>>,
    pub(super) batcher: Batcher,
    pub(super) builder: HeadBuilder,
    pub(super) state: Snapshot<ModelState>,
    /// Held by the one who makes the next state.
    pub(super) writer: Mutex<Writer>,
    pub(super) replica: Replica,
    pub(super) store: Option<ModelStore>,
    pub(super) feature_sets: Option<Arc<FeatureSetStore>>,
    pub(super) fits: Option<FitFiles>,
}

/// What only the one knows who makes the next state.
#[derive(Debug)]
pub(super) struct Writer {
    /// The highest generation that is known to be taken: that of the state, or of a damaged one after it.
    pub(super) highest: u64,
    /// The id of the manifest that is served.
    pub(super) id: Option<String>,
}

/// What came of a change.
#[derive(Debug)]
pub struct Changed<T> {
    /// Its result.
    pub made: T,
    /// The state that has it.
    pub state: Arc<ModelState>,
}

impl Model {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.builder.model
    }

    /// The name of each class.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The shot of each class.
    pub fn shots(&self) -> &[Shot] {
        &self.shots
    }

    /// How many training samples each class had, if the model directory says it.
    pub fn train_counts(&self) -> Option<&[u64]> {
        self.train_counts.as_deref()
    }

    /// D.
    pub fn feature_dim(&self) -> usize {
        self.builder.feature_dim
    }

    /// Threads in each of its sessions.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Threads for an image while no other is worked on.
    pub fn lone_threads(&self) -> usize {
        self.lone_threads
    }

    /// What its sessions, threads and batches were chosen from, if that was measured.
    pub fn tuning(&self) -> Option<&Tuning> {
        self.tuning.as_deref()
    }

    /// The execution provider that is really used.
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// The way in.
    pub fn batcher(&self) -> &Batcher {
        &self.batcher
    }

    /// The feature sets that were uploaded for it.
    ///
    /// # Errors
    /// [`StateError::Absent`] if it was loaded without a state directory.
    pub fn feature_sets(&self) -> Result<&Arc<FeatureSetStore>, RegistryError> {
        Ok(self.feature_sets.as_ref().ok_or(StateError::Absent)?)
    }

    /// The files of the fits of its heads.
    ///
    /// # Errors
    /// [`StateError::Absent`] if it was loaded without a state directory.
    pub fn fit_files(&self) -> Result<&FitFiles, RegistryError> {
        Ok(self.fits.as_ref().ok_or(StateError::Absent)?)
    }

    /// The state of this moment. A request takes one and keeps to it.
    pub fn state(&self) -> Arc<ModelState> {
        self.state.load()
    }

    /// The generation of the state of this moment.
    pub fn generation(&self) -> u64 {
        self.state.load().generation
    }

    /// Whether other servers may change it.
    pub fn is_shared(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_shared)
    }

    pub(super) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next state: in the store first, then in memory. Where another server was faster, the change is made again
    /// on what that one left. `make` may run several times.
    ///
    /// # Errors
    /// [`RegistryError`]; then nothing has changed, except where the store did not answer
    /// ([`StateError::is_unreachable`]): it may have taken the change all the same.
    pub(super) fn change<T>(
        &self,
        edit: &Edit,
        mut make: impl FnMut(&mut ModelState) -> Result<(T, Change), RegistryError>,
    ) -> Result<Changed<T>, RegistryError> {
        let mut writer = self.lock_writer();
        let start = Instant::now();
        let mut tries = 0;
        loop {
            if self.is_shared() {
                self.catch_up(&mut writer, true)?;
            }
            let current = self.state.load();
            if !edit.if_match.allows(current.generation) {
                let (expected, generation) = (edit.if_match.clone(), current.generation);
                return Err(RegistryError::PreconditionFailed { expected, generation });
            }
            let mut next = ModelState::clone(&current);
            let (made, change) = make(&mut next)?;
            next.generation = writer.highest + 1;
            // A clock that goes back does not turn the history round.
            next.time = Some(current.time.map_or_else(now, |time| time.max(now())));
            let manifest = Manifest::of(self.name(), &next, (Some(current.generation), &edit.author, change.clone()));
            if let Some(store) = &self.store
                && !store.create(&manifest)?
            {
                tries += 1;
                if start.elapsed() > CHANGE_TIMEOUT {
                    return Err(RegistryError::Contended { tries });
                }
                if !self.is_shared() {
                    self.catch_up(&mut writer, true)?;
                }
                thread::sleep(pause(tries));
                continue;
            }
            tracing::info!(
                model = self.name(),
                generation = next.generation,
                author = edit.author.name(),
                ?change,
                "{change}"
            );
            (writer.highest, writer.id) = (next.generation, manifest.id);
            let state = self.swap(next);
            return Ok(Changed { made, state });
        }
    }

    /// Lets requests see a state.
    pub(super) fn swap(&self, next: ModelState) -> Arc<ModelState> {
        let next = Arc::new(next);
        self.observe(Some(&self.state.load()), &next);
        self.state.store(Arc::clone(&next));
        if let Some(store) = &self.store {
            store.remember(next.generation, false);
        }
        next
    }

    /// Brings the gauges from one state to the next.
    pub(super) fn observe(&self, before: Option<&ModelState>, after: &ModelState) {
        let metrics = &self.builder.metrics;
        let gone = before.into_iter().flat_map(ModelState::versions);
        for head in gone.filter(|head| after.head(&head.id.head, Some(head.id.version)).is_err()) {
            metrics.remove_head_version(self.name(), &head.id.head, head.id.version, head.head.kind().as_str());
        }
        for head in after.versions() {
            metrics.set_head_version(self.name(), &head.id.head, head.id.version, head.head.kind().as_str());
        }
        for (name, series) in &after.heads {
            metrics.set_head_tau(self.name(), name, series.versions.last().and_then(|head| head.settings.tau));
        }
        self.replica.metrics.generation.set(i64::try_from(after.generation).unwrap_or(i64::MAX));
    }
}

/// Before the next try: longer each time, and never the same for two servers.
fn pause(tries: u32) -> Duration {
    let longest = Duration::from_millis(2).saturating_mul(1 << tries.min(10)).min(MAX_PAUSE);
    longest.mul_f64(super::replica::random_share())
}
