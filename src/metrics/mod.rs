//! Every metric of the process, in one place.
//!
//! Names carry their unit. Labels come from small closed sets or from what the operator named (models, heads): whatever a
//! caller of the inference API can invent never becomes one. docs/METRICS.md lists them all, and a test holds it against
//! this file.

mod resolved;

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    core::Collector,
};

pub use resolved::{FeatureSetMetrics, FitMetrics, HeadMetrics, ModelMetrics, StateMetrics};

use crate::{dataset::Shot, preprocess::ImageError};

/// From 50 microseconds to 30 seconds: a small head takes 20 microseconds, a request that waits behind a full queue seconds, and
/// none more than 30 unless the operator says so.
const SECONDS: [f64; 18] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a tenth of a second to a day.
const FIT_SECONDS: [f64; 12] = [0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0];
const BATCH_SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const PROBABILITIES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// The reason of an image that was read and has a size that its model does not take.
pub(crate) const IMAGE_SIZE: &str = "size";

/// A phase of the serving line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Bytes to tensor.
    Preprocess,
    /// From the tensor to the start of its batch.
    Queue,
    /// Tensor to features, for the whole batch.
    Backbone,
    /// Features to predictions, for the whole batch.
    Head,
}

/// The metrics of the process. A value that is passed in, so that tests do not share counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests answered, by route template and status.
    pub requests: IntCounterVec,
    /// Time from the first byte of the head of a request to the end of its answer's head, in seconds, by route template.
    pub request_duration: HistogramVec,
    /// Requests being worked on.
    pub requests_in_flight: IntGauge,
    /// Requests refused before any work was done on them, by reason.
    pub rejected: IntCounterVec,
    /// Images that could not be read, or have a size that their model does not take, by reason.
    pub image_errors: IntCounterVec,
    /// Whether the server is ready for requests: 1 or 0.
    pub ready: IntGauge,
    reloads: IntCounterVec,
    file_stale: IntGaugeVec,
    phase_duration: HistogramVec,
    batch_size: HistogramVec,
    queue_depth: IntGaugeVec,
    queue_capacity: IntGaugeVec,
    workers: IntGaugeVec,
    worker_restarts: IntCounterVec,
    out_of_memory: IntCounterVec,
    lone_images: IntCounterVec,
    device_memory: IntGaugeVec,
    predictions: IntCounterVec,
    top1_probability: HistogramVec,
    head_tau: GaugeVec,
    head_info: IntGaugeVec,
    model_info: IntGaugeVec,
    state_generation: IntGaugeVec,
    state_lag: GaugeVec,
    state_reachable: IntGaugeVec,
    state_damaged: IntGaugeVec,
    feature_sets: IntGaugeVec,
    feature_set_bytes: IntGaugeVec,
    fits_running: IntGaugeVec,
    fits_queued: IntGaugeVec,
    fit_duration: HistogramVec,
    fits: IntCounterVec,
    fit_samples_per_second: GaugeVec,
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    // Only a wrong or repeated name can fail here, and the names are this file's: the first test of all would see it.
    let collector = made.unwrap_or_else(|error| panic!("a metric of this file is misnamed: {error}"));
    if let Err(error) = registry.register(Box::new(collector.clone())) {
        panic!("a metric of this file stands twice: {error}");
    }
    collector
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let int_gauge = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
        };
        let metrics = Self {
            requests: counter("equipoise_requests_total", "Requests answered", &["route", "status"]),
            request_duration: histogram(
                "equipoise_request_duration_seconds",
                "Time from a request's head to its answer",
                &["route"],
                &SECONDS,
            ),
            requests_in_flight: register(
                &registry,
                IntGauge::new("equipoise_requests_in_flight", "Requests being worked on"),
            ),
            rejected: counter("equipoise_rejected_total", "Requests refused before work on them", &["reason"]),
            image_errors: counter(
                "equipoise_image_errors_total",
                "Images that could not be read, or have a size that is not taken",
                &["reason"],
            ),
            ready: register(&registry, IntGauge::new("equipoise_ready", "1 when the server takes requests, else 0")),
            reloads: counter(
                "equipoise_reloads_total",
                "Files that have changed while the server ran, by what became of it",
                &["file", "outcome"],
            ),
            file_stale: int_gauge(
                "equipoise_file_stale",
                "1 while a file cannot be used and what it said before is in use, else 0",
                &["file"],
            ),
            phase_duration: histogram(
                "equipoise_phase_duration_seconds",
                "Time in a phase: preprocess and queue for each image, backbone and head for each batch",
                &["model", "phase"],
                &SECONDS,
            ),
            batch_size: histogram("equipoise_batch_size", "Images in a batch", &["model"], &BATCH_SIZES),
            queue_depth: int_gauge("equipoise_queue_depth", "Images admitted and not yet in a batch", &["model"]),
            queue_capacity: int_gauge("equipoise_queue_capacity", "Images that can wait at once", &["model"]),
            workers: int_gauge("equipoise_workers", "Workers that have a session that works", &["model"]),
            worker_restarts: counter(
                "equipoise_worker_restarts_total",
                "Workers that began anew with new sessions, by what was wrong",
                &["model", "reason"],
            ),
            out_of_memory: counter(
                "equipoise_out_of_memory_total",
                "Runs of the backbone that did not fit the memory of the device",
                &["model"],
            ),
            lone_images: counter(
                "equipoise_lone_images_total",
                "Images that ran on the session for lone images",
                &["model"],
            ),
            device_memory: int_gauge(
                "equipoise_device_memory_bytes",
                "Memory on a GPU of the backbone's sessions",
                &["model", "kind"],
            ),
            predictions: counter("equipoise_predictions_total", "Top-1 predictions", &["model", "head", "shot"]),
            top1_probability: histogram(
                "equipoise_top1_probability",
                "Probability of the top-1 class",
                &["model", "head"],
                &PROBABILITIES,
            ),
            head_tau: register(
                &registry,
                GaugeVec::new(Opts::new("equipoise_head_tau", "Tau of the head's latest version"), &["model", "head"]),
            ),
            head_info: int_gauge(
                "equipoise_head_info",
                "1 for each head version that is loaded",
                &["model", "head", "version", "kind"],
            ),
            model_info: int_gauge(
                "equipoise_model_info",
                "1 for each loaded model and the execution provider that it really uses",
                &["model", "provider"],
            ),
            fits_running: int_gauge("equipoise_fits_running", "Fits that run", &["model"]),
            fits_queued: int_gauge("equipoise_fits_queued", "Fits that wait", &["model"]),
            fit_duration: histogram(
                "equipoise_fit_duration_seconds",
                "Time that a fit ran",
                &["model", "method"],
                &FIT_SECONDS,
            ),
            fits: counter("equipoise_fits_total", "Fits that have ended", &["model", "method", "state"]),
            fit_samples_per_second: register(
                &registry,
                GaugeVec::new(
                    Opts::new("equipoise_fit_samples_per_second", "Samples that the latest fit looked at in a second"),
                    &["model"],
                ),
            ),
            state_generation: int_gauge("equipoise_state_generation", "Generation that is served", &["model"]),
            state_lag: register(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "equipoise_state_lag_seconds",
                        "Time since the state that is served was last known to be the newest",
                    ),
                    &["model"],
                ),
            ),
            state_reachable: int_gauge(
                "equipoise_state_reachable",
                "1 when the store of the state answered the last time, else 0",
                &["model"],
            ),
            state_damaged: int_gauge(
                "equipoise_state_damaged_files",
                "Files of the state that are damaged or missing",
                &["model"],
            ),
            feature_sets: int_gauge("equipoise_feature_sets", "Feature sets that are kept", &["model"]),
            feature_set_bytes: int_gauge("equipoise_feature_set_bytes", "Bytes on the disk that they take", &["model"]),
            registry,
        };
        let build_info: IntGaugeVec = register(
            &metrics.registry,
            IntGaugeVec::new(Opts::new("equipoise_build_info", "1 for the running version"), &["version"]),
        );
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        // Series that exist at zero: a rate over one that appears with its first event would miss it.
        for reason in ImageError::REASONS.into_iter().chain([IMAGE_SIZE]) {
            metrics.image_errors.with_label_values(&[reason]);
        }
        for file in ["tokens", "certificate"] {
            metrics.file_stale.with_label_values(&[file]);
            for outcome in ["ok", "failed"] {
                metrics.reloads.with_label_values(&[file, outcome]);
            }
        }
        #[cfg(target_os = "linux")]
        if let Err(error) =
            metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        {
            tracing::warn!(%error, "no process metrics");
        }
        metrics
    }

    /// Lets the series of failures and refusals be there from the start.
    pub fn announce_failures<'a>(&self, routes: impl IntoIterator<Item = &'a str>, rejections: &[&str]) {
        for route in routes {
            self.requests.with_label_values(&[route, "500"]);
        }
        for reason in rejections {
            self.rejected.with_label_values(&[*reason]);
        }
    }

    /// The metrics of one model, with their labels resolved.
    pub fn of_model(&self, model: &str) -> ModelMetrics {
        let phase = |name: &str| self.phase_duration.with_label_values(&[model, name]);
        ModelMetrics {
            phases: [phase("preprocess"), phase("queue"), phase("backbone"), phase("head")],
            batch_size: self.batch_size.with_label_values(&[model]),
            queue_depth: self.queue_depth.with_label_values(&[model]),
            queue_capacity: self.queue_capacity.with_label_values(&[model]),
            workers: self.workers.with_label_values(&[model]),
            restarts: ["panic", "session"].map(|reason| self.worker_restarts.with_label_values(&[model, reason])),
            out_of_memory: self.out_of_memory.with_label_values(&[model]),
            lone_images: self.lone_images.with_label_values(&[model]),
            model: model.to_owned(),
            device_memory: self.device_memory.clone(),
            image_errors: self.image_errors.clone(),
        }
    }

    /// The metrics of where a model's state is kept, with their labels resolved.
    pub fn of_state(&self, model: &str) -> StateMetrics {
        StateMetrics {
            generation: self.state_generation.with_label_values(&[model]),
            lag: self.state_lag.with_label_values(&[model]),
            reachable: self.state_reachable.with_label_values(&[model]),
            damaged: self.state_damaged.with_label_values(&[model]),
        }
    }

    /// The metrics of a model's feature sets, with their labels resolved.
    pub fn of_feature_sets(&self, model: &str) -> FeatureSetMetrics {
        FeatureSetMetrics {
            sets: self.feature_sets.with_label_values(&[model]),
            bytes: self.feature_set_bytes.with_label_values(&[model]),
        }
    }

    /// The metrics of one head, with their labels resolved.
    pub fn of_head(&self, model: &str, head: &str) -> HeadMetrics {
        HeadMetrics {
            predictions: Shot::ALL.map(|shot| self.predictions.with_label_values(&[model, head, shot.as_str()])),
            top1_probability: self.top1_probability.with_label_values(&[model, head]),
        }
    }

    /// The metrics of the fits of one model, with their labels resolved.
    pub fn of_fits(&self, model: &str) -> FitMetrics {
        FitMetrics {
            running: self.fits_running.with_label_values(&[model]),
            queued: self.fits_queued.with_label_values(&[model]),
            samples_per_second: self.fit_samples_per_second.with_label_values(&[model]),
        }
    }

    /// Lets the series of the fits of a model be there from the start.
    pub fn announce_fits(&self, model: &str, methods: &[&str], ends: &[&str]) {
        for method in methods {
            self.fit_duration.with_label_values(&[model, method]);
            for end in ends {
                self.fits.with_label_values(&[model, method, end]);
            }
        }
    }

    /// Counts a fit that has ended.
    pub fn fit_ended(&self, model: &str, method: &str, state: &str) {
        self.fits.with_label_values(&[model, method, state]).inc();
    }

    /// Takes down how long a fit ran.
    pub fn fit_took(&self, model: &str, method: &str, time: std::time::Duration) {
        self.fit_duration.with_label_values(&[model, method]).observe(time.as_secs_f64());
    }

    /// Counts a change of a file, and says whether the file can be used.
    pub fn reloaded(&self, file: &str, is_usable: bool) {
        self.reloads.with_label_values(&[file, if is_usable { "ok" } else { "failed" }]).inc();
        self.file_stale.with_label_values(&[file]).set(i64::from(!is_usable));
    }

    /// Says which provider a model really uses.
    pub fn set_model(&self, model: &str, provider: &str) {
        self.model_info.with_label_values(&[model, provider]).set(1);
    }

    /// Says that a head version is loaded.
    pub fn set_head_version(&self, model: &str, head: &str, version: u32, kind: &str) {
        self.head_info.with_label_values(&[model, head, &version.to_string(), kind]).set(1);
    }

    /// Forgets a head version that is no longer there.
    pub fn remove_head_version(&self, model: &str, head: &str, version: u32, kind: &str) {
        // Removing what is not there is no error worth telling.
        let _ = self.head_info.remove_label_values(&[model, head, &version.to_string(), kind]);
    }

    /// Sets the tau that a head's latest version has, or forgets it.
    pub fn set_head_tau(&self, model: &str, head: &str, tau: Option<f64>) {
        match tau {
            Some(tau) => self.head_tau.with_label_values(&[model, head]).set(tau),
            None => drop(self.head_tau.remove_label_values(&[model, head])),
        }
    }

    /// The text exposition format, version 0.0.4.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
