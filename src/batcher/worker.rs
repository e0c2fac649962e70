//! The thread that owns a backbone session, and the sessions of the heads.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Backbone, BatchLimits, Rebuild,
    batch::{Group, group},
    device::{self, NoSession, Told},
    job::{Answer, BatchError, HeadRequest, Input, Job, Output, Timing, Wanted},
    lone::{Lone, Occupancy},
    queue::{Nothing, Receiver},
    scorers::TakenScorers,
    turns::Turns,
};
use crate::{
    heads::Scores,
    metrics::{IMAGE_SIZE, ModelMetrics, Phase},
    onnx::{self, Features, OnnxError},
    preprocess::Preprocessor,
    sync::{
        atomic::{AtomicUsize, Ordering},
        thread,
    },
};

/// After a session could not be made, the time until the next try; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the workers of a model share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) n_workers: usize,
    /// Of these, those that have a session.
    pub(super) n_working: Arc<AtomicUsize>,
    pub(super) jobs: Receiver<Job>,
    pub(super) lone: Arc<Lone>,
    pub(super) occupancy: Occupancy,
    pub(super) preprocessor: Preprocessor,
    pub(super) rebuild: Rebuild,
    pub(super) limits: BatchLimits,
    pub(super) metrics: ModelMetrics,
}

pub(super) struct Worker {
    index: usize,
    shared: Shared,
    backbone: Box<dyn Backbone>,
    scorers: TakenScorers,
    /// Whether the session is broken, as far as the last batch could tell.
    is_broken: bool,
    /// Height and width of images that the model can take.
    proved_size: Option<(usize, usize)>,
    told: Told,
    turns: Turns,
    pixels: Vec<f32>,
    logits: Vec<f64>,
}

/// Why a worker stops taking batches.
enum Stop {
    /// There will be no more.
    NoMoreJobs,
    /// Its session is broken.
    Broken,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        backbone: Box<dyn Backbone>,
        proved_size: Option<(usize, usize)>,
        shared: Shared,
    ) -> Self {
        Self {
            index,
            shared,
            backbone,
            scorers: TakenScorers::default(),
            is_broken: false,
            proved_size,
            told: Told::default(),
            turns: Turns::default(),
            pixels: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// Works until the last sender is gone and the queue is empty.
    ///
    /// A panic drops the replies of its batch, which answers them. What panicked, or failed and does not work any more, is not
    /// trusted with another batch: the worker begins anew with new sessions.
    pub(super) fn run(mut self) {
        loop {
            let after_panic = match std::panic::catch_unwind(AssertUnwindSafe(|| self.work())) {
                Ok(Stop::NoMoreJobs) => return,
                Ok(Stop::Broken) => false,
                Err(_) => true,
            };
            let why = if after_panic { "it panicked" } else { "its session is broken" };
            tracing::error!(worker = self.index, "worker {} begins anew: {why}", self.index);
            self.shared.metrics.worker_restarted(after_panic);
            if !self.begin_anew() {
                return;
            }
        }
    }

    fn work(&mut self) -> Stop {
        self.tell_memory();
        let occupancy = self.shared.occupancy.clone();
        while let Some(first) = self.shared.jobs.recv() {
            let _until_answered = occupancy.begin();
            let batch = self.shared.fill(first, &mut self.turns);
            self.process(batch);
            self.tell_memory();
            if self.is_broken {
                return Stop::Broken;
            }
        }
        Stop::NoMoreJobs
    }

    /// Makes new sessions, however often it has to try; says whether there is still something to do for them. What comes
    /// meanwhile waits in the queue, until a try has failed.
    fn begin_anew(&mut self) -> bool {
        self.scorers.clear();
        self.pixels = Vec::new();
        self.backbone = Box::new(NoSession);
        self.tell_memory();
        let (mut counts, mut pause) = (true, FIRST_PAUSE);
        loop {
            let made = std::panic::catch_unwind(AssertUnwindSafe(|| (self.shared.rebuild)()));
            match made.unwrap_or_else(|_| Err("it panicked".into())) {
                Ok(backbone) => {
                    self.backbone = backbone;
                    self.is_broken = false;
                    if !counts {
                        self.set_working(true);
                    }
                    tracing::info!(worker = self.index, "worker {} has a new session", self.index);
                    return true;
                }
                Err(error) => tracing::error!(worker = self.index, %error, "the session could not be made again"),
            }
            if std::mem::take(&mut counts) {
                self.set_working(false);
            }
            if !self.rest(pause) {
                return false;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits, and answers meanwhile what nobody else would; says whether there may be more of it.
    fn rest(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let now = Instant::now();
            if until <= now {
                return true;
            }
            if self.shared.n_working.load(Ordering::Acquire) > 0 {
                // They are others' to take; and others may be gone a moment later.
                thread::sleep((until - now).min(FIRST_PAUSE));
                continue;
            }
            match self.shared.jobs.recv_until(until.min(now + FIRST_PAUSE)) {
                Ok(job) => job.fail(BatchError::Unavailable),
                Err(Nothing::Yet) => {}
                Err(Nothing::Anymore) => return false,
            }
        }
    }

    fn tell_memory(&mut self) {
        self.told.tell(self.backbone.device_memory(), &self.shared.metrics);
    }

    fn set_working(&self, is_working: bool) {
        let Shared { n_working, metrics, .. } = &self.shared;
        if is_working {
            n_working.fetch_add(1, Ordering::AcqRel);
            metrics.workers.inc();
        } else {
            n_working.fetch_sub(1, Ordering::AcqRel);
            metrics.workers.dec();
        }
    }

    /// Answers a group on which the model failed, and looks whether the session still works: on black images of a size with which
    /// it has worked, so that no caller's image costs the others a session; of the group's own where there is none yet. If it works,
    /// and fails on black images of the group's size again, that size is what the model cannot take.
    fn fail(&mut self, group: Group, error: OnnxError) {
        let mut wrong_size = match (&error, group.size) {
            (OnnxError::ImageShape { expected, .. }, Some(_)) => Some(format!("it takes {expected}")),
            _ => None,
        };
        if error.is_of_the_session() {
            // A head's session is made again when it is needed.
            self.scorers.clear();
            if let Some(size) = group.size {
                let (height, width) = self.proved_size.unwrap_or(size);
                self.is_broken = self.fails_on_black(group.n, (height, width));
                let may_be_too_odd = !self.is_broken && size != (height, width) && !error.is_out_of_memory();
                if may_be_too_odd && self.fails_on_black(group.n, size) {
                    wrong_size = Some(format!("it failed on them, and not on {height} x {width}"));
                }
            }
        }
        match (wrong_size, group.size) {
            (Some(reason), Some((height, width))) => {
                tracing::debug!(%error, batch_size = group.n, "the model does not take images of {height} x {width}");
                let error = BatchError::ImageSize { index: 0, height, width, reason };
                for job in group.jobs {
                    self.shared.metrics.image_error(IMAGE_SIZE);
                    job.fail(error.clone());
                }
            }
            _ => fail_all(group, error),
        }
    }

    /// Runs black images: two of them, unless there was one. A backbone may have a session for single images.
    fn fails_on_black(&mut self, n: usize, (height, width): (usize, usize)) -> bool {
        let n = n.min(2);
        let black = vec![0.0; n * 3 * height * width];
        device::run(&mut *self.backbone, &black, n, (height, width), &self.shared.metrics).is_err()
    }

    fn process(&mut self, batch: Vec<Job>) {
        self.scorers.forget_dead();
        for group in group(batch) {
            self.process_group(group);
        }
    }

    fn process_group(&mut self, group: Group) {
        let start = Instant::now();
        self.shared.metrics.batch_size.observe(group.n as f64);
        for job in &group.jobs {
            self.shared
                .metrics
                .phase(Phase::Queue)
                .observe(start.saturating_duration_since(job.queued_at).as_secs_f64());
        }
        let (features, backbone_time) = match self.features(&group) {
            Ok(features) => (features, start.elapsed()),
            Err(error) => return self.fail(group, error),
        };
        if group.size.is_some() {
            self.proved_size = group.size;
            self.shared.metrics.phase(Phase::Backbone).observe(backbone_time.as_secs_f64());
        }
        let head_start = Instant::now();
        let answers = match self.answers(&group, &features) {
            Ok(answers) => answers,
            Err(error) => return self.fail(group, error),
        };
        let head_time = head_start.elapsed();
        self.shared.metrics.phase(Phase::Head).observe(head_time.as_secs_f64());
        for (job, rows) in group.jobs.into_iter().zip(answers) {
            let timing = Timing {
                preprocess: job.preprocess,
                queue: start.saturating_duration_since(job.queued_at),
                backbone: backbone_time,
                head: head_time,
            };
            // The caller may have hung up meanwhile.
            let _ = job.reply.send(rows.map(|rows| Answer { rows, timing }));
        }
    }

    fn features(&mut self, group: &Group) -> Result<Features, OnnxError> {
        let inputs = group.jobs.iter().map(|job| &job.input);
        match group.size {
            None => {
                let (mut values, mut feature_dim) = (Vec::new(), 0);
                for input in inputs {
                    if let Input::Features { rows, dim } = input {
                        values.extend_from_slice(rows);
                        feature_dim = *dim;
                    }
                }
                Features::from_host(values, group.n, feature_dim)
            }
            Some((height, width)) => {
                let (size, metrics) = ((height, width), &self.shared.metrics);
                if let [Job { input: Input::Pixels { pixels, .. }, .. }] = group.jobs.as_slice() {
                    let is_alone = self.shared.occupancy.is_of_one();
                    if let Some(features) = self.shared.lone.run(pixels, size, is_alone, metrics) {
                        return Ok(features);
                    }
                    return device::run(&mut *self.backbone, pixels, 1, size, metrics);
                }
                self.pixels.clear();
                for input in inputs {
                    if let Input::Pixels { pixels, .. } = input {
                        self.pixels.extend_from_slice(pixels);
                    }
                }
                device::run(&mut *self.backbone, &self.pixels, group.n, size, metrics)
            }
        }
    }

    /// The outputs of each job. An `Err` inside is one job's own, an `Err` outside that of the whole group.
    fn answers(
        &mut self,
        group: &Group,
        features: &Features,
    ) -> Result<Vec<Result<Vec<Output>, BatchError>>, OnnxError> {
        let pools = group.jobs.iter().flat_map(|job| heads_of(&job.wanted)).map(|head| &head.scorers);
        let products = self.scorers.products(pools, features, self.index, self.shared.jobs.n_idle())?;
        let wants_features = group.jobs.iter().any(|job| matches!(*job.wanted, Wanted::Features));
        let host_features = if wants_features { Some(features.to_host()?) } else { None };

        let mut first_row = 0;
        let mut answers = Vec::with_capacity(group.jobs.len());
        for job in &group.jobs {
            let rows = first_row..first_row + job.n;
            first_row = rows.end;
            let output = |(offset, row): (usize, usize)| match &*job.wanted {
                Wanted::Features => {
                    let dim = features.feature_dim();
                    let values = host_features.as_deref().and_then(|values| values.get(row * dim..(row + 1) * dim));
                    let values = values.ok_or(BatchError::WorkerLost)?;
                    match values.iter().all(|value| value.is_finite()) {
                        true => Ok(Output::Features(values.to_vec())),
                        false => Err(BatchError::NotFinite { row: offset }),
                    }
                }
                Wanted::Predictions(heads) => heads
                    .iter()
                    .map(|head| {
                        let product = products.get(&head.scorers.weights().digest());
                        let scores = product.and_then(|scores| row_of(scores, row)).ok_or(BatchError::WorkerLost)?;
                        let best = head.scoring.predict(scores, head.top_k, &mut self.logits);
                        best.ok_or(BatchError::NotFinite { row: offset })
                    })
                    .collect::<Result<_, _>>()
                    .map(Output::Predictions),
            };
            answers.push(rows.enumerate().map(output).collect());
        }
        Ok(answers)
    }
}

fn heads_of(wanted: &Wanted) -> &[HeadRequest] {
    match wanted {
        Wanted::Features => &[],
        Wanted::Predictions(heads) => heads,
    }
}

fn row_of(scores: &onnx::Scores, row: usize) -> Option<Scores<'_>> {
    let raw = scores.raw.get(row * scores.num_classes..(row + 1) * scores.num_classes)?;
    let squared_norm = match &scores.squared_norm {
        Some(norms) => *norms.get(row)?,
        None => 0.0,
    };
    Some(Scores { raw, squared_norm })
}

fn fail_all(group: Group, error: OnnxError) {
    tracing::error!(%error, batch_size = group.n, "the model failed on a batch");
    let source = Arc::new(error);
    for job in group.jobs {
        job.fail(BatchError::Model { batch_size: group.n, source: Arc::clone(&source) });
    }
}
