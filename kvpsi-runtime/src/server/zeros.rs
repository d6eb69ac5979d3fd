//! Series that are there before anything happened.
//!
//! Owns the values of labels that are known beforehand: a rate over a series
//! that appears with its first event misses that event. Out of scope: labels
//! that only the kernel or the eBPF programs name.

use super::{
    names::{self, Metric},
    paths::PATHS,
};
use crate::{control::Verdicts, kv::Step};
use ::metrics::{counter, gauge};

/// Of a metric, one series for each value of its one label.
fn each(metric: Metric, values: &[&'static str]) {
    if let [label] = metric.labels {
        for value in values {
            counter!(metric.name, *label => *value).increment(0);
        }
    }
}

/// Begins all of them at 0.
pub(super) fn begin(model: &str) {
    for metric in [
        names::PROMPT_TOKENS,
        names::GENERATION_TOKENS,
        names::PREEMPTIONS,
        names::DRAFTS,
        names::DRAFT_TOKENS,
        names::ACCEPTED_TOKENS,
        names::PREFIX_CACHE_QUERIES,
        names::PREFIX_CACHE_HITS,
    ] {
        counter!(metric.name, names::MODEL => model.to_owned()).increment(0);
    }
    for ended in ["stop", "length"] {
        counter!(names::REQUEST_SUCCESS.name,
            names::MODEL => model.to_owned(), "finished_reason" => ended)
        .increment(0);
    }
    each(
        names::REQUESTS_REFUSED,
        &["busy", "invalid", "memory", "not_allowed", "unavailable"],
    );
    each(
        names::REQUESTS_FAILED,
        &["deadline", "ending", "grammar", "memory", "step"],
    );
    each(names::OTLP_SPANS, &["dropped", "exported", "failed"]);
    each(names::CONNECTIONS_CLOSED, &["idle", "stalled"]);
    each(names::KV_BLOCKS_EVICTED, &["budget", "cache"]);
    each(
        names::EVENTS,
        &["seen", "delivered", "coalesced", "dropped"],
    );
    each(names::STALLS_IGNORED, &["foreign", "harmless", "no_wall"]);
    for (wall, verdict, _) in Verdicts::default().each() {
        counter!(names::STALLS_JUDGED.name, "wall" => wall, "verdict" => verdict).increment(0);
    }
    each(names::TRIM_BYTES, &Step::ALL.map(Step::name));
    for path in PATHS {
        counter!(names::HTTP_REQUESTS.name, "path" => path, "status" => "200").increment(0);
    }
    for trigger in [
        "onset",
        "ongoing",
        "follow_up",
        "early_warning",
        "background",
        "by_hand",
    ] {
        for step in Step::ALL {
            counter!(names::TRIMS.name, "trigger" => trigger, "step" => step.name()).increment(0);
        }
    }
    for metric in [
        names::REQUESTS_CANCELLED,
        names::KV_RETURNED,
        names::KV_SWAP_FREED,
        names::DROPPED_TOKENS,
        names::TRIM_RECORDS_LOST,
        names::MADVISE_ERRORS,
    ] {
        counter!(metric.name).increment(0);
    }
    gauge!(names::OWED_BYTES.name).set(0.0);
    gauge!(names::SOURCE_BROKEN.name).set(0.0);
}
