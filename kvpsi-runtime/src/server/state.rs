//! A server as all handlers see it: configuration, metrics, permits, the model.
//!
//! Owns the one value that requests share. Out of scope: connections and paths.

use super::{
    connections::Connections,
    guard::Access,
    heap,
    inbound::Inbound,
    live::Live,
    metrics::Metrics,
    model::Loaded,
    permits::AdmissionPermits,
    spans::SpanSink,
    trace::Watchers,
    view::{self, Status},
};
use crate::units::Bytes;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How a server is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name that clients call the model by.
    pub name: String,
    /// Who may ask.
    pub access: Access,
    /// Bytes of a body.
    pub max_body: usize,
    /// Tokens of a prompt; none: what the context has room for.
    pub max_prompt: Option<usize>,
    /// Connections at once; more take the place of idle ones.
    pub max_connections: usize,
    /// Time for a request's head, and between two requests.
    pub header_timeout: Duration,
    /// Time for a request's body.
    pub body_timeout: Duration,
    /// Time for an answer.
    pub request_timeout: Duration,
    /// Requests computed and waiting.
    pub permits: usize,
    /// Prompts that are made into tokens at once.
    pub tokenizers: usize,
    /// Time for answers that were begun when the server is told to stop.
    pub drain: Duration,
    /// Where records of requests go, if anywhere.
    pub spans: Option<Arc<SpanSink>>,
}

/// A server; its model may come later.
#[derive(Debug)]
pub struct Server {
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) permits: Arc<AdmissionPermits>,
    pub(super) connections: Arc<Connections>,
    pub(super) inbound: Arc<Inbound>,
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
            connections: Arc::new(Connections::new(config.max_connections)),
            inbound: Inbound::new(config.max_body, config.tokenizers),
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

    /// How a ready instance is now.
    pub(super) fn status(&self, live: &Live) -> Status {
        let inbound = &self.inbound;
        Status {
            inbound: view::Inbound {
                connections: self.connections.count() as u64,
                body_bytes: Bytes(inbound.held() as u64),
                most_body_bytes: Bytes(inbound.total as u64),
                answer_bytes: Bytes(inbound.answers() as u64),
                waiting: inbound.waiting() as u64,
                preparing: inbound.preparing() as u64,
            },
            ..live.status(self.permits.taken())
        }
    }

    /// Takes samples for those who look, and returns what large requests left
    /// in the heap; to be run beside [`Server::serve`].
    pub async fn watch(self: Arc<Self>) {
        tokio::spawn(self.clone().tidy());
        loop {
            if let Some(live) = self.live() {
                live.watch(self.metrics.clone()).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn tidy(self: Arc<Self>) {
        let (mut tidied, mut again) = (0, false);
        loop {
            tokio::time::sleep(TIDY).await;
            let inbound = &self.inbound;
            let taken = inbound.taken.load(Relaxed);
            let busy = inbound.preparing() > 0;
            let rests = inbound.held() == 0 && inbound.answers() == 0 && self.permits.taken() == 0;
            let worth = taken - tidied >= WORTH_TIDYING;
            if !busy && (worth || (again && rests)) {
                // Who was still at work has more to return.
                (tidied, again) = (taken, !rests);
                // It holds up who allocates, and takes a while.
                let _ = tokio::task::spawn_blocking(heap::give_back).await;
            }
        }
    }
}

/// Between two looks whether the heap is worth tidying.
const TIDY: Duration = Duration::from_secs(1);
/// Bytes of bodies after which it is: text takes some hundred times as much
/// while it is made into tokens.
const WORTH_TIDYING: u64 = 256 << 10;
