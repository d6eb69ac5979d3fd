//! The spans of one request: the request, and below it queue, prefill and decode
//! of each of its sequences.
//!
//! Owns names and attributes: those of OpenTelemetry's semantic conventions for
//! HTTP servers and for generative models where they have one, else `kvpsi.*`.
//! Spans are made once a request is over, from times that were noted.

use crate::{
    engine::Finish,
    server::spans::{ChoiceRecord, LossRecord, Outcome, RequestRecord},
};
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator,
    trace::{Span, SpanBuilder, SpanKind, Status, TraceContextExt},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span as SdkSpan},
};
use std::time::{Instant, SystemTime};

/// Between the two clocks: when it is now by both.
#[derive(Clone, Copy)]
struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            system: SystemTime::now(),
        }
    }

    fn at(self, at: Instant) -> SystemTime {
        self.system - self.instant.saturating_duration_since(at)
    }
}

/// Answers or inputs of a request that have spans of their own.
const MOST_CHOICES: usize = 128;

/// Makes the spans of a request, and ends them.
pub(super) fn make(tracer: &SdkTracer, request: &RequestRecord) {
    let clock = Clock::now();
    let parent = TraceContextPropagator::new()
        .extract_with_context(&Context::new(), &HeaderExtractor(&request.context));
    let mut span = SpanBuilder::from_name(format!("{} {}", request.method, request.path))
        .with_kind(SpanKind::Server)
        .with_start_time(clock.at(request.begun))
        .with_attributes(attributes(request))
        .start_with_context(tracer, &parent);
    if !span.is_recording() {
        return;
    }
    if let Some(why) = failure(request) {
        span.set_status(Status::error(why));
    }
    let many = request.choices.len() > 1;
    let mut choices: Vec<&ChoiceRecord> = request.choices.iter().collect();
    choices.sort_by_key(|c| c.choice);
    for choice in &choices {
        for loss in &choice.losses {
            let name = if loss.preempted { "preemption" } else { "trim" };
            let of = many.then_some(choice.choice);
            span.add_event_with_timestamp(name, clock.at(loss.at), lost(loss, of));
        }
    }
    let below = Context::new().with_remote_span_context(span.span_context().clone());
    // A request of 2048 inputs has as many: its own span comes last and is to have room.
    let left_out = choices.len().saturating_sub(MOST_CHOICES);
    if left_out > 0 {
        let left_out = i64::try_from(left_out).unwrap_or(i64::MAX);
        span.set_attribute(KeyValue::new("kvpsi.choices_left_out", left_out));
    }
    for choice in choices.into_iter().take(MOST_CHOICES) {
        phases(tracer, &below, clock, choice, many);
    }
    span.end_with_timestamp(clock.at(request.ended));
}

fn attributes(request: &RequestRecord) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("http.request.method", request.method),
        KeyValue::new("http.route", request.path),
        KeyValue::new("url.path", request.path),
        KeyValue::new("http.response.status_code", i64::from(request.status)),
        KeyValue::new("kvpsi.request.id", request.id.clone()),
    ];
    if !request.choices.is_empty() {
        all.extend([
            KeyValue::new("gen_ai.provider.name", "kvpsi"),
            KeyValue::new("gen_ai.response.model", request.model.clone()),
            KeyValue::new("gen_ai.usage.input_tokens", count(request.prompt_tokens)),
            KeyValue::new("gen_ai.usage.output_tokens", count(request.tokens)),
            KeyValue::new("kvpsi.trims", whole(request.trims)),
        ]);
    }
    all
}

/// Why a request failed, if it did: a stream that was begun has status 200.
fn failure(request: &RequestRecord) -> Option<String> {
    let of_choice = request.choices.iter().find_map(|c| match &c.outcome {
        Outcome::Failed(why) => Some(why.clone()),
        Outcome::Finished(_) | Outcome::Gone => None,
    });
    of_choice.or_else(|| (request.status >= 500).then(|| format!("status {}", request.status)))
}

fn phases(tracer: &SdkTracer, below: &Context, clock: Clock, choice: &ChoiceRecord, many: bool) {
    let span = |name: &'static str, from: Instant, own: Vec<KeyValue>| {
        let number = many.then(|| KeyValue::new("kvpsi.choice", count(choice.choice)));
        SpanBuilder::from_name(name)
            .with_start_time(clock.at(from))
            .with_attributes(own.into_iter().chain(number))
            .start_with_context(tracer, below)
    };
    let end = |mut span: SdkSpan, next: Option<Instant>| {
        if next.is_none() {
            span.set_attribute(KeyValue::new("kvpsi.outcome", outcome(&choice.outcome)));
            if let Outcome::Failed(why) = &choice.outcome {
                span.set_status(Status::error(why.clone()));
            }
        }
        span.end_with_timestamp(clock.at(next.unwrap_or(choice.ended)));
    };
    end(span("queue", choice.arrived, Vec::new()), choice.started);
    let Some(started) = choice.started else {
        return;
    };
    let cached = KeyValue::new("kvpsi.cached_tokens", count(choice.cached_tokens));
    end(span("prefill", started, vec![cached]), choice.first);
    if let Some(first) = choice.first {
        let tokens = KeyValue::new("gen_ai.usage.output_tokens", count(choice.tokens));
        end(span("decode", first, vec![tokens]), None);
    }
}

fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Failed(_) => "failed",
        Outcome::Gone => "client_gone",
        Outcome::Finished(finish) => match finish {
            Finish::Eos | Finish::StopText | Finish::Stopped => "stop",
            Finish::MaxTokens | Finish::Length => "length",
            Finish::Exhausted => "memory",
        },
    }
}

fn lost(loss: &LossRecord, choice: Option<usize>) -> Vec<KeyValue> {
    let missing = loss.missing;
    let mut all = vec![
        KeyValue::new("kvpsi.trims", whole(loss.trims)),
        KeyValue::new("kvpsi.tokens_missing", whole(missing.tokens)),
        KeyValue::new("kvpsi.attention_mass_missing", f64::from(missing.mass)),
    ];
    all.extend(choice.map(|n| KeyValue::new("kvpsi.choice", count(n))));
    all
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn whole(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
