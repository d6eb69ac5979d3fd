//! How well a model predicts a text: perplexity.
//!
//! Owns the method, which is llama.cpp's default, so that figures can be set
//! beside its own: the text is cut into chunks of the context's length, each
//! starts from an empty cache (with the start token in its first place, where
//! the model wants one), and the tokens of its second half are predicted, each
//! from all before it in the chunk. What is left over at the end is not
//! counted. Refuses to know of sampling and of files.

use crate::{
    attention::RowSpan,
    kv::{KvError, KvPool, KvType, PoolConfig, SeqId},
    model::{
        decoder::Decoder,
        step::{MOST_ROWS, Step},
    },
};
use std::ops::ControlFlow;

/// Rows of one forward pass.
const BATCH: usize = 512;
/// Why a text could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A chunk that the model cannot have.
    #[error("--ctx {asked}: chunks of this model have 4 to {trained} tokens")]
    Context {
        /// What was asked for.
        asked: usize,
        /// Tokens that the model was trained for.
        trained: usize,
    },
    /// Not one chunk.
    #[error(
        "the text has {tokens} tokens, fewer than a chunk of {context}: give more, or a smaller --ctx"
    )]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a chunk.
        context: usize,
    },
    /// The KV pool.
    #[error("KV pool: {0}")]
    Kv(#[from] KvError),
    /// A tensor operation failed.
    #[error("model step: {0}")]
    Step(#[from] candle_core::Error),
}

/// The sum so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Chunks done.
    pub chunks: usize,
    /// Tokens predicted.
    pub tokens: usize,
    /// Sum of their negative log-likelihoods (natural logarithm).
    pub nll: f64,
    /// Sum of the squares.
    pub nll_squared: f64,
}

impl Score {
    /// Takes one prediction: `logits` of every token, of which `token` came.
    pub fn add(&mut self, logits: &[f32], token: u32) {
        let nll = nll(logits, token);
        self.tokens += 1;
        self.nll += nll;
        self.nll_squared += nll * nll;
    }

    /// e to the mean negative log-likelihood; not a number without tokens.
    #[must_use]
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }

    /// Standard error of [`Score::perplexity`].
    #[must_use]
    pub fn error(&self) -> f64 {
        let n = self.tokens as f64;
        let mean = self.nll / n;
        let variance = (self.nll_squared / n - mean * mean).max(0.0);
        self.perplexity() * (variance / (n - 1.0)).sqrt()
    }
}

/// `-ln softmax(logits)[token]`; infinite for a token that is not there.
fn nll(logits: &[f32], token: u32) -> f64 {
    let Some(&logit) = logits.get(token as usize) else {
        return f64::INFINITY;
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    sum.ln() + f64::from(max - logit)
}

/// First row of a chunk that predicts.
#[must_use]
pub fn first_scored(context: usize) -> usize {
    context / 2
}

/// The chunks of a text: whole ones of `context` tokens, each beginning with
/// `start` where the model wants a start token.
pub fn chunks(
    tokens: &[u32],
    context: usize,
    start: Option<u32>,
) -> impl Iterator<Item = Vec<u32>> {
    tokens.chunks_exact(context.max(1)).map(move |chunk| {
        let mut chunk = chunk.to_vec();
        if let (Some(start), Some(first)) = (start, chunk.first_mut()) {
            *first = start;
        }
        chunk
    })
}

/// Perplexity of `decoder` over a text; `tell` is told after each chunk, and
/// may end it there.
///
/// # Errors
/// The text is shorter than one chunk, the context is below 4 tokens or beyond
/// the model's, or a step fails.
pub fn perplexity(
    decoder: &Decoder,
    tokens: &[u32],
    context: usize,
    kv_type: KvType,
    start: Option<u32>,
    tell: &mut dyn FnMut(&Score) -> ControlFlow<()>,
) -> Result<Score, EvalError> {
    let trained = decoder.config().context;
    if !(4..=trained).contains(&context) {
        let asked = context;
        return Err(EvalError::Context { asked, trained });
    }
    if tokens.len() < context {
        return Err(EvalError::TooShort {
            tokens: tokens.len(),
            context,
        });
    }
    let pool = KvPool::new(PoolConfig {
        shape: decoder.kv_shape(kv_type),
        capacity_tokens: context,
        max_sequences: 1,
        sink_tokens: 0,
        recent_tokens: context,
    })?;
    let mut step = Step::new(decoder, &pool, MOST_ROWS)?;
    let mut score = Score::default();
    for chunk in chunks(tokens, context, start) {
        let seq = pool.open()?;
        let done = one_chunk(decoder, &pool, &mut step, seq, &chunk, &mut score);
        pool.close(seq);
        done?;
        score.chunks += 1;
        if tell(&score).is_break() {
            break;
        }
    }
    Ok(score)
}

fn one_chunk(
    decoder: &Decoder,
    pool: &KvPool,
    step: &mut Step,
    seq: SeqId,
    chunk: &[u32],
    score: &mut Score,
) -> Result<(), EvalError> {
    let scored = first_scored(chunk.len())..chunk.len() - 1;
    for tokens in chunk.chunks(BATCH) {
        let at = pool.append(seq, tokens.len())?;
        let span = RowSpan {
            seq,
            first_pos: at.start,
            rows: tokens.len(),
        };
        // Perhaps none: the keys and values are wanted all the same.
        let from = scored.start.clamp(at.start, at.end);
        let until = scored.end.clamp(from, at.end);
        let wanted = from - at.start..until - at.start;
        decoder.step_through(tokens, span, pool, step, wanted, &mut |row, logits| {
            score.add(logits, chunk[at.start + row + 1]);
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_perplexity_of_a_fair_guess_is_the_number_of_choices() {
        let mut score = Score::default();
        for token in 0..50 {
            score.add(&[2.5; 50], token);
        }
        assert!((score.perplexity() - 50.0).abs() < 1e-9);
        assert!(score.error() < 1e-6);
        score.add(&[0.0; 50], 50);
        assert!(score.perplexity().is_infinite());
    }

    #[test]
    fn a_sure_guess_costs_nothing_and_its_opposite_its_margin() {
        let mut score = Score::default();
        score.add(&[100.0, 0.0], 0);
        assert!(score.nll.abs() < 1e-9);
        score.add(&[100.0, 0.0], 1);
        assert!((score.nll - 100.0).abs() < 1e-9);
    }

    #[test]
    fn chunks_are_whole_and_begin_with_the_start_token() {
        let tokens: Vec<u32> = (10..20).collect();
        let with: Vec<_> = chunks(&tokens, 4, Some(1)).collect();
        assert_eq!(with, [[1, 11, 12, 13], [1, 15, 16, 17]]);
        let without: Vec<_> = chunks(&tokens, 4, None).collect();
        assert_eq!(without, [[10, 11, 12, 13], [14, 15, 16, 17]]);
    }
}
