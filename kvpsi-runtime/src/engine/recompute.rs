//! Sessions computed anew from their tokens: resumed after they were preempted,
//! recomputed after they lost some.
//!
//! Both walk the session's history, so that keys and values get the bits that
//! they had. Recomputation goes on beside what is left of the session, which is given
//! up only when the new one is complete; told to stop, it leaves what it has as
//! cached blocks: the first to go if memory is short, found again if not.
//! Out of scope: when to do it.

use super::{Engine, EngineError, Session};
use crate::{
    attention::RowSpan,
    kv::{KvError, SeqId},
    model::step::Interrupted,
    units::Bytes,
};
use std::sync::{Arc, atomic::AtomicBool};

/// Steps of one row that are computed together.
const TOGETHER: usize = 64;

/// What came of recomputing a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recomputed {
    /// Nothing was lost.
    Whole,
    /// So many positions were computed anew; nothing is missing now.
    Done(usize),
    /// It was told to stop, or lost blocks meanwhile; try again.
    Interrupted,
    /// There is no memory for it yet.
    NoRoom,
}

/// How far recomputing came.
pub(super) enum Walk {
    /// One step further.
    More,
    Done,
    Stopped,
    NoRoom,
}

impl Engine {
    /// Computes again what a session lost, from the first loss on. `stop` ends
    /// it within one layer.
    ///
    /// # Errors
    /// A step fails.
    pub fn recompute(
        &mut self,
        session: &mut Session,
        stop: &Arc<AtomicBool>,
    ) -> Result<Recomputed, EngineError> {
        let pool = self.pool.clone();
        let Some(old) = session.seq.filter(|seq| pool.lost_from(*seq).is_some()) else {
            return Ok(Recomputed::Whole);
        };
        let len = session.history.len();
        let block = pool.shape().block_tokens;
        let from = session.history.boundary(pool.untouched(old), block);
        pool.hash_blocks(&session.tokens[..len], &mut session.hashes);
        let known = pool.known(&session.hashes, true);
        let known = session.history.boundary(known, block);
        let account = pool.account();
        let needed = pool.shape().token_bytes().0 * (len - from) as u64;
        let free = pool.budget().saturating_sub(account.in_use);
        pool.set_wanted(Bytes(needed));
        if needed > free.0 {
            return Ok(Recomputed::NoRoom);
        }
        let new = match pool.open() {
            Ok(seq) => seq,
            Err(KvError::NoSequence(_)) => return Ok(Recomputed::NoRoom),
            Err(e) => return Err(e.into()),
        };
        // The first to be dropped, if one must be.
        pool.set_priority(new, i32::MIN);
        pool.fork(old, new, from, true);
        let hashes = &session.hashes[..known.max(pool.len(new)) / block];
        pool.adopt(new, hashes, true);
        self.step.interrupt_by(Some(stop.clone()));
        let walked = self.walk(session, new, len, false);
        self.step.interrupt_by(None);
        let whole = pool.lost_tokens(new) == 0 && pool.untouched(new) == len;
        pool.publish(new, &session.hashes);
        match walked {
            Ok(Walk::Done) if whole => {
                pool.set_priority(new, 0);
                session.seq = Some(new);
                pool.close(old);
                pool.set_wanted(Bytes::ZERO);
                Ok(Recomputed::Done(len - from))
            }
            Ok(walk) => {
                pool.close(new);
                Ok(match walk {
                    Walk::NoRoom => Recomputed::NoRoom,
                    _ => Recomputed::Interrupted,
                })
            }
            Err(e) => {
                pool.close(new);
                Err(e)
            }
        }
    }

    /// Computes a preempted session again, up to where it was; its last
    /// logits are then the step's. False when there is no room yet: for all that
    /// it had, or for its floor if that `will_do`.
    pub(super) fn resume(
        &mut self,
        session: &mut Session,
        will_do: bool,
    ) -> Result<bool, EngineError> {
        let (pool, len) = (&self.pool, session.history.len());
        // A budget need never grow again: what stalls may be others' page cache.
        let must = will_do && pool.floor_of(len) <= (self.obtainable)();
        let Some(new) = self.begin_again(session, must)? else {
            return Ok(false);
        };
        let len = session.history.len();
        let done = matches!(self.walk(session, new, len, true)?, Walk::Done);
        if done {
            self.pool.set_wanted(Bytes::ZERO);
        }
        Ok(done)
    }

    /// Gives a preempted session a new, empty sequence, if there is room for
    /// all that it had, or if it `must` be.
    pub(super) fn begin_again(
        &mut self,
        session: &mut Session,
        must: bool,
    ) -> Result<Option<SeqId>, EngineError> {
        let pool = &self.pool;
        let Some(old) = session.seq else {
            return Ok(None);
        };
        let len = session.history.len();
        let needed = pool.shape().token_bytes().0 * len as u64;
        let account = pool.account();
        pool.set_wanted(Bytes(needed));
        if !must && needed > pool.budget().saturating_sub(account.in_use).0 {
            return Ok(None);
        }
        session.seq = None;
        session.seq = Some(pool.reopen(old)?);
        Ok(session.seq)
    }

    /// Computes the positions of `session` up to `len` that `seq` does not
    /// have, as they were computed before.
    fn walk(
        &mut self,
        session: &Session,
        seq: SeqId,
        len: usize,
        logits: bool,
    ) -> Result<Walk, EngineError> {
        loop {
            match self.walk_on(session, seq, len, logits)? {
                Walk::More => {}
                end => return Ok(end),
            }
        }
    }

    /// One step of it.
    pub(super) fn walk_on(
        &mut self,
        session: &Session,
        seq: SeqId,
        len: usize,
        logits: bool,
    ) -> Result<Walk, EngineError> {
        let pool = self.pool.clone();
        let at = pool.len(seq);
        if at >= len {
            return Ok(Walk::Done);
        }
        let (rows, times) = session.history.next(at).unwrap_or((len - at, 1));
        let steps = if rows == 1 { times.min(TOGETHER) } else { 1 };
        // The last step alone, where its logits are wanted.
        let last = at + rows * steps >= len;
        let steps = if last && logits && steps > 1 {
            steps - 1
        } else {
            steps
        };
        let positions = match pool.append(seq, rows * steps) {
            Ok(positions) => positions,
            Err(KvError::Exhausted(_)) => return Ok(Walk::NoRoom),
            Err(KvError::Preempted) => return Ok(Walk::Stopped),
            Err(e) => return Err(e.into()),
        };
        let spans: Vec<RowSpan> = (0..steps)
            .map(|i| RowSpan {
                seq,
                first_pos: at + i * rows,
                rows,
            })
            .collect();
        let last = last && at + rows * steps >= len;
        let tokens = &session.tokens[positions];
        let done = if last && logits {
            self.decoder
                .step(tokens, &spans, &pool, &mut self.step)
                .map(|_| ())
        } else {
            self.decoder.store(tokens, &spans, &pool, &mut self.step)
        };
        match done {
            Err(e) if is_interrupted(&e) => return Ok(Walk::Stopped),
            other => other?,
        }
        pool.written(seq);
        if pool.preempted(seq) {
            return Ok(Walk::Stopped);
        }
        Ok(if last { Walk::Done } else { Walk::More })
    }
}

fn is_interrupted(e: &candle_core::Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(e) = source {
        if e.is::<Interrupted>() {
            return true;
        }
        source = e.source();
    }
    e.to_string().contains(&Interrupted.to_string())
}
