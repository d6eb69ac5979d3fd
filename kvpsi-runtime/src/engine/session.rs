//! One sequence and how it goes on.

mod rows;

use super::{
    Engine, EngineError, Finish, GenStats, Piece, SamplingConfig, answer::Answer, history::History,
};
use crate::{
    attention::RowSpan,
    kv::{BlockHash, KvPool, Loss, SeqId},
    units::Bytes,
};
pub(super) use rows::StepRows;
use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Rows of one prefill step: large enough for the matrix kernels, small
/// enough that a stop request is obeyed soon.
pub(super) const CHUNK: usize = 256;
/// Time between two tries to compute a preempted session anew.
const RESUME_EVERY: Duration = Duration::from_millis(5);
/// How long memory for all of a session is waited for; then its floor will do.
const PATIENCE: Duration = Duration::from_secs(1);
/// Rows to retry with when the pool has no room for a whole chunk: one block.
pub(super) const SMALL_CHUNK: usize = 32;

/// A sequence that keeps its KV between generations; dropping it leaves its
/// blocks cached.
#[derive(Debug)]
pub struct Session {
    pool: Arc<KvPool>,
    /// None while it is parked: then its blocks are in the cache alone.
    pub(super) seq: Option<SeqId>,
    /// Every token of the sequence. The pool holds positions for the first
    /// of them; the rest is computed when it goes on.
    pub(super) tokens: Vec<u32>,
    /// How the positions were computed.
    pub(super) history: History,
    /// Of its whole blocks, as far as they were asked for.
    pub(super) hashes: Vec<BlockHash>,
    /// Times that it was preempted and computed anew.
    preemptions: u64,
    /// Trims of its sequences until the last time.
    trims_before: u64,
}

impl Session {
    pub(super) fn open(pool: Arc<KvPool>) -> Result<Self, EngineError> {
        let seq = pool.open()?;
        Ok(Self {
            pool,
            seq: Some(seq),
            tokens: Vec::new(),
            history: History::default(),
            hashes: Vec::new(),
            preemptions: 0,
            trims_before: 0,
        })
    }

    /// Every token so far: prompts and answers.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The sequence in the pool; none while the session is parked.
    #[must_use]
    pub fn seq(&self) -> Option<SeqId> {
        self.seq
    }

    /// Tokens that the session lost and that were not computed anew.
    #[must_use]
    pub fn lost_tokens(&self) -> u64 {
        self.loss().tokens
    }

    /// What the session lost and that was not computed anew.
    #[must_use]
    pub fn loss(&self) -> Loss {
        let loss = self.of_sequence();
        Loss {
            trims: loss.trims + self.trims_before,
            ..loss
        }
    }

    fn of_sequence(&self) -> Loss {
        self.seq
            .map_or_else(Loss::default, |seq| self.pool.loss(seq))
    }

    /// Times that it was preempted and computed anew.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub(super) fn note_preemption(&mut self) {
        self.preemptions += 1;
        // The next sequence counts anew. What took everything was a trim.
        self.trims_before += self.of_sequence().trims.max(1);
    }

    /// Nothing is to be computed as it was: a preempted session begins anew.
    pub(super) fn forget_steps(&mut self) {
        self.history = History::default();
    }

    /// Positions that had been computed before it was preempted.
    pub(super) fn computed_before(&self) -> usize {
        self.history.len()
    }

    /// What was handed out is written; true if it was all taken meanwhile.
    pub(super) fn written(&self) -> bool {
        let Some(seq) = self.seq else { return true };
        self.pool.written(seq);
        self.pool.preempted(seq)
    }

    /// Of a step with drafts, the rows up to `computed` are this text's: the
    /// others are taken back. Twice is nothing.
    pub(super) fn settle(&mut self, computed: usize) {
        for _ in self.history.len()..computed {
            self.history.push(1);
        }
        if let Some(seq) = self.seq {
            self.pool.take_back(seq, computed);
            self.pool.written(seq);
        }
    }

    /// Positions that the pool has handed out; drafts are none of them.
    fn computed(&self) -> usize {
        let len = self.seq.map_or(0, |seq| self.pool.len(seq));
        len.min(self.tokens.len())
    }

    /// Tokens whose rows are not computed yet.
    pub(super) fn waiting(&self) -> usize {
        self.tokens.len() - self.computed()
    }

    /// Makes the whole blocks known that were computed without a loss.
    pub(super) fn publish(&mut self) {
        let Some(seq) = self.seq else { return };
        let computed = &self.tokens[..self.computed()];
        self.pool.hash_blocks(computed, &mut self.hashes);
        self.pool.publish(seq, &self.hashes);
    }

    /// Leaves the session's blocks to the cache until it goes on: memory that
    /// costs nothing to drop but the time to compute it again. Of a session
    /// that lost tokens it would be all of it, so that one stays as it is; say
    /// so.
    pub fn park(&mut self) -> bool {
        self.publish();
        let lost = self.lost_tokens() > 0;
        if let Some(seq) = self.seq.filter(|_| !lost) {
            self.pool.close(seq);
            self.seq = None;
        }
        !lost
    }

    /// Takes a parked or new session up again: its sequence has then what the
    /// cache still has of its tokens, all but the last at most.
    fn take_up(&mut self) -> Result<(), EngineError> {
        let seq = match self.seq {
            Some(seq) if !self.pool.is_empty(seq) => return Ok(()),
            Some(seq) => seq,
            None => self.pool.open()?,
        };
        self.seq = Some(seq);
        self.pool.hash_blocks(&self.tokens, &mut self.hashes);
        let block = self.pool.shape().block_tokens;
        let most = self.tokens.len().saturating_sub(1) / block;
        let has = self.pool.adopt(seq, &self.hashes[..most], false);
        // How those were computed is not known: as a prefill would.
        self.history = History::default();
        for _ in 0..has / CHUNK {
            self.history.push(CHUNK);
        }
        self.history.push(has % CHUNK);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.publish();
        if let Some(seq) = self.seq {
            self.pool.close(seq);
        }
    }
}

/// What came of a step, or of asking the pool for its rows.
pub(super) enum Went {
    On,
    NoRoom,
    /// The sequence lost all its memory: what was computed means nothing.
    Preempted,
}

impl Engine {
    /// Opens a session over `tokens`, none of which it computes; what the cache
    /// has of them it need not.
    pub(super) fn open_with(&mut self, tokens: Vec<u32>) -> Result<Session, EngineError> {
        let mut session = self.open()?;
        session.tokens = tokens;
        session.take_up()?;
        Ok(session)
    }

    /// The same with nothing from the cache: every row is to be computed.
    pub(super) fn open_anew(&mut self, tokens: Vec<u32>) -> Result<Session, EngineError> {
        let mut session = self.open()?;
        session.tokens = tokens;
        Ok(session)
    }

    /// Appends `prompt` to the session and generates. Only what is new is
    /// prefilled.
    ///
    /// # Errors
    /// The prompt is empty or does not fit the context together with the
    /// session (which then stays as it was); or the budget that a user set does
    /// not hold it, or a step fails.
    pub fn generate_in(
        &mut self,
        session: &mut Session,
        prompt: &[u32],
        sampling: &SamplingConfig,
        sink: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<GenStats, EngineError> {
        sampling.check()?;
        let started = Instant::now();
        self.append_to(session, prompt)?;
        let waiting = session.waiting();
        let before = &session.tokens;
        let mut answer = Answer::new(&self.tokenizer, sampling, started, before, waiting);
        if let Err(finish) = self.prefill(session)? {
            if finish == Finish::Exhausted {
                return Err(self.over_budget(session.tokens.len()));
            }
            answer.stats.finish = finish;
            answer.unanswered();
            return Ok(answer.stats);
        }
        let vocab = self.decoder.config().vocab;
        let (mut row, mut drafts) = (0, 0);
        answer.stats.finish = loop {
            let computed = session.tokens.len();
            if let Some(finish) = answer.at_end(computed, self.context) {
                break finish;
            }
            let logits = &mut self.step.logits()[row * vocab..][..vocab];
            let (taken, goes_on) = answer.take_row(logits, session, row, drafts)?;
            if taken.token.is_some() {
                let piece = Piece {
                    token: taken.token,
                    text: &taken.text,
                };
                if sink(piece).is_break() || self.stop.load(Ordering::Relaxed) {
                    if goes_on {
                        answer.settle(session, computed, row, drafts);
                    }
                    break Finish::Stopped;
                }
            }
            if let Some(finish) = taken.finish {
                break finish;
            }
            if goes_on {
                row += 1;
                continue;
            }
            row = 0;
            let went;
            (went, drafts) = self.next_rows(session, &mut answer)?;
            match went {
                Went::On => {}
                Went::NoRoom => break Finish::Exhausted,
                Went::Preempted => break Finish::Stopped,
            }
        };
        session.publish();
        let rest = answer.rest()?;
        if !rest.is_empty() {
            // The answer is over: whether the sink wants more does not matter.
            let _ = sink(Piece {
                token: None,
                text: &rest,
            });
        }
        Ok(answer.stats)
    }

    /// Appends `tokens` to the session and computes them; `tell` gets the logits
    /// after each of them, in order. For measurements.
    ///
    /// # Errors
    /// As [`Engine::generate_in`]; or there is no memory for them.
    pub fn read_in(
        &mut self,
        session: &mut Session,
        tokens: &[u32],
        tell: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let before = session.tokens.len();
        session.tokens.extend_from_slice(tokens);
        session.take_up()?;
        while session.waiting() > 0 {
            let rows = session.waiting().min(CHUNK);
            self.make_room(rows);
            let Some(seq) = session.seq else { break };
            let at = session.pool.append(seq, rows)?;
            session.history.push(rows);
            let span = RowSpan {
                seq,
                first_pos: at.start,
                rows,
            };
            let wanted = before.clamp(at.start, at.end) - at.start..rows;
            let first = at.start;
            let (decoder, step) = (&self.decoder, &mut self.step);
            let rows = &session.tokens[at];
            let mut told = |row: usize, logits: &[f32]| tell(first + row - before, logits);
            decoder.step_through(rows, span, &session.pool, step, wanted, &mut told)?;
            session.pool.written(seq);
        }
        session.publish();
        Ok(())
    }

    /// Appends `prompt` and computes it, then takes `text` token after token as
    /// if it had generated them; `tell` gets the logits that each would have
    /// been drawn from, and says whether it is taken. For measurements
    /// what trims meanwhile cost. Says how many were taken: fewer than all
    /// where `tell` ended it, the context was full, or there was no memory.
    ///
    /// # Errors
    /// As [`Engine::generate_in`].
    pub fn follow_in(
        &mut self,
        session: &mut Session,
        prompt: &[u32],
        text: &[u32],
        tell: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<usize, EngineError> {
        self.append_to(session, prompt)?;
        let mut went = self.prefill(session)?.is_ok();
        let mut taken = 0;
        for &token in text {
            let full = session.tokens.len() >= self.context;
            if !went || full || tell(taken, self.step.logits()).is_break() {
                break;
            }
            session.tokens.push(token);
            went = matches!(self.advance(session, 1)?, Went::On);
            taken += 1;
        }
        session.publish();
        Ok(taken)
    }

    /// Appends `prompt`, none of which is computed yet.
    fn append_to(&self, session: &mut Session, prompt: &[u32]) -> Result<(), EngineError> {
        if prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let total = session.tokens.len() + prompt.len();
        if total > self.context {
            return Err(EngineError::PromptTooLong {
                prompt: total,
                context: self.context,
                trained: self.decoder.config().context,
            });
        }
        session.tokens.extend_from_slice(prompt);
        session.take_up()
    }

    /// There was no room for a prompt, with which the session has so many tokens.
    fn over_budget(&self, prompt: usize) -> EngineError {
        let (pool, budget) = (&self.pool, self.pool.limit());
        // Packed or not, one block more would not have fit.
        let least = Bytes(budget.0 + pool.shape().block_bytes().0);
        EngineError::PromptOverBudget {
            prompt,
            needed: pool.floor_of(prompt).max(least),
            budget,
        }
    }

    /// Computes every waiting row, or says why not.
    fn prefill(&mut self, session: &mut Session) -> Result<Result<(), Finish>, EngineError> {
        let mut chunk = CHUNK;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Err(Finish::Stopped));
            }
            let rows = session.waiting().min(chunk);
            match self.advance(session, rows)? {
                Went::On if session.waiting() == 0 => {
                    session.publish();
                    return Ok(Ok(()));
                }
                Went::On => {}
                Went::NoRoom if chunk > SMALL_CHUNK => chunk = SMALL_CHUNK,
                Went::NoRoom => return Ok(Err(Finish::Exhausted)),
                Went::Preempted => return Ok(Err(Finish::Stopped)),
            }
        }
    }

    /// [`Engine::go_on`], and again after every preemption, as soon as there is
    /// memory; [`Went::Preempted`] only when a stop was asked for meanwhile.
    fn advance(&mut self, session: &mut Session, rows: usize) -> Result<Went, EngineError> {
        let went = self.go_on(session, rows, &[])?;
        self.regain(session, rows, went)
    }

    /// What [`Engine::advance`] does after a step that went so.
    fn regain(
        &mut self,
        session: &mut Session,
        rows: usize,
        mut went: Went,
    ) -> Result<Went, EngineError> {
        while matches!(went, Went::Preempted) {
            session.note_preemption();
            tracing::info!(
                "memory is short: the KV cache was given back; going on as soon as there is room"
            );
            let short = Instant::now();
            while !self.resume(session, short.elapsed() >= PATIENCE)? {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(Went::Preempted);
                }
                std::thread::sleep(RESUME_EVERY);
            }
            // The step that was lost may have been among them.
            went = match session.waiting() {
                0 => Went::On,
                left => self.go_on(session, left.min(rows), &[])?,
            };
        }
        Ok(went)
    }
}
