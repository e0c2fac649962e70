//! Following a store that other servers change too.
//!
//! Each server asks for the generation after its own every few seconds, before every change, and when a request says which
//! one it wants to see. It takes what it finds whole (manifest, head files, sessions) and never goes back to an older one.
//! While the store is away it serves what it has.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    LoadError, Model, RegistryError, StateError,
    manifest::Manifest,
    model::Writer,
    restore::{Sources, restore},
    store::{ModelStore, manifest_path},
};
use crate::metrics::StateMetrics;

/// Polls of a bucket between two that also look whether the own generation is still there: it seldom goes.
const THOROUGH_EVERY: u32 = 16;
/// Requests that want a newer generation do not ask the store more often than this, however many they are.
const REFRESH_EVERY: Duration = Duration::from_millis(50);

/// What a model knows of the store.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) metrics: StateMetrics,
    /// Files that were found damaged.
    damaged: Mutex<BTreeSet<PathBuf>>,
    /// When its state was the newest, the last time that it was known.
    newest_at: Mutex<Instant>,
    /// When a request began to ask the store the last time; held while one does.
    refreshed: Arc<tokio::sync::Mutex<Option<Instant>>>,
    n_polls: AtomicU32,
    /// What was wrong the last time, so that the log has it once.
    told: Mutex<Option<String>>,
}

impl Replica {
    /// One that has just looked, and found these files damaged.
    pub(super) fn new(metrics: StateMetrics, damaged: BTreeSet<PathBuf>) -> Self {
        metrics.reachable.set(1);
        metrics.damaged.set(i64::try_from(damaged.len()).unwrap_or(i64::MAX));
        Self {
            metrics,
            damaged: Mutex::new(damaged),
            newest_at: Mutex::new(Instant::now()),
            refreshed: Arc::default(),
            n_polls: AtomicU32::new(0),
            told: Mutex::default(),
        }
    }

    /// Whether the last look failed.
    fn is_troubled(&self) -> bool {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes down which files are damaged: what is served is whole if the newest state is, and of servers that share a store
    /// nobody looks at more.
    fn saw_files(&self, looked: &Result<(), RegistryError>, is_shared: bool) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Ok(()) if is_shared => damaged.clear(),
            Err(RegistryError::State(StateError::Damaged { path, .. } | StateError::Newer { path, .. })) => {
                damaged.insert(path.clone());
            }
            _ => {}
        }
        self.metrics.damaged.set(i64::try_from(damaged.len()).unwrap_or(i64::MAX));
    }

    /// Takes down whether the newest state is known and served.
    fn saw(&self, model: &str, asked_at: Instant, looked: &Result<(), RegistryError>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(error) = looked else {
            *self.newest_at.lock().unwrap_or_else(PoisonError::into_inner) = asked_at;
            self.metrics.reachable.set(1);
            if told.take().is_some() {
                tracing::info!(model, "the state of model `{model}` can be followed again");
            }
            return;
        };
        let is_reachable = !matches!(error, RegistryError::State(error) if error.is_unreachable());
        self.metrics.reachable.set(i64::from(is_reachable));
        let text = error.to_string();
        if told.as_ref() != Some(&text) {
            tracing::error!(model, "the state of model `{model}` cannot be followed, what there is serves on: {text}");
            *told = Some(text);
        }
    }
}

impl Model {
    /// Takes the newest generation of the store, if it is not the one that is served. A thorough look also notices that the
    /// own one is not there any more, or another one of its number.
    pub(super) fn catch_up(&self, writer: &mut Writer, is_thorough: bool) -> Result<(), RegistryError> {
        let Some(store) = &self.store else { return Ok(()) };
        let asked_at = Instant::now();
        let is_thorough = is_thorough || self.replica.is_troubled();
        let looked = newer(store, writer, is_thorough).map_err(RegistryError::from).and_then(|newest| {
            if let Some(manifest) = newest {
                self.take(store, &manifest)?;
                (writer.highest, writer.id) = (manifest.generation, manifest.id);
            }
            Ok(())
        });
        self.replica.saw_files(&looked, store.is_shared);
        let looked = looked.map_err(|error| match error {
            RegistryError::State(error) => RegistryError::State(store.of_a_read(error)),
            error => error,
        });
        self.replica.saw(self.name(), asked_at, &looked);
        looked
    }

    /// Serves what a manifest says.
    fn take(&self, store: &ModelStore, manifest: &Manifest) -> Result<(), RegistryError> {
        let current = self.state();
        if manifest.generation <= current.generation {
            return Ok(());
        }
        let sources = Sources { current: Some(&current), store: Some(store), ..Sources::default() };
        let next = restore(manifest, &self.builder, &sources).map_err(|error| match error {
            LoadError::State(error) => RegistryError::State(error),
            LoadError::Head { source, .. } => source,
            other => RegistryError::State(StateError::Damaged {
                path: format!("generation {} of model {}", manifest.generation, manifest.model).into(),
                problem: other.to_string(),
            }),
        })?;
        let change = &manifest.change;
        let author = manifest.author.as_ref().map_or("", |author| author.name());
        tracing::info!(
            model = self.name(),
            generation = manifest.generation,
            author,
            ?change,
            "took generation {} from the store",
            manifest.generation
        );
        self.swap(next);
        Ok(())
    }

    /// Looks for a newer generation now. Blocks.
    ///
    /// # Errors
    /// [`RegistryError`]; then what was served before still is.
    pub fn refresh(&self) -> Result<(), RegistryError> {
        match self.is_shared() {
            true => self.catch_up(&mut self.lock_writer(), false),
            false => Ok(()),
        }
    }

    /// Whether a generation, or a later one, is served; looks for it in the store until then if it is not.
    pub async fn reaches(self: &Arc<Self>, generation: u64, until: Instant) -> bool {
        if self.generation() >= generation || !self.is_shared() {
            return self.generation() >= generation;
        }
        let asked_at = Instant::now();
        let look = async {
            let mut refreshed = Arc::clone(&self.replica.refreshed).lock_owned().await;
            // Whoever began to ask since then asked for this request too.
            if refreshed.is_some_and(|at| at > asked_at) {
                return;
            }
            if let Some(at) = *refreshed {
                tokio::time::sleep_until((at + REFRESH_EVERY).into()).await;
            }
            if self.generation() < generation {
                *refreshed = Some(Instant::now());
                let model = Arc::clone(self);
                let look = move || {
                    // What goes wrong is in the log.
                    let _ = model.refresh();
                    // Not before: there is one look at a time, also where nobody waits for it any more.
                    drop(refreshed);
                };
                let _ = tokio::task::spawn_blocking(look).await;
            }
        };
        // Once the time is over, what is there counts.
        let _ = tokio::time::timeout_at(until.into(), look).await;
        self.generation() >= generation
    }

    fn poll(&self) {
        let n_polls = self.replica.n_polls.fetch_add(1, Ordering::Relaxed);
        // What went wrong is in the log and in the metrics, and is tried again.
        let _ = self.catch_up(&mut self.lock_writer(), n_polls % THOROUGH_EVERY == THOROUGH_EVERY - 1);
    }

    /// Brings the metric up to date that says how old what is served may be.
    pub fn observe_lag(&self) {
        let newest_at = *self.replica.newest_at.lock().unwrap_or_else(PoisonError::into_inner);
        self.replica.metrics.lag.set(if self.is_shared() { newest_at.elapsed().as_secs_f64() } else { 0.0 });
    }
}

/// The newest manifest after the one that is served.
fn newer(store: &ModelStore, served: &Writer, is_thorough: bool) -> Result<Option<Manifest>, StateError> {
    let mut newest = None;
    let after = served.highest;
    let mut generation = after;
    loop {
        generation += 1;
        match store.manifest(generation) {
            Ok(None) => break,
            Ok(Some(manifest)) => newest = Some(Ok(manifest)),
            // One after it may be whole.
            Err(error @ (StateError::Damaged { .. } | StateError::Newer { .. })) => newest = Some(Err(error)),
            Err(error) => return Err(error),
        }
    }
    let is_asked = newest.is_some() || is_thorough || store.objects.is_local();
    // Who is alone knows what is there; the highest generation may be a damaged one.
    if !store.is_shared || !is_asked {
        return newest.transpose();
    }
    match (newest, store.manifest(after)) {
        // Whoever went on from here would hide what others were promised.
        (_, Ok(Some(own))) if own.id != served.id => Err(StateError::Unreachable {
            object: store.objects.name(&manifest_path(&store.folder, after)),
            problem:
                "it is not the generation that is served here: the store was put back or changed by hand, and only a \
                      restart takes what it has now"
                    .to_owned(),
        }),
        (Some(newest), _) => newest.map(Some),
        (None, Ok(Some(_))) => Ok(None),
        (None, Err(error)) => Err(error),
        // Generations were removed while this server was behind; or it is not the store that it was.
        (None, Ok(None)) => match store.generations()?.last() {
            Some(&last) if last > after => store.manifest(last),
            _ => Err(StateError::Unreachable {
                object: store.objects.name(&store.folder),
                problem: format!("generation {after} is not there any more, nor a later one"),
            }),
        },
    }
}

/// The thread that looks for newer generations. Dropping it ends it.
#[derive(Debug)]
pub struct Poller {
    // Hung up, it ends the thread.
    _stop: mpsc::Sender<()>,
    _thread: JoinHandle<()>,
}

impl Poller {
    /// Looks after these models, about every `every`: not at the same time as all the other servers.
    ///
    /// # Errors
    /// [`StateError::Io`] if its thread cannot be started.
    pub fn start(models: Vec<Arc<Model>>, every: Duration) -> Result<Self, StateError> {
        let (stop, stopped) = mpsc::channel::<()>();
        // A model ends with its server, which gives its state directory back then, and not when this thread wakes up.
        let models: Vec<Weak<Model>> = models.iter().map(Arc::downgrade).collect();
        let follow = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every.mul_f64(0.75 + random_share() / 2.0))
            {
                models.iter().filter_map(Weak::upgrade).for_each(|model| model.poll());
            }
        };
        let thread = std::thread::Builder::new().name("state-poll".to_owned()).spawn(follow);
        let thread =
            thread.map_err(|source| StateError::Io { path: "the thread that follows the state".into(), source })?;
        Ok(Self { _stop: stop, _thread: thread })
    }
}

/// Somewhere from 0 to 1.
pub(super) fn random_share() -> f64 {
    let mut random = [0; 4];
    // Without randomness they are all alike.
    let _ = getrandom::fill(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}
