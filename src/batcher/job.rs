//! What travels on the queue, and what comes back.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ScorerPool;
use crate::{
    heads::{Prediction, Scoring},
    metrics::{ModelMetrics, Phase},
    onnx::OnnxError,
    preprocess::{ImageError, Preprocessor},
};

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BatchError {
    /// No place for it now.
    #[error("the queue is full: {capacity} images are waiting")]
    QueueFull {
        /// Images that can wait at once.
        capacity: usize,
    },
    /// There will never be a place for it.
    #[error("the request has more images than the queue holds, which is {capacity}")]
    TooManyImages {
        /// Images that can wait at once.
        capacity: usize,
    },
    /// An image that cannot be read.
    #[error("image {index}: {source}")]
    Image {
        /// Its index in the request, from 0.
        index: usize,
        /// Why.
        source: Arc<ImageError>,
    },
    /// Images of a size that the model cannot take.
    #[error("image {index}: the model does not take images of {height} x {width} pixels (height x width): {reason}")]
    ImageSize {
        /// Its index in the request, from 0.
        index: usize,
        /// Rows of its tensor.
        height: usize,
        /// Columns of its tensor.
        width: usize,
        /// What it takes, as far as that is known.
        reason: String,
    },
    /// The features of a row are no finite float32, or so large, or the temperature so small for them, that a logit is none.
    #[error("row {row}: a feature or a logit is no finite float32")]
    NotFinite {
        /// Its index in the request, from 0.
        row: usize,
    },
    /// The caller's deadline, or the server's, has passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The backbone or a head failed.
    #[error("the model failed on a batch of {batch_size}: {source}")]
    Model {
        /// Images in the batch.
        batch_size: usize,
        /// One failure answers every request of the batch.
        source: Arc<OnnxError>,
    },
    /// No session works, and none could be made yet.
    #[error("the model has no working session at the moment")]
    Unavailable,
    /// The worker is gone: it panicked, or the server is shutting down.
    #[error("the worker stopped before it answered")]
    WorkerLost,
}

/// What a caller wants of each image.
#[derive(Debug)]
pub enum Wanted {
    /// Its features.
    Features,
    /// Predictions of these heads, in this order.
    Predictions(Vec<HeadRequest>),
}

/// A head under one setting.
#[derive(Clone, Debug)]
pub struct HeadRequest {
    /// Its matrix product.
    pub scorers: Arc<ScorerPool>,
    /// The rest of it.
    pub scoring: Arc<Scoring>,
    /// How many classes to answer.
    pub top_k: usize,
}

/// The answer for one image.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// `[D]`.
    Features(Vec<f32>),
    /// For each head asked for, its best classes.
    Predictions(Vec<Vec<Prediction>>),
}

/// How long each phase took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Bytes to tensor.
    pub preprocess: Duration,
    /// From admission to the start of the batch, without its own decoding.
    pub queue: Duration,
    /// The batch's pass of the backbone.
    pub backbone: Duration,
    /// The batch's heads.
    pub head: Duration,
}

impl Timing {
    /// The larger of each phase.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            preprocess: self.preprocess.max(other.preprocess),
            queue: self.queue.max(other.queue),
            backbone: self.backbone.max(other.backbone),
            head: self.head.max(other.head),
        }
    }
}

/// The answer to one job.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rows: Vec<Output>,
    pub(super) timing: Timing,
}

/// What a job brings.
#[derive(Debug)]
pub(super) enum Input {
    /// The file of an image.
    Encoded(Bytes),
    /// One image, `[3, height, width]`.
    Pixels { pixels: Vec<f32>, height: usize, width: usize },
    /// Feature rows of this dimension.
    Features { rows: Vec<f32>, dim: usize },
}

/// One image, or some feature rows, on their way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) input: Input,
    /// Images or rows: the places it holds.
    pub(super) n: usize,
    pub(super) wanted: Arc<Wanted>,
    /// Closed when the caller has hung up or another image of its request has failed.
    pub(super) reply: oneshot::Sender<Result<Answer, BatchError>>,
    /// Given back when a worker takes the job.
    pub(super) place: Option<OwnedSemaphorePermit>,
    pub(super) deadline: Instant,
    pub(super) preprocess: Duration,
    /// Since when it waits: from its admission, later by the time that its decoding took.
    pub(super) queued_at: Instant,
}

impl Job {
    /// Answers with an error. Nobody may be listening any more, which is fine.
    pub(super) fn fail(self, error: BatchError) {
        let _ = self.reply.send(Err(error));
    }

    /// This job, unless nobody waits for it any more: then it is answered, or dropped.
    pub(super) fn still_wanted(self, now: Instant) -> Option<Self> {
        if self.reply.is_closed() {
            None
        } else if self.deadline <= now {
            self.fail(BatchError::DeadlineExceeded);
            None
        } else {
            Some(self)
        }
    }

    /// This job with its image decoded, unless that is unreadable: then it is answered.
    pub(super) fn decoded(mut self, preprocessor: &Preprocessor, metrics: &ModelMetrics) -> Option<Self> {
        let Input::Encoded(image) = &self.input else { return Some(self) };
        let start = Instant::now();
        // Whatever panics costs this job its answer, and the thread goes on.
        match std::panic::catch_unwind(AssertUnwindSafe(|| preprocessor.run(image))) {
            Ok(Ok(tensor)) => {
                self.preprocess = start.elapsed();
                self.queued_at += self.preprocess;
                metrics.phase(Phase::Preprocess).observe(self.preprocess.as_secs_f64());
                self.input = Input::Pixels { pixels: tensor.pixels, height: tensor.height, width: tensor.width };
                Some(self)
            }
            Ok(Err(source)) => {
                metrics.image_error(source.reason());
                self.fail(BatchError::Image { index: 0, source: Arc::new(source) });
                None
            }
            Err(_) => {
                tracing::error!("decoding panicked");
                None
            }
        }
    }
}
