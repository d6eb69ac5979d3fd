//! From logits to a token.
//!
//! Owns the sampling settings and their check; the sampling itself is
//! candle-transformers'. Deterministic: the same settings, seed and logits
//! give the same tokens.

use super::EngineError;
use candle_core::Tensor;
use candle_transformers::{
    generation::{LogitsProcessor, Sampling},
    utils::apply_repeat_penalty,
};

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f64,
    /// Take from the likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// Take from this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// What the logits of recent tokens are divided by (1 changes nothing).
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at.
    pub repeat_last: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.7,
            top_p: Some(0.9),
            top_k: Some(40),
            seed: 0,
            repeat_penalty: 1.1,
            repeat_last: 64,
        }
    }
}

impl SamplingConfig {
    /// # Errors
    /// A number is outside of its range; the error names it.
    pub fn check(&self) -> Result<(), EngineError> {
        let bad = |what: &str| Err(EngineError::Sampling(what.into()));
        if !(self.temperature.is_finite() && (0.0..=100.0).contains(&self.temperature)) {
            return bad("temperature must be between 0 and 100");
        }
        if self.top_p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
            return bad("top-p must be above 0 and at most 1");
        }
        if self.top_k == Some(0) {
            return bad("top-k must be at least 1");
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty <= 100.0) {
            return bad("repeat-penalty must be above 0 and at most 100");
        }
        Ok(())
    }
}

/// Chooses tokens one after another.
pub(super) struct Sampler {
    inner: LogitsProcessor,
    penalty: f32,
    last: usize,
}

impl Sampler {
    pub(super) fn new(c: &SamplingConfig) -> Self {
        let temperature = c.temperature;
        let sampling = match (c.top_k, c.top_p.filter(|&p| p < 1.0)) {
            _ if temperature < 1e-7 => Sampling::ArgMax,
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        };
        Self {
            inner: LogitsProcessor::from_sampling(c.seed, sampling),
            penalty: c.repeat_penalty,
            last: c.repeat_last,
        }
    }

    /// `logits`: f32 `[vocab]`; `so_far`: every token of the sequence.
    pub(super) fn sample(&mut self, logits: &Tensor, so_far: &[u32]) -> candle_core::Result<u32> {
        #[expect(clippy::float_cmp, reason = "1 as given means no penalty")]
        let none = self.penalty == 1.0;
        if none {
            return self.inner.sample(logits);
        }
        let recent = &so_far[so_far.len().saturating_sub(self.last)..];
        let logits = apply_repeat_penalty(logits, self.penalty, recent)?;
        self.inner.sample(&logits)
    }
}
