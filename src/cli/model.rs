//! Loads a model without a server, through the same line that the server uses: what it answers here it answers there.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;

use crate::{
    config::{ConfigError, LogFormat, ServeOptions, cores, shipped_model},
    metrics::Metrics,
    onnx::{self, DeviceChoice},
    registry::{Model, ModelDirectory, load_model},
    server::load_options,
    telemetry,
};

/// Where models run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Device")]
pub(super) struct DeviceOptions {
    /// Where the model runs: auto (CUDA if it really works, else the CPU), cpu, cuda or cuda:N (fails if it does not work)
    #[arg(long, env = "EQUIPOISE_DEVICE", value_name = "DEVICE", default_value = "auto")]
    pub(super) device: DeviceChoice,

    /// Threads inside of each session [default: cores / sessions, at least 1]
    #[arg(long, env = "EQUIPOISE_THREADS", value_name = "N")]
    pub(super) threads: Option<NonZeroUsize>,

    /// Most memory that a session may take on a GPU, in bytes [default: no limit of ours]
    #[arg(long, env = "EQUIPOISE_CUDA_MEMORY_LIMIT_BYTES", value_name = "BYTES")]
    pub(super) cuda_memory_limit_bytes: Option<u64>,

    /// Folder that holds the ONNX Runtime library [default: beside the executable, then .ort/, then the system's]
    #[arg(long, env = "EQUIPOISE_ONNXRUNTIME_DIR", value_name = "DIR")]
    pub(super) onnxruntime_dir: Option<PathBuf>,

    /// What is logged on standard error: error, warn, info, debug, or a filter like equipoise=debug,info
    #[arg(long, env = "EQUIPOISE_LOG", value_name = "FILTER", default_value = "warn")]
    pub(super) log: String,
}

/// Which model, and how many images of it are in work at once.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelOptions {
    /// Model directory [default: the model that ships with equipoise]
    #[arg(long, env = "EQUIPOISE_MODEL", value_name = "DIR")]
    pub(super) model: Option<PathBuf>,

    /// Most pixels of an image, by its header, before it is decoded; a larger one is refused [default: 50000000]
    #[arg(long, env = "EQUIPOISE_MAX_IMAGE_PIXELS", value_name = "PIXELS")]
    pub(super) max_image_pixels: Option<u64>,

    #[command(flatten)]
    pub(super) device: DeviceOptions,

    /// Sessions of the model: batches that run at once [default: one for each core on the CPU, 1 on CUDA, and no more than
    /// there are images]
    #[arg(long, env = "EQUIPOISE_SESSIONS", value_name = "N", help_heading = "Device")]
    pub(super) sessions: Option<NonZeroUsize>,

    /// Images in one pass of the backbone, and with the sessions a bound on how many files are in memory at once
    /// [default: 4 on the CPU, 32 on CUDA]
    #[arg(long, env = "EQUIPOISE_MAX_BATCH_SIZE", value_name = "IMAGES", help_heading = "Device")]
    pub(super) max_batch_size: Option<NonZeroUsize>,

    /// Threads that decode and resize images; 0: the sessions do it on their own threads [default: 0 where each core has a
    /// session on the CPU, else one for each core]
    #[arg(long, env = "EQUIPOISE_DECODE_THREADS", value_name = "N", help_heading = "Device")]
    pub(super) decode_threads: Option<usize>,
}

impl DeviceOptions {
    /// Starts the log and loads ONNX Runtime, which must come before everything else that needs it.
    pub(super) fn init(&self) -> anyhow::Result<()> {
        telemetry::init(LogFormat::Text, &self.log).context("--log")?;
        onnx::init(self.onnxruntime_dir.as_deref())?;
        Ok(())
    }

    /// A session that has the machine to itself.
    pub(super) fn session(&self) -> onnx::SessionOptions {
        onnx::SessionOptions {
            device: self.device,
            threads: self.threads.map_or_else(cores, NonZeroUsize::get),
            cuda_memory_limit_bytes: self.cuda_memory_limit_bytes,
            ..onnx::SessionOptions::default()
        }
    }
}

impl ModelOptions {
    /// The options that say nothing of which model, how many sessions and what sort of images.
    pub(super) fn of_directory(model: PathBuf, device: DeviceOptions) -> Self {
        let sessions = Some(NonZeroUsize::MIN);
        let (max_image_pixels, max_batch_size, decode_threads) = (None, None, Some(0));
        Self { model: Some(model), max_image_pixels, device, sessions, max_batch_size, decode_threads }
    }

    /// Loads the model for `n_images` images.
    pub(super) fn load(&self, n_images: usize) -> anyhow::Result<Model> {
        let path = match &self.model {
            Some(path) => path.clone(),
            None => shipped_model().ok_or(ConfigError::NoModel)?,
        };
        let failed = || format!("model directory {}", path.display());
        let directory = ModelDirectory::read(&path).with_context(failed)?;
        self.device.init()?;
        let n_useful = NonZeroUsize::new(n_images.min(cores())).unwrap_or(NonZeroUsize::MIN);
        let on_cuda = self.device.device.expects_cuda();
        let config = ServeOptions {
            device: Some(self.device.device),
            sessions: self.sessions.or((!on_cuda).then_some(n_useful)),
            threads: self.device.threads,
            decode_threads: self.decode_threads,
            max_batch_size: self.max_batch_size,
            max_image_pixels: self.max_image_pixels,
            cuda_memory_limit_bytes: self.device.cuda_memory_limit_bytes,
            models: vec![path.clone()],
            // Never opened: the model is thrown away.
            state_dir: Some(PathBuf::new()),
            ..ServeOptions::default()
        };
        let options = load_options(&config.resolve()?, Arc::new(Metrics::new()), None)?;
        load_model(&directory, &options).with_context(failed)
    }
}
