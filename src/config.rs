//! What `serve` is told: flags, their environment twins, and a TOML file. A flag wins over the environment, the environment
//! over the file, the file over the default.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::onnx::DeviceChoice;

/// What `equipoise serve` takes. What is not given is looked for in the configuration file, then has its default.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeOptions {
    /// Model directories to serve; the first is the default model [default: the model that ships with equipoise]
    #[arg(value_name = "MODEL_DIR")]
    pub models: Vec<PathBuf>,

    /// Address and port to listen on; port 0 takes a free one and prints it [default: 127.0.0.1:8000]
    #[arg(long, env = "EQUIPOISE_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,

    /// Folder in which published heads, settings and the admin token survive a restart; one server at a time
    /// [default: $XDG_STATE_HOME/equipoise or ~/.local/state/equipoise]
    #[arg(long, env = "EQUIPOISE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where published heads and settings are kept when several servers serve the same models: file:///DIR, or with the
    /// feature `cloud` s3://BUCKET/PREFIX, gs://... or az://... (credentials from the environment, as the clients of these
    /// take them). The token, feature sets and fits stay in --state-dir, which each server has for itself [default: all in
    /// --state-dir]
    #[arg(long, env = "EQUIPOISE_STATE", value_name = "URL")]
    pub state: Option<String>,

    /// With --state, how often to look for what other servers have changed, in milliseconds, give or take a quarter
    /// [default: 2000]
    #[arg(long, env = "EQUIPOISE_STATE_POLL_MS", value_name = "MS")]
    pub state_poll_ms: Option<NonZeroU64>,

    /// Where models run: auto (CUDA if it really works, else the CPU), cpu, cuda or cuda:N (fails at start if it does not
    /// work) [default: auto]
    #[arg(long, env = "EQUIPOISE_DEVICE", value_name = "DEVICE")]
    #[serde(deserialize_with = "device")]
    pub device: Option<DeviceChoice>,

    /// Sessions of each model: batches that run at once [default: one for each core on the CPU, 1 on CUDA]
    #[arg(long, env = "EQUIPOISE_SESSIONS", value_name = "N")]
    pub sessions: Option<NonZeroUsize>,

    /// Threads inside of each session [default: cores / sessions, at least 1]
    #[arg(long, env = "EQUIPOISE_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// Threads that decode and resize images, for all models together [default: one for each core]
    #[arg(long, env = "EQUIPOISE_DECODE_THREADS", value_name = "N")]
    pub decode_threads: Option<NonZeroUsize>,

    /// Images of a model that may wait at once; a request that finds no place is answered 503 at once. Each waiting image
    /// holds its file and its tensor in memory [default: 512]
    #[arg(long, env = "EQUIPOISE_QUEUE_CAPACITY", value_name = "IMAGES")]
    pub queue_capacity: Option<NonZeroUsize>,

    /// Images in one pass of the backbone. Larger ones help a GPU; on the CPU they mostly cost memory
    /// [default: 4 on the CPU, 32 on CUDA]
    #[arg(long, env = "EQUIPOISE_MAX_BATCH_SIZE", value_name = "IMAGES")]
    pub max_batch_size: Option<NonZeroUsize>,

    /// How long the first image of a batch waits for others, in milliseconds. Raise it for throughput on a GPU; 0 takes
    /// what waits already [default: 0]
    #[arg(long, env = "EQUIPOISE_MAX_QUEUE_DELAY_MS", value_name = "MS")]
    pub max_queue_delay_ms: Option<u64>,

    /// Longest time from a request's head to its answer, in milliseconds; then it is answered 504. A request may ask for
    /// less by `x-request-timeout-ms` [default: 30000]
    #[arg(long, env = "EQUIPOISE_MAX_REQUEST_TIME_MS", value_name = "MS")]
    pub max_request_time_ms: Option<u64>,

    /// Largest body of a request, in bytes; a larger one is answered 413 [default: 33554432]
    #[arg(long, env = "EQUIPOISE_MAX_BODY_BYTES", value_name = "BYTES")]
    pub max_body_bytes: Option<usize>,

    /// Largest upload of a feature set, in bytes, and the most that it may unpack to; more is answered 413. It bounds these
    /// uploads alone, in place of --max-body-bytes [default: 4294967296]
    #[arg(long, env = "EQUIPOISE_MAX_FEATURE_SET_BYTES", value_name = "BYTES")]
    pub max_feature_set_bytes: Option<u64>,

    /// Room on the disk for the feature sets of all models, in bytes, uploads under way included; beyond it an upload is
    /// answered 507 [default: 68719476736]
    #[arg(long, env = "EQUIPOISE_MAX_FEATURE_SETS_BYTES", value_name = "BYTES")]
    pub max_feature_sets_bytes: Option<u64>,

    /// Fits of heads that may wait at once, of all models together; a further one is answered 503 [default: 16]
    #[arg(long, env = "EQUIPOISE_FIT_QUEUE_CAPACITY", value_name = "FITS")]
    pub fit_queue_capacity: Option<NonZeroUsize>,

    /// Fits that run at once, at a lower priority than what serves [default: 1]
    #[arg(long, env = "EQUIPOISE_FIT_CONCURRENCY", value_name = "FITS")]
    pub fit_concurrency: Option<NonZeroUsize>,

    /// Threads of each fit, and of each evaluation [default: one for each core]
    #[arg(long, env = "EQUIPOISE_FIT_THREADS", value_name = "N")]
    pub fit_threads: Option<NonZeroUsize>,

    /// Most pixels of an image, by its header, before it is decoded; a larger one is answered 422 [default: 50000000]
    #[arg(long, env = "EQUIPOISE_MAX_IMAGE_PIXELS", value_name = "PIXELS")]
    pub max_image_pixels: Option<u64>,

    /// Connections open at once; further ones wait to be accepted [default: 1024]
    #[arg(long, env = "EQUIPOISE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<NonZeroUsize>,

    /// After SIGTERM, how long to go on serving while /readyz says 503, in seconds: time for a load balancer to notice
    /// [default: 0]
    #[arg(long, env = "EQUIPOISE_SHUTDOWN_DELAY_S", value_name = "S")]
    pub shutdown_delay_s: Option<u64>,

    /// After that, how long requests in flight may take to end, in seconds [default: 30]
    #[arg(long, env = "EQUIPOISE_SHUTDOWN_TIMEOUT_S", value_name = "S")]
    pub shutdown_timeout_s: Option<u64>,

    /// File that holds the admin token [default: a random token is made and kept in the state directory, mode 0600]
    #[arg(long, env = "EQUIPOISE_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Folder that holds the ONNX Runtime library [default: beside the executable, then .ort/, then the system's]
    #[arg(long, env = "EQUIPOISE_ONNXRUNTIME_DIR", value_name = "DIR")]
    pub onnxruntime_dir: Option<PathBuf>,

    /// Most memory that a session may take on a GPU, in bytes [default: no limit of ours]
    #[arg(long, env = "EQUIPOISE_CUDA_MEMORY_LIMIT_BYTES", value_name = "BYTES")]
    pub cuda_memory_limit_bytes: Option<u64>,

    /// How the log is written [default: text]
    #[arg(long, env = "EQUIPOISE_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug, or a filter like equipoise=debug,info [default: info]
    #[arg(long, env = "EQUIPOISE_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// TOML file with any of these options, dashes written as underscores; an unknown key is refused
    #[arg(long, env = "EQUIPOISE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    // Not a flag, so that it does not show in the list of processes.
    #[arg(skip)]
    #[serde(skip)]
    pub(crate) admin_token: Option<Secret>,
}

/// Text that no `Debug` shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[hidden]")
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

fn device<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceChoice>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {source}", path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The key, the line and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// An empty token would let everybody in.
    #[error("the admin token in {place} is empty")]
    EmptyToken {
        /// Where it stands.
        place: String,
    },
    /// No model was named, and none ships beside the executable.
    #[error("no model directory was given, and there is no models/icons30 here or beside the executable")]
    NoModel,
    /// Nowhere to keep the state.
    #[error("no --state-dir was given, and neither XDG_STATE_HOME nor HOME says where one would be")]
    NoStateDir,
}

/// Where the admin token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum AdminToken {
    /// The environment or a file.
    Given(String),
    /// The state directory, where it is made if it is not there.
    Kept,
}

/// What `serve` does, every default filled in.
#[derive(Clone)]
pub struct Config {
    /// Model directories, the default model first.
    pub models: Vec<PathBuf>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// What survives a restart.
    pub state_dir: PathBuf,
    /// The URL of the store that others share, if there is one.
    pub state: Option<String>,
    /// How often to look there for changes.
    pub state_poll: Duration,
    /// Device.
    pub device: DeviceChoice,
    /// Sessions of a model, if that was said.
    pub sessions: Option<usize>,
    /// Threads of a session, if that was said.
    pub threads: Option<usize>,
    /// Threads that decode.
    pub decode_threads: usize,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// Images in a batch, if that was said.
    pub max_batch_size: Option<usize>,
    /// How long a batch waits.
    pub max_queue_delay: Duration,
    /// How long a request may take.
    pub max_request_time: Duration,
    /// Bytes of a body.
    pub max_body_bytes: usize,
    /// Bytes of a feature set.
    pub max_feature_set_bytes: u64,
    /// Bytes of all feature sets.
    pub max_feature_sets_bytes: u64,
    /// Fits that may wait.
    pub fit_queue_capacity: usize,
    /// Fits that run at once.
    pub fit_concurrency: usize,
    /// Threads of a fit.
    pub fit_threads: usize,
    /// Pixels of an image, if that was said.
    pub max_image_pixels: Option<u64>,
    /// Connections at once.
    pub max_connections: usize,
    /// From SIGTERM to the end of serving.
    pub shutdown_delay: Duration,
    /// From there to the end of the process.
    pub shutdown_timeout: Duration,
    /// The admin token.
    pub admin_token: AdminToken,
    /// Where ONNX Runtime is.
    pub onnxruntime_dir: Option<PathBuf>,
    /// Bytes on a GPU.
    pub cuda_memory_limit_bytes: Option<u64>,
}

impl ServeOptions {
    /// These options, and where they say nothing those of the configuration file, if one is named.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the line.
    pub fn with_file(mut self) -> Result<Self, ConfigError> {
        // The command line parser has no way to read a variable without showing it as a flag.
        // A flag wins over it; a file that the configuration file names does not.
        if self.admin_token_file.is_none() {
            self.admin_token = std::env::var("EQUIPOISE_ADMIN_TOKEN").ok().map(Secret);
        }
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = read(&path)?;
        let mut file: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Toml { path: path.clone(), source: Box::new(source) })?;
        // Paths in a file are meant from where the file is.
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let paths = [&mut file.state_dir, &mut file.admin_token_file, &mut file.onnxruntime_dir];
        for path in paths.into_iter().flatten().chain(&mut file.models) {
            *path = base.join(&path);
        }
        Ok(Self {
            models: if self.models.is_empty() { file.models } else { self.models },
            listen: self.listen.or(file.listen),
            state_dir: self.state_dir.or(file.state_dir),
            state: self.state.or(file.state),
            state_poll_ms: self.state_poll_ms.or(file.state_poll_ms),
            device: self.device.or(file.device),
            sessions: self.sessions.or(file.sessions),
            threads: self.threads.or(file.threads),
            decode_threads: self.decode_threads.or(file.decode_threads),
            queue_capacity: self.queue_capacity.or(file.queue_capacity),
            max_batch_size: self.max_batch_size.or(file.max_batch_size),
            max_queue_delay_ms: self.max_queue_delay_ms.or(file.max_queue_delay_ms),
            max_request_time_ms: self.max_request_time_ms.or(file.max_request_time_ms),
            max_body_bytes: self.max_body_bytes.or(file.max_body_bytes),
            max_feature_set_bytes: self.max_feature_set_bytes.or(file.max_feature_set_bytes),
            max_feature_sets_bytes: self.max_feature_sets_bytes.or(file.max_feature_sets_bytes),
            fit_queue_capacity: self.fit_queue_capacity.or(file.fit_queue_capacity),
            fit_concurrency: self.fit_concurrency.or(file.fit_concurrency),
            fit_threads: self.fit_threads.or(file.fit_threads),
            max_image_pixels: self.max_image_pixels.or(file.max_image_pixels),
            max_connections: self.max_connections.or(file.max_connections),
            shutdown_delay_s: self.shutdown_delay_s.or(file.shutdown_delay_s),
            shutdown_timeout_s: self.shutdown_timeout_s.or(file.shutdown_timeout_s),
            admin_token_file: self.admin_token_file.or(file.admin_token_file),
            onnxruntime_dir: self.onnxruntime_dir.or(file.onnxruntime_dir),
            cuda_memory_limit_bytes: self.cuda_memory_limit_bytes.or(file.cuda_memory_limit_bytes),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
            config: Some(path),
            admin_token: self.admin_token,
        })
    }

    /// Fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] if a default cannot be found, or the token file cannot be read.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let admin_token = match (&self.admin_token, &self.admin_token_file) {
            (Some(Secret(token)), _) => AdminToken::Given(not_empty(token, "EQUIPOISE_ADMIN_TOKEN")?),
            (None, Some(path)) => AdminToken::Given(not_empty(&read(path)?, &path.display().to_string())?),
            (None, None) => AdminToken::Kept,
        };
        let models =
            if self.models.is_empty() { vec![shipped_model().ok_or(ConfigError::NoModel)?] } else { self.models };
        let milliseconds = |value: Option<u64>, default| Duration::from_millis(value.unwrap_or(default));
        let seconds = |value: Option<u64>, default| Duration::from_secs(value.unwrap_or(default));
        Ok(Config {
            models,
            listen: self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8000))),
            state_dir: self.state_dir.or_else(default_state_dir).ok_or(ConfigError::NoStateDir)?,
            state: self.state,
            state_poll: milliseconds(self.state_poll_ms.map(NonZeroU64::get), 2000),
            device: self.device.unwrap_or(DeviceChoice::Auto),
            sessions: self.sessions.map(NonZeroUsize::get),
            threads: self.threads.map(NonZeroUsize::get),
            decode_threads: self.decode_threads.map_or_else(cores, NonZeroUsize::get),
            queue_capacity: self.queue_capacity.map_or(512, NonZeroUsize::get),
            max_batch_size: self.max_batch_size.map(NonZeroUsize::get),
            max_queue_delay: milliseconds(self.max_queue_delay_ms, 0),
            max_request_time: milliseconds(self.max_request_time_ms, 30_000),
            max_body_bytes: self.max_body_bytes.unwrap_or(32 << 20),
            max_feature_set_bytes: self.max_feature_set_bytes.unwrap_or(4 << 30),
            max_feature_sets_bytes: self.max_feature_sets_bytes.unwrap_or(64 << 30),
            fit_queue_capacity: self.fit_queue_capacity.map_or(16, NonZeroUsize::get),
            fit_concurrency: self.fit_concurrency.map_or(1, NonZeroUsize::get),
            fit_threads: self.fit_threads.map_or_else(cores, NonZeroUsize::get),
            max_image_pixels: self.max_image_pixels,
            max_connections: self.max_connections.map_or(1024, NonZeroUsize::get),
            shutdown_delay: seconds(self.shutdown_delay_s, 0),
            shutdown_timeout: seconds(self.shutdown_timeout_s, 30),
            admin_token,
            onnxruntime_dir: self.onnxruntime_dir,
            cuda_memory_limit_bytes: self.cuda_memory_limit_bytes,
        })
    }
}

/// The cores that this process may use: those of its control group and its affinity, not those of the machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The model that ships with equipoise: `models/icons30` here, beside the executable, or in a folder above it.
pub fn shipped_model() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok();
    let above = executable.iter().flat_map(|path| path.ancestors().skip(1));
    let here = Path::new("");
    std::iter::once(here)
        .chain(above)
        .flat_map(|folder| ["models/icons30", "share/equipoise/models/icons30"].map(|model| folder.join(model)))
        .find(|model| model.join("model.toml").is_file())
}

/// What the environment tells the clients of clouds: names and values.
pub(crate) fn cloud_options() -> Vec<(String, String)> {
    let is_one = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    let pairs =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    pairs.filter(|(name, _)| is_one(name)).collect()
}

/// Where the state is kept if nothing else is said.
pub(crate) fn default_state_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    base.map(|base| base.join("equipoise"))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

fn not_empty(token: &str, place: &str) -> Result<String, ConfigError> {
    match token.trim() {
        "" => Err(ConfigError::EmptyToken { place: place.to_owned() }),
        token => Ok(token.to_owned()),
    }
}
