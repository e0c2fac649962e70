//! A listener, its connections, and their end.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, http::Request};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::{tls::Tls, unread::BoundedWrites};
use crate::http::Peer;

/// For the head of a request, and for it to begin on a connection that is kept open: hyper does not tell the two apart. Load
/// balancers keep idle connections for a minute, and send into one that closes just then.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(75);
/// As much of a request is read at once, headers included: a connection keeps a buffer as large as it has needed, by hyper's own
/// limit 400 KiB, for as long as it is open.
const READ_BYTES: usize = 64 << 10;
/// For the handshake of TLS, as a whole.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may wait for its reader to take the next of it: whoever takes nothing holds a connection for nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing is accepted after a failure: out of file descriptors, most likely, of which some are free again then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers on a listener, and how.
pub(super) struct Acceptor {
    pub(super) router: Router,
    pub(super) tls: Option<Arc<Tls>>,
    /// Connections open at once; further ones wait to be accepted.
    pub(super) max_connections: usize,
}

impl Acceptor {
    /// Accepts until `stopped` changes, then waits for the requests in flight, at most for `timeout`.
    pub(super) async fn serve(self, listener: TcpListener, mut stopped: watch::Receiver<()>, timeout: Duration) {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(self.max_connections));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                accepted = accepted => accepted,
                _ = stopped.changed() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (router, tls, watcher, stopped) =
                (self.router.clone(), self.tls.clone(), graceful.watcher(), stopped.clone());
            tokio::spawn(async move {
                let _place = place;
                connect(stream, tls, stopped, Connection { router, peer, watcher }).await;
            });
        }
        drop(listener);
        if tokio::time::timeout(timeout, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still in flight at the end of the shutdown timeout");
        }
    }
}

/// Shakes hands if there is TLS, and serves the connection. Whoever is not done with the handshake at the end of the server
/// has asked for nothing yet, and is not waited for.
async fn connect(stream: TcpStream, tls: Option<Arc<Tls>>, mut stopped: watch::Receiver<()>, connection: Connection) {
    // Without it an answer of two writes waits for an acknowledgement between them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let stream = BoundedWrites::new(stream, WRITE_TIMEOUT);
    let Some(tls) = tls else { return connection.serve(stream).await };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream));
    tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => connection.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
        _ = stopped.changed() => {}
    }
}

struct Connection {
    router: Router,
    peer: SocketAddr,
    watcher: Watcher,
}

impl Connection {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Self { router, peer, watcher } = self;
        let router = TowerToHyperService::new(router);
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer));
            router.call(request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT).max_buf_size(READ_BYTES);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}
