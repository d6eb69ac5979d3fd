//! What worker and hog say to the supervisor: one JSON object a line.

use crate::{control::TrimRecord, pressure::EventTotals, units::Bytes};
use serde::{Deserialize, Serialize};

/// A line from the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromWorker {
    /// Sources opened, model loaded; the prompt is being read.
    Ready {
        signal: String,
        notes: Vec<String>,
        token_bytes: Bytes,
        prompt_tokens: usize,
    },
    /// Text.
    Text(String),
    /// The state of the cache, some times a second.
    Kv(Kv),
    /// A trim.
    Trim(Trim),
    /// Generation is over.
    Done(Done),
}

/// The cache.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Kv {
    pub reserved: Bytes,
    pub resident: Bytes,
    pub returned: Bytes,
    /// What cannot be trimmed.
    pub floor: Bytes,
    /// Positions of the sequence that still have keys and values.
    pub tokens: u64,
}

/// One trim; times in us.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Trim {
    pub onset_to_start_us: f64,
    pub onset_to_returned_us: f64,
    pub trigger: String,
    pub kind: String,
    pub step: String,
    pub bytes: Bytes,
    pub rss_before: Bytes,
    pub rss_after: Bytes,
    pub kv_tokens_before: u64,
    pub kv_tokens_after: u64,
    pub deferred: Bytes,
    pub tokens_dropped: u64,
    /// Share of the attention so far that fell on what was dropped.
    pub mass_dropped: f32,
}

/// The end of the worker's run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done {
    pub tokens: u64,
    pub tokens_per_s: f64,
    pub events: Events,
    pub ignored: u64,
    pub wakeups: u64,
    pub trim_records_lost: u64,
    pub source_error: Option<String>,
    pub realtime: bool,
    pub kv: Kv,
}

/// [`EventTotals`] as JSON both ways.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Events {
    pub seen: u64,
    pub delivered: u64,
    pub coalesced: u64,
    pub dropped: u64,
}

impl From<EventTotals> for Events {
    fn from(t: EventTotals) -> Self {
        Self {
            seen: t.seen,
            delivered: t.delivered,
            coalesced: t.coalesced,
            dropped: t.dropped,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds for people")]
fn us(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e3
}

impl Trim {
    /// A slow step: it began when the quick ones were done, and its pages go
    /// beside theirs.
    pub fn in_background(&self) -> bool {
        self.trigger == "background"
    }
}

impl From<&TrimRecord> for Trim {
    fn from(r: &TrimRecord) -> Self {
        let t = &r.trimmed;
        Self {
            onset_to_start_us: us(r.onset_ns, t.started_ns),
            onset_to_returned_us: us(r.onset_ns, t.returned_ns),
            trigger: r.trigger.name().into(),
            kind: r.trigger.kind_name().into(),
            step: t.deepest.map_or("none", |s| s.name()).into(),
            bytes: t.bytes,
            rss_before: r.rss_before.unwrap_or_default(),
            rss_after: r.rss_after.unwrap_or_default(),
            kv_tokens_before: t.kv_tokens_before,
            kv_tokens_after: t.kv_tokens_after,
            deferred: t.deferred,
            tokens_dropped: t.tokens,
            mass_dropped: t.mass_dropped,
        }
    }
}
