//! What `serve` is told: flags, their environment twins, and a TOML file. A flag wins over the environment, the environment
//! over the file, the file over the default.
//!
//! ```text
//! mod      the options, and those of the file
//! resolved every default filled in
//! error    what can be wrong
//! ```

mod error;
mod resolved;

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use serde::Deserialize;

use crate::{files::read_text, onnx::DeviceChoice};

pub use error::ConfigError;
pub use resolved::{AdminToken, Config, RateLimit, TlsFiles};
pub(crate) use resolved::{cloud_options, default_state_dir};

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

    /// Address and port of a listener of its own for the admin API, which is then not found on the other one. It answers
    /// everything else too, within a limit of connections of its own [default: none, one listener for all]
    #[arg(long, env = "EQUIPOISE_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<SocketAddr>,

    /// Start although the admin API can be reached from other machines without TLS: whoever sees the traffic has its token
    /// [default: false]
    #[arg(long, env = "EQUIPOISE_ALLOW_INSECURE_ADMIN", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub allow_insecure_admin: Option<bool>,

    /// Certificate chain in PEM, the server's own first: from then on every listener speaks TLS (1.2 or newer). Read again
    /// on SIGHUP and when it changes [default: none, plain HTTP]
    #[arg(long, env = "EQUIPOISE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Its private key in PEM [default: none]
    #[arg(long, env = "EQUIPOISE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

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

    /// Threads for images that come one at a time: more than --threads are a session of its own, which gives the same answers
    /// sooner, on cores that have nothing else to do. On the CPU alone; 0 is none [default: as --tune finds, else 0]
    #[arg(long, env = "EQUIPOISE_LONE_THREADS", value_name = "N")]
    pub lone_threads: Option<usize>,

    /// Measure at the start how each model runs best on this machine, and choose sessions, threads and batch size by that where
    /// they are not given, and threads for images that come one at a time. Takes some seconds for each model, once: the result
    /// is kept in the state directory, and measured again when the model, the machine, ONNX Runtime or these options have
    /// changed
    #[arg(long, env = "EQUIPOISE_TUNE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub tune: Option<bool>,

    /// Threads that decode and resize images, for all models together; 0: the sessions do it on their own threads [default: 0
    /// where each core has a session on the CPU, else one for each core]
    #[arg(long, env = "EQUIPOISE_DECODE_THREADS", value_name = "N")]
    pub decode_threads: Option<usize>,

    /// Images of a model that may wait at once; a request that finds no place is answered 503 at once. Each waiting image
    /// holds its file in memory, and its tensor too with --decode-threads above 0 [default: 512]
    #[arg(long, env = "EQUIPOISE_QUEUE_CAPACITY", value_name = "IMAGES")]
    pub queue_capacity: Option<NonZeroUsize>,

    /// Images in one pass of the backbone. Larger ones help a GPU, where several images are padded to so many; on the CPU they
    /// mostly cost memory [default: 4 on the CPU, 32 on CUDA]
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

    /// Largest head file that is published over HTTP, in bytes; a larger one is answered 413. It bounds these uploads alone, in
    /// place of --max-body-bytes [default: 1073741824, or --max-bodies-bytes if that is less]
    #[arg(long, env = "EQUIPOISE_MAX_HEAD_BYTES", value_name = "BYTES")]
    pub max_head_bytes: Option<usize>,

    /// Most that the bodies of all requests may take of the memory at once, in bytes, those of feature sets excepted, which go to
    /// the disk; a request beyond it is answered 503. Of each body the first 64 KiB are not counted. At least
    /// --max-body-bytes and --max-head-bytes [default: 2147483648]
    #[arg(long, env = "EQUIPOISE_MAX_BODIES_BYTES", value_name = "BYTES")]
    pub max_bodies_bytes: Option<usize>,

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

    /// File of tokens with roles (predict, operate, admin), made by `equipoise token new`. It has the tokens' digests, never
    /// the tokens. Read again on SIGHUP and when it changes [default: none]
    #[arg(long, env = "EQUIPOISE_TOKENS_FILE", value_name = "FILE")]
    pub tokens_file: Option<PathBuf>,

    /// Answer classify, features, models and metrics only to callers with a token; else they are open to everybody
    /// [default: false]
    #[arg(long, env = "EQUIPOISE_REQUIRE_AUTH", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub require_auth: Option<bool>,

    /// Images, or feature rows, that each token may send in a second, and each client address that shows no token; more is
    /// answered 429. IPv6 addresses count by /64 [default: no limit]
    #[arg(long, env = "EQUIPOISE_RATE_LIMIT_IMAGES_PER_SECOND", value_name = "IMAGES")]
    pub rate_limit_images_per_second: Option<f64>,

    /// Images that may come at once after a pause, and so the most in one request [default: as many as in a second]
    #[arg(long, env = "EQUIPOISE_RATE_LIMIT_BURST", value_name = "IMAGES")]
    pub rate_limit_burst: Option<NonZeroU32>,

    /// Proxies in front of the server that add to X-Forwarded-For, 1 if no number is given: the client's address is then
    /// the one that the outermost of them saw. Without proxies callers can write there what they like [default: 0]
    #[arg(long, env = "EQUIPOISE_TRUST_FORWARDED_FOR", value_name = "PROXIES", num_args = 0..=1, require_equals = true,
          default_missing_value = "1")]
    pub trust_forwarded_for: Option<usize>,

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

impl ServeOptions {
    /// These options, and where they say nothing those of the configuration file, if one is named.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the line.
    pub fn with_file(mut self) -> Result<Self, ConfigError> {
        // The command line parser has no way to read a variable without showing it as a flag.
        // A flag wins over it; a file that the configuration file names does not.
        if self.admin_token_file.is_none() {
            // What is no text is refused like any other text that cannot be sent.
            let given = std::env::var_os("EQUIPOISE_ADMIN_TOKEN");
            self.admin_token = given.map(|token| Secret(token.to_string_lossy().into_owned()));
        }
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = read_text(&path)?;
        let mut file: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Toml { path: path.clone(), source: Box::new(source) })?;
        // Paths in a file are meant from where the file is.
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        let paths = [
            &mut file.state_dir,
            &mut file.admin_token_file,
            &mut file.tokens_file,
            &mut file.tls_cert,
            &mut file.tls_key,
            &mut file.onnxruntime_dir,
        ];
        for path in paths.into_iter().flatten().chain(&mut file.models) {
            *path = base.join(&path);
        }
        Ok(Self {
            models: if self.models.is_empty() { file.models } else { self.models },
            listen: self.listen.or(file.listen),
            admin_listen: self.admin_listen.or(file.admin_listen),
            allow_insecure_admin: self.allow_insecure_admin.or(file.allow_insecure_admin),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            state_dir: self.state_dir.or(file.state_dir),
            state: self.state.or(file.state),
            state_poll_ms: self.state_poll_ms.or(file.state_poll_ms),
            device: self.device.or(file.device),
            sessions: self.sessions.or(file.sessions),
            threads: self.threads.or(file.threads),
            lone_threads: self.lone_threads.or(file.lone_threads),
            tune: self.tune.or(file.tune),
            decode_threads: self.decode_threads.or(file.decode_threads),
            queue_capacity: self.queue_capacity.or(file.queue_capacity),
            max_batch_size: self.max_batch_size.or(file.max_batch_size),
            max_queue_delay_ms: self.max_queue_delay_ms.or(file.max_queue_delay_ms),
            max_request_time_ms: self.max_request_time_ms.or(file.max_request_time_ms),
            max_body_bytes: self.max_body_bytes.or(file.max_body_bytes),
            max_head_bytes: self.max_head_bytes.or(file.max_head_bytes),
            max_bodies_bytes: self.max_bodies_bytes.or(file.max_bodies_bytes),
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
            tokens_file: self.tokens_file.or(file.tokens_file),
            require_auth: self.require_auth.or(file.require_auth),
            rate_limit_images_per_second: self.rate_limit_images_per_second.or(file.rate_limit_images_per_second),
            rate_limit_burst: self.rate_limit_burst.or(file.rate_limit_burst),
            trust_forwarded_for: self.trust_forwarded_for.or(file.trust_forwarded_for),
            onnxruntime_dir: self.onnxruntime_dir.or(file.onnxruntime_dir),
            cuda_memory_limit_bytes: self.cuda_memory_limit_bytes.or(file.cuda_memory_limit_bytes),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
            config: Some(path),
            admin_token: self.admin_token,
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
