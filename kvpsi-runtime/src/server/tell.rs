//! From the model's thread to the handler of a request.
//!
//! Owns the channel, and measures on the way what a client waits for. Never
//! waits: the channel has room for all that a request may be told.

use super::{metrics::Metrics, seats::Seat};
use crate::engine::batch::{Client, Told};
use std::{sync::Arc, time::Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The model's end.
pub(super) struct Teller {
    tell: UnboundedSender<Told>,
    metrics: Arc<Metrics>,
    arrived: Instant,
    last: Option<Instant>,
    _seat: Seat,
}

impl Teller {
    pub fn new(metrics: Arc<Metrics>, seat: Seat) -> (Self, UnboundedReceiver<Told>) {
        let (tell, told) = unbounded_channel();
        let this = Self {
            tell,
            metrics,
            arrived: Instant::now(),
            last: None,
            _seat: seat,
        };
        (this, told)
    }
}

impl Client for Teller {
    fn tell(&mut self, told: Told) {
        let now = Instant::now();
        match &told {
            Told::Started {
                queued,
                cached_tokens,
            } => self.metrics.started(*queued, *cached_tokens),
            Told::Piece { token: Some(_), .. } => {
                match self.last {
                    None => self.metrics.first_token(now - self.arrived),
                    Some(last) => self.metrics.next_token(now - last),
                }
                self.last = Some(now);
            }
            Told::Piece { token: None, .. } => {}
            Told::Done(outcome) => {
                self.metrics
                    .done(now - self.arrived, outcome.stats.finish.into());
            }
            Told::Failed(failure) => self.metrics.failed(failure),
        }
        // Nobody listens any more: the next step sees it.
        let _ = self.tell.send(told);
    }

    fn gone(&self) -> bool {
        self.tell.is_closed()
    }
}
