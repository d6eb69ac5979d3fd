//! From the model's thread to the handler of a request.
//!
//! Owns the channel, and measures on the way what a client waits for. Never
//! waits: the channel has room for all events of a request.

use super::{
    metrics::Metrics,
    observe::Note,
    permits::AdmissionPermit,
    spans::{ChoiceRecord, LossRecord, Outcome},
};
use crate::{
    engine::batch::{Client, Failure, StreamEvent},
    kv::Loss,
};
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
    /// Where spans are made of it.
    record: Option<ChoiceRecord>,
    /// Trims and preemptions that are in the record.
    recorded: (u64, u64),
    _places: Arc<Vec<AdmissionPermit>>,
}

impl EventSender {
    /// `places` are free again when all who hold them are done.
    pub fn new(
        choice: usize,
        events: UnboundedSender<ChoiceEvent>,
        metrics: Arc<Metrics>,
        places: Arc<Vec<AdmissionPermit>>,
        note: Arc<Note>,
    ) -> Self {
        let arrived = Instant::now();
        let record = (note.is_traced()).then(|| ChoiceRecord::new(choice, arrived));
        Self {
            choice,
            events,
            metrics,
            note,
            arrived,
            started: false,
            last: None,
            record,
            recorded: (0, 0),
            _places: places,
        }
    }
}

impl EventSender {
    fn record(&mut self, event: &StreamEvent, now: Instant) {
        if let StreamEvent::Done(outcome) = event {
            self.lost(outcome.loss, outcome.preemptions);
        }
        let Some(record) = &mut self.record else {
            return;
        };
        match event {
            StreamEvent::Started { cached_tokens, .. } => {
                record.started = Some(now);
                record.cached_tokens = *cached_tokens;
            }
            StreamEvent::Piece { token: Some(_), .. } => {
                record.first.get_or_insert(now);
                record.tokens += 1;
            }
            StreamEvent::Piece { token: None, .. }
            | StreamEvent::Prompt(_)
            | StreamEvent::Embedding(_) => {}
            StreamEvent::Done(o) => record.over(Outcome::Finished(o.stats.finish), now),
            StreamEvent::Failed(f) => record.over(Outcome::Failed(f.to_string()), now),
        }
    }
}

/// Whoever was not answered has left.
impl Drop for EventSender {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            if record.outcome == Outcome::Gone {
                record.ended = Instant::now();
            }
            // Of an answer that is whole they were counted at its end.
            if !matches!(record.outcome, Outcome::Finished(_)) {
                self.note.figures().trims += self.recorded.0;
            }
            self.note.chose(record);
        }
    }
}

impl Client for EventSender {
    fn send(&mut self, event: StreamEvent) {
        let now = Instant::now();
        self.record(&event, now);
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
            StreamEvent::Failed(Failure::NoMemory { .. } | Failure::OverBudget { .. })
                if !self.started =>
            {
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

    fn lost(&mut self, loss: Loss, preemptions: u64) {
        let (trims, before) = self.recorded;
        let Some(record) = &mut self.record else {
            return;
        };
        if loss.trims > trims || preemptions > before {
            self.recorded = (loss.trims, preemptions);
            record.lost(LossRecord {
                at: Instant::now(),
                trims: loss.trims.saturating_sub(trims),
                missing: loss,
                preempted: preemptions > before,
            });
        }
    }
}
