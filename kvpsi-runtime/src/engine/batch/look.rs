//! Prompts whose rows are looked at: how probable their tokens were, or what
//! the model makes of them as a vector.
//!
//! Owns how such a prompt is computed. Its rows go through a
//! step of their own, and none of them comes from the cache: what was not
//! computed cannot be looked at. Out of scope: whose prompts these are.

use super::{
    Batch,
    job::{Job, State, StreamEvent},
    seen::Look,
    work::Plan,
};
use crate::{
    engine::{Engine, Finish},
    model::step::Step,
};
use candle_core::Result;
use std::sync::atomic::Ordering::Relaxed;

impl Batch {
    /// Takes a chunk of a prompt through whose rows are looked at.
    pub(super) fn look(&mut self, i: usize, look: Look, chunk: usize) {
        let mut plan = Plan::default();
        self.plan(i, chunk, 0, &mut plan);
        if plan.jobs.is_empty() {
            return;
        }
        let job = &mut self.running[i];
        if let Err(e) = self.engine.see(job, look, &plan) {
            self.fail(i, &e.to_string());
            return;
        }
        let Some(session) = &mut job.session else {
            return;
        };
        if session.written() {
            self.preempted(i);
        } else if session.waiting() == 0 {
            session.publish();
            self.seen(i, look);
        }
    }

    /// All of the prompt was seen.
    fn seen(&mut self, i: usize, look: Look) {
        let rows = self.engine.step.rows_with_logits();
        let job = &mut self.running[i];
        match look {
            Look::Logprobs(_) => {
                let logprobs = std::mem::take(&mut job.seen.logprobs);
                job.ask.client.send(StreamEvent::Prompt(logprobs));
                job.state = State::Decode;
                self.next_tokens(i, rows.saturating_sub(1), 0);
            }
            Look::Embedding => {
                job.embedding = Some(job.seen.embedding());
                job.finish(Finish::Eos);
                self.account.finished.fetch_add(1, Relaxed);
            }
        }
    }
}

impl Engine {
    /// Computes the one span of a plan, and notes what is wanted of its rows.
    fn see(&mut self, job: &mut Job, look: Look, plan: &Plan) -> Result<()> {
        let (Some(span), Some(session)) = (plan.rows.spans.first(), &job.session) else {
            return Ok(());
        };
        let Self {
            decoder,
            pool,
            step,
            ..
        } = self;
        let step: &mut Step = step;
        let (first, seen) = (span.first_pos, &mut job.seen);
        match look {
            Look::Logprobs(n) => {
                let next = session.tokens();
                let mut tell = |row: usize, logits: &[f32]| {
                    let at = first + row;
                    seen.logits(at, logits, next.get(at + 1), n);
                };
                let all = 0..plan.rows.tokens.len();
                decoder.step_through(&plan.rows.tokens, *span, pool, step, all, &mut tell)
            }
            Look::Embedding => {
                let mut tell = |row: usize, hidden: &[f32]| seen.hidden(first + row, hidden);
                decoder.hidden_through(&plan.rows.tokens, *span, pool, step, &mut tell)
            }
        }
    }
}
