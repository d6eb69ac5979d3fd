//! One request: what was asked, how far it is, and what its client gets.

use super::seen::{Look, Seen};
use crate::{
    engine::{
        Constraint, Finish, GenStats, SamplingConfig, Session, TokenLogprobs, answer::Answer,
    },
    kv::{BlockHash, Loss},
    model::tokenizer::Tokenizer,
    units::Bytes,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Who waits for an answer. Called on the thread that computes: it must not
/// wait.
pub trait Client: Send {
    /// The next event.
    fn send(&mut self, event: StreamEvent);
    /// The client is gone.
    fn gone(&self) -> bool;
    /// What trims took of the sequence and is missing after a step, and how often
    /// it lost all. Called after each step, mostly with what it was before.
    fn lost(&mut self, loss: Loss, preemptions: u64) {
        let _ = (loss, preemptions);
    }
}

/// A request.
pub struct Ask {
    /// Its name in accounts.
    pub id: String,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// What is wanted of the prompt itself.
    pub look: Option<Look>,
    /// How tokens are chosen, and when to stop.
    pub sampling: SamplingConfig,
    /// What the answer must be.
    pub constraint: Option<Constraint>,
    /// When it came.
    pub arrived: Instant,
    /// When it is rejected.
    pub deadline: Instant,
    /// Who asks.
    pub client: Box<dyn Client>,
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask")
            .field("id", &self.id)
            .field("tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

/// What a client gets, in this order: once started, pieces, one end.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// It has a place.
    Started {
        /// Since it came.
        queued: Duration,
        /// Tokens of the prompt that were found in the cache.
        cached_tokens: usize,
    },
    /// How probable the tokens of the prompt were, from the second on.
    Prompt(Vec<TokenLogprobs>),
    /// What the model makes of the prompt as a vector of length 1.
    Embedding(Vec<f32>),
    /// A token, or text that had been held back.
    Piece {
        /// None for text that was held back until the end.
        token: Option<u32>,
        /// Text that is whole now; may be empty.
        text: String,
        /// How probable the token was, where it was asked.
        logprobs: Option<TokenLogprobs>,
    },
    /// The answer is whole.
    Done(Outcome),
    /// There will be no more.
    Failed(Failure),
}

/// A whole answer in figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its figures; why it ended is there too.
    pub stats: GenStats,
    /// Tokens of the prompt that were found in the cache.
    pub cached_tokens: usize,
    /// What was trimmed of it and is missing.
    pub loss: Loss,
    /// Times that it lost all its memory, and was computed anew.
    pub preemptions: u64,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It took too long.
    #[error("the request took longer than the server's --request-timeout")]
    Deadline,
    /// Memory is short, and stays so.
    #[error(
        "memory is short: this request's floor is {floor} of KV cache, {free} may be used now; try again later"
    )]
    NoMemory {
        /// What it needs at least.
        floor: Bytes,
        /// What there is.
        free: Bytes,
    },
    /// It never fits.
    #[error(
        "this request's floor is {floor} of KV cache, and --kv-budget gives {most}: send less, or have the server started with more"
    )]
    OverBudget {
        /// What it needs at least.
        floor: Bytes,
        /// The most that the cache may take.
        most: Bytes,
    },
    /// The model could not compute it.
    #[error("{0}")]
    Step(String),
    /// The answer cannot go on as its grammar wants.
    #[error("{0}: simplify the schema or the grammar")]
    Grammar(String),
    /// The server ends.
    #[error("the server is shutting down")]
    Ending,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In the queue.
    Waiting,
    /// Its prompt is being computed.
    Prefill,
    /// It generates: one row waits to be computed.
    Decode,
    /// All its memory was taken.
    Preempted,
    /// It is being computed anew.
    Resuming,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Job {
    pub ask: Ask,
    pub state: State,
    pub session: Option<Session>,
    pub answer: Option<Answer>,
    /// Of the prompt's whole blocks.
    pub hashes: Vec<BlockHash>,
    pub cached_tokens: usize,
    /// What was seen of the prompt.
    pub seen: Seen,
    /// Told once its memory is free.
    pub embedding: Option<Vec<f32>>,
}

impl Job {
    pub fn new(ask: Ask) -> Self {
        Self {
            ask,
            state: State::Waiting,
            session: None,
            answer: None,
            embedding: None,
            hashes: Vec::new(),
            cached_tokens: 0,
            seen: Seen::default(),
        }
    }

    /// Some of its answer is there.
    pub fn has_tokens(&self) -> bool {
        self.answer.as_ref().is_some_and(|a| a.stats.tokens > 0)
    }

    /// It has a place.
    pub fn begin(&mut self, session: Session, tokenizer: &Arc<Tokenizer>) {
        let (all, waiting) = (session.tokens().len(), session.waiting());
        let sampling = &self.ask.sampling;
        let before = session.tokens();
        let answer = Answer::new(tokenizer, sampling, self.ask.arrived, before, waiting)
            .following(self.ask.constraint.take());
        self.cached_tokens = all - waiting;
        self.session = Some(session);
        self.answer = Some(answer);
        self.state = State::Prefill;
        self.ask.client.send(StreamEvent::Started {
            queued: self.ask.arrived.elapsed(),
            cached_tokens: self.cached_tokens,
        });
    }

    /// Tells the client that it failed, once its memory is free. The caller
    /// drops the job.
    pub fn fail(&mut self, failure: Failure) {
        self.session = None;
        self.ask.client.send(StreamEvent::Failed(failure));
    }

    /// Tells the client that its answer is whole, as above. The caller drops the job.
    pub fn finish(&mut self, finish: Finish) {
        let (Some(answer), Some(session)) = (&mut self.answer, self.session.take()) else {
            return;
        };
        let (loss, preemptions) = (session.loss(), session.preemptions());
        // The client may ask again at once: its memory is free by then.
        drop(session);
        if let Some(embedding) = self.embedding.take() {
            self.ask.client.send(StreamEvent::Embedding(embedding));
        }
        answer.stats.finish = finish;
        match answer.rest() {
            Ok(text) if text.is_empty() => {}
            Ok(text) => self.ask.client.send(StreamEvent::Piece {
                token: None,
                text,
                logprobs: None,
            }),
            Err(e) => return self.fail(Failure::Step(e.to_string())),
        }
        self.ask.client.send(StreamEvent::Done(Outcome {
            stats: answer.stats.clone(),
            cached_tokens: self.cached_tokens,
            loss,
            preemptions,
        }));
    }

    /// Tells the client what the sequence lost.
    pub fn tell_loss(&mut self) {
        if let Some(session) = &self.session {
            let (loss, preemptions) = (session.loss(), session.preemptions());
            self.ask.client.lost(loss, preemptions);
        }
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.answer.as_ref().map_or(0, |a| a.stats.tokens)
    }
}
