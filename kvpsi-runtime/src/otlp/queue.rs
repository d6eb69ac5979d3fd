//! Spans that wait to be exported, and what became of each.
//!
//! Owns the bound and the counters around the SDK's own queue and thread, which
//! drops without saying how many. Invariant: exported + failed + dropped +
//! waiting is all spans that ended.

use super::client::Client;
use crate::server::spans::SpanCounts;
use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

/// Spans that wait, those on their way included: about a KiB each.
const MOST: usize = 2048;
/// Spans of one request to the collector.
const BATCH: usize = 512;

/// How many wait.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: AtomicUsize,
    counts: Arc<SpanCounts>,
    told: AtomicBool,
}

impl Queue {
    pub fn new(counts: Arc<SpanCounts>) -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            counts,
            told: AtomicBool::new(false),
        }
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// A place for one more, if there is one.
    fn enter(&self) -> bool {
        let room = |n: usize| (n < MOST).then_some(n + 1);
        let entered = self.waiting.fetch_update(Relaxed, Relaxed, room).is_ok();
        if !entered {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
        entered
    }

    fn leave(&self, spans: usize, exported: usize) {
        let failed = (spans - exported) as u64;
        self.counts.exported.fetch_add(exported as u64, Relaxed);
        self.counts.failed.fetch_add(failed, Relaxed);
        self.waiting.fetch_sub(spans, Relaxed);
    }

    /// Says it once: the metric counts on.
    fn tell(&self, endpoint: &str, why: &str) {
        if !self.told.swap(true, Relaxed) {
            tracing::warn!(
                "spans cannot be sent to {endpoint}: {why}; kvpsi_otlp_spans_total counts those that are lost"
            );
        }
    }
}

/// The SDK's exporter, counted.
#[derive(Debug)]
pub(super) struct Counted<E> {
    inner: E,
    client: Client,
    queue: Arc<Queue>,
    endpoint: String,
}

impl<E: SpanExporter> Counted<E> {
    pub fn new(inner: E, client: Client, queue: Arc<Queue>, endpoint: String) -> Self {
        Self {
            inner,
            client,
            queue,
            endpoint,
        }
    }
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let done = self.inner.export(batch).await;
        let last = self.client.take_last();
        let rejected = usize::try_from(last.rejected).unwrap_or(usize::MAX);
        let taken = match done {
            Ok(()) => spans.saturating_sub(rejected),
            Err(_) => 0,
        };
        self.queue.leave(spans, taken);
        match &done {
            Err(e) => {
                let why = last.broken.unwrap_or_else(|| e.to_string());
                self.queue.tell(&self.endpoint, &why);
            }
            Ok(()) if taken < spans => {
                let why = format!("it took {taken} of {spans}");
                self.queue.tell(&self.endpoint, &why);
            }
            Ok(()) => {}
        }
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The SDK's processor, behind the bound.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    queue: Arc<Queue>,
}

/// Milliseconds between two exports, the standard's, and the least that is taken.
const DELAY_MS: u64 = 5000;
const LEAST_DELAY_MS: u64 = 100;

/// What ended spans go to. The standard variables set its delay
/// (`OTEL_BSP_SCHEDULE_DELAY`).
pub(super) fn processor(
    exporter: impl SpanExporter + 'static,
    queue: Arc<Queue>,
) -> impl SpanProcessor {
    let delay = std::env::var("OTEL_BSP_SCHEDULE_DELAY").ok();
    let delay = delay
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(DELAY_MS);
    let config = BatchConfigBuilder::default()
        // With none its thread never sleeps.
        .with_scheduled_delay(Duration::from_millis(delay.max(LEAST_DELAY_MS)))
        .with_max_queue_size(MOST)
        .with_max_export_batch_size(BATCH)
        .build();
    let inner = BatchSpanProcessor::builder(exporter)
        .with_batch_config(config)
        .build();
    Bounded { inner, queue }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.enter() {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
