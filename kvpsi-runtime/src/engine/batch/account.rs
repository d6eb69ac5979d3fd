//! What can be seen of a batch from other threads.

use super::job::{Job, State};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Between two looks at what is in flight.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// Totals, and what is in flight.
#[derive(Debug, Default)]
pub struct BatchAccount {
    /// Answers that are whole.
    pub finished: AtomicU64,
    /// Requests whose client went.
    pub cancelled: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// Requests that were not taken up: there was no memory, or they cannot be
    /// computed.
    pub refused: AtomicU64,
    /// Tokens of prompts, found in the cache or not.
    pub prompt_tokens: AtomicU64,
    /// Tokens generated.
    pub tokens: AtomicU64,
    /// Steps of a request that computed drafts.
    pub drafts: AtomicU64,
    /// Drafts that were computed.
    pub draft_tokens: AtomicU64,
    /// Of these, those that were right.
    pub accepted_tokens: AtomicU64,
    /// Times that a request lost all its memory.
    pub preemptions: AtomicU64,
    /// What a second row of a step costs, as a share of the first; f64 bits.
    pub row_cost: AtomicU64,
    /// Requests being computed.
    pub running: AtomicU64,
    /// Requests that wait for a place.
    pub waiting: AtomicU64,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    at: Option<Instant>,
    all: Vec<InFlight>,
}

/// One request in flight.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Its name.
    pub id: String,
    /// `waiting`, `prefill`, `decode` or `preempted`.
    pub doing: &'static str,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Positions that lost keys and values.
    pub lost_tokens: u64,
    /// When it came.
    pub arrived: Instant,
}

impl BatchAccount {
    /// Requests in flight, those being computed first, each in the order of
    /// arrival; as they were some 50 ms ago at most.
    #[must_use]
    pub fn in_flight(&self) -> Vec<InFlight> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.all.clone()
    }

    pub(super) fn show(&self, must: bool, running: &[Job], waiting: &VecDeque<Job>) {
        self.running.store(running.len() as u64, Relaxed);
        self.waiting.store(waiting.len() as u64, Relaxed);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if !must && shown.at.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return;
        }
        shown.at = Some(Instant::now());
        shown.all.clear();
        shown
            .all
            .extend(running.iter().chain(waiting).map(|job| InFlight {
                id: job.ask.id.clone(),
                doing: match job.state {
                    State::Waiting => "waiting",
                    State::Prefill => "prefill",
                    State::Decode => "decode",
                    State::Preempted | State::Resuming => "preempted",
                },
                prompt_tokens: job.ask.tokens.len(),
                tokens: job.generated(),
                lost_tokens: job.session.as_ref().map_or(0, |s| s.loss().tokens),
                arrived: job.ask.arrived,
            }));
    }
}
