//! Figures for Prometheus.
//!
//! Owns their values; names, labels and buckets are [`names`]'. What is counted
//! elsewhere is read on request. Out of scope: HTTP.

use super::{
    connections::Connections,
    inbound::Inbound,
    names::{self, Shape},
    spans::SpanCounts,
    view::{Status, Trim},
    zeros,
};
use crate::{
    control::Governor,
    engine::{
        Finish,
        batch::{BatchAccount, Failure},
    },
    kv::KvPool,
};
use ::metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram, with_local_recorder,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};

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
            counter!(names::REQUEST_SUCCESS.name,
                "model_name" => model(), "finished_reason" => how.name())
        };
        Self {
            first: of(names::TIME_TO_FIRST_TOKEN.name),
            between: of(names::INTER_TOKEN_LATENCY.name),
            whole: of(names::REQUEST_LATENCY.name),
            queued: of(names::REQUEST_QUEUE_TIME.name),
            stop: ended(Ended::Stop),
            length: ended(Ended::Length),
            cached: counter!(names::PREFIX_CACHE_HITS.name, "model_name" => model()),
            trim: histogram!(names::TRIM_SECONDS.name),
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
        let mut builder = PrometheusBuilder::new();
        for metric in names::ALL {
            if let Shape::Histogram(bounds) = metric.shape {
                builder =
                    builder.set_buckets_for_metric(Matcher::Full(metric.name.into()), bounds)?;
            }
        }
        let recorder = builder.build_recorder();
        let model = model.to_owned();
        let handles = with_local_recorder(&recorder, || {
            zeros::begin(&model);
            Handles::new(&model)
        });
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
            Failure::NoMemory { .. } | Failure::OverBudget { .. } => "memory",
            Failure::Step(_) => "step",
            Failure::Grammar(_) => "grammar",
            Failure::Ending => "ending",
        };
        with_local_recorder(&self.recorder, || {
            counter!(names::REQUESTS_FAILED.name, "reason" => why).increment(1);
        });
    }

    /// A request that was turned away.
    pub fn refused(&self, reason: &'static str) {
        with_local_recorder(&self.recorder, || {
            counter!(names::REQUESTS_REFUSED.name, "reason" => reason).increment(1);
        });
    }

    /// An HTTP response; `path` is one of ours, or `other`.
    pub fn responded(&self, path: &'static str, status: u16) {
        with_local_recorder(&self.recorder, || {
            counter!(names::HTTP_REQUESTS.name,
                "path" => path, "status" => status.to_string())
            .increment(1);
        });
    }

    pub fn trimmed(&self, trim: &Trim) {
        self.handles
            .trim
            .record(Duration::from_micros(trim.onset_to_returned_us));
        with_local_recorder(&self.recorder, || {
            counter!(names::TRIMS.name,
                "trigger" => trim.trigger.clone(), "step" => trim.step.clone())
            .increment(1);
        });
    }

    /// What was recorded is gathered; else it would pile up until the next request.
    pub fn gather(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// Connections and bodies.
    #[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
    pub fn edge(&self, connections: &Connections, inbound: &Inbound) {
        with_local_recorder(&self.recorder, || {
            gauge!(names::CONNECTIONS.name).set(connections.count() as f64);
            for (reason, n) in [
                ("idle", &connections.closed_idle),
                ("stalled", &connections.closed_stalled),
            ] {
                let closed = counter!(names::CONNECTIONS_CLOSED.name, "reason" => reason);
                closed.absolute(n.load(Relaxed));
            }
            for (state, bytes) in [
                ("held", inbound.held()),
                ("most", inbound.total),
                ("answers", inbound.answers()),
            ] {
                gauge!(names::BODY_BYTES.name, "state" => state).set(bytes as f64);
            }
            gauge!(names::BODIES_WAITING.name).set(inbound.waiting() as f64);
            gauge!(names::PROMPTS_PREPARING.name).set(inbound.preparing() as f64);
        });
    }

    /// What became of spans.
    pub fn spans(&self, counts: &SpanCounts) {
        with_local_recorder(&self.recorder, || {
            for (result, n) in [
                ("exported", &counts.exported),
                ("failed", &counts.failed),
                ("dropped", &counts.dropped),
            ] {
                counter!(names::OTLP_SPANS.name, "result" => result).absolute(n.load(Relaxed));
            }
        });
    }

    /// The text that Prometheus reads; `status` where the model is ready.
    pub fn render(
        &self,
        of: Option<(&Status, &KvPool, Option<&Governor>)>,
        account: Option<&BatchAccount>,
    ) -> String {
        with_local_recorder(&self.recorder, || {
            if let Some((status, pool, governor)) = of {
                self.requests(status);
                memory(status, pool);
                if let Some(governor) = governor {
                    kernel(status, governor);
                }
            }
            if let Some(account) = account {
                self.steps(account);
            }
        });
        counters(self.recorder.handle().render())
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
    fn requests(&self, s: &Status) {
        let model = || self.model.clone();
        let r = &s.requests;
        gauge!(names::REQUESTS_RUNNING.name, "model_name" => model()).set(r.running as f64);
        gauge!(names::REQUESTS_WAITING.name, "model_name" => model()).set(r.waiting as f64);
        let share = s.kv.in_use.0 as f64 / (s.kv.budget.0.max(s.kv.in_use.0).max(1)) as f64;
        gauge!(names::KV_CACHE_USAGE.name, "model_name" => model()).set(share);
        for (name, n) in [
            (names::PROMPT_TOKENS.name, r.prompt_tokens),
            (names::PREFIX_CACHE_QUERIES.name, r.prompt_tokens),
            (names::GENERATION_TOKENS.name, r.tokens),
        ] {
            counter!(name, "model_name" => model()).absolute(n);
        }
        counter!(names::REQUESTS_CANCELLED.name).absolute(r.cancelled);
    }

    fn steps(&self, account: &BatchAccount) {
        for (name, n) in [
            (names::PREEMPTIONS.name, &account.preemptions),
            (names::DRAFTS.name, &account.drafts),
            (names::DRAFT_TOKENS.name, &account.draft_tokens),
            (names::ACCEPTED_TOKENS.name, &account.accepted_tokens),
        ] {
            counter!(name, "model_name" => self.model.clone()).absolute(n.load(Relaxed));
        }
        let row_cost = f64::from_bits(account.row_cost.load(Relaxed));
        gauge!(names::ROW_COST.name).set(row_cost);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn memory(s: &Status, pool: &KvPool) {
    let kv = &s.kv;
    for (state, bytes) in [
        ("resident", kv.resident),
        ("swapped", kv.swapped),
        ("in_use", kv.in_use),
        ("cached", kv.cached),
        ("slack", kv.slack),
        ("floor", kv.floor),
        ("budget", kv.budget),
        ("capacity", kv.capacity),
    ] {
        gauge!(names::KV_BYTES.name, "state" => state).set(bytes.0 as f64);
    }
    gauge!(names::RESIDENT_MEMORY.name).set(s.rss.0 as f64);
    gauge!(names::KV_TOKENS.name).set(kv.tokens as f64);
    let a = pool.account();
    counter!(names::KV_BLOCKS_EVICTED.name, "by" => "budget").absolute(a.self_evicted);
    counter!(names::KV_BLOCKS_EVICTED.name, "by" => "cache").absolute(a.cache_evicted);
    counter!(names::MADVISE_ERRORS.name).absolute(a.madvise_errors);
    counter!(names::KV_SWAP_FREED.name).absolute(a.swap_freed.0);
}

#[expect(clippy::cast_precision_loss, reason = "gauges are f64")]
fn kernel(s: &Status, governor: &Governor) {
    let stats = governor.stats();
    let source = governor.source();
    let rung = s.rung.clone().unwrap_or_default();
    gauge!(names::SOURCE_INFO.name, "signal" => s.signal.clone(), "rung" => rung).set(1.0);
    let e = &stats.events;
    for (fate, n) in [
        ("seen", e.seen),
        ("delivered", e.delivered),
        ("coalesced", e.coalesced),
        ("dropped", e.dropped),
    ] {
        counter!(names::EVENTS.name, "fate" => fate).absolute(n);
    }
    for (kind, c) in source.kinds() {
        let labels = [("kind", kind.name()), ("scope", "system")];
        counter!(names::STALLS.name, &labels).absolute(c.settled.max(c.seen));
        if kind.is_stall() {
            gauge!(names::STALL_SECONDS.name, &labels).set(c.stall_ns as f64 / 1e9);
        }
    }
    if let Some(ns) = stats.some_ns {
        gauge!(names::STALL_SOME_SECONDS.name, "scope" => "system").set(ns as f64 / 1e9);
    }
    for (program, cost) in source.costs() {
        counter!(names::PROBE_RUNS.name, "program" => program.clone()).absolute(cost.runs);
        gauge!(names::PROBE_SECONDS.name, "program" => program).set(cost.time.as_secs_f64());
    }
    counter!(names::KV_RETURNED.name).absolute(stats.trimmed_bytes.0);
    for (step, bytes) in &stats.by_step {
        counter!(names::TRIM_BYTES.name, "step" => *step).absolute(bytes.0);
    }
    counter!(names::DROPPED_TOKENS.name).absolute(stats.dropped_tokens);
    gauge!(names::OWED_BYTES.name).set(stats.owed_bytes.0 as f64);
    let by = stats.verdicts;
    for (reason, n) in [
        ("foreign", by.foreign),
        ("harmless", by.harmless()),
        ("no_wall", by.no_wall),
    ] {
        counter!(names::STALLS_IGNORED.name, "reason" => reason).absolute(n);
    }
    for (wall, verdict, n) in by.each() {
        counter!(names::STALLS_JUDGED.name, "wall" => wall, "verdict" => verdict).absolute(n);
    }
    for w in &s.walls {
        // Not its path, which anybody could read here: names of units and containers.
        let level = || {
            w.depth
                .map_or_else(|| "system".into(), |up| format!("cgroup-{up}"))
        };
        gauge!(names::WALL_USAGE.name, "level" => level()).set(w.usage.0 as f64);
        gauge!(names::WALL_ROOM.name, "level" => level()).set(w.room.0 as f64);
        gauge!(names::WALL_MISSING.name, "level" => level()).set(w.missing.0 as f64);
    }
    counter!(names::TRIM_RECORDS_LOST.name).absolute(stats.records_lost);
    let broken = f64::from(u8::from(stats.source_error.is_some() || !stats.alive));
    gauge!(names::SOURCE_BROKEN.name).set(broken);
}

/// Seconds are set as gauges are, and are counters.
fn counters(mut text: String) -> String {
    for metric in names::ALL.iter().filter(|m| m.shape == Shape::Seconds) {
        let kind = |kind: &str| format!("# TYPE {} {kind}\n", metric.name);
        text = text.replace(&kind("gauge"), &kind("counter"));
    }
    text
}

/// What each is, for people.
fn describe() {
    for m in names::ALL {
        match m.shape {
            Shape::Gauge | Shape::Seconds => describe_gauge!(m.name, m.about),
            Shape::Counter => describe_counter!(m.name, m.about),
            Shape::Histogram(_) => describe_histogram!(m.name, m.about),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_is_exported_keeps_to_prometheuss_rules_and_is_there_from_the_start() {
        let metrics = Metrics::new("m").unwrap();
        let connections = Connections::new(5);
        metrics.edge(&connections, &Inbound::new(1000, 1));
        with_local_recorder(&metrics.recorder, || {
            gauge!(names::STALL_SECONDS.name, "kind" => "reclaim", "scope" => "system").set(1.5);
        });
        let text = metrics.render(None, None);
        // As `promtool check metrics`: help and type for each, counters and
        // nothing else end in _total.
        let mut types: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(types.insert(name, kind).is_none(), "{name} twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            } else if !line.is_empty() && !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                let of = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|s| name.strip_suffix(s));
                let known = types.contains_key(name) || of.is_some_and(|of| types.contains_key(of));
                assert!(known, "{line}");
            }
        }
        assert_eq!(types[names::STALL_SECONDS.name], "counter");
        for metric in names::ALL {
            // Gauges come with the model; these have labels of the kernel's.
            let later = [
                names::STALLS,
                names::STALL_SOME_SECONDS,
                names::PROBE_RUNS,
                names::PROBE_SECONDS,
            ];
            if metric.shape != Shape::Gauge && !later.contains(metric) {
                assert!(types.contains_key(metric.name), "{}", metric.name);
            }
        }
        assert!(
            text.contains("kvpsi_requests_refused_total{reason=\"busy\"} 0"),
            "{text}"
        );
    }
}
