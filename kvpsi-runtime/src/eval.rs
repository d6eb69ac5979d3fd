//! How well a model predicts a text: perplexity.
//!
//! Owns the method, which is llama.cpp's default, so that figures can be set
//! beside its own: the text is cut into chunks of the context's length, each
//! starts from an empty cache (with the start token in its first place, where
//! the model wants one), and the tokens of its second half are predicted, each
//! from all before it in the chunk. What is left over at the end is not
//! counted. The cache may be held to a share of what it would take: after each
//! few rows the ladder's slow steps bring it down to that share of what the
//! tokens so far take in f16, so that every prediction is made from a cache of
//! that size. Out of scope: sampling and of files.

use crate::{
    attention::RowSpan,
    kv::{
        KvError, KvPool, KvType, Ladder, LadderConfig, PoolConfig, SeqId, Step as Rung, Steps,
        evict::Evict,
    },
    model::{
        decoder::Decoder,
        step::{MOST_ROWS, Step},
    },
    units::Bytes,
};
use std::ops::ControlFlow;

/// Rows of one forward pass.
const BATCH: usize = 512;
/// Rows after which a cache is held to its share again.
const HELD_BATCH: usize = 128;
/// Tokens from which a share is measured, at most: a short text is blocks more than
/// tokens.
const MEASURED: usize = 1024;
/// First tokens that are always kept.
const SINKS: usize = 4;
/// Last tokens that are always kept: few, so that a share of an eighth is one.
const RECENT: usize = 64;

/// How the cache is written, and held down.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KvSetting {
    /// How keys and values are written at first.
    pub kv_type: KvType,
    /// What they are packed down to before tokens are dropped; as `kv_type`
    /// for not at all.
    pub pack_to: KvType,
    /// Which tokens are dropped.
    pub evict: Evict,
    /// Share of the bytes that the tokens so far take in f16; 1 or more: the
    /// cache is left alone.
    pub budget: f64,
}

impl KvSetting {
    /// A whole cache in one encoding.
    #[must_use]
    pub fn whole(kv_type: KvType) -> Self {
        Self {
            kv_type,
            pack_to: kv_type,
            evict: Evict::default(),
            budget: 1.0,
        }
    }

    fn is_held(&self) -> bool {
        self.budget < 1.0
    }

    /// Bytes that the cache may have.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share"
    )]
    #[expect(clippy::cast_precision_loss, reason = "bytes of a cache")]
    fn bytes(&self, pool: &KvPool, tokens: usize) -> Bytes {
        let full = pool.shape().token_bytes_as(KvType::F16).0 * tokens as u64;
        Bytes((full as f64 * self.budget) as u64)
    }
}

/// A sequence whose cache is held to a share of its size.
#[derive(Debug)]
pub struct Held {
    /// Where it lives.
    pub pool: std::sync::Arc<KvPool>,
    /// The memory of steps.
    pub step: Step,
    ladder: Ladder,
    setting: KvSetting,
    /// Tokens from which [`Held::share`] is measured.
    measured: usize,
    /// Tokens dropped, of all heads alike.
    pub dropped: u64,
    /// Most that the cache took, as a share of f16.
    pub share: f64,
}

impl Held {
    /// Room for sequences of `context` tokens.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(decoder: &Decoder, context: usize, setting: KvSetting) -> Result<Self, EvalError> {
        let mut shape = decoder.kv_shape(setting.kv_type);
        shape.row_mass = setting.is_held() && setting.evict.needs_row_mass();
        let pool = KvPool::new(PoolConfig {
            shape,
            capacity_tokens: context,
            max_sequences: 1,
            sink_tokens: SINKS,
            recent_tokens: if setting.is_held() { RECENT } else { context },
            floor_tokens: 0,
            may_drop: true,
        })?;
        let step = Step::new(decoder, &pool, MOST_ROWS)?;
        let config = LadderConfig {
            evict: setting.evict,
            pack_to: setting.pack_to,
            window: decoder.longest_window(),
            ..LadderConfig::default()
        };
        Ok(Self {
            ladder: Ladder::new(pool.clone(), config, step.queries()),
            pool,
            step,
            setting,
            measured: first_scored(context).min(MEASURED),
            dropped: 0,
            share: 0.0,
        })
    }

    /// Takes the next tokens of a sequence through the decoder and holds the
    /// cache to its share; `tell` gets the logits of the rows `wanted` of them.
    ///
    /// # Errors
    /// There is no room, or a step fails.
    pub fn feed(
        &mut self,
        decoder: &Decoder,
        seq: SeqId,
        tokens: &[u32],
        wanted: std::ops::Range<usize>,
        tell: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError> {
        let batch = if self.setting.is_held() {
            HELD_BATCH
        } else {
            BATCH
        };
        for (i, rows) in tokens.chunks(batch).enumerate() {
            let before = i * batch;
            let at = self.pool.append(seq, rows.len())?;
            let span = RowSpan {
                seq,
                first_pos: at.start,
                rows: rows.len(),
            };
            // Perhaps none: the keys and values are wanted all the same.
            let from = wanted.start.clamp(before, before + rows.len());
            let until = wanted.end.clamp(from, before + rows.len());
            let wanted = from - before..until - before;
            decoder.step_through(
                rows,
                span,
                &self.pool,
                &mut self.step,
                wanted,
                &mut |row, logits| tell(before + row, logits),
            )?;
            self.pool.written(seq);
            self.hold(at.end);
        }
        Ok(())
    }

    fn hold(&mut self, tokens: usize) {
        if !self.setting.is_held() {
            self.share = self.share_now(tokens);
            return;
        }
        let mut steps = Steps::NONE.with(Rung::Thin);
        if self.setting.pack_to != self.setting.kv_type {
            steps = steps.with(Rung::Pack);
        }
        let bytes = self.setting.bytes(&self.pool, tokens);
        let dropped = &mut self.dropped;
        self.ladder
            .fit(bytes, steps, &mut |done| *dropped += done.tokens);
        if tokens >= self.measured {
            self.share = self.share.max(self.share_now(tokens));
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes of a cache")]
    fn share_now(&self, tokens: usize) -> f64 {
        let full = self.pool.shape().token_bytes_as(KvType::F16).0 * tokens as u64;
        self.pool.account().in_use.0 as f64 / full as f64
    }
}

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
    /// Tokens dropped from the cache.
    pub dropped: u64,
    /// Most that the cache took in a chunk's second half, as a share of f16.
    pub share: f64,
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
    setting: KvSetting,
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
    let mut held = Held::new(decoder, context, setting)?;
    let mut score = Score::default();
    for chunk in chunks(tokens, context, start) {
        let seq = held.pool.open()?;
        let scored = first_scored(chunk.len())..chunk.len() - 1;
        let done = held.feed(decoder, seq, &chunk, scored, &mut |row, logits| {
            score.add(logits, chunk[row + 1]);
        });
        held.pool.close(seq);
        done?;
        score.chunks += 1;
        score.dropped = held.dropped;
        score.share = held.share;
        if tell(&score).is_break() {
            break;
        }
    }
    Ok(score)
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
