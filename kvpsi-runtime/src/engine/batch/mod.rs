//! Many requests at once: continuous batching over the block pool.
//!
//! Owns the queue, the sequences in flight, and what each step computes: a row
//! of every sequence that generates, and a chunk of one prompt beside them.
//! Invariants: who came first is taken up first; a prompt never keeps those who
//! generate waiting for more than a chunk; a request ends with exactly one
//! [`StreamEvent::Done`] or [`StreamEvent::Failed`], or with its client gone, and its memory
//! is free when it does. A request that memory is short for waits; it fails only
//! when not even its floor fits. Out of scope: who its clients are.

mod account;
mod job;
mod look;
mod seen;
mod work;

pub use account::{BatchAccount, InFlight};
pub use job::{Ask, Client, Failure, Outcome, StreamEvent};
pub use seen::Look;

use super::{Engine, EngineError};
use crate::units::Bytes;
use job::{Job, State};
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How a batch is run.
#[derive(Clone, Copy, Debug)]
pub struct BatchConfig {
    /// Requests computed together.
    pub parallel: usize,
    /// Rows of a prompt computed beside sequences that generate: what these
    /// wait for one another's prompts.
    pub chunk_beside: usize,
    /// How long memory is short before a request that would have the machine to
    /// itself goes on with less than it wants: with its floor, whatever the
    /// budget is now.
    pub patience: Duration,
    /// How long it is short before a request fails whose floor cannot be had.
    pub floor_patience: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            parallel: 4,
            chunk_beside: 32,
            patience: Duration::from_secs(1),
            floor_patience: Duration::from_secs(5),
        }
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to do until a request comes.
    Idle,
    /// A request waits for memory: look again soon.
    Blocked,
    /// Something was computed.
    Worked,
}

/// An engine and the requests on it.
#[derive(Debug)]
pub struct Batch {
    engine: Engine,
    config: BatchConfig,
    waiting: VecDeque<Job>,
    running: Vec<Job>,
    /// Whose prompt goes on next, counted in turns.
    turn: usize,
    /// Since when the first in the queue has not had the memory that it wants.
    short: Option<Instant>,
    /// The budget that a user allows.
    most: Bytes,
    account: Arc<BatchAccount>,
}

impl Batch {
    /// An empty batch. `engine` was made for as many sessions in
    /// [`super::EngineConfig::parallel`].
    #[must_use]
    pub fn new(engine: Engine, config: BatchConfig) -> Self {
        Self {
            most: engine.pool.budget(),
            engine,
            config,
            waiting: VecDeque::new(),
            running: Vec::new(),
            turn: 0,
            short: None,
            account: Arc::default(),
        }
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What can be seen from outside while it runs.
    #[must_use]
    pub fn account(&self) -> Arc<BatchAccount> {
        self.account.clone()
    }

    /// Takes a request in; it waits for its turn.
    pub fn submit(&mut self, ask: Ask) {
        self.waiting.push_back(Job::new(ask));
        self.show(true);
    }

    /// One step: lets go who is gone or late, takes up who can be, computes.
    pub fn step(&mut self) -> Progress {
        self.sweep(Instant::now());
        self.admit(Instant::now());
        let mut worked = self.resume();
        worked |= self.compute();
        self.running.iter_mut().for_each(Job::tell_loss);
        self.show(false);
        if worked {
            Progress::Worked
        } else if self.running.is_empty() && self.waiting.is_empty() {
            self.show(true);
            Progress::Idle
        } else {
            Progress::Blocked
        }
    }

    /// Ends every request, because the server ends.
    pub fn end(&mut self) {
        let all = self.waiting.drain(..).chain(self.running.drain(..));
        for mut job in all.collect::<Vec<_>>() {
            self.account.failed.fetch_add(1, Relaxed);
            job.fail(Failure::Ending);
        }
        self.show(true);
    }

    /// Lets go whose client is gone, and whose time is over.
    fn sweep(&mut self, now: Instant) {
        let account = &self.account;
        let mut stays = |job: &mut Job| {
            if job.ask.client.gone() {
                account.cancelled.fetch_add(1, Relaxed);
                return false;
            }
            if now >= job.ask.deadline {
                account.failed.fetch_add(1, Relaxed);
                job.fail(Failure::Deadline);
                return false;
            }
            true
        };
        self.waiting.retain_mut(&mut stays);
        self.running.retain_mut(stays);
    }

    /// Takes up those first in the queue as long as there is a place, and
    /// memory for what they have to say.
    fn admit(&mut self, now: Instant) {
        while self.running.len() < self.config.parallel
            && let Some(mut job) = self.waiting.pop_front()
        {
            match self.room_for(&mut job, now) {
                Room::Yes => match self.engine.open_for(&mut job) {
                    Ok(()) => {
                        let pool = &self.engine.pool;
                        pool.set_wanted(Bytes::ZERO);
                        let asked = job.ask.tokens.len() as u64;
                        self.account.prompt_tokens.fetch_add(asked, Relaxed);
                        self.running.push(job);
                    }
                    Err(e) => self.give_up(job, Failure::Step(e.to_string())),
                },
                Room::NotYet => {
                    self.waiting.push_front(job);
                    return;
                }
                Room::Never(failure) => self.give_up(job, failure),
            }
        }
    }

    /// One that never had a place.
    fn give_up(&self, mut job: Job, failure: Failure) {
        self.account.refused.fetch_add(1, Relaxed);
        job.fail(failure);
    }

    /// Whether there is memory to take this one up: all of its prompt, or, if
    /// no running request could end and make room, and it has waited, less.
    fn room_for(&mut self, job: &mut Job, now: Instant) -> Room {
        let pool = &self.engine.pool;
        let (account, shape) = (pool.account(), *pool.shape());
        let free = pool.budget().saturating_sub(account.in_use);
        let tokens = job.ask.tokens.len();
        let block = shape.block_bytes().0;
        let bytes_of = |tokens: usize| Bytes(tokens.div_ceil(shape.block_tokens) as u64 * block);
        pool.hash_blocks(&job.ask.tokens, &mut job.hashes);
        let known = match job.ask.look {
            None => pool.known(&job.hashes, false),
            Some(_) => 0,
        };
        // Cached blocks that it shares are in use then, and no others' any more.
        let needed = bytes_of(tokens - known.min(tokens) + 1);
        let shared = bytes_of(known);
        if needed.0 + shared.0 <= free.0 {
            self.short = None;
            return Room::Yes;
        }
        let floor = pool.floor_of(tokens);
        let most = pool.limit();
        if floor > most {
            return Room::Never(Failure::OverBudget { floor, most });
        }
        if !self.running.is_empty() {
            return Room::NotYet;
        }
        pool.set_wanted(Bytes(needed.0 + shared.0));
        // Of all who wait, not of each: a queue must not wait one by one.
        let waited = now.duration_since(*self.short.get_or_insert(now));
        if waited < self.config.patience {
            return Room::NotYet;
        }
        let free = free.max(self.obtainable());
        if floor <= free {
            Room::Yes
        } else if waited < self.config.floor_patience {
            Room::NotYet
        } else {
            Room::Never(Failure::NoMemory { floor, free })
        }
    }

    /// What could be had beyond what is in use, if it must.
    fn obtainable(&self) -> Bytes {
        let in_use = self.engine.pool.account().in_use;
        self.most
            .saturating_sub(in_use)
            .min((self.engine.obtainable)())
    }

    /// Shows what is in flight; not at every step unless it must.
    fn show(&self, must: bool) {
        let row_cost = self.engine.costs.of_a_row().to_bits();
        self.account.row_cost.store(row_cost, Relaxed);
        self.account.show(must, &self.running, &self.waiting);
    }
}

/// Whether there is memory for a request.
enum Room {
    Yes,
    NotYet,
    Never(Failure),
}

impl Engine {
    /// A session for a job, with what the cache has of its prompt.
    fn open_for(&mut self, job: &mut Job) -> Result<(), EngineError> {
        let sampling = job.ask.sampling.clone();
        sampling.check()?;
        if job.ask.tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if job.ask.tokens.len() > self.context {
            return Err(EngineError::PromptTooLong {
                prompt: job.ask.tokens.len(),
                context: self.context,
                trained: self.decoder.config().context,
            });
        }
        let tokens = job.ask.tokens.clone();
        let session = match job.ask.look {
            None => self.open_with(tokens)?,
            Some(_) => self.open_anew(tokens)?,
        };
        job.begin(session, &self.tokenizer);
        Ok(())
    }
}

/// Whether a job is one of those that a state names.
fn is(state: State) -> impl Fn(&Job) -> bool {
    move |job| job.state == state
}
