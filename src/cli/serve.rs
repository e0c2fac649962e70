//! `equipoise serve`.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;

use crate::{
    config::{ConfigError, ServeOptions},
    server::Server,
    telemetry,
};

pub(super) fn run(options: ServeOptions) -> anyhow::Result<()> {
    let options = options.with_file()?;
    telemetry::init(options.log_format.unwrap_or_default(), options.log.as_deref().unwrap_or("info"))
        .context("--log")?;
    let config = options.resolve().map_err(|error: ConfigError| anyhow::Error::from(error))?;
    let listen = config.listen;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Arc::new(Server::new(config)?);
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, "listening on http://{address}");

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
            () = server.serve(listener, shutdown_signal()) => Ok(()),
        }
    })
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
