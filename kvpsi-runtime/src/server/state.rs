//! A server as all handlers see it: configuration, metrics, permits, the model.
//!
//! Owns the one value that requests share. Out of scope: connections and paths.

use super::{
    live::Live, metrics::Metrics, model::Loaded, permits::AdmissionPermits, trace::Watchers,
};
use std::{
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How a server is to work.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name that clients call the model by.
    pub name: String,
    /// What clients must know; none: open to all.
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
}
