//! Answers of the APIs beside OpenAI's chat: one object, or a stream of frames.
//!
//! Owns the way from the model's events to the parts of an answer, and the body
//! of a stream. Invariant: a stream ends with what its API calls an end, good or
//! bad. Out of scope: what frames are made of.

use super::{
    complete::{Begun, KEEP_ALIVE},
    error::ApiError,
    parts::{Parts, Told},
    sender::ChoiceEvent,
};
use crate::engine::batch::{Failure, Outcome, StreamEvent};
use axum::{
    Json,
    body::{Body, Bytes},
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde_json::Value;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, Interval, interval_at},
};
use tokio_stream::Stream;

/// What an API makes of an answer.
pub(super) trait Wire: Send + Unpin + 'static {
    /// The type of a stream's body.
    const STREAM: &'static str;
    /// What keeps a stream open while the model is silent; empty: nothing can.
    const ALIVE: &'static str;
    /// What a stream begins with.
    fn begin(&mut self) -> Vec<String>;
    /// Parts of the answer.
    fn told(&mut self, parts: Vec<Told>) -> Vec<String>;
    /// Its end, after so many tokens of thought.
    fn done(&mut self, outcome: &Outcome, thought: usize) -> Vec<String>;
    /// Another end.
    fn failed(&mut self, error: &ApiError) -> Vec<String>;
    /// All of it as one object.
    fn whole(&mut self, parts: Vec<Told>, outcome: &Outcome, thought: usize) -> Value;
}

/// The events of one answer, and what takes them apart.
pub(super) struct Answering {
    events: UnboundedReceiver<ChoiceEvent>,
    parts: Parts,
}

impl Answering {
    /// The first answer of a request, which these APIs have one of.
    pub fn of<T>(begun: Begun<T>) -> Self {
        let first = begun.choices.into_iter().next();
        Self {
            events: begun.events,
            parts: first.map(|(_, parts)| parts).unwrap_or_default(),
        }
    }

    /// The answer by `wire`, streamed or whole.
    pub async fn respond<W: Wire>(self, mut wire: W, stream: bool) -> Result<Response, ApiError> {
        if stream {
            let ready = wire.begin().into_iter().map(Bytes::from).collect();
            let frames = Frames {
                answering: self,
                wire,
                ready,
                alive: interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE),
                ended: false,
            };
            let headers = [
                (CONTENT_TYPE, HeaderValue::from_static(W::STREAM)),
                (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            ];
            return Ok((headers, Body::from_stream(frames)).into_response());
        }
        let Self {
            mut events,
            mut parts,
        } = self;
        let mut told = Vec::new();
        loop {
            match ended(events.recv().await) {
                StreamEvent::Started { .. }
                | StreamEvent::Prompt(_)
                | StreamEvent::Embedding(_) => {}
                StreamEvent::Piece { token, text, .. } => told.extend(parts.piece(token, &text)),
                StreamEvent::Done(outcome) => {
                    told.extend(parts.finish());
                    return Ok(
                        Json(wire.whole(told, &outcome, parts.thought_tokens)).into_response()
                    );
                }
                StreamEvent::Failed(failure) => return Err(failure.into()),
            }
        }
    }
}

/// A stream's body. Dropping it tells the model that the client left.
struct Frames<W> {
    answering: Answering,
    wire: W,
    ready: VecDeque<Bytes>,
    alive: Interval,
    ended: bool,
}

impl<W: Wire> Frames<W> {
    fn take(&mut self, event: StreamEvent) {
        let parts = &mut self.answering.parts;
        let frames = match event {
            StreamEvent::Started { .. } | StreamEvent::Prompt(_) | StreamEvent::Embedding(_) => {
                Vec::new()
            }
            StreamEvent::Piece { token, text, .. } => match parts.piece(token, &text) {
                told if told.is_empty() => Vec::new(),
                told => self.wire.told(told),
            },
            StreamEvent::Done(outcome) => {
                let told = parts.finish();
                let mut frames = self.wire.told(told);
                frames.extend(self.wire.done(&outcome, parts.thought_tokens));
                self.ended = true;
                frames
            }
            StreamEvent::Failed(failure) => {
                self.ended = true;
                self.wire.failed(&failure.into())
            }
        };
        self.ready.extend(frames.into_iter().map(Bytes::from));
    }
}

impl<W: Wire> Stream for Frames<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.answering.events.poll_recv(cx) {
                Poll::Ready(event) => self.take(ended(event)),
                Poll::Pending if W::ALIVE.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    std::task::ready!(self.alive.poll_tick(cx));
                    return Poll::Ready(Some(Ok(Bytes::from_static(W::ALIVE.as_bytes()))));
                }
            }
        }
    }
}

/// An event, or the model's thread is gone without a word.
fn ended(event: Option<ChoiceEvent>) -> StreamEvent {
    event.map_or(StreamEvent::Failed(Failure::Ending), |(_, event)| event)
}

/// One event of a server-sent stream.
pub(super) fn sse(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}
