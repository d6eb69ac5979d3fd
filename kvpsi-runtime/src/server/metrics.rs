//! Figures for Prometheus.
//!
//! Owns names, labels and buckets: those of vLLM where vLLM has the same figure
//! (`vllm/v1/metrics/loggers.py`), `kvpsi_` for what only kvpsi has. What is
//! counted elsewhere is read when somebody asks. Refuses to know of HTTP.

use super::view::{Status, Trim};
use crate::{
    control::Governor,
    engine::{Finish, batch::Failure},
    kv::KvPool,
};
use ::metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram, with_local_recorder,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use std::time::Duration;

/// Seconds to the first token.
const FIRST: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between two tokens.
const BETWEEN: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// Seconds of a request.
const WHOLE: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Seconds from a stall's onset to the return of pages.
const TRIM: [f64; 12] = [
    0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 1.0,
];

/// How a request ended well, as vLLM names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Stop,
    Length,
}

impl Ended {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl From<Finish> for Ended {
    fn from(f: Finish) -> Self {
        match f {
            Finish::Eos | Finish::StopText | Finish::Stopped => Self::Stop,
            Finish::MaxTokens | Finish::Length | Finish::Exhausted => Self::Length,
        }
    }
}

/// All figures of a server.
pub(super) struct Metrics {
    recorder: PrometheusRecorder,
    model: String,
    handles: Handles,
}

/// What is recorded as it happens.
struct Handles {
    first: Histogram,
    between: Histogram,
    whole: Histogram,
    queued: Histogram,
    stop: Counter,
    length: Counter,
    cached: Counter,
    trim: Histogram,
}

impl Handles {
    fn new(model: &str) -> Self {
        describe();
        let model = || model.to_owned();
        let of = |name: &'static str| histogram!(name, "model_name" => model());
        let ended = |how: Ended| {
            counter!("vllm:request_success_total",
                "model_name" => model(), "finished_reason" => how.name())
        };
        Self {
            first: of("vllm:time_to_first_token_seconds"),
            between: of("vllm:inter_token_latency_seconds"),
            whole: of("vllm:e2e_request_latency_seconds"),
            queued: of("vllm:request_queue_time_seconds"),
            stop: ended(Ended::Stop),
            length: ended(Ended::Length),
            cached: counter!("vllm:prefix_cache_hits_total", "model_name" => model()),
            trim: histogram!("kvpsi_trim_seconds"),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub fn new(model: &str) -> Result<Self, BuildError> {
        let full = |name: &str| Matcher::Full(name.to_owned());
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(full("vllm:time_to_first_token_seconds"), &FIRST)?
            .set_buckets_for_metric(full("vllm:inter_token_latency_seconds"), &BETWEEN)?
            .set_buckets_for_metric(full("vllm:e2e_request_latency_seconds"), &WHOLE)?
            .set_buckets_for_metric(full("vllm:request_queue_time_seconds"), &WHOLE)?
            .set_buckets_for_metric(full("kvpsi_trim_seconds"), &TRIM)?
            .build_recorder();
        let model = model.to_owned();
        let handles = with_local_recorder(&recorder, || Handles::new(&model));
        Ok(Self {
            recorder,
            model,
            handles,
        })
    }

    pub fn started(&self, queued: Duration, cached_tokens: usize) {
        self.handles.queued.record(queued);
        self.handles.cached.increment(cached_tokens as u64);
    }

    pub fn first_token(&self, after: Duration) {
        self.handles.first.record(after);
    }

    pub fn next_token(&self, after: Duration) {
        self.handles.between.record(after);
    }

    pub fn done(&self, after: Duration, how: Ended) {
        self.handles.whole.record(after);
        match how {
            Ended::Stop => self.handles.stop.increment(1),
            Ended::Length => self.handles.length.increment(1),
        }
    }

    pub fn failed(&self, failure: &Failure) {
        let why = match failure {
            Failure::Deadline => "deadline",
            Failure::NoMemory { .. } => "memory",
            Failure::Step(_) => "step",
            Failure::Ending => "ending",
        };
        with_local_recorder(&self.recorder, || {
            counter!("kvpsi_requests_failed_total", "reason" => why).increment(1);
        });
    }

    /// A request that was turned away.
    pub fn refused(&self, reason: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!("kvpsi_requests_refused_total", "reason" => reason).increment(1);
        });
    }

    /// An HTTP response; `path` is one of ours, or `other`.
    pub fn responded(&self, path: &'static str, status: u16) {
        with_local_recorder(&self.recorder, || {
            counter!("kvpsi_http_requests_total",
                "path" => path, "status" => status.to_string())
            .increment(1);
        });
    }

    pub fn trimmed(&self, trim: &Trim) {
        self.handles
            .trim
            .record(Duration::from_micros(trim.onset_to_returned_us));
        with_local_recorder(&self.recorder, || {
            counter!("kvpsi_trims_total",
                "trigger" => trim.trigger.clone(), "step" => trim.step.clone())
            .increment(1);
        });
    }

    /// What was recorded is gathered; else it would pile up until somebody asks.
    pub fn gather(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// The text that Prometheus reads; `status` where the model is ready.
    pub fn render(
        &self,
        of: Option<(&Status, &KvPool, Option<&Governor>)>,
        preemptions: u64,
    ) -> String {
        with_local_recorder(&self.recorder, || {
            if let Some((status, pool, governor)) = of {
                self.requests(status, preemptions);
                memory(status, pool);
                if let Some(governor) = governor {
                    kernel(status, governor);
                }
            }
        });
        self.recorder.handle().render()
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
    fn requests(&self, s: &Status, preemptions: u64) {
        let model = || self.model.clone();
        let r = &s.requests;
        gauge!("vllm:num_requests_running", "model_name" => model()).set(r.running as f64);
        gauge!("vllm:num_requests_waiting", "model_name" => model()).set(r.waiting as f64);
        let share = s.kv.in_use.0 as f64 / (s.kv.budget.0.max(s.kv.in_use.0).max(1)) as f64;
        gauge!("vllm:kv_cache_usage_perc", "model_name" => model()).set(share);
        for (name, n) in [
            ("vllm:prompt_tokens_total", r.prompt_tokens),
            ("vllm:prefix_cache_queries_total", r.prompt_tokens),
            ("vllm:generation_tokens_total", r.tokens),
            ("vllm:num_preemptions_total", preemptions),
        ] {
            counter!(name, "model_name" => model()).absolute(n);
        }
        counter!("kvpsi_requests_cancelled_total").absolute(r.cancelled);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn memory(s: &Status, pool: &KvPool) {
    let kv = &s.kv;
    for (state, bytes) in [
        ("resident", kv.resident),
        ("in_use", kv.in_use),
        ("cached", kv.cached),
        ("slack", kv.slack),
        ("floor", kv.floor),
        ("budget", kv.budget),
        ("capacity", kv.capacity),
    ] {
        gauge!("kvpsi_kv_bytes", "state" => state).set(bytes.0 as f64);
    }
    gauge!("process_resident_memory_bytes").set(s.rss.0 as f64);
    gauge!("kvpsi_kv_tokens").set(kv.tokens as f64);
    let a = pool.account();
    counter!("kvpsi_kv_blocks_evicted_total", "by" => "budget").absolute(a.self_evicted);
    counter!("kvpsi_kv_blocks_evicted_total", "by" => "cache").absolute(a.cache_evicted);
    counter!("kvpsi_madvise_errors_total").absolute(a.madvise_errors);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn kernel(s: &Status, governor: &Governor) {
    let stats = governor.stats();
    let source = governor.source();
    let rung = s.rung.clone().unwrap_or_default();
    gauge!("kvpsi_source_info", "signal" => s.signal.clone(), "rung" => rung).set(1.0);
    let e = &stats.events;
    for (fate, n) in [
        ("seen", e.seen),
        ("delivered", e.delivered),
        ("coalesced", e.coalesced),
        ("dropped", e.dropped),
    ] {
        counter!("kvpsi_events_total", "fate" => fate).absolute(n);
    }
    for (kind, c) in source.kinds() {
        let labels = [("kind", kind.name()), ("scope", "system")];
        counter!("kvpsi_stalls_total", &labels).absolute(c.settled.max(c.seen));
        if kind.is_stall() {
            gauge!("kvpsi_stall_seconds_total", &labels).set(c.stall_ns as f64 / 1e9);
        }
    }
    if let Some(ns) = stats.some_ns {
        gauge!("kvpsi_stall_some_seconds_total", "scope" => "system").set(ns as f64 / 1e9);
    }
    for (program, cost) in source.costs() {
        counter!("kvpsi_probe_runs_total", "program" => program.clone()).absolute(cost.runs);
        gauge!("kvpsi_probe_seconds_total", "program" => program).set(cost.time.as_secs_f64());
    }
    counter!("kvpsi_kv_returned_bytes_total").absolute(stats.trimmed_bytes.0);
    for (step, bytes) in &stats.by_step {
        counter!("kvpsi_trim_bytes_total", "step" => *step).absolute(bytes.0);
    }
    counter!("kvpsi_dropped_tokens_total").absolute(stats.dropped_tokens);
    counter!("kvpsi_stalls_ignored_total").absolute(stats.ignored);
    counter!("kvpsi_trim_records_lost_total").absolute(stats.records_lost);
    let broken = f64::from(u8::from(stats.source_error.is_some()));
    gauge!("kvpsi_source_broken").set(broken);
}

/// What each is, for people.
fn describe() {
    for (name, what) in [
        (
            "vllm:time_to_first_token_seconds",
            "From a request's arrival to its first token",
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Between two tokens of a request",
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival to its end",
        ),
        (
            "vllm:request_queue_time_seconds",
            "From a request's arrival to its place",
        ),
        (
            "kvpsi_trim_seconds",
            "From a stall's onset to the return of the last page",
        ),
    ] {
        describe_histogram!(name, what);
    }
    for (name, what) in [
        ("vllm:num_requests_running", "Requests being computed"),
        (
            "vllm:num_requests_waiting",
            "Requests that wait for a place",
        ),
        (
            "vllm:kv_cache_usage_perc",
            "KV in use, as a share of the budget, 0 to 1",
        ),
        ("kvpsi_kv_bytes", "KV memory by state"),
        ("kvpsi_kv_tokens", "Positions with keys and values"),
        ("kvpsi_source_info", "Where pressure is heard"),
        (
            "kvpsi_source_broken",
            "1 when the signal broke: nothing is trimmed any more",
        ),
        (
            "kvpsi_stall_seconds_total",
            "Time that tasks stalled, summed over tasks",
        ),
        (
            "kvpsi_stall_some_seconds_total",
            "Time in which at least one task stalled",
        ),
        (
            "kvpsi_probe_seconds_total",
            "Time that eBPF programs ran, where the kernel measures it",
        ),
    ] {
        describe_gauge!(name, what);
    }
    for (name, what) in [
        ("vllm:prompt_tokens_total", "Tokens of prompts"),
        ("vllm:generation_tokens_total", "Tokens generated"),
        (
            "vllm:request_success_total",
            "Requests answered, by how they ended",
        ),
        (
            "vllm:num_preemptions_total",
            "Times that a request lost all its memory",
        ),
        (
            "vllm:prefix_cache_queries_total",
            "Tokens looked for in the cache",
        ),
        ("vllm:prefix_cache_hits_total", "Tokens found in the cache"),
        ("kvpsi_stalls_total", "Stalls and marks by kind"),
        (
            "kvpsi_events_total",
            "Events by fate: seen is the sum of the others",
        ),
        ("kvpsi_trims_total", "Trims that gave something back"),
        ("kvpsi_trim_bytes_total", "Bytes given back by step"),
        (
            "kvpsi_kv_returned_bytes_total",
            "Bytes given back to the kernel",
        ),
        (
            "kvpsi_dropped_tokens_total",
            "Positions that lost keys and values",
        ),
        (
            "kvpsi_stalls_ignored_total",
            "Stalls of other cgroups, let pass",
        ),
        (
            "kvpsi_trim_records_lost_total",
            "Trims that nobody read in time",
        ),
        (
            "kvpsi_http_requests_total",
            "HTTP responses by path and status",
        ),
        ("kvpsi_requests_refused_total", "Requests turned away"),
        (
            "kvpsi_requests_failed_total",
            "Requests begun and broken off",
        ),
        (
            "kvpsi_requests_cancelled_total",
            "Requests whose client went",
        ),
        (
            "kvpsi_probe_runs_total",
            "Times that eBPF programs ran, where the kernel measures it",
        ),
    ] {
        describe_counter!(name, what);
    }
}
