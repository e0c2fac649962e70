//! The only place that wires things: configuration to models, models to routes, routes to listeners.

mod accept;
mod memory;
mod tls;
mod unread;

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::Router;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};

use accept::Acceptor;
use tls::Tls;

pub use memory::settle as settle_memory;
pub use tls::TlsError;

use crate::{
    access::{Access, TokenFileError},
    batcher::{BatchLimits, DecodePool, Occupancy},
    config::{AdminToken, Config, cloud_options, cores},
    http::{self, App, Phase},
    jobs::{FitJobs, FitOptions},
    metrics::Metrics,
    onnx::{self, LibraryError, SessionOptions},
    preprocess::DecodeLimits,
    registry::{
        FeatureSetQuota, LoadError, LoadOptions, ModelDirectory, Plan, Poller, StateDir, StateError, load_model, tune,
    },
    reload::Look,
};

/// Images in one pass of the backbone. On two CPU cores larger batches gained nothing and cost memory; a GPU wants more.
const CPU_MAX_BATCH_SIZE: usize = 4;
const CUDA_MAX_BATCH_SIZE: usize = 32;
/// Between two looks at the files of tokens and certificates.
const FILES_PERIOD: Duration = Duration::from_secs(2);
/// How long the end of the server waits for fits that were told to end.
const FITS_END_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the server does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// ONNX Runtime is not there.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The state directory is wrong.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file of tokens is wrong.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// There is no TLS with these files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A model cannot be loaded.
    #[error("model directory {path}: {source}")]
    Model {
        /// The folder.
        path: String,
        /// Why.
        source: Box<LoadError>,
    },
    /// Two models have one name.
    #[error("two model directories have the name `{name}`")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
}

impl ServerError {
    fn model(path: &std::path::Path, source: impl Into<LoadError>) -> Self {
        Self::Model { path: path.display().to_string(), source: Box::new(source.into()) }
    }
}

/// Where a server answers.
#[derive(Debug)]
pub struct Listeners {
    /// Everybody; also the admin API, unless that has a listener of its own.
    pub public: TcpListener,
    /// The admin API, and everything else too.
    pub admin: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(public: TcpListener) -> Self {
        Self { public, admin: None }
    }
}

/// A server that has its tokens and its state directory, and has not loaded its models yet.
pub struct Server {
    app: Arc<App>,
    config: Config,
    state_dir: StateDir,
    tls: Option<Arc<Tls>>,
    // Follows what other servers change, for as long as the server lives.
    poller: OnceLock<Poller>,
}

/// How a model is run on this machine: what `config` says, and for what it does not say the defaults of the device.
pub fn load_options(
    config: &Config,
    metrics: Arc<Metrics>,
    state_dir: Option<StateDir>,
) -> Result<LoadOptions, ServerError> {
    let plan = plan(config, None);
    let decode_limits = DecodeLimits::default();
    Ok(LoadOptions {
        session: SessionOptions {
            device: config.device,
            threads: plan.threads,
            cuda_memory_limit_bytes: config.cuda_memory_limit_bytes,
            ..SessionOptions::default()
        },
        n_sessions: plan.sessions,
        lone_threads: plan.lone_threads,
        occupancy: Occupancy::default(),
        limits: BatchLimits {
            queue_capacity: config.queue_capacity,
            max_batch_size: plan.max_batch_size,
            max_queue_delay: config.max_queue_delay,
        },
        decode_limits: match config.max_image_pixels {
            Some(max_pixels) => DecodeLimits { max_pixels, ..decode_limits },
            None => decode_limits,
        },
        decode_pool: decode_pool(config, plan, None)?,
        metrics,
        state_dir,
        feature_sets: Arc::new(FeatureSetQuota::new(config.max_feature_set_bytes, config.max_feature_sets_bytes)),
        tuning: None,
    })
}

/// The same for a model that is tuned, if `config` wants that.
fn tuned(config: &Config, directory: &ModelDirectory, options: &LoadOptions) -> Result<LoadOptions, ServerError> {
    let mut options = options.clone();
    if config.tune {
        let tuning =
            tune(directory, &options, config.settled()).map_err(|error| ServerError::model(&directory.path, error))?;
        let plan = plan(config, tuning.as_ref().map(|tuning| tuning.plan));
        options.session.threads = plan.threads;
        options.n_sessions = plan.sessions;
        options.lone_threads = plan.lone_threads;
        options.limits.max_batch_size = plan.max_batch_size;
        options.decode_pool = decode_pool(config, plan, options.decode_pool)?;
        options.tuning = tuning.map(Arc::new);
    }
    Ok(options)
}

fn plan(config: &Config, found: Option<Plan>) -> Plan {
    let on_cuda = config.device.expects_cuda();
    config.settled().or(found, |sessions| {
        let sessions = sessions.unwrap_or(if on_cuda { 1 } else { cores() });
        let max_batch_size = if on_cuda { CUDA_MAX_BATCH_SIZE } else { CPU_MAX_BATCH_SIZE };
        // Without having measured it nobody knows whether more threads help.
        Plan { sessions, threads: (cores() / sessions).max(1), max_batch_size, lone_threads: 0 }
    })
}

/// The threads that decode for a model, if its workers do not: those that there are already, or new ones.
fn decode_pool(config: &Config, plan: Plan, started: Option<DecodePool>) -> Result<Option<DecodePool>, ServerError> {
    let n_threads = match config.decode_threads {
        Some(given) => given,
        // A worker for each core keeps the cores busy by itself.
        None if !config.device.expects_cuda() && plan.sessions >= cores() => 0,
        None => cores(),
    };
    match (n_threads, started) {
        (0, _) => Ok(None),
        (_, Some(pool)) => Ok(Some(pool)),
        (n_threads, None) => DecodePool::start(n_threads).map(Some).map_err(ServerError::Thread),
    }
}

impl Server {
    /// Opens the state directory and finds tokens and certificate.
    ///
    /// # Errors
    /// [`ServerError::State`], [`ServerError::Tokens`] or [`ServerError::Tls`].
    pub fn new(config: Config) -> Result<Self, ServerError> {
        let mut state_dir = StateDir::open(&config.state_dir)?;
        if let Some(url) = &config.state {
            state_dir = state_dir.sharing_url(url, &cloud_options())?;
        }
        let token = match &config.admin_token {
            AdminToken::Given(token) => token.clone(),
            AdminToken::Kept => {
                let (token, path) = state_dir.admin_token()?;
                tracing::info!(path = %path.display(), "the admin token is in {}", path.display());
                token
            }
        };
        let access = Access::new(&token, config.tokens_file.clone())?;
        let tls = config.tls.as_ref().map(Tls::open).transpose()?.map(Arc::new);
        let metrics = Arc::new(Metrics::new());
        let fits = FitOptions {
            queue_capacity: config.fit_queue_capacity,
            concurrency: config.fit_concurrency,
            threads: config.fit_threads,
            cuda_memory_limit_bytes: config.cuda_memory_limit_bytes,
        };
        let jobs = FitJobs::new(fits, Arc::clone(&metrics));
        let app = Arc::new(App::new(&config, metrics, jobs, access));
        Ok(Self { app, config, state_dir, tls, poller: OnceLock::new() })
    }

    /// The state that the handlers share.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Every route.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.app), true)
    }

    /// Whether there are files that [`Self::reload`] would look at.
    pub fn has_files(&self) -> bool {
        self.tls.is_some() || self.app.access.has_file()
    }

    /// Looks at the files of tokens and certificates, and takes what has changed. What cannot be used is told to the log and
    /// a metric, and leaves what was in use. Blocks.
    pub fn reload(&self) {
        reload(&self.app, self.tls.as_deref());
    }

    /// Loads and warms every model, then says that the server is ready. Blocks; call it on a thread of its own.
    ///
    /// # Errors
    /// [`ServerError`] names the model directory and the file.
    pub fn load(&self) -> Result<(), ServerError> {
        let runtime = onnx::init(self.config.onnxruntime_dir.as_deref())?;
        tracing::info!(version = %runtime.version, path = %runtime.path.display(), "ONNX Runtime {}", runtime.version);
        let options = load_options(&self.config, Arc::clone(&self.app.metrics), Some(self.state_dir.clone()))?;
        let mut models = Vec::new();
        for path in &self.config.models {
            let directory = ModelDirectory::read(path).map_err(|error| ServerError::model(path, error))?;
            if models.iter().any(|model: &Arc<crate::registry::Model>| model.name() == directory.name) {
                return Err(ServerError::NameTwice { name: directory.name });
            }
            let options = tuned(&self.config, &directory, &options)?;
            let model = load_model(&directory, &options).map_err(|error| ServerError::model(path, error))?;
            tracing::info!(
                model = model.name(), classes = model.labels().len(), feature_dim = model.feature_dim(),
                provider = %model.provider(), sessions = options.n_sessions,
                threads = options.session.threads, lone_threads = model.lone_threads(), max_batch_size = options.limits.max_batch_size,
                "model `{}` is ready on {}", model.name(), model.provider()
            );
            models.push(Arc::new(model));
        }
        self.app.jobs.start(&models)?;
        if self.state_dir.is_shared() {
            // Loaded twice it would go on with the first one.
            let _ = self.poller.set(Poller::start(models.clone(), self.config.state_poll)?);
        }
        self.app.registry.fill(models);
        memory::settle_after_loading();
        self.app.enter(Phase::Ready);
        Ok(())
    }

    /// Answers requests on `listeners` until `shutdown` resolves, and then until those in flight are answered: not ready at
    /// once, no new connections after the delay, an end after the timeout.
    ///
    /// # Errors
    /// None of its own: a connection that fails is closed and logged.
    pub async fn serve(&self, listeners: impl Into<Listeners>, shutdown: impl Future<Output = ()> + Send) {
        let app = Arc::clone(&self.app);
        let delay = self.config.shutdown_delay;
        let timeout = self.config.shutdown_timeout.max(FITS_END_TIMEOUT);
        let (stop, stopped) = watch::channel(());
        let stopping = async move {
            shutdown.await;
            app.enter(Phase::Draining);
            tracing::info!("shutting down: not ready any more");
            tokio::time::sleep(delay).await;
            // Whoever follows a fit reads its end then, and no connection waits for it.
            aside(timeout, "the fits could not be told to end", move || app.jobs.stop()).await;
            drop(stop);
        };
        let Listeners { public, admin } = listeners.into();
        let accept = |listener: TcpListener, with_admin: bool| {
            let acceptor = Acceptor {
                router: http::router(Arc::clone(&self.app), with_admin),
                tls: self.tls.clone(),
                max_connections: self.config.max_connections,
            };
            acceptor.serve(listener, stopped.clone(), self.config.shutdown_timeout)
        };
        let public = accept(public, admin.is_none());
        let admin = async {
            if let Some(admin) = admin {
                accept(admin, true).await;
            }
        };
        let serving = async { tokio::join!(stopping, public, admin) };
        tokio::select! {
            _ = serving => {}
            () = self.watch_files() => {}
        }
        let app = Arc::clone(&self.app);
        let wait = move || app.jobs.wait(FITS_END_TIMEOUT);
        aside(2 * FITS_END_TIMEOUT, "the end of the fits could not be waited for", wait).await;
        tracing::info!("stopped");
    }

    /// Looks at the files from time to time, for ever.
    async fn watch_files(&self) {
        if !self.has_files() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(FILES_PERIOD).await;
            let (app, tls) = (Arc::clone(&self.app), self.tls.clone());
            if let Err(error) = tokio::task::spawn_blocking(move || reload(&app, tls.as_deref())).await {
                tracing::error!(%error, "the files of tokens and certificates could not be looked at");
            }
        }
    }
}

/// Does what blocks on a thread of its own, whatever else blocks, and waits for it until a limit.
async fn aside(limit: Duration, or_else: &'static str, work: impl FnOnce() + Send + 'static) {
    let (done, is_done) = oneshot::channel();
    let work = move || {
        work();
        // Nobody may be waiting any more.
        let _ = done.send(());
    };
    let started = std::thread::Builder::new().name("shutdown".to_owned()).spawn(work);
    if started.is_err() || !matches!(tokio::time::timeout(limit, is_done).await, Ok(Ok(()))) {
        tracing::error!("{or_else}");
    }
}

fn reload(app: &App, tls: Option<&Tls>) {
    let metrics = &app.metrics;
    match app.access.look() {
        None | Some(Look::Unchanged) => {}
        Some(Look::Renewed) => {
            let n_tokens = app.access.n_tokens();
            metrics.reloaded("tokens", true);
            tracing::info!(n_tokens, "the tokens have changed: {n_tokens} are known, `admin` included");
        }
        Some(Look::Failed(error)) => {
            metrics.reloaded("tokens", false);
            tracing::error!(%error, "the tokens have changed and cannot be used; those from before still hold");
        }
    }
    match tls.map(Tls::look) {
        None | Some(Look::Unchanged) => {}
        Some(Look::Renewed) => {
            metrics.reloaded("certificate", true);
            tracing::info!("the certificate has changed: new connections have the new one");
        }
        Some(Look::Failed(error)) => {
            metrics.reloaded("certificate", false);
            tracing::error!(%error, "the certificate has changed and cannot be used; the one from before still is");
        }
    }
}
