//! From the model's thread to the handler of a request.
//!
//! Owns the channel, and measures on the way what a client waits for. Never
//! waits: the channel has room for all events of a request.

use super::{metrics::Metrics, observe::Note, permits::AdmissionPermit};
use crate::engine::batch::{Client, Failure, StreamEvent};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::UnboundedSender;

/// An event, and the choice that it is of.
pub(super) type ChoiceEvent = (usize, StreamEvent);

/// The model's end of one choice; those of a request share the channel.
pub(super) struct EventSender {
    choice: usize,
    events: UnboundedSender<ChoiceEvent>,
    metrics: Arc<Metrics>,
    note: Arc<Note>,
    arrived: Instant,
    started: bool,
    last: Option<Instant>,
    _permit: AdmissionPermit,
}

impl EventSender {
    pub fn new(
        choice: usize,
        events: UnboundedSender<ChoiceEvent>,
        metrics: Arc<Metrics>,
        permit: AdmissionPermit,
        note: Arc<Note>,
    ) -> Self {
        Self {
            choice,
            events,
            metrics,
            note,
            arrived: Instant::now(),
            started: false,
            last: None,
            _permit: permit,
        }
    }
}

impl Client for EventSender {
    fn send(&mut self, event: StreamEvent) {
        let now = Instant::now();
        match &event {
            StreamEvent::Started {
                queued,
                cached_tokens,
            } => {
                self.started = true;
                self.note.figures().queued.get_or_insert(*queued);
                self.metrics.started(*queued, *cached_tokens);
            }
            StreamEvent::Piece { token: Some(_), .. } => {
                let mut figures = self.note.figures();
                figures.tokens += 1;
                match self.last {
                    None => {
                        let first = now - self.arrived;
                        figures.first.get_or_insert(first);
                        self.metrics.first_token(first);
                    }
                    Some(last) => self.metrics.next_token(now - last),
                }
                self.last = Some(now);
            }
            StreamEvent::Piece { token: None, .. }
            | StreamEvent::Prompt(_)
            | StreamEvent::Embedding(_) => {}
            StreamEvent::Done(outcome) => {
                self.note.figures().trims += outcome.loss.trims;
                self.metrics
                    .done(now - self.arrived, outcome.stats.finish.into());
            }
            // It never had a place.
            StreamEvent::Failed(Failure::NoMemory { .. }) if !self.started => {
                self.metrics.refused("memory");
            }
            StreamEvent::Failed(failure) => self.metrics.failed(failure),
        }
        // The client is gone: the next step sees it.
        let _ = self.events.send((self.choice, event));
    }

    fn gone(&self) -> bool {
        self.events.is_closed()
    }
}
