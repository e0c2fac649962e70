//! `equipoise serve`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;

use super::failure::{self, WrongUsage};
use crate::{
    config::{ConfigError, ServeOptions, cores},
    onnx::remove_copies,
    server::{self, Listeners, Server},
    telemetry,
};

/// How long the end waits for what still blocks a thread: a change that is being written, a model that is being loaded. Files are
/// whole at any time.
const LAST_WAIT: Duration = Duration::from_secs(1);

pub(super) fn run(options: ServeOptions) -> anyhow::Result<()> {
    server::settle_memory();
    let options = options.with_file()?;
    telemetry::init(options.log_format.unwrap_or_default(), options.log.as_deref().unwrap_or("info"))
        .map_err(|error| WrongUsage(format!("--log: {error}")))?;
    let config = options.resolve().map_err(|error: ConfigError| match error {
        error if error.is_wrong_usage() => WrongUsage(error.to_string()).into(),
        error => anyhow::Error::from(error),
    })?;
    #[cfg(target_os = "linux")]
    raise_open_files(config.max_connections);
    let (listen, admin_listen) = (config.listen, config.admin_listen);
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(http_threads()).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let signals = Signals::new().context("cannot wait for signals")?;
        let server = Arc::new(Server::new(config)?);
        let public = bind(listen).await?;
        let admin = match admin_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address = public.local_addr()?;
        match admin.as_ref().map(TcpListener::local_addr).transpose()? {
            None => tracing::info!(%address, "listening on {scheme}://{address}"),
            Some(admin) => tracing::info!(
                %address, admin_address = %admin,
                "listening on {scheme}://{address} and, with the admin API, on {scheme}://{admin}"
            ),
        }
        if server.has_files() {
            tokio::spawn(reload_on_hangup(Arc::clone(&server)));
        }

        // Requests are answered (with 503) while the models are loaded; a model that cannot be loaded ends the process.
        let loading = tokio::task::spawn_blocking({
            let server = Arc::clone(&server);
            move || server.load()
        });
        let failed = async {
            match loading.await {
                Ok(Ok(())) => std::future::pending().await,
                Ok(Err(error)) => anyhow::Error::from(error),
                Err(error) => anyhow::Error::from(error),
            }
        };
        tokio::select! {
            error = failed => Err(error),
            () = server.serve(Listeners { public, admin }, shutdown_signal(signals)) => Ok(()),
        }
    });
    // Dropped, it would wait without a bound.
    runtime.shutdown_timeout(LAST_WAIT);
    leave(outcome.map_or_else(|error: anyhow::Error| i32::from(failure::report(&error)), |()| 0))
}

/// Lets the process have as many files open as the system allows it: each connection is one, and often only 1024 are allowed unless
/// a process asks for more.
#[cfg(target_os = "linux")]
fn raise_open_files(max_connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit on open files cannot be raised");
    }
    // There may be two listeners, and models, stores and pages of memory have files too.
    let enough = (max_connections as u64).saturating_mul(2).saturating_add(256);
    if let Some(maximum) = maximum.filter(|&maximum| maximum < enough) {
        tracing::warn!(
            maximum,
            max_connections,
            "the system allows {maximum} open files, which may be too few for {max_connections} connections on each listener"
        );
    }
}

/// Ends the process as it is: workers may still be within ONNX Runtime, and crash when what that needs is torn down at a usual end.
fn leave(code: i32) -> ! {
    remove_copies();
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code)]
    // SAFETY: it takes no pointer, and nothing of this process runs after it.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(target_os = "linux"))]
    std::process::exit(code)
}

/// Threads that read requests and write answers: half as many as there are cores.
///
/// What decodes and computes has a thread for each core, and takes by far most of the time: even for a network of 10 million
/// multiplications six times what HTTP does. More threads only take turns with those, and wake each other.
///
/// Measured on two cores, one thread beside two: a network of that size answers 5 % more requests, and EfficientNet-Lite0
/// 2 %, in 8 MB less.
fn http_threads() -> usize {
    (cores() / 2).max(1)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Looks at the files of tokens and certificates at each SIGHUP. Without such files the signal ends the process, as the
/// closing of a terminal should.
async fn reload_on_hangup(server: Arc<Server>) {
    #[cfg(unix)]
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        Ok(mut hangup) => {
            while hangup.recv().await.is_some() {
                let server = Arc::clone(&server);
                if let Err(error) = tokio::task::spawn_blocking(move || server.reload()).await {
                    tracing::error!(%error, "the files of tokens and certificates could not be looked at");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "SIGHUP does nothing; changed files are found all the same"),
    }
    #[cfg(not(unix))]
    drop(server);
}

/// Resolves at the first SIGTERM or Ctrl-C. A second one ends the process at once.
async fn shutdown_signal(mut signals: Signals) {
    signals.next().await;
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("a second signal: stopping now");
        leave(1);
    });
}

/// SIGTERM and Ctrl-C, from the moment that this is made.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.interrupt.recv() => (), _ = self.terminate.recv() => () }
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
