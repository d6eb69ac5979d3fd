//! Server-sent events of an answer (HTML Living Standard, 9.2, as OpenAI's API
//! uses them: `data:` lines, the last one `[DONE]`).

use super::{sender::ChoiceEvent, shape::Shape};
use crate::engine::batch::{Failure, StreamEvent};
use axum::response::sse::Event;
use serde_json::Value;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::Stream;

/// The events of one answer. Dropping it tells the model that the client left.
pub(super) struct Events {
    events: UnboundedReceiver<ChoiceEvent>,
    shape: Shape,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Events {
    /// The event `first`, and all after it.
    pub fn new(events: UnboundedReceiver<ChoiceEvent>, shape: Shape, first: ChoiceEvent) -> Self {
        let mut new = Self {
            events,
            shape,
            ready: VecDeque::new(),
            ended: false,
        };
        let begin = new.shape.begin();
        new.ready.extend(begin.iter().map(data));
        new.take(first);
        new
    }

    fn take(&mut self, (choice, event): ChoiceEvent) {
        let (chunks, ended) = self.shape.chunks(choice, event);
        self.ready.extend(chunks.iter().map(data));
        if ended == Some(true) {
            self.ready.push_back(Event::default().data("[DONE]"));
        }
        self.ended |= ended.is_some();
    }
}

fn data(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.events.poll_recv(cx) {
                Poll::Ready(Some(event)) => self.take(event),
                // The model's thread is gone without a word.
                Poll::Ready(None) => {
                    self.take((0, StreamEvent::Failed(Failure::Ending)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
