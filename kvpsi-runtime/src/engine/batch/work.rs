//! What one step computes, and what becomes of its logits.

use super::{
    super::{Engine, EngineError, recompute::Walk},
    Batch, is,
    job::{Failure, Job, State, StreamEvent},
};
use crate::engine::{
    session::{CHUNK, SMALL_CHUNK, StepRows, Went},
    speculate::choose,
    stats::Finish,
};
use std::{sync::atomic::Ordering::Relaxed, time::Instant};

/// A step in the making: whose rows, and which.
#[derive(Default)]
pub(super) struct Plan {
    pub rows: StepRows,
    /// Whose they are, in order.
    pub jobs: Vec<Planned>,
}

/// A job of a plan: a span of rows, or of each row one.
pub(super) struct Planned {
    /// Its index.
    pub job: usize,
    /// Its first span, whose row is certain.
    pub span: usize,
    /// Spans behind it that are drafts.
    pub drafts: usize,
}

impl Batch {
    /// Takes the preempted request that came first one step further. True if
    /// there was something to do.
    pub(super) fn resume(&mut self) -> bool {
        let at = self.running.iter().position(is(State::Resuming));
        let Some(i) = at.or_else(|| self.running.iter().position(is(State::Preempted))) else {
            return false;
        };
        let must = self.must_resume(i);
        let job = &mut self.running[i];
        let Some(session) = &mut job.session else {
            return false;
        };
        if job.state == State::Preempted {
            match self.engine.begin_again(session, must) {
                Ok(Some(_)) => {
                    self.short = None;
                    job.state = State::Resuming;
                }
                Ok(None) => return false,
                Err(e) => {
                    self.fail(i, &e.to_string());
                    self.leave();
                    return true;
                }
            }
        }
        let len = session.computed_before();
        let Some(seq) = session.seq() else {
            return false;
        };
        match self.engine.walk_on(session, seq, len, true) {
            Ok(Walk::More) => {}
            Ok(Walk::Done) => {
                self.engine.pool.set_wanted(crate::units::Bytes::ZERO);
                if session.waiting() > 0 {
                    job.state = State::Prefill;
                } else {
                    job.state = State::Decode;
                    self.next_tokens(i, 0, 0);
                }
            }
            // It lost what it had so far, or there is no place for more.
            Ok(Walk::Stopped | Walk::NoRoom) => job.state = State::Preempted,
            Err(e) => self.fail(i, &e.to_string()),
        }
        // Its first token after may have been its last.
        self.leave();
        true
    }

    /// Whether a preempted request is taken up again though the budget says no:
    /// no running request could end and make room, memory has been short for
    /// a while, and its floor can be had. A budget need never grow again.
    fn must_resume(&mut self, i: usize) -> bool {
        let idle = |job: &Job| job.state == State::Preempted;
        if !self.running.iter().all(idle) {
            return false;
        }
        let short = *self.short.get_or_insert_with(Instant::now);
        let tokens = (self.running[i].session.as_ref()).map_or(0, |s| s.tokens().len());
        short.elapsed() >= self.config.patience
            && self.engine.pool.floor_of(tokens) <= self.obtainable()
    }

    /// Computes a row of everyone who generates and a chunk of one prompt. True
    /// if there was something to compute.
    pub(super) fn compute(&mut self) -> bool {
        let mut plan = Plan::default();
        let prefill = self.next_prefill();
        let drafts = self.drafts(prefill.is_none());
        for (i, drafts) in drafts.into_iter().enumerate() {
            if self.running[i].state == State::Decode {
                self.plan(i, 1, drafts, &mut plan);
            }
        }
        let look = prefill.and_then(|i| Some((i, self.running[i].ask.look?)));
        let chunk = if plan.rows.spans.is_empty() {
            CHUNK
        } else {
            self.config.chunk_beside
        };
        if let Some(i) = prefill.filter(|_| look.is_none()) {
            self.plan(i, chunk, 0, &mut plan);
        }
        if !plan.rows.spans.is_empty() {
            let since = Instant::now();
            let rows = plan.rows.tokens.len();
            if self.run(&plan) && prefill.is_none() {
                self.engine.costs.note(rows, since.elapsed());
            }
        }
        if let Some((i, look)) = look {
            self.look(i, look, chunk);
        }
        let worked = !plan.rows.spans.is_empty() || look.is_some();
        self.leave();
        worked
    }

    /// How many drafts of each job are worth a row in the next step; none beside
    /// a prompt, whose step costs other than those that are measured.
    fn drafts(&mut self, alone: bool) -> Vec<usize> {
        let Self {
            engine, running, ..
        } = self;
        let decoding = running.iter().filter(|job| job.state == State::Decode);
        let sharing = decoding.count();
        let (mut at, mut chances) = (Vec::new(), Vec::new());
        for (i, job) in running.iter_mut().enumerate() {
            if job.state == State::Decode
                && let (Some(answer), Some(session)) = (&mut job.answer, &job.session)
            {
                at.push(i);
                chances.push(engine.look_up(session, answer, sharing));
            }
        }
        let most = if alone { engine.step.most_rows() } else { 0 };
        let mut drafts = vec![0; running.len()];
        for (i, its) in at.into_iter().zip(choose(&engine.costs, &chances, most)) {
            drafts[i] = its;
        }
        drafts
    }

    /// Who was answered or failed is gone: memory first, then the place.
    fn leave(&mut self) {
        self.running.retain(|job| job.session.is_some());
    }

    /// Prompts take turns.
    fn next_prefill(&mut self) -> Option<usize> {
        let n = self.running.len();
        let at = (0..n)
            .map(|i| (self.turn + i) % n)
            .find(|i| self.running[*i].state == State::Prefill)?;
        self.turn = at + 1;
        Some(at)
    }

    /// Asks the pool for up to `most` of a job's waiting rows and puts them
    /// into the step; or for one and so many drafts.
    pub(super) fn plan(&mut self, i: usize, most: usize, mut drafts: usize, plan: &mut Plan) {
        let (job, engine) = (&mut self.running[i], &mut self.engine);
        let span = plan.rows.spans.len();
        let next = job.answer.as_ref().map_or(&[][..], |a| a.drafts.next());
        let mut ask = |most: usize, drafts| match &mut job.session {
            Some(session) => {
                let rows = session.waiting().min(most);
                engine.hand_out(session, rows, &next[..drafts], &mut plan.rows)
            }
            None => Ok(Went::NoRoom),
        };
        let mut went = ask(most, drafts);
        if matches!(went, Ok(Went::NoRoom)) && most > SMALL_CHUNK {
            went = ask(SMALL_CHUNK, 0);
        }
        if matches!(went, Ok(Went::NoRoom)) && drafts > 0 {
            drafts = 0;
            went = ask(most, 0);
        }
        match went {
            Ok(Went::On) => plan.jobs.push(Planned {
                job: i,
                span,
                drafts,
            }),
            Ok(Went::Preempted) => self.preempted(i),
            // The limit that the user set: what there is of an answer is whole.
            Ok(Went::NoRoom) if self.running[i].has_tokens() => {
                self.running[i].finish(Finish::Exhausted);
                self.account.finished.fetch_add(1, Relaxed);
            }
            Ok(Went::NoRoom) => {
                let pool = &self.engine.pool;
                let block = pool.shape().block_bytes();
                let free = pool.budget().saturating_sub(pool.account().in_use);
                self.end_with(i, Failure::NoMemory { floor: block, free });
            }
            Err(e) => self.fail(i, &e.to_string()),
        }
    }

    /// Computes a plan and takes its logits; false if it failed.
    fn run(&mut self, plan: &Plan) -> bool {
        let Engine {
            decoder,
            pool,
            step,
            ..
        } = &mut self.engine;
        if let Err(e) = decoder.step(&plan.rows.tokens, &plan.rows.spans, pool, step) {
            let why = EngineError::from(e).to_string();
            for planned in &plan.jobs {
                self.fail(planned.job, &why);
            }
            return false;
        }
        for &Planned {
            job: i,
            span,
            drafts,
        } in &plan.jobs
        {
            let job = &mut self.running[i];
            let Some(session) = &mut job.session else {
                continue;
            };
            if drafts > 0 {
                self.account.drafts.fetch_add(1, Relaxed);
                self.account.draft_tokens.fetch_add(drafts as u64, Relaxed);
                // Which of its rows are written for good is not known yet.
                if session
                    .seq()
                    .is_none_or(|seq| self.engine.pool.preempted(seq))
                {
                    self.preempted(i);
                } else {
                    self.next_tokens(i, span, drafts);
                }
            } else if session.written() {
                self.preempted(i);
            } else if session.waiting() == 0 {
                if job.state == State::Prefill {
                    session.publish();
                    job.state = State::Decode;
                }
                self.next_tokens(i, span, 0);
            }
        }
        true
    }

    /// Chooses a job's next token by row `first` of the step's logits, and more
    /// by the rows of its drafts as long as they are right.
    pub(super) fn next_tokens(&mut self, i: usize, first: usize, drafts: usize) {
        let mut row = 0;
        while self.next_token(i, first, row, drafts) {
            self.account.accepted_tokens.fetch_add(1, Relaxed);
            row += 1;
        }
    }

    /// One of them; whether the row after it is this text's, too.
    fn next_token(&mut self, i: usize, first: usize, row: usize, drafts: usize) -> bool {
        let vocab = self.engine.decoder.config().vocab;
        let context = self.engine.context;
        let job = &mut self.running[i];
        let (Some(answer), Some(session)) = (&mut job.answer, &mut job.session) else {
            return false;
        };
        if let Some(finish) = answer.at_end(session.tokens.len(), context) {
            job.finish(finish);
            self.account.finished.fetch_add(1, Relaxed);
            return false;
        }
        let logits = &mut self.engine.step.logits()[(first + row) * vocab..][..vocab];
        match answer.take_row(logits, session, row, drafts) {
            Ok((taken, goes_on)) => {
                if taken.token.is_some() {
                    self.account.tokens.fetch_add(1, Relaxed);
                    job.ask.client.send(StreamEvent::Piece {
                        token: taken.token,
                        text: taken.text,
                        logprobs: taken.logprobs,
                    });
                }
                if let Some(finish) = taken.finish {
                    job.finish(finish);
                    self.account.finished.fetch_add(1, Relaxed);
                }
                return goes_on;
            }
            Err(e @ EngineError::Grammar(_)) => {
                self.end_with(i, Failure::Grammar(e.to_string()));
            }
            Err(e) => self.fail(i, &e.to_string()),
        }
        false
    }

    pub(super) fn preempted(&mut self, i: usize) {
        self.account.preemptions.fetch_add(1, Relaxed);
        let job = &mut self.running[i];
        if let Some(session) = &mut job.session {
            session.note_preemption();
            if job.ask.look.is_some() && job.state == State::Prefill {
                // What was seen of the chunk that was taken means nothing, and the
                // rest is to be seen: from the beginning.
                job.seen = Default::default();
                session.forget_steps();
            }
        }
        job.state = State::Preempted;
    }

    pub(super) fn fail(&mut self, i: usize, why: &str) {
        self.end_with(i, Failure::Step(why.to_owned()));
    }

    fn end_with(&mut self, i: usize, failure: Failure) {
        self.account.failed.fetch_add(1, Relaxed);
        self.running[i].fail(failure);
    }
}
