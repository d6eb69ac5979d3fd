//! Rows of a session with drafts behind them.
//!
//! Owns when drafts are computed and how many; what a guess is worth is of
//! [`crate::engine::speculate`].

use super::{Answer, Engine, EngineError, Session, Went};
use crate::engine::speculate::{Speculate, choose};
use std::time::Instant;

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
}
