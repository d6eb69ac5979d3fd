//! Connections: how many, how slow, and how they end.
//!
//! Owns the socket and the life of the server. Invariants: a client that sends
//! or reads nothing loses its connection after a time; when the server is told
//! to stop, answers that were begun are ended first, for a while. Refuses to
//! know what is asked.

use super::{
    live::Live, metrics::Metrics, model::Loaded, permits::AdmissionPermits, routes::router,
    trace::Watchers,
};
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
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
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

/// How a server is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name that clients call the model by.
    pub name: String,
    /// What clients must know; none lets everybody in.
    pub api_key: Option<String>,
    /// Bytes of a body.
    pub max_body: usize,
    /// Tokens of a prompt; none: what the context has room for.
    pub max_prompt: Option<usize>,
    /// Connections at once; more wait in the kernel.
    pub max_connections: usize,
    /// Time for a request's head, and between two requests.
    pub header_timeout: Duration,
    /// Time for a request's body.
    pub body_timeout: Duration,
    /// Time for an answer.
    pub request_timeout: Duration,
    /// Requests computed and waiting.
    pub permits: usize,
    /// Time for answers that were begun when the server is told to stop.
    pub drain: Duration,
}

/// A server; its model may come later.
#[derive(Debug)]
pub struct Server {
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) permits: Arc<AdmissionPermits>,
    pub(super) watchers: Watchers,
    pub(super) draining: AtomicBool,
    pub(super) started_unix: u64,
    live: OnceLock<Arc<Live>>,
}

impl Server {
    /// A server without a model yet.
    ///
    /// # Errors
    /// The metrics cannot be set up.
    pub fn new(config: Config, watchers: Watchers) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            metrics: Arc::new(Metrics::new(&config.name)?),
            permits: AdmissionPermits::new(config.permits),
            config,
            watchers,
            draining: AtomicBool::new(false),
            started_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            live: OnceLock::new(),
        }))
    }

    /// The model is there: requests are taken from now on.
    pub fn ready(&self, loaded: Loaded) {
        let live = Arc::new(Live::new(loaded, &self.config.name));
        if self.live.set(live).is_err() {
            tracing::error!("a second model for one server");
        }
    }

    /// The model, once it is there.
    #[must_use]
    pub fn live(&self) -> Option<Arc<Live>> {
        self.live.get().cloned()
    }

    /// Takes samples for those who look; to be run beside [`Server::serve`].
    pub async fn watch(self: Arc<Self>) {
        loop {
            if let Some(live) = self.live() {
                live.watch(self.metrics.clone()).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

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
