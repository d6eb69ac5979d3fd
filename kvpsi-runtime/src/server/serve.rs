//! Connections: how slow they may be, and how they end.
//!
//! Owns the sockets and the end of the server. Invariants: a client that sends
//! or reads nothing loses its connection after a time; when the server is told
//! to stop, answers that were begun are ended first, for a while. Out
//! of scope: what is asked, and which connection gives way (`connections`).

use super::{
    connections::{Client, Connection},
    routes::router,
    state::Server,
};
use axum::{Router, extract::Request};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use std::{
    future::Future,
    os::fd::AsFd,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::Semaphore,
};
use tower::ServiceExt;

/// Time for the last words after answers were cut off.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Bytes of a request's head, and of what is read ahead of a body.
const HEAD_BYTES: usize = 64 << 10;
/// Between two tries to accept a connection when the first one failed: the
/// process is out of descriptors, most likely.
const RETRY: Duration = Duration::from_millis(100);
/// Between two looks for a place where all, the reserved ones too, are taken.
const NO_PLACE: Duration = Duration::from_millis(10);
/// Connections of the admin socket.
const ADMINS: usize = 16;

/// Where a server listens.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub tcp: TcpListener,
    /// For the one who runs the server: every path is open to it.
    pub admin: Option<UnixListener>,
}

impl Server {
    /// Serves until `stop`, then lets answers that were begun come to their end,
    /// and calls `cut` when some do not in time.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Listeners,
        stop: impl Future<Output = ()>,
        cut: impl FnOnce(),
    ) {
        let open = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(HEAD_BYTES);
        let front = Front {
            router: router(&self),
            http,
        };
        let Listeners { tcp, admin } = listeners;
        let administer = async {
            match &admin {
                Some(admin) => front.admit(admin, &open).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.accept(&front, &tcp, &open) => {}
            () = administer => {}
            () = stop => {}
        }
        drop((tcp, admin));
        self.draining.store(true, Relaxed);
        let mut closed = pin!(open.shutdown());
        let drained = tokio::time::timeout(self.config.drain, &mut closed).await;
        cut();
        if drained.is_err() {
            let _ = tokio::time::timeout(LAST_WORDS, closed).await;
        }
    }

    async fn accept(&self, front: &Front, listener: &TcpListener, open: &GracefulShutdown) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("a connection could not be accepted: {e}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            self.prepare(&stream);
            let place = loop {
                match self.connections.place(Client::Tcp(address)) {
                    Some(place) => break place,
                    None => tokio::time::sleep(NO_PLACE).await,
                }
            };
            let connection = place.connection.clone();
            front.answer(stream, connection, Some(place), open.watcher());
        }
    }

    /// Tokens go out at once, and one who reads nothing is not waited for.
    fn prepare(&self, stream: &TcpStream) {
        let _ = stream.set_nodelay(true);
        let ms = u32::try_from(self.config.header_timeout.as_millis()).unwrap_or(u32::MAX);
        if let Err(e) = rustix::net::sockopt::set_tcp_user_timeout(stream.as_fd(), ms) {
            tracing::debug!("TCP_USER_TIMEOUT: {e}");
        }
    }
}

/// How a connection is answered.
struct Front {
    router: Router,
    http: http1::Builder,
}

impl Front {
    /// Serves the admin socket.
    async fn admit(&self, listener: &UnixListener, open: &GracefulShutdown) {
        let places = Arc::new(Semaphore::new(ADMINS));
        while let Ok(place) = places.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Connection::new(Client::Admin, false);
                    self.answer(stream, connection, place, open.watcher());
                }
                Err(e) => {
                    tracing::warn!("a connection of the admin socket could not be accepted: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Answers a connection to its end, in a task of its own.
    fn answer(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        connection: Arc<Connection>,
        place: impl Send + 'static,
        open: Watcher,
    ) {
        let (router, of) = (self.router.clone(), connection.clone());
        let service = tower::service_fn(move |mut request: Request<hyper::body::Incoming>| {
            of.answering();
            request.extensions_mut().insert(of.clone());
            router.clone().oneshot(request)
        });
        let service = TowerToHyperService::new(service);
        let served = open.watch(self.http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            tokio::select! {
                served = served => if let Err(e) = served {
                    tracing::debug!("a connection ended: {e}");
                },
                () = connection.close.notified() => {
                    tracing::debug!("{} sent no request and gave way", connection.client);
                }
            }
            drop(place);
        });
    }
}
