//! `equipoise serve`.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use tokio::net::TcpListener;

use super::failure::WrongUsage;
use crate::{
    config::{ConfigError, ServeOptions, cores},
    server::{self, Listeners, Server},
    telemetry,
};

pub(super) fn run(options: ServeOptions) -> anyhow::Result<()> {
    server::settle_memory();
    let options = options.with_file()?;
    telemetry::init(options.log_format.unwrap_or_default(), options.log.as_deref().unwrap_or("info"))
        .context("--log")?;
    let config = options.resolve().map_err(|error: ConfigError| match error {
        error if error.is_wrong_usage() => WrongUsage(error.to_string()).into(),
        error => anyhow::Error::from(error),
    })?;
    let (listen, admin_listen) = (config.listen, config.admin_listen);
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(http_threads()).enable_all().build()?;
    runtime.block_on(async {
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
            () = server.serve(Listeners { public, admin }, shutdown_signal()) => Ok(()),
        }
    })
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
async fn shutdown_signal() {
    next_signal().await;
    tokio::spawn(async {
        next_signal().await;
        tracing::warn!("a second signal: stopping now");
        std::process::exit(1);
    });
}

async fn next_signal() {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! { () = interrupted => (), () = terminated => () }
}
