//! The metrics of `GET /metrics`: names, labels, what they mean.
//!
//! Owns the list that the server exports from and that the dashboard in
//! docs/grafana.json is tested against, so that the two cannot drift. Names and
//! buckets that begin with `vllm:` are vLLM's own: dashboards for it work.
//! Out of scope: any value.

/// What Prometheus is told of a metric's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Goes up and down.
    Gauge,
    /// Only goes up.
    Counter,
    /// Only goes up, in fractions of a second: as `metrics` counts in whole
    /// numbers, it is set like a gauge.
    Seconds,
    /// Counts by upper bound: `_bucket`, `_sum` and `_count` of the name.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// As exported.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it is, with its unit.
    pub about: &'static str,
}

/// The label of all metrics that are vLLM's, too: the model's name.
pub const MODEL: &str = "model_name";

const OF_MODEL: &[&str] = &[MODEL];

const fn gauge(name: &'static str, labels: &'static [&'static str], about: &'static str) -> Metric {
    Metric {
        name,
        shape: Shape::Gauge,
        labels,
        about,
    }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    about: &'static str,
) -> Metric {
    Metric {
        name,
        shape: Shape::Counter,
        labels,
        about,
    }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    bounds: &'static [f64],
    about: &'static str,
) -> Metric {
    Metric {
        name,
        shape: Shape::Histogram(bounds),
        labels,
        about,
    }
}

const fn seconds(
    name: &'static str,
    labels: &'static [&'static str],
    about: &'static str,
) -> Metric {
    Metric {
        name,
        shape: Shape::Seconds,
        labels,
        about,
    }
}

/// vLLM's bounds, s.
const TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's bounds and three below them, s: a small model takes less than its
/// first for a token.
const PER_TOKEN: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's bounds, s.
const PER_REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// From a tenth of what a trim is to take, 1 ms, to what it must never, s.
const PER_TRIM: &[f64] = &[
    0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 1.0,
];
/// Requests being computed.
pub const REQUESTS_RUNNING: Metric = gauge(
    "vllm:num_requests_running",
    OF_MODEL,
    "Requests being computed.",
);
/// Requests waiting for a place.
pub const REQUESTS_WAITING: Metric = gauge(
    "vllm:num_requests_waiting",
    OF_MODEL,
    "Requests waiting for a place.",
);
/// KV of requests in flight as a share of the budget, 0 to 1.
pub const KV_CACHE_USAGE: Metric = gauge(
    "vllm:kv_cache_usage_perc",
    OF_MODEL,
    "KV of requests in flight as a share of the budget, 0 to 1.",
);
/// Seconds from a request's arrival to its first token.
pub const TIME_TO_FIRST_TOKEN: Metric = histogram(
    "vllm:time_to_first_token_seconds",
    OF_MODEL,
    TO_FIRST_TOKEN,
    "Seconds from a request's arrival to its first token.",
);
/// Seconds between two tokens of a request.
pub const INTER_TOKEN_LATENCY: Metric = histogram(
    "vllm:inter_token_latency_seconds",
    OF_MODEL,
    PER_TOKEN,
    "Seconds between two tokens of a request.",
);
/// Seconds from a request's arrival to its last token.
pub const REQUEST_LATENCY: Metric = histogram(
    "vllm:e2e_request_latency_seconds",
    OF_MODEL,
    PER_REQUEST,
    "Seconds from a request's arrival to its last token.",
);
/// Seconds that a request waited for a place.
pub const REQUEST_QUEUE_TIME: Metric = histogram(
    "vllm:request_queue_time_seconds",
    OF_MODEL,
    PER_REQUEST,
    "Seconds that a request waited for a place.",
);
/// Tokens of prompts, those found in the cache too.
pub const PROMPT_TOKENS: Metric = counter(
    "vllm:prompt_tokens_total",
    OF_MODEL,
    "Tokens of prompts, those found in the cache too.",
);
/// Tokens generated.
pub const GENERATION_TOKENS: Metric = counter(
    "vllm:generation_tokens_total",
    OF_MODEL,
    "Tokens generated.",
);
/// Requests answered to their end, by why they ended.
pub const REQUEST_SUCCESS: Metric = counter(
    "vllm:request_success_total",
    &[MODEL, "finished_reason"],
    "Requests answered to their end, by why they ended.",
);
/// Requests that lost their memory and were computed anew.
pub const PREEMPTIONS: Metric = counter(
    "vllm:num_preemptions_total",
    OF_MODEL,
    "Requests that lost their memory and were computed anew.",
);
/// Tokens of prompts that were looked for in the cache.
pub const PREFIX_CACHE_QUERIES: Metric = counter(
    "vllm:prefix_cache_queries_total",
    OF_MODEL,
    "Tokens of prompts that were looked for in the cache.",
);
/// Tokens of prompts that were found in the cache.
pub const PREFIX_CACHE_HITS: Metric = counter(
    "vllm:prefix_cache_hits_total",
    OF_MODEL,
    "Tokens of prompts that were found in the cache.",
);
/// Bytes of keys and values: resident, in_use, cached, slack, floor, budget, capacity.
pub const KV_BYTES: Metric = gauge(
    "kvpsi_kv_bytes",
    &["state"],
    "Bytes of keys and values: resident, in_use, cached, slack, floor, budget, capacity.",
);
/// Positions with keys and values.
pub const KV_TOKENS: Metric = gauge("kvpsi_kv_tokens", &[], "Positions with keys and values.");
/// Blocks that a request or the cache gave up for want of budget.
pub const KV_BLOCKS_EVICTED: Metric = counter(
    "kvpsi_kv_blocks_evicted_total",
    &["by"],
    "Blocks that a request or the cache gave up for want of budget.",
);
/// Times that the kernel would not take pages back.
pub const MADVISE_ERRORS: Metric = counter(
    "kvpsi_madvise_errors_total",
    &[],
    "Times that the kernel would not take pages back.",
);
/// Bytes of keys and values given back to the kernel.
pub const KV_RETURNED: Metric = counter(
    "kvpsi_kv_returned_bytes_total",
    &[],
    "Bytes of keys and values given back to the kernel.",
);
/// Stalls on memory that ended, by kind and by whose they were.
pub const STALLS: Metric = counter(
    "kvpsi_stalls_total",
    &["kind", "scope"],
    "Stalls on memory that ended, by kind and by whose they were.",
);
/// Seconds that tasks stalled on memory, by kind and by whose stalls they were.
pub const STALL_SECONDS: Metric = seconds(
    "kvpsi_stall_seconds_total",
    &["kind", "scope"],
    "Seconds that tasks stalled on memory, by kind and by whose stalls they were.",
);
/// Seconds in which at least one task stalled on memory.
pub const STALL_SOME_SECONDS: Metric = seconds(
    "kvpsi_stall_some_seconds_total",
    &["scope"],
    "Seconds in which at least one task stalled on memory.",
);
/// Stalls that cost nothing: `foreign`, `harmless` or `no_wall`.
pub const STALLS_IGNORED: Metric = counter(
    "kvpsi_stalls_ignored_total",
    &["reason"],
    "Stalls that cost nothing: at none of our limits, covered by page cache, or with no limit to look at.",
);
/// What the programs saw: seen = delivered + coalesced + dropped.
pub const EVENTS: Metric = counter(
    "kvpsi_events_total",
    &["fate"],
    "What the programs saw: seen = delivered + coalesced + dropped.",
);
/// Trims that gave something back, by what set them off and by the step that lost most.
pub const TRIMS: Metric = counter(
    "kvpsi_trims_total",
    &["trigger", "step"],
    "Trims that gave something back, by what set them off and by the step that lost most.",
);
/// Bytes given back, by step of the ladder.
pub const TRIM_BYTES: Metric = counter(
    "kvpsi_trim_bytes_total",
    &["step"],
    "Bytes given back, by step of the ladder.",
);
/// Seconds from a stall's onset to the return of the last page.
pub const TRIM_SECONDS: Metric = histogram(
    "kvpsi_trim_seconds",
    &[],
    PER_TRIM,
    "Seconds from a stall's onset to the return of the last page.",
);
/// Positions that lost their keys and values.
pub const DROPPED_TOKENS: Metric = counter(
    "kvpsi_dropped_tokens_total",
    &[],
    "Positions that lost their keys and values.",
);
/// Bytes that packing and thinning were asked for and have not given yet.
pub const OWED_BYTES: Metric = gauge(
    "kvpsi_reclaim_owed_bytes",
    &[],
    "Bytes that packing and thinning were asked for and have not given yet.",
);
/// 1 for the active source of pressure events.
pub const SOURCE_INFO: Metric = gauge(
    "kvpsi_source_info",
    &["signal", "rung"],
    "1 for the active source of pressure events.",
);
/// 1 when the signal broke: nothing is trimmed any more.
pub const SOURCE_BROKEN: Metric = gauge(
    "kvpsi_source_broken",
    &[],
    "1 when the signal broke: nothing is trimmed any more.",
);
/// Runs of an eBPF program.
pub const PROBE_RUNS: Metric = counter(
    "kvpsi_probe_runs_total",
    &["program"],
    "Runs of an eBPF program.",
);
/// Seconds that an eBPF program ran.
pub const PROBE_SECONDS: Metric = seconds(
    "kvpsi_probe_seconds_total",
    &["program"],
    "Seconds that an eBPF program ran.",
);
/// Requests over HTTP, by path and status.
pub const HTTP_REQUESTS: Metric = counter(
    "kvpsi_http_requests_total",
    &["path", "status"],
    "Requests over HTTP, by path and status.",
);
/// Requests turned away, by why.
pub const REQUESTS_REFUSED: Metric = counter(
    "kvpsi_requests_refused_total",
    &["reason"],
    "Requests turned away, by why.",
);
/// Requests begun and broken off, by why.
pub const REQUESTS_FAILED: Metric = counter(
    "kvpsi_requests_failed_total",
    &["reason"],
    "Requests begun and broken off, by why.",
);
/// Requests whose client went.
pub const REQUESTS_CANCELLED: Metric = counter(
    "kvpsi_requests_cancelled_total",
    &[],
    "Requests whose client went.",
);
/// Trims that happened and that no other metric knows of.
pub const TRIM_RECORDS_LOST: Metric = counter(
    "kvpsi_trim_records_lost_total",
    &[],
    "Trims that happened and that no other metric knows of.",
);
/// Bytes of the process's resident set.
pub const RESIDENT_MEMORY: Metric = gauge(
    "process_resident_memory_bytes",
    &[],
    "Bytes of the process's resident set.",
);

/// All of them.
pub const ALL: [Metric; 38] = [
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    KV_CACHE_USAGE,
    TIME_TO_FIRST_TOKEN,
    INTER_TOKEN_LATENCY,
    REQUEST_LATENCY,
    REQUEST_QUEUE_TIME,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
    REQUEST_SUCCESS,
    PREEMPTIONS,
    PREFIX_CACHE_QUERIES,
    PREFIX_CACHE_HITS,
    KV_BYTES,
    KV_TOKENS,
    KV_BLOCKS_EVICTED,
    MADVISE_ERRORS,
    KV_RETURNED,
    STALLS,
    STALL_SECONDS,
    STALL_SOME_SECONDS,
    STALLS_IGNORED,
    EVENTS,
    TRIMS,
    TRIM_BYTES,
    TRIM_SECONDS,
    DROPPED_TOKENS,
    OWED_BYTES,
    SOURCE_INFO,
    SOURCE_BROKEN,
    PROBE_RUNS,
    PROBE_SECONDS,
    HTTP_REQUESTS,
    REQUESTS_REFUSED,
    REQUESTS_FAILED,
    REQUESTS_CANCELLED,
    TRIM_RECORDS_LOST,
    RESIDENT_MEMORY,
];

#[cfg(test)]
mod tests;
