//! What the spans of a request are made of.
//!
//! Owns the record of a request's times, which is gathered only where spans
//! are wanted, and who gets it at the end. Invariants: a request that is traced
//! is handed over once, when the last of those who knew of it has gone; no
//! text of a prompt or an answer is in a record. Out of scope: what becomes of
//! it ([`crate::otlp`]).

use crate::{engine::Finish, kv::Loss};
use axum::http::{HeaderMap, HeaderName};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Instant,
};

/// The trace that a request continues (W3C Trace Context).
const CONTEXT: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Longest header of those that is kept, in bytes: what the standard has
/// implementations propagate.
const LONGEST_CONTEXT: usize = 512;
/// Losses of one choice that are told with their time. The totals count all.
const LOSSES: usize = 64;

/// One request.
#[derive(Debug)]
pub struct RequestRecord {
    /// As in the log.
    pub id: String,
    /// The method.
    pub method: &'static str,
    /// One of the server's own paths.
    pub path: &'static str,
    /// The model's name.
    pub model: String,
    /// The headers of the trace that it continues, if any.
    pub context: HeaderMap,
    /// When its head came.
    pub begun: Instant,
    /// When its last byte was handed over, or its client was seen to be gone.
    pub ended: Instant,
    /// Of the response; 499 where the client left before there was one.
    pub status: u16,
    /// Tokens of its prompts.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Trims that took something of it.
    pub trims: u64,
    /// What the model was asked for.
    pub choices: Vec<ChoiceRecord>,
}

/// One sequence of a request.
#[derive(Clone, Debug)]
pub struct ChoiceRecord {
    /// Its number.
    pub choice: usize,
    /// When the model was asked.
    pub arrived: Instant,
    /// When it got a place.
    pub started: Option<Instant>,
    /// Tokens of the prompt that were in the cache.
    pub cached_tokens: usize,
    /// When the first token came.
    pub first: Option<Instant>,
    /// Tokens generated.
    pub tokens: usize,
    /// When it was over.
    pub ended: Instant,
    /// How.
    pub outcome: Outcome,
    /// What it lost, in order.
    pub losses: Vec<LossRecord>,
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is whole.
    Finished(Finish),
    /// It failed, and why.
    Failed(String),
    /// Its client left.
    Gone,
}

/// Trims of a sequence, as its next step found them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossRecord {
    /// When that was.
    pub at: Instant,
    /// Trims since the last one.
    pub trims: u64,
    /// What is missing now, of all trims.
    pub missing: Loss,
    /// All of its memory was taken; it is computed anew.
    pub preempted: bool,
}

impl ChoiceRecord {
    pub(super) fn new(choice: usize, arrived: Instant) -> Self {
        Self {
            choice,
            arrived,
            started: None,
            cached_tokens: 0,
            first: None,
            tokens: 0,
            ended: arrived,
            outcome: Outcome::Gone,
            losses: Vec::new(),
        }
    }

    pub(super) fn lost(&mut self, loss: LossRecord) {
        if self.losses.len() < LOSSES {
            self.losses.push(loss);
        }
    }

    pub(super) fn over(&mut self, outcome: Outcome, at: Instant) {
        self.outcome = outcome;
        self.ended = at;
    }
}

/// The headers of a trace that a request continues.
pub(super) fn context(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in CONTEXT {
        // Of several `traceparent`s none is right.
        let mut all = headers.get_all(&name).iter();
        if let (Some(value), None) = (all.next(), all.next())
            && value.len() <= LONGEST_CONTEXT
            && (name != CONTEXT[0] || is_parent(value.as_bytes()))
        {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// Lower-case hexadecimal digits and `-` alone, as W3C has it: who parses numbers
/// takes a sign and capitals, too.
fn is_parent(value: &[u8]) -> bool {
    let plain = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
    value.iter().all(plain)
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct SpanCounts {
    /// The collector took them.
    pub exported: AtomicU64,
    /// It did not.
    pub failed: AtomicU64,
    /// There was no room for them to wait in.
    pub dropped: AtomicU64,
}

type HandOver = Box<dyn Fn(RequestRecord) + Send + Sync>;

/// Where records of requests go.
pub struct SpanSink {
    hand_over: HandOver,
    counts: Arc<SpanCounts>,
}

impl SpanSink {
    /// A sink. `hand_over` may be called on the thread that computes: it must
    /// not wait.
    pub fn new(
        counts: Arc<SpanCounts>,
        hand_over: impl Fn(RequestRecord) + Send + Sync + 'static,
    ) -> Self {
        Self {
            hand_over: Box::new(hand_over),
            counts,
        }
    }

    /// Hands a record over.
    pub fn hand_over(&self, record: RequestRecord) {
        (self.hand_over)(record);
    }

    /// What became of spans so far.
    #[must_use]
    pub fn counts(&self) -> &SpanCounts {
        &self.counts
    }
}

impl fmt::Debug for SpanSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f.debug_struct("SpanSink").field("counts", &self.counts)).finish_non_exhaustive()
    }
}

/// A request that is traced, until all who know of it have gone.
#[derive(Debug)]
pub(super) struct Traced {
    sink: Arc<SpanSink>,
    record: Mutex<Option<RequestRecord>>,
}

impl Traced {
    pub fn new(sink: Arc<SpanSink>, record: RequestRecord) -> Self {
        Self {
            sink,
            record: Mutex::new(Some(record)),
        }
    }

    fn record(&self) -> MutexGuard<'_, Option<RequestRecord>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response is over.
    pub fn ended(&self, status: u16) {
        if let Some(record) = &mut *self.record() {
            (record.ended, record.status) = (Instant::now(), status);
        }
    }

    /// One of its sequences is over.
    pub fn chose(&self, choice: ChoiceRecord) {
        if let Some(record) = &mut *self.record() {
            record.tokens += choice.tokens;
            record.choices.push(choice);
        }
    }

    /// Hands it over, with what else was counted.
    pub fn hand_over(&self, prompt_tokens: usize, trims: u64) {
        if let Some(mut record) = self.record().take() {
            (record.prompt_tokens, record.trims) = (prompt_tokens, trims);
            self.sink.hand_over(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_continued_by_one_short_header_of_each_kind() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer hush".parse().unwrap());
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "a=1".parse().unwrap());
        let kept = context(&headers);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept["traceparent"], parent);
        for wrong in [parent.replacen("0af", "+af", 1), parent.to_uppercase()] {
            headers.insert("traceparent", wrong.parse().unwrap());
            assert!(!context(&headers).contains_key("traceparent"), "{wrong}");
        }
        headers.insert("traceparent", parent.parse().unwrap());
        headers.append("traceparent", parent.parse().unwrap());
        headers.insert(
            "tracestate",
            "x".repeat(LONGEST_CONTEXT + 1).parse().unwrap(),
        );
        assert!(context(&headers).is_empty());
    }

    #[test]
    fn losses_of_a_choice_are_bounded() {
        let now = Instant::now();
        let mut choice = ChoiceRecord::new(0, now);
        for _ in 0..2 * LOSSES {
            choice.lost(LossRecord {
                at: now,
                trims: 1,
                missing: Loss::default(),
                preempted: false,
            });
        }
        assert_eq!(choice.losses.len(), LOSSES);
    }
}
