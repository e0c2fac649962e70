//! The metrics of one model, one head and so on, with their labels resolved: what is passed around.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Phase;
use crate::dataset::Shot;

/// The metrics of one model.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    pub(super) phases: [Histogram; 4],
    /// Images in a batch.
    pub batch_size: Histogram,
    /// Images admitted and not yet in a batch.
    pub queue_depth: IntGauge,
    /// Images that can wait at once.
    pub queue_capacity: IntGauge,
    /// Workers that have a session.
    pub workers: IntGauge,
    /// Runs of the backbone that did not fit the memory of the device.
    pub out_of_memory: IntCounter,
    /// Images that ran on the session for lone images.
    pub lone_images: IntCounter,
    pub(super) restarts: [IntCounter; 2],
    pub(super) image_errors: IntCounterVec,
    pub(super) model: String,
    pub(super) device_memory: IntGaugeVec,
}

impl ModelMetrics {
    /// The duration histogram of a phase.
    pub fn phase(&self, phase: Phase) -> &Histogram {
        let [preprocess, queue, backbone, head] = &self.phases;
        match phase {
            Phase::Preprocess => preprocess,
            Phase::Queue => queue,
            Phase::Backbone => backbone,
            Phase::Head => head,
        }
    }

    /// Counts a worker that begins anew, after a panic or else because its session was broken.
    pub fn worker_restarted(&self, after_panic: bool) {
        let [panic, session] = &self.restarts;
        if after_panic { panic } else { session }.inc();
    }

    /// Bytes on a GPU: `in_use`, `reserved` or `limit`. The series is there from the first call on.
    pub fn device_memory(&self, kind: &str) -> IntGauge {
        self.device_memory.with_label_values(&[&*self.model, kind])
    }

    /// Counts an image that could not be read, or whose size the model does not take.
    pub fn image_error(&self, reason: &str) {
        self.image_errors.with_label_values(&[reason]).inc();
    }
}

/// The metrics of where a model's state is kept.
#[derive(Clone, Debug)]
pub struct StateMetrics {
    /// The generation that is served.
    pub generation: IntGauge,
    /// Seconds since it was last known to be the newest.
    pub lag: Gauge,
    /// Whether the store answered the last time.
    pub reachable: IntGauge,
    /// Files that are damaged or missing.
    pub damaged: IntGauge,
}

/// The metrics of a model's feature sets.
#[derive(Clone, Debug)]
pub struct FeatureSetMetrics {
    /// Feature sets that are kept.
    pub sets: IntGauge,
    /// Bytes on the disk that they take.
    pub bytes: IntGauge,
}

/// The metrics of the fits of one model.
#[derive(Clone, Debug)]
pub struct FitMetrics {
    /// Fits that run.
    pub running: IntGauge,
    /// Fits that wait.
    pub queued: IntGauge,
    /// Samples that the latest fit looked at in a second.
    pub samples_per_second: Gauge,
}

/// The metrics of one head.
#[derive(Clone, Debug)]
pub struct HeadMetrics {
    pub(super) predictions: [IntCounter; 4],
    pub(super) top1_probability: Histogram,
}

impl HeadMetrics {
    /// Counts a top-1 prediction.
    pub fn predicted(&self, shot: Shot, probability: f64) {
        let [many, medium, few, unknown] = &self.predictions;
        match shot {
            Shot::Many => many,
            Shot::Medium => medium,
            Shot::Few => few,
            Shot::Unknown => unknown,
        }
        .inc();
        self.top1_probability.observe(probability);
    }
}
