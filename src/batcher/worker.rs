//! The thread that owns a backbone session, and the sessions of the heads.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::Receiver;

use super::{
    BatchLimits,
    job::{Answer, BatchError, HeadRequest, Input, Job, Output, Timing, Wanted},
    scorers::{ScorerPool, TakenScorers},
};
use crate::{
    heads::Scores,
    metrics::{ModelMetrics, Phase},
    onnx::{self, Features, OnnxError},
};

/// What turns pixels into features: an ONNX session, or a stand-in that a test controls.
pub trait Backbone: Send {
    /// Features `[n, D]` of `n` images `[n, 3, height, width]`.
    ///
    /// # Errors
    /// Those of the session.
    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError>;
}

impl Backbone for onnx::Backbone {
    fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
        onnx::Backbone::run(self, pixels, n, height, width)
    }
}

pub(super) struct Worker {
    index: usize,
    n_workers: usize,
    backbone: Box<dyn Backbone>,
    scorers: TakenScorers,
    jobs: Receiver<Job>,
    limits: BatchLimits,
    metrics: ModelMetrics,
    pixels: Vec<f32>,
    logits: Vec<f64>,
}

/// Jobs whose inputs go through together.
struct Group {
    jobs: Vec<Job>,
    n: usize,
    /// Height and width of the pixels; `None` for feature rows.
    size: Option<(usize, usize)>,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        n_workers: usize,
        backbone: Box<dyn Backbone>,
        jobs: Receiver<Job>,
        limits: BatchLimits,
        metrics: ModelMetrics,
    ) -> Self {
        let (scorers, pixels, logits) = (TakenScorers::default(), Vec::new(), Vec::new());
        Self { index, n_workers, backbone, scorers, jobs, limits, metrics, pixels, logits }
    }

    /// Works until the last sender is gone and the queue is empty.
    pub(super) fn run(mut self) {
        while let Ok(first) = self.jobs.recv() {
            let batch = fill(&self.jobs, first, self.limits, self.n_workers);
            // A panic drops the replies of the batch, which answers them; the next batch finds the worker here.
            let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| self.process(batch)));
            if outcome.is_err() {
                tracing::error!(worker = self.index, "a batch panicked");
            }
        }
    }

    fn process(&mut self, batch: Vec<Job>) {
        self.scorers.forget_dead();
        for group in group(batch) {
            self.process_group(group);
        }
    }

    fn process_group(&mut self, group: Group) {
        let start = Instant::now();
        self.metrics.batch_size.observe(group.n as f64);
        for job in &group.jobs {
            self.metrics.phase(Phase::Queue).observe(start.saturating_duration_since(job.queued_at).as_secs_f64());
        }
        let (features, backbone_time) = match self.features(&group) {
            Ok(features) => (features, start.elapsed()),
            Err(error) => return fail_all(group, error),
        };
        if group.size.is_some() {
            self.metrics.phase(Phase::Backbone).observe(backbone_time.as_secs_f64());
        }
        let head_start = Instant::now();
        let answers = match self.answers(&group, &features) {
            Ok(answers) => answers,
            Err(error) => return fail_all(group, error),
        };
        let head_time = head_start.elapsed();
        self.metrics.phase(Phase::Head).observe(head_time.as_secs_f64());
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
                if let [Job { input: Input::Pixels { pixels, .. }, .. }] = group.jobs.as_slice() {
                    return self.backbone.run(pixels, 1, height, width);
                }
                self.pixels.clear();
                for input in inputs {
                    if let Input::Pixels { pixels, .. } = input {
                        self.pixels.extend_from_slice(pixels);
                    }
                }
                self.backbone.run(&self.pixels, group.n, height, width)
            }
        }
    }

    /// The outputs of each job. An `Err` inside is one job's own, an `Err` outside that of the whole group.
    fn answers(
        &mut self,
        group: &Group,
        features: &Features,
    ) -> Result<Vec<Result<Vec<Output>, BatchError>>, OnnxError> {
        let mut products: Vec<(&Arc<ScorerPool>, onnx::Scores)> = Vec::new();
        for head in group.jobs.iter().flat_map(|job| heads_of(&job.wanted)) {
            if !products.iter().any(|(pool, _)| same_weights(pool, &head.scorers)) {
                let scores = self.scorers.get(&head.scorers, self.index)?.run(features)?;
                products.push((&head.scorers, scores));
            }
        }
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
                    values.map(|values| Output::Features(values.to_vec())).ok_or(BatchError::WorkerLost)
                }
                Wanted::Predictions(heads) => heads
                    .iter()
                    .map(|head| {
                        let product = products.iter().find(|(pool, _)| same_weights(pool, &head.scorers));
                        let scores =
                            product.and_then(|(_, scores)| row_of(scores, row)).ok_or(BatchError::WorkerLost)?;
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

/// The rest of a batch: an even share of what waits, so that idle workers have work too, up to the maximum; or what comes
/// within the delay, if there is one. Jobs that nobody waits for any more are skipped.
///
/// Why a share? On the CPU two batches of four on two cores end sooner than one batch of eight on one.
fn fill(jobs: &Receiver<Job>, first: Job, limits: BatchLimits, n_workers: usize) -> Vec<Job> {
    let share = (jobs.len() + 1).div_ceil(n_workers.max(1)).min(limits.max_batch_size);
    let target = if limits.max_queue_delay > Duration::ZERO { limits.max_batch_size } else { share };
    let until = first.queued_at + limits.max_queue_delay;
    let mut batch = Vec::with_capacity(target);
    let mut n = 0;
    let mut next = Some(first);
    while let Some(job) = next {
        if let Some(mut job) = job.still_wanted(Instant::now()) {
            // It waits no longer: its places are the next one's.
            job.place = None;
            n += job.n;
            batch.push(job);
        }
        next = match n {
            n if n >= target => None,
            // What already waits comes first, whatever the time.
            _ => jobs.try_recv().ok().or_else(|| jobs.recv_deadline(until).ok()),
        };
    }
    batch
}

/// Splits a batch by what can go through together: feature rows, and pixels of equal size.
fn group(batch: Vec<Job>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(1);
    for job in batch {
        let size = match &job.input {
            Input::Pixels { height, width, .. } => Some((*height, *width)),
            Input::Features { .. } => None,
            // The decode pool sends nothing undecoded on.
            Input::Undecoded => continue,
        };
        match groups.iter_mut().find(|group| group.size == size) {
            Some(group) => {
                group.n += job.n;
                group.jobs.push(job);
            }
            None => groups.push(Group { n: job.n, jobs: vec![job], size }),
        }
    }
    groups
}

fn heads_of(wanted: &Wanted) -> &[HeadRequest] {
    match wanted {
        Wanted::Features => &[],
        Wanted::Predictions(heads) => heads,
    }
}

fn same_weights(a: &ScorerPool, b: &ScorerPool) -> bool {
    a.weights().digest() == b.weights().digest()
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
