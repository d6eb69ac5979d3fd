//! Server-sent events of an answer (HTML Living Standard, 9.2, as OpenAI's API
//! uses them: `data:` lines, the last one `[DONE]`).

use super::complete::Shape;
use crate::engine::batch::Told;
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

/// The events of one answer. Dropping it tells the model that nobody listens.
pub(super) struct Events {
    told: UnboundedReceiver<Told>,
    shape: Shape,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Events {
    /// What `first` was, and all that is told after it.
    pub fn new(told: UnboundedReceiver<Told>, shape: Shape, first: Told) -> Self {
        let mut new = Self {
            told,
            shape,
            ready: VecDeque::new(),
            ended: false,
        };
        let begin = new.shape.begin();
        new.ready.extend(begin.as_ref().map(data));
        new.take(first);
        new
    }

    fn take(&mut self, told: Told) {
        let (chunks, ended) = self.shape.chunks(told);
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
            match self.told.poll_recv(cx) {
                Poll::Ready(Some(told)) => self.take(told),
                // The model's thread is gone without a word.
                Poll::Ready(None) => self.take(Told::Failed(crate::engine::batch::Failure::Ending)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
