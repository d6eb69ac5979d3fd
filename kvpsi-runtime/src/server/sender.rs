//! From the model's thread to the handler of a request.
//!
//! Owns the channel, and measures on the way what a client waits for. Never
//! waits: the channel has room for all events of a request.

use super::{metrics::Metrics, permits::AdmissionPermit};
use crate::engine::batch::{Client, StreamEvent};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The model's end.
pub(super) struct EventSender {
    events: UnboundedSender<StreamEvent>,
    metrics: Arc<Metrics>,
    arrived: Instant,
    last: Option<Instant>,
    _permit: AdmissionPermit,
}

impl EventSender {
    pub fn new(
        metrics: Arc<Metrics>,
        permit: AdmissionPermit,
    ) -> (Self, UnboundedReceiver<StreamEvent>) {
        let (events, receiver) = unbounded_channel();
        let this = Self {
            events,
            metrics,
            arrived: Instant::now(),
            last: None,
            _permit: permit,
        };
        (this, receiver)
    }
}

impl Client for EventSender {
    fn send(&mut self, event: StreamEvent) {
        let now = Instant::now();
        match &event {
            StreamEvent::Started {
                queued,
                cached_tokens,
            } => self.metrics.started(*queued, *cached_tokens),
            StreamEvent::Piece { token: Some(_), .. } => {
                match self.last {
                    None => self.metrics.first_token(now - self.arrived),
                    Some(last) => self.metrics.next_token(now - last),
                }
                self.last = Some(now);
            }
            StreamEvent::Piece { token: None, .. } => {}
            StreamEvent::Done(outcome) => {
                self.metrics
                    .done(now - self.arrived, outcome.stats.finish.into());
            }
            StreamEvent::Failed(failure) => self.metrics.failed(failure),
        }
        // The client is gone: the next step sees it.
        let _ = self.events.send(event);
    }

    fn gone(&self) -> bool {
        self.events.is_closed()
    }
}
