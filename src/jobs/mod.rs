//! Fits and evaluations in the background of a server.
//!
//! ```text
//! submit -> record on the disk -> queue (bounded) =thread= worker: a thread at low priority fits -> head file, record
//!                                                                                              -> publish, if asked to
//! ```
//!
//! A fit is a record in the state directory from the moment it was accepted, and an operator sees it in the same form
//! whether it waits, runs or ended before the last restart. What a fit reads is held until it has ended: its feature sets
//! cannot be deleted, its base is the version that it was accepted with.

mod error;
mod evaluate;
mod job;
mod priority;
mod record;
mod request;
mod worker;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub use error::JobError;
pub use evaluate::HeadEvaluation;
pub use job::FitJob;
pub use record::{FitProgress, FitRecord, FitState, FitTiming, PublishPolicy, ReportSummary, ValidationChoice};
pub use request::FitRequest;

use self::request::Inputs;
use crate::{
    fit::Engine,
    heads::{Digest, HeadKind},
    metrics::{FitMetrics, Metrics},
    registry::{Author, Model, StateError},
};

/// Finished fits of a model that are kept.
const FINISHED_KEPT: usize = 200;
/// What a fit says that was ended by the end of the server.
const INTERRUPTED: &str = "the server stopped while it ran";

/// Every method.
const METHODS: [HeadKind; 5] = [HeadKind::Joint, HeadKind::Crt, HeadKind::Lws, HeadKind::Ncm, HeadKind::TauNorm];

/// How fits are run.
#[derive(Clone, Copy, Debug)]
pub struct FitOptions {
    /// Fits that may wait, of all models together.
    pub queue_capacity: usize,
    /// Fits that run at once.
    pub concurrency: usize,
    /// Threads of the engine of each.
    pub threads: usize,
    /// Bytes that an engine may take on a GPU.
    pub cuda_memory_limit_bytes: Option<u64>,
}

/// The fits of all models, and the threads that run them.
#[derive(Debug)]
pub struct FitJobs {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    options: FitOptions,
    metrics: Arc<Metrics>,
    /// Held by who accepts a fit, until that is in the queue. The locks below are never held while the disk is waited for: the
    /// threads that speak HTTP take them too.
    accepting: Mutex<()>,
    queue: Mutex<VecDeque<Arc<FitJob>>>,
    /// Something is in the queue, or there will be nothing any more.
    wake: Condvar,
    is_stopping: AtomicBool,
    models: Mutex<BTreeMap<String, ModelJobs>>,
    evaluations: AtomicUsize,
    wrap: WrapEngine,
}

type Wrap = dyn Fn(Box<dyn Engine>) -> Box<dyn Engine> + Send + Sync;

/// Puts something around each engine.
struct WrapEngine(Box<Wrap>);

impl std::fmt::Debug for WrapEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WrapEngine").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct ModelJobs {
    /// In the order in which they were asked for.
    jobs: Vec<Arc<FitJob>>,
    next_number: u64,
    metrics: FitMetrics,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FitJobs {
    /// No fits, and no threads yet.
    pub fn new(options: FitOptions, metrics: Arc<Metrics>) -> Self {
        Self::with_engines(options, metrics, |engine| engine)
    }

    /// Like [`new`](Self::new), with something put around each engine: what a test holds, or lets fail.
    pub fn with_engines(
        options: FitOptions,
        metrics: Arc<Metrics>,
        wrap: impl Fn(Box<dyn Engine>) -> Box<dyn Engine> + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            options,
            metrics,
            accepting: Mutex::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            is_stopping: AtomicBool::new(false),
            models: Mutex::default(),
            evaluations: AtomicUsize::new(0),
            wrap: WrapEngine(Box::new(wrap)),
        };
        Self { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// Reads the fits of earlier runs, and starts the threads. Those that had not ended have failed.
    ///
    /// # Errors
    /// [`StateError::Io`] if records cannot be read or threads not be started.
    pub fn start(&self, models: &[Arc<Model>]) -> Result<(), StateError> {
        for model in models {
            let metrics = self.shared.metrics.of_fits(model.name());
            let ends = FitState::ENDS.map(FitState::as_str);
            self.shared.metrics.announce_fits(model.name(), &METHODS.map(HeadKind::as_str), &ends);
            let jobs = restored(model)?;
            let next_number = jobs.iter().map(|job| job.record().number + 1).max().unwrap_or(1);
            let of_model = ModelJobs { jobs, next_number, metrics };
            lock(&self.shared.models).insert(model.name().to_owned(), of_model);
        }
        let mut threads = lock(&self.threads);
        for number in 0..self.shared.options.concurrency {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name(format!("fits-{number}")).spawn(move || {
                while let Some(job) = shared.next() {
                    worker::run(&shared, &job);
                }
            });
            threads.push(thread.map_err(|source| StateError::Io { path: "the threads of fits".into(), source })?);
        }
        Ok(())
    }

    /// Accepts a fit.
    ///
    /// # Errors
    /// [`JobError`]; then there is no fit.
    pub fn submit(
        &self,
        model: &Arc<Model>,
        author: &Author,
        request: &FitRequest,
    ) -> Result<Arc<FitRecord>, JobError> {
        let shared = &self.shared;
        let (inputs, base) = Inputs::of(model, request)?;
        let files = model.fit_files()?.clone();
        // So that there are never more in the queue than may be, and no two of one number.
        let _accepting = lock(&shared.accepting);
        if shared.is_stopping() {
            return Err(JobError::Stopping);
        }
        if lock(&shared.queue).len() >= shared.options.queue_capacity {
            return Err(JobError::QueueFull { capacity: shared.options.queue_capacity });
        }
        let (number, id) = match lock(&shared.models).get(model.name()) {
            Some(of_model) => (of_model.next_number, new_id(of_model)),
            None => return Err(StateError::Absent.into()),
        };
        let record = FitRecord {
            format: record::FORMAT.to_owned(),
            number,
            id,
            author: Some(author.clone()),
            method: request.method,
            publish_as: request.head.clone(),
            base,
            feature_set: request.feature_set.clone(),
            validation: request.validation.clone(),
            publish: request.publish,
            params: request.params.clone(),
            state: FitState::Queued,
            progress: None,
            report: None,
            summary: None,
            warnings: Vec::new(),
            error: None,
            digest: None,
            head: None,
            publish_reason: None,
            timing: FitTiming { queued_at: job::now(), ..FitTiming::default() },
        };
        let job = Arc::new(FitJob::queued(Arc::clone(model), files, record, inputs)?);
        let record = job.record();
        let mut queue = lock(&shared.queue);
        if shared.is_stopping() {
            drop(queue);
            job.remove();
            return Err(JobError::Stopping);
        }
        if let Some(of_model) = lock(&shared.models).get_mut(model.name()) {
            of_model.next_number = number + 1;
            of_model.metrics.queued.inc();
            of_model.jobs.push(Arc::clone(&job));
        }
        queue.push_back(job);
        shared.wake.notify_one();
        Ok(record)
    }

    /// The fit of that id.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn get(&self, model: &Model, id: &str) -> Result<Arc<FitJob>, JobError> {
        let models = lock(&self.shared.models);
        let mut jobs = models.get(model.name()).into_iter().flat_map(|of_model| &of_model.jobs);
        let found = jobs.find(|job| job.record().id == id).cloned();
        found.ok_or_else(|| JobError::NotFound { id: id.to_owned() })
    }

    /// The fits of a model, the newest first.
    pub fn list(&self, model: &Model) -> Vec<Arc<FitJob>> {
        let models = lock(&self.shared.models);
        models.get(model.name()).map_or_else(Vec::new, |of_model| of_model.jobs.iter().rev().cloned().collect())
    }

    /// Cancels a fit: at once if it waits, in a moment if it runs.
    ///
    /// # Errors
    /// [`JobError::Finished`]; then nothing has changed.
    pub fn cancel(&self, job: &FitJob) -> Result<(), JobError> {
        if let Some(inputs) = self.shared.withdraw(job) {
            drop(inputs);
            self.shared.end(job, FitState::Cancelled, |_| ());
            return Ok(());
        }
        let record = job.record();
        if record.state.is_finished() {
            return Err(JobError::Finished { id: record.id.clone(), state: record.state });
        }
        match job.ask_to_end() {
            true => Ok(()),
            false => Err(JobError::Finished { id: record.id.clone(), state: record.state }),
        }
    }

    /// Ends all that waits or runs, and accepts nothing more. Does not wait for what runs.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// After [`stop`](Self::stop): waits until nothing runs, but no longer than this.
    pub fn wait(&self, limit: Duration) {
        let start = Instant::now();
        let is_over = || self.shared.evaluations.load(Ordering::Acquire) == 0;
        while !(is_over() && lock(&self.threads).iter().all(JoinHandle::is_finished)) {
            if start.elapsed() >= limit {
                tracing::warn!("a fit or an evaluation did not end in time");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for FitJobs {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// An id that no other fit of the model has.
fn new_id(of_model: &ModelJobs) -> String {
    let mut bytes = of_model.next_number.to_le_bytes();
    // Without randomness the number alone tells fits apart.
    let _ = getrandom::fill(&mut bytes);
    let mut id = format!("fit_{:016x}", u64::from_le_bytes(bytes));
    while of_model.jobs.iter().any(|job| job.record().id == id) {
        id = format!("fit_{}", &Digest::of(id.as_bytes()).to_hex()[..16]);
    }
    id
}

/// The fits of earlier runs in their order. A record that cannot be read is named in the log and left where it is.
fn restored(model: &Arc<Model>) -> Result<Vec<Arc<FitJob>>, StateError> {
    let Ok(files) = model.fit_files() else { return Ok(Vec::new()) };
    let mut jobs = Vec::new();
    for path in files.records()? {
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        let record = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
        let record = record.and_then(|record: FitRecord| match (record.format.as_str(), path.file_stem()) {
            (record::FORMAT, Some(stem)) if stem == record.id.as_str() => Ok(record),
            (record::FORMAT, _) => Err(format!("it is that of fit `{}`", record.id)),
            (format, _) => Err(format!("its format is `{format}`, and this version reads `{}`", record::FORMAT)),
        });
        match record {
            Ok(record) => {
                let job = FitJob::restored(Arc::clone(model), files.clone(), record);
                if !job.record().state.is_finished() {
                    job.change(interrupted);
                }
                jobs.push(Arc::new(job));
            }
            Err(problem) => tracing::error!(
                path = %path.display(),
                "the fit in {} is not available: {problem}", path.display()
            ),
        }
    }
    jobs.sort_by_key(|job| job.record().number);
    Ok(jobs)
}

fn interrupted(record: &mut FitRecord) {
    record.state = FitState::Failed;
    record.error = Some(INTERRUPTED.to_owned());
    record.timing.finished_at = Some(job::now());
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// The fit that has waited longest; `None` when there will be no more.
    fn next(&self) -> Option<Arc<FitJob>> {
        let mut queue = lock(&self.queue);
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(job) = queue.pop_front() {
                return Some(job);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a fit out of the queue; `None` if it is not there any more.
    fn withdraw(&self, job: &FitJob) -> Option<Inputs> {
        let mut queue = lock(&self.queue);
        let place = queue.iter().position(|waiting| std::ptr::eq(&**waiting, job))?;
        queue.remove(place)?.take_inputs()
    }

    fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        let waiting: Vec<_> = lock(&self.queue).drain(..).collect();
        self.wake.notify_all();
        for job in waiting {
            drop(job.take_inputs());
            self.end(&job, FitState::Failed, interrupted);
        }
    }

    fn metrics_of(&self, model: &Model) -> FitMetrics {
        self.metrics.of_fits(model.name())
    }

    /// Writes down that a fit has ended. What it read is free already: whoever sees the end may delete it.
    fn end(&self, job: &FitJob, state: FitState, edit: impl FnOnce(&mut FitRecord)) {
        let (mut was, mut method) = (FitState::Queued, None);
        job.change(|record| {
            was = record.state;
            method = Some(record.method);
            record.state = state;
            record.progress = job.progress();
            record.timing.finished_at = Some(job::now());
            edit(record);
        });
        let metrics = self.metrics_of(&job.model);
        match was {
            FitState::Queued => metrics.queued.dec(),
            _ => metrics.running.dec(),
        }
        if let Some(method) = method {
            self.metrics.fit_ended(job.model.name(), method.as_str(), state.as_str());
        }
        self.forget_old(&job.model);
    }

    /// Forgets the oldest of the finished fits if there are too many.
    fn forget_old(&self, model: &Model) {
        let mut models = lock(&self.models);
        let Some(of_model) = models.get_mut(model.name()) else { return };
        let is_finished = |job: &Arc<FitJob>| job.record().state.is_finished();
        let n_finished = of_model.jobs.iter().filter(|job| is_finished(job)).count();
        let mut n_old = n_finished.saturating_sub(FINISHED_KEPT);
        let mut old = Vec::new();
        of_model.jobs.retain(|job| {
            let goes = n_old > 0 && is_finished(job);
            if goes {
                n_old -= 1;
                old.push(Arc::clone(job));
            }
            !goes
        });
        drop(models);
        old.iter().for_each(|job| job.remove());
    }
}
