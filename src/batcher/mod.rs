//! From the bytes of a request to its answer: admission, decoding, batching.
//!
//! ```text
//! Batcher (async) --admit--> queue --> workers (threads, one session each): decode, backbone, heads --reply--> Batcher
//!                     |                   ^
//!                     +--> decode pool ---+   where the workers are fewer than the cores
//! ```
//!
//! * Every image holds a place from admission until a worker takes it; places are counted, so the queue has one bound,
//!   in images, for all that waits. When there is none left the request is refused at once.
//! * With a worker for each core the workers decode what they take: a pool of threads beside them would only compete for
//!   the cores, and every image would go through one more queue. A GPU has fewer workers, which must not decode.
//! * A worker takes what waits, up to its share and the maximum. Requests for different heads, taus and versions are in
//!   one batch: the backbone runs once, each distinct matrix product once, and only the `O(C)` part is each request's own.
//! * Images that come one at a time may have a session of more threads, if the model has one.
//! * A batch that does not fit a device's memory goes through in halves.
//! * A worker that panics, or whose session fails and does not work any more, begins anew with new sessions; while none
//!   can be made it takes nothing, and without any worker left the model is not available.
//! * A caller that hung up has dropped its reply: its images are skipped wherever they are.

mod backbone;
mod batch;
mod decode_pool;
mod device;
#[cfg(all(test, feature = "shuttle"))]
mod interleavings;
mod job;
mod lone;
mod queue;
mod scorers;
mod turns;
mod worker;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

pub use backbone::{Backbone, Rebuild};
pub use decode_pool::DecodePool;
pub use job::{BatchError, HeadRequest, Output, Timing, Wanted};
pub use lone::{Backbones, Occupancy};
pub use scorers::ScorerPool;

use crate::{
    metrics::ModelMetrics,
    preprocess::Preprocessor,
    sync::{
        atomic::{AtomicUsize, Ordering},
        thread,
    },
};
use job::{Answer, Input, Job};
use lone::Lone;
use queue::Sender;
use worker::{Shared, Worker};

/// Feature rows in one job: few enough to share the workers fairly, many enough for the matrix product.
const FEATURE_ROWS_PER_JOB: usize = 64;

/// The bounds of a batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Images that may wait at once.
    pub queue_capacity: usize,
    /// Images in one batch.
    pub max_batch_size: usize,
    /// How long the first image of a batch waits for others.
    pub max_queue_delay: Duration,
}

/// What a caller asks of a model: how its inputs come, what it wants, and until when.
#[derive(Debug)]
pub enum Inputs {
    /// Encoded images.
    Images(Vec<Bytes>),
    /// Feature rows, `[n, D]` in row-major order.
    Features {
        /// The values.
        rows: Vec<f32>,
        /// How many rows.
        n: usize,
    },
}

impl Inputs {
    /// How many places in the queue they take.
    pub fn len(&self) -> usize {
        match self {
            Self::Images(images) => images.len(),
            Self::Features { n, .. } => *n,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The outputs of a request, in the order of its inputs.
#[derive(Debug)]
pub struct Outputs {
    /// One for each image or row.
    pub rows: Vec<Output>,
    /// The longest that any of them spent in each phase.
    pub timing: Timing,
}

impl Outputs {
    /// Of all rows and heads.
    pub(crate) fn n_predictions(&self) -> usize {
        let of_row = |output: &Output| match output {
            Output::Predictions(by_head) => by_head.iter().map(Vec::len).sum(),
            Output::Features(_) => 0,
        };
        self.rows.iter().map(of_row).sum()
    }
}

/// The way into a model. Cheap to clone; the workers end when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Batcher {
    places: Arc<Semaphore>,
    limits: BatchLimits,
    queue: Sender<Job>,
    decode_pool: Option<DecodePool>,
    preprocessor: Preprocessor,
    metrics: ModelMetrics,
    n_workers: usize,
    n_working: Arc<AtomicUsize>,
}

impl Batcher {
    /// Starts one worker thread for each of `backbones`, the one for lone images aside; `rebuild` makes another one for a worker
    /// whose own is broken. Without a decode pool the workers decode.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn start(
        backbones: Backbones,
        rebuild: Rebuild,
        preprocessor: Preprocessor,
        decode_pool: Option<DecodePool>,
        limits: BatchLimits,
        metrics: ModelMetrics,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = queue::queue();
        let n_workers = backbones.each.len();
        let n_working = Arc::new(AtomicUsize::new(n_workers));
        metrics.workers.set(i64::try_from(n_workers).unwrap_or(i64::MAX));
        let shared = Shared {
            n_workers,
            n_working: Arc::clone(&n_working),
            jobs,
            lone: Arc::new(Lone::new(backbones.lone)),
            occupancy: backbones.occupancy,
            preprocessor: preprocessor.clone(),
            rebuild,
            limits,
            metrics: metrics.clone(),
        };
        metrics.queue_capacity.set(i64::try_from(limits.queue_capacity).unwrap_or(i64::MAX));
        for (index, backbone) in backbones.each.into_iter().enumerate() {
            let worker = Worker::new(index, backbone, backbones.image_size, shared.clone());
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || worker.run())?;
        }
        let places = Arc::new(Semaphore::new(limits.queue_capacity));
        Ok(Self { places, limits, queue, decode_pool, preprocessor, metrics, n_workers, n_working })
    }

    /// How many workers, and so sessions, there are.
    pub fn n_workers(&self) -> usize {
        self.n_workers
    }

    /// Whether any of them has a session that works.
    pub fn is_working(&self) -> bool {
        self.n_working.load(Ordering::Acquire) > 0
    }

    /// How images become tensors.
    pub fn preprocessor(&self) -> &Preprocessor {
        &self.preprocessor
    }

    /// The bounds.
    pub fn limits(&self) -> BatchLimits {
        self.limits
    }

    /// Images that have been admitted and are not in a batch yet.
    pub fn queue_depth(&self) -> usize {
        self.limits.queue_capacity.saturating_sub(self.places.available_permits())
    }

    /// Brings the queue depth gauge up to date.
    pub fn observe_queue(&self) {
        self.metrics.queue_depth.set(i64::try_from(self.queue_depth()).unwrap_or(i64::MAX));
    }

    /// Runs a request through: all of its inputs are admitted, or none.
    ///
    /// # Errors
    /// [`BatchError`]: no session works, the queue is full or could never hold so many, an image is unreadable, the deadline has passed, or a
    /// worker failed.
    pub async fn run(&self, inputs: Inputs, wanted: Wanted, deadline: Instant) -> Result<Outputs, BatchError> {
        let replies = self.submit(inputs, wanted, deadline)?;
        match tokio::time::timeout_at(deadline.into(), collect(replies)).await {
            Ok(outputs) => outputs,
            Err(_) => Err(BatchError::DeadlineExceeded),
        }
    }

    /// Admits a request and sends its parts on their way.
    fn submit(&self, inputs: Inputs, wanted: Wanted, deadline: Instant) -> Result<Vec<Reply>, BatchError> {
        let mut places = self.admit(inputs.len())?;
        let wanted = Arc::new(wanted);
        let mut place_for = |n: usize| places.split(n).ok_or(BatchError::WorkerLost);
        let mut replies = Vec::new();
        match inputs {
            Inputs::Images(images) => {
                for image in images {
                    let (reply, answer) = oneshot::channel();
                    let job = self.job(Input::Encoded(image), 1, &wanted, reply, place_for(1)?, deadline);
                    match &self.decode_pool {
                        Some(pool) => pool.decode(job, &self.preprocessor, &self.queue, &self.metrics)?,
                        None => self.queue.send(job).map_err(|_| BatchError::WorkerLost)?,
                    }
                    replies.push(answer);
                }
            }
            Inputs::Features { rows, n } => {
                let dim = rows.len() / n.max(1);
                for chunk in rows.chunks(dim.max(1) * FEATURE_ROWS_PER_JOB) {
                    let n_rows = chunk.len() / dim.max(1);
                    let (reply, answer) = oneshot::channel();
                    let input = Input::Features { rows: chunk.to_vec(), dim };
                    let job = self.job(input, n_rows, &wanted, reply, place_for(n_rows)?, deadline);
                    self.queue.send(job).map_err(|_| BatchError::WorkerLost)?;
                    replies.push(answer);
                }
            }
        }
        Ok(replies)
    }

    fn admit(&self, n: usize) -> Result<OwnedSemaphorePermit, BatchError> {
        if !self.is_working() {
            return Err(BatchError::Unavailable);
        }
        let capacity = self.limits.queue_capacity;
        let too_many = BatchError::TooManyImages { capacity };
        let wanted = match u32::try_from(n) {
            Ok(wanted) if n <= capacity => wanted,
            _ => return Err(too_many),
        };
        Arc::clone(&self.places).try_acquire_many_owned(wanted).map_err(|error| match error {
            TryAcquireError::NoPermits => BatchError::QueueFull { capacity },
            TryAcquireError::Closed => BatchError::WorkerLost,
        })
    }

    fn job(
        &self,
        input: Input,
        n: usize,
        wanted: &Arc<Wanted>,
        reply: oneshot::Sender<Result<Answer, BatchError>>,
        place: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Job {
        Job {
            input,
            n,
            wanted: Arc::clone(wanted),
            reply,
            place: Some(place),
            deadline,
            preprocess: Duration::ZERO,
            queued_at: Instant::now(),
        }
    }
}

/// Where the answer to one part of a request arrives.
type Reply = oneshot::Receiver<Result<Answer, BatchError>>;

/// Waits for every part of a request. Dropping the rest of `replies` at the first error is what cancels the other parts.
async fn collect(replies: Vec<Reply>) -> Result<Outputs, BatchError> {
    let mut outputs = Outputs { rows: Vec::with_capacity(replies.len()), timing: Timing::default() };
    for (index, reply) in replies.into_iter().enumerate() {
        let answer = reply.await.map_err(|_| BatchError::WorkerLost)?.map_err(|error| match error {
            BatchError::Image { source, .. } => BatchError::Image { index, source },
            BatchError::ImageSize { height, width, reason, .. } => {
                BatchError::ImageSize { index, height, width, reason }
            }
            BatchError::NotFinite { row } => BatchError::NotFinite { row: outputs.rows.len() + row },
            other => other,
        })?;
        outputs.rows.extend(answer.rows);
        outputs.timing = outputs.timing.max(answer.timing);
    }
    Ok(outputs)
}
