//! The metrics of `GET /metrics`: names, labels, what they mean.
//!
//! Owns the list that the server exports from and that the dashboard in
//! docs/grafana.json is tested against, so that the two cannot drift. Names and
//! buckets that begin with `vllm:` are vLLM's own: dashboards for it work.
//! Out of scope: any value.

use Shape::{Counter, Gauge, Histogram, Seconds};

/// The type of a metric, as Prometheus sees it.
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
/// One row a metric: constant, shape, name, labels, what it is.
macro_rules! table {
    ($($constant:ident: $shape:expr, $name:literal, $labels:expr, $about:literal;)+) => {
        $(#[doc = $about]
        pub const $constant: Metric = Metric {
            name: $name,
            shape: $shape,
            labels: &$labels,
            about: $about,
        };)+

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

table! {
    REQUESTS_RUNNING: Gauge, "vllm:num_requests_running", [MODEL], "Requests being computed.";
    REQUESTS_WAITING: Gauge, "vllm:num_requests_waiting", [MODEL], "Requests waiting for a place.";
    KV_CACHE_USAGE: Gauge, "vllm:kv_cache_usage_perc", [MODEL], "KV of requests in flight as a share of the budget, 0 to 1.";
    TIME_TO_FIRST_TOKEN: Histogram(TO_FIRST_TOKEN), "vllm:time_to_first_token_seconds", [MODEL], "Seconds from a request's arrival to its first token.";
    INTER_TOKEN_LATENCY: Histogram(PER_TOKEN), "vllm:inter_token_latency_seconds", [MODEL], "Seconds between two tokens of a request.";
    REQUEST_LATENCY: Histogram(PER_REQUEST), "vllm:e2e_request_latency_seconds", [MODEL], "Seconds from a request's arrival to its last token.";
    REQUEST_QUEUE_TIME: Histogram(PER_REQUEST), "vllm:request_queue_time_seconds", [MODEL], "Seconds that a request waited for a place.";
    PROMPT_TOKENS: Counter, "vllm:prompt_tokens_total", [MODEL], "Tokens of prompts, those found in the cache too.";
    GENERATION_TOKENS: Counter, "vllm:generation_tokens_total", [MODEL], "Tokens generated.";
    REQUEST_SUCCESS: Counter, "vllm:request_success_total", [MODEL, "finished_reason"], "Requests answered to their end, by finish reason.";
    PREEMPTIONS: Counter, "vllm:num_preemptions_total", [MODEL], "Requests that were preempted and recomputed.";
    DRAFTS: Counter, "vllm:spec_decode_num_drafts_total", [MODEL], "Steps of a request that checked guesses.";
    DRAFT_TOKENS: Counter, "vllm:spec_decode_num_draft_tokens_total", [MODEL], "Guessed tokens that were checked.";
    ACCEPTED_TOKENS: Counter, "vllm:spec_decode_num_accepted_tokens_total", [MODEL], "Guessed tokens that were right.";
    ROW_COST: Gauge, "kvpsi_spec_decode_row_cost_ratio", [], "Seconds that checking one more token takes, as a share of a step of one token.";
    PREFIX_CACHE_QUERIES: Counter, "vllm:prefix_cache_queries_total", [MODEL], "Tokens of prompts that were looked for in the cache.";
    PREFIX_CACHE_HITS: Counter, "vllm:prefix_cache_hits_total", [MODEL], "Tokens of prompts that were found in the cache.";
    KV_BYTES: Gauge, "kvpsi_kv_bytes", ["state"], "Bytes of keys and values: resident, swapped, in_use, cached, slack, floor, budget, capacity.";
    KV_TOKENS: Gauge, "kvpsi_kv_tokens", [], "Positions with keys and values.";
    KV_BLOCKS_EVICTED: Counter, "kvpsi_kv_blocks_evicted_total", ["by"], "Blocks evicted from a request or the cache to keep the budget.";
    MADVISE_ERRORS: Counter, "kvpsi_madvise_errors_total", [], "Times that madvise failed to return pages.";
    KV_SWAP_FREED: Counter, "kvpsi_kv_swap_freed_bytes_total", [], "Bytes of keys and values that were in swap when they were given back.";
    KV_RETURNED: Counter, "kvpsi_kv_returned_bytes_total", [], "Bytes of keys and values returned to the kernel.";
    STALLS: Counter, "kvpsi_stalls_total", ["kind", "scope"], "Stalls on memory that ended, by kind and by whose they were.";
    STALL_SECONDS: Seconds, "kvpsi_stall_seconds_total", ["kind", "scope"], "Seconds that tasks stalled on memory, by kind and by whose stalls they were.";
    STALL_SOME_SECONDS: Seconds, "kvpsi_stall_some_seconds_total", ["scope"], "Seconds in which at least one task stalled on memory.";
    STALLS_IGNORED: Counter, "kvpsi_stalls_ignored_total", ["reason"], "Stalls that cost nothing: at none of our limits, covered by page cache, or with no limit to look at.";
    STALLS_JUDGED: Counter, "kvpsi_stalls_judged_total", ["wall", "verdict"], "Stalls by the wall they hit and what became of them: answered (memory was missing, and the cache was asked for it), harmless, foreign, no_wall.";
    WALL_USAGE: Gauge, "kvpsi_wall_usage_bytes", ["level"], "Bytes used below a limit: of a cgroup, or of the system.";
    WALL_ROOM: Gauge, "kvpsi_wall_room_bytes", ["level"], "Bytes that anonymous memory may grow by before that limit is hit.";
    WALL_MISSING: Gauge, "kvpsi_wall_missing_bytes", ["level"], "Bytes missing at that limit that page cache cannot give.";
    EVENTS: Counter, "kvpsi_events_total", ["fate"], "What the programs saw: seen = delivered + coalesced + dropped.";
    TRIMS: Counter, "kvpsi_trims_total", ["trigger", "step"], "Trims that returned pages, by trigger and by the step that returned most.";
    TRIM_BYTES: Counter, "kvpsi_trim_bytes_total", ["step"], "Bytes returned, by step.";
    TRIM_SECONDS: Histogram(PER_TRIM), "kvpsi_trim_seconds", [], "Seconds from a stall's onset to the return of the last page.";
    DROPPED_TOKENS: Counter, "kvpsi_dropped_tokens_total", [], "Positions that lost their keys and values.";
    OWED_BYTES: Gauge, "kvpsi_reclaim_owed_bytes", [], "Bytes that packing and thinning were asked for and have not returned yet.";
    SOURCE_INFO: Gauge, "kvpsi_source_info", ["signal", "rung"], "1 for the active source of pressure events.";
    SOURCE_BROKEN: Gauge, "kvpsi_source_broken", [], "1 when the pressure source failed: limits are watched, and no stall is seen.";
    PROBE_RUNS: Counter, "kvpsi_probe_runs_total", ["program"], "Runs of an eBPF program.";
    PROBE_SECONDS: Seconds, "kvpsi_probe_seconds_total", ["program"], "Seconds that an eBPF program ran.";
    CONNECTIONS: Gauge, "kvpsi_connections", [], "Open connections.";
    CONNECTIONS_CLOSED: Counter, "kvpsi_connections_closed_total", ["reason"], "Connections that gave way to others: idle ones, and stalled bodies.";
    BODY_BYTES: Gauge, "kvpsi_body_bytes", ["state"], "Bytes of requests outside the KV budget: held before they are admitted, most that large ones may take together, and answers made at once (tokens, texts, vectors).";
    BODIES_WAITING: Gauge, "kvpsi_bodies_waiting", [], "Bodies that wait for bytes that others hold.";
    PROMPTS_PREPARING: Gauge, "kvpsi_prompts_preparing", [], "Prompts that are made into tokens now.";
    HTTP_REQUESTS: Counter, "kvpsi_http_requests_total", ["path", "status"], "Requests over HTTP, by path and status.";
    REQUESTS_REFUSED: Counter, "kvpsi_requests_refused_total", ["reason"], "Requests rejected, by reason.";
    REQUESTS_FAILED: Counter, "kvpsi_requests_failed_total", ["reason"], "Requests begun and failed, by reason.";
    REQUESTS_CANCELLED: Counter, "kvpsi_requests_cancelled_total", [], "Requests whose client disconnected.";
    OTLP_SPANS: Counter, "kvpsi_otlp_spans_total", ["result"], "Spans for the collector: exported, failed (it did not take them), or dropped (no room to wait).";
    TRIM_RECORDS_LOST: Counter, "kvpsi_trim_records_lost_total", [], "Trims whose records were lost: no other metric counts them.";
    RESIDENT_MEMORY: Gauge, "process_resident_memory_bytes", [], "Bytes of the process's resident set.";
}

#[cfg(test)]
mod tests;
