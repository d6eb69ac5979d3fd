//! Connections: how many, how slow, and how they end.
//!
//! Owns the socket and the end of the server. Invariants: a client that sends
//! or reads nothing loses its connection after a time; when the server is told
//! to stop, answers that were begun are ended first, for a while. Out
//! of scope: what is asked.

use super::{routes::router, state::Server};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
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
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Time for the last words after answers were cut off.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Bytes of a request's head, and of what is read ahead of a body.
const HEAD_BYTES: usize = 64 << 10;
/// Between two tries to accept a connection when the first one failed: the
/// process is out of descriptors, most likely.
const RETRY: Duration = Duration::from_millis(100);

impl Server {
    /// Serves until `stop`, then lets answers that were begun come to their end,
    /// and calls `cut` when some do not in time.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
        cut: impl FnOnce(),
    ) {
        let places = Arc::new(Semaphore::new(self.config.max_connections));
        let open = GracefulShutdown::new();
        let router = router(&self);
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(HEAD_BYTES);
        let mut stop = pin!(stop);
        loop {
            let place = tokio::select! {
                place = places.clone().acquire_owned() => place,
                () = &mut stop => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("a connection could not be accepted: {e}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            self.prepare(&stream);
            let service = TowerToHyperService::new(router.clone());
            let served = open.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                if let Err(e) = served.await {
                    tracing::debug!("a connection ended: {e}");
                }
                drop(place);
            });
        }
        drop(listener);
        self.draining.store(true, Relaxed);
        let mut closed = pin!(open.shutdown());
        let drained = tokio::time::timeout(self.config.drain, &mut closed).await;
        cut();
        if drained.is_err() {
            let _ = tokio::time::timeout(LAST_WORDS, closed).await;
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
