//! One sequence and how it goes on.

use super::{Engine, EngineError, Finish, GenStats, Piece, SamplingConfig, sampling::Sampler};
use crate::{
    attention::RowSpan,
    kv::{KvError, KvPool, SeqId},
    model::{decoder::Decoder, step::Step},
};
use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// Rows of one prefill step: large enough for the matrix kernels, small
/// enough that a stop request is obeyed soon.
const CHUNK: usize = 256;
/// Rows to retry with when the pool has no room for a whole chunk: one block.
const SMALL_CHUNK: usize = 32;

/// A sequence that keeps its KV between generations; dropping it gives the
/// KV back to the pool.
#[derive(Debug)]
pub struct Session {
    pool: Arc<KvPool>,
    seq: SeqId,
    /// Every token of the sequence. The pool holds positions for the first
    /// `pool.len(seq)` of them; the rest is computed when it goes on.
    tokens: Vec<u32>,
}

impl Session {
    pub(super) fn open(pool: Arc<KvPool>) -> Result<Self, EngineError> {
        let seq = pool.open()?;
        Ok(Self {
            pool,
            seq,
            tokens: Vec::new(),
        })
    }

    /// Every token so far: prompts and answers.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The sequence in the pool.
    #[must_use]
    pub fn seq(&self) -> SeqId {
        self.seq
    }

    /// Tokens whose rows are not computed yet.
    fn waiting(&self) -> usize {
        self.tokens.len() - self.pool.len(self.seq)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pool.close(self.seq);
    }
}

impl Engine {
    /// Appends `prompt` to the session and generates. Only what is new is
    /// prefilled.
    ///
    /// # Errors
    /// The prompt is empty or does not fit the context together with the
    /// session (which then stays as it was), or a step fails.
    pub fn generate_in(
        &mut self,
        session: &mut Session,
        prompt: &[u32],
        sampling: &SamplingConfig,
        sink: &mut dyn FnMut(Piece<'_>) -> ControlFlow<()>,
    ) -> Result<GenStats, EngineError> {
        sampling.check()?;
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
        let started = Instant::now();
        session.tokens.extend_from_slice(prompt);
        let mut stats = GenStats {
            prompt_tokens: session.waiting(),
            tokens: 0,
            ttft: Duration::ZERO,
            decode: Duration::ZERO,
            sampling: Duration::ZERO,
            finish: Finish::Stopped,
        };
        if let Err(finish) = self.prefill(session)? {
            stats.finish = finish;
            stats.ttft = started.elapsed();
            return Ok(stats);
        }
        let mut sampler = Sampler::new(sampling);
        let mut first = None;
        let mut stream = self.tokenizer.stream();
        stats.finish = loop {
            if stats.tokens == sampling.max_tokens {
                break Finish::MaxTokens;
            }
            // The token that was sampled at the last position has none.
            if session.tokens.len() == self.context {
                break Finish::Length;
            }
            let since = Instant::now();
            let token = sampler.sample(self.step.logits(), &session.tokens)?;
            stats.sampling += since.elapsed();
            let first = *first.get_or_insert_with(|| {
                stats.ttft = started.elapsed();
                Instant::now()
            });
            stats.decode = first.elapsed();
            if self.tokenizer.ends(token) {
                break Finish::Eos;
            }
            session.tokens.push(token);
            stats.tokens += 1;
            let text = stream.push(token)?;
            let piece = Piece {
                token: Some(token),
                text: &text,
            };
            if sink(piece).is_break() || self.stop.load(Ordering::Relaxed) {
                break Finish::Stopped;
            }
            if stats.tokens == sampling.max_tokens {
                break Finish::MaxTokens;
            }
            if !go_on(&self.decoder, &mut self.step, session, 1)? {
                break Finish::Exhausted;
            }
        };
        let rest = stream.finish()?;
        if !rest.is_empty() {
            // The answer is over: whether the sink wants more does not matter.
            let _ = sink(Piece {
                token: None,
                text: &rest,
            });
        }
        Ok(stats)
    }

    /// Computes every waiting row, or says why not.
    fn prefill(&mut self, session: &Session) -> Result<Result<(), Finish>, EngineError> {
        let mut chunk = CHUNK;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(Err(Finish::Stopped));
            }
            let rows = session.waiting().min(chunk);
            match go_on(&self.decoder, &mut self.step, session, rows)? {
                true if session.waiting() == 0 => return Ok(Ok(())),
                true => {}
                false if chunk > SMALL_CHUNK => chunk = SMALL_CHUNK,
                false => return Ok(Err(Finish::Exhausted)),
            }
        }
    }
}

/// Computes the next `rows` waiting rows; the logits of the last one are then
/// the step's. False when the pool has no room for them.
fn go_on(
    decoder: &Decoder,
    step: &mut Step,
    session: &Session,
    rows: usize,
) -> Result<bool, EngineError> {
    let at = match session.pool.append(session.seq, rows) {
        Ok(at) => at,
        Err(KvError::Exhausted { .. }) => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    let span = RowSpan {
        seq: session.seq,
        first_pos: at.start,
        rows,
    };
    decoder.step(&session.tokens[at], &[span], &session.pool, step)?;
    Ok(true)
}
