//! The next rows of a session, and drafts behind them.
//!
//! Owns positions for rows, steps of one session, and when drafts are computed
//! and how many. Out of scope: what a guess is worth
//! ([`crate::engine::speculate`]), steps of a batch.

use super::{Answer, Engine, EngineError, Session, Went};
use crate::{
    attention::RowSpan,
    engine::speculate::{Speculate, choose},
    kv::{KvError, SeqId},
    units::Bytes,
};
use std::{ops::Range, time::Instant};

/// Rows of a step in the making.
#[derive(Default)]
pub(in crate::engine) struct StepRows {
    pub tokens: Vec<u32>,
    pub spans: Vec<RowSpan>,
}

/// A span for each position: rows get the bits that they would get in steps of
/// their own.
fn one_by_one(seq: SeqId, at: Range<usize>) -> impl Iterator<Item = RowSpan> {
    at.map(move |first_pos| RowSpan {
        seq,
        first_pos,
        rows: 1,
    })
}

impl Engine {
    /// Computes the row of an answer's last token, and drafts behind it where
    /// that is worth it; how many those were.
    pub(super) fn next_rows(
        &mut self,
        session: &mut Session,
        answer: &mut Answer,
    ) -> Result<(Went, usize), EngineError> {
        let chances = [self.look_up(session, answer, 1)];
        let drafts = choose(&self.costs, &chances, self.step.most_rows())[0];
        let since = Instant::now();
        let next = &answer.drafts.next()[..drafts];
        match self.go_on(session, 1, next)? {
            Went::On => {
                self.costs.note(1 + drafts, since.elapsed());
                Ok((Went::On, drafts))
            }
            Went::NoRoom if drafts > 0 => Ok((self.advance(session, 1)?, 0)),
            went => Ok((self.regain(session, 1, went)?, 0)),
        }
    }

    /// What may follow an answer, and how probable it is: nothing where guesses
    /// are not wanted. Of context, answer and free memory there is enough for it,
    /// also where `sharing` sequences draft at once.
    pub(in crate::engine) fn look_up(
        &self,
        session: &Session,
        answer: &mut Answer,
        sharing: usize,
    ) -> Vec<f32> {
        if self.speculate == Speculate::Off {
            answer.drafts.clear();
            return Vec::new();
        }
        let (pool, len) = (&self.pool, session.tokens.len());
        let block = pool.shape().block_tokens;
        let free = pool.budget().saturating_sub(pool.account().in_use);
        // Drafts of one are fewer than a block's tokens.
        let room = if free.0 / pool.shape().block_bytes().0 < sharing as u64 {
            // A guess takes no memory from what is known.
            len.next_multiple_of(block)
        } else {
            self.context
        };
        // The row behind the last draft has a place, too.
        let room = room.min(self.context.saturating_sub(1));
        let most = answer.left_after_next().min(room.saturating_sub(len));
        answer.drafts.look_up(&session.tokens, most)
    }

    /// Computes the next `rows` waiting rows; the logits of the last one are
    /// then the step's. Or one such row and `drafts` behind it, and the logits
    /// of all of these: [`Session::settle`] says which ones stay.
    pub(super) fn go_on(
        &mut self,
        session: &mut Session,
        rows: usize,
        drafts: &[u32],
    ) -> Result<Went, EngineError> {
        let mut rows_of_step = StepRows::default();
        match self.hand_out(session, rows, drafts, &mut rows_of_step)? {
            Went::On => {}
            other => return Ok(other),
        }
        let (decoder, step) = (&self.decoder, &mut self.step);
        let StepRows { tokens, spans } = rows_of_step;
        if let Err(e) = decoder.step(&tokens, &spans, &session.pool, step) {
            if !drafts.is_empty() {
                session.settle(session.tokens.len());
            }
            return Err(e.into());
        }
        // Which drafts are written for good is not known yet.
        let preempted = if drafts.is_empty() {
            session.written()
        } else {
            (session.seq).is_none_or(|seq| session.pool.preempted(seq))
        };
        Ok(if preempted { Went::Preempted } else { Went::On })
    }

    /// Positions for the next `rows` waiting rows, put into a step; or for one
    /// and drafts behind it, each as a span of its own.
    pub(in crate::engine) fn hand_out(
        &mut self,
        session: &mut Session,
        rows: usize,
        drafts: &[u32],
        step: &mut StepRows,
    ) -> Result<Went, EngineError> {
        let Some(seq) = session.seq else {
            return Ok(Went::NoRoom);
        };
        self.make_room(rows + drafts.len());
        let at = match session.pool.append_drafts(seq, rows, drafts.len()) {
            Ok(at) => at,
            Err(KvError::Exhausted(_)) => return Ok(Went::NoRoom),
            Err(KvError::Preempted) => return Ok(Went::Preempted),
            Err(e) => return Err(e.into()),
        };
        session.history.push(rows);
        let (first_pos, certain) = (at.start, at.start..at.start + rows);
        step.tokens.extend_from_slice(&session.tokens[certain]);
        step.tokens.extend_from_slice(drafts);
        if drafts.is_empty() {
            step.spans.push(RowSpan {
                seq,
                first_pos,
                rows,
            });
        } else {
            step.spans.extend(one_by_one(seq, at));
        }
        Ok(Went::On)
    }

    /// Before new rows go beyond the budget, the ladder's slow steps: better
    /// than the sequence's own oldest blocks.
    pub(in crate::engine) fn make_room(&mut self, rows: usize) {
        let pool = &self.pool;
        let (a, block) = (pool.account(), pool.shape().block_bytes().0);
        let needed = rows.div_ceil(pool.shape().block_tokens) as u64 * block;
        let over = (a.in_use.0 + needed).saturating_sub(pool.budget().0);
        if over > 0 && rows > 0 {
            let allowed = self.ladder.profile().steps(false);
            let most = Bytes(a.in_use.0.saturating_sub(over));
            self.ladder.fit(most, allowed, &mut |_| ());
        }
    }
}
