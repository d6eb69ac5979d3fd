//! From logits to a token.
//!
//! Owns the sampling settings, their check, and which tokens may be drawn; the
//! drawing itself is candle-transformers'. What may be drawn is found first, in
//! one pass over the logits, so that softmax and sorting see some tens of
//! tokens and not the vocabulary. Deterministic: the same settings, seed and
//! logits give the same tokens.

mod narrow;

use super::EngineError;
use crate::curves::exp;
use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

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
    /// Take from tokens that have at least this share of the likeliest's probability.
    pub min_p: Option<f64>,
    /// Take from the tokens nearest to the expected information that together
    /// have this probability.
    pub typical_p: Option<f64>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// What the logits of recent tokens are divided by (1 changes nothing).
    pub repeat_penalty: f32,
    /// How many recent tokens the penalty looks at.
    pub repeat_last: usize,
    /// What is taken off the logit of a token that the answer has already
    /// (OpenAI's `presence_penalty`, -2 to 2).
    pub presence_penalty: f32,
    /// The same, times how often the answer has it (`frequency_penalty`).
    pub frequency_penalty: f32,
    /// What is added to the logit of a token, before all else.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens before which the answer does not end by itself.
    pub min_tokens: usize,
    /// Tokens that end the answer, beside the model's own; control tokens are not
    /// part of it.
    pub stop_tokens: Vec<u32>,
    /// Texts that end the answer, and are not part of it.
    pub stops: Vec<String>,
    /// Go on where the model would end its answer.
    pub ignore_eos: bool,
    /// The answer goes on with the prompt's text: a space in front of it is kept.
    pub continues: bool,
    /// How probable the token was, and so many of the likeliest: before
    /// penalties and temperature.
    pub logprobs: Option<usize>,
}

/// The likeliest tokens that [`SamplingConfig::logprobs`] may ask for.
pub const MAX_LOGPROBS: usize = 20;

/// How probable a chosen token was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Without the tokens that a grammar does not allow.
    pub(super) fn possible(mut self) -> Self {
        self.top.retain(|(_, logprob)| logprob.is_finite());
        self
    }
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.7,
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: None,
            typical_p: None,
            seed: 0,
            repeat_penalty: 1.1,
            repeat_last: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            stop_tokens: Vec::new(),
            stops: Vec::new(),
            ignore_eos: false,
            continues: false,
            logprobs: None,
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
        for (name, p) in [("min-p", self.min_p), ("typical-p", self.typical_p)] {
            if p.is_some_and(|p| !(p > 0.0 && p <= 1.0)) {
                return bad(&format!("{name} must be above 0 and at most 1"));
            }
        }
        if self
            .logit_bias
            .iter()
            .any(|(_, b)| b.is_nan() || *b > 100.0)
        {
            return bad("a logit bias must be at most 100");
        }
        if !(self.repeat_penalty > 0.0 && self.repeat_penalty <= 100.0) {
            return bad("repeat-penalty must be above 0 and at most 100");
        }
        for (name, penalty) in [
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ] {
            if !(-2.0..=2.0).contains(&penalty) {
                return bad(&format!("{name} must be between -2 and 2"));
            }
        }
        if self.logprobs.is_some_and(|n| n > MAX_LOGPROBS) {
            return bad(&format!("at most {MAX_LOGPROBS} likeliest tokens"));
        }
        Ok(())
    }
}

/// Chooses tokens one after another.
pub(super) struct Sampler {
    inner: LogitsProcessor,
    settings: SamplingConfig,
    /// What may be drawn: logits and tokens. Memory for the next call.
    candidates: Vec<(f32, u32)>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Sampler {
    pub(super) fn new(c: &SamplingConfig) -> Self {
        let sampling = Sampling::All {
            temperature: c.temperature.max(f64::MIN_POSITIVE),
        };
        Self {
            inner: LogitsProcessor::from_sampling(c.seed, sampling),
            settings: c.clone(),
            candidates: Vec::new(),
        }
    }

    /// Whether the client's biases exclude every token that may come.
    pub(super) fn excludes_all(&self, logits: &[f32]) -> bool {
        let biases = self.settings.logit_bias.iter();
        let mut never: Vec<u32> = (biases.filter(|(_, b)| *b == f32::NEG_INFINITY))
            .map(|(token, _)| *token)
            .collect();
        if never.is_empty() {
            return false;
        }
        never.sort_unstable();
        never.dedup();
        let possible = |l: &f32| *l > f32::NEG_INFINITY;
        let excluded = never.iter().filter_map(|t| logits.get(*t as usize));
        excluded.filter(|l| possible(l)).count() == logits.iter().filter(|l| possible(l)).count()
    }

    pub(super) fn settings(&self) -> &SamplingConfig {
        &self.settings
    }

    /// `logits`: of every token, and changed by the penalties; `so_far`: every
    /// token of the sequence, those of the answer from `answer` on; `ends`: the
    /// tokens that end an answer, in order.
    pub(super) fn sample(
        &mut self,
        logits: &mut [f32],
        so_far: &[u32],
        answer: usize,
        ends: &[u32],
    ) -> candle_core::Result<(u32, Option<TokenLogprobs>)> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(candle_core::Error::Msg("a logit is not a number".into()));
        }
        // Before anything is changed; which one is chosen is not known yet.
        let before = self.settings.logprobs.map(|n| {
            let mut top = Vec::new();
            likeliest(logits, n.max(1), &mut top);
            let max = top.first().map_or(0.0, |t| t.0);
            let log_mass = max + mass_of(logits, max, 1.0).ln();
            (logits.to_vec(), log_mass, n, top)
        });
        self.steer(logits, so_far.len().saturating_sub(answer), ends);
        let token = self.choose(logits, so_far, answer)?;
        let logprobs = before.map(|(raw, log_mass, n, top)| TokenLogprobs {
            logprob: raw[token as usize] - log_mass,
            top: (top.iter().take(n))
                .map(|&(logit, token)| (token, logit - log_mass))
                .collect(),
        });
        Ok((token, logprobs))
    }

    /// Draws a group by its mass, and then a token of it: the same chances as
    /// one draw among all, and two short ones instead of a long one.
    fn draw_of_all(&mut self, logits: &[f32], temperature: f64) -> candle_core::Result<u32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let groups = logits.chunks(GROUP);
        #[expect(clippy::cast_possible_truncation, reason = "at most 100")]
        let masses: Vec<f32> = groups
            .map(|g| mass_of(g, max, temperature).ln() * temperature as f32)
            .collect();
        if masses.iter().any(|m| m.is_nan()) {
            return Err(candle_core::Error::Msg("a logit is not a number".into()));
        }
        let n = masses.len();
        let group = self
            .inner
            .sample(&Tensor::from_vec(masses, n, &Device::Cpu)?)? as usize;
        let within = logits.chunks(GROUP).nth(group).ok_or_else(no_token)?;
        let drawn = self
            .inner
            .sample(&Tensor::from_slice(within, within.len(), &Device::Cpu)?)?;
        u32::try_from(group * GROUP)
            .map(|first| first + drawn)
            .map_err(|_| no_token())
    }

    /// Adds the biases; excludes ends from an answer of `tokens` that is too short.
    fn steer(&self, logits: &mut [f32], tokens: usize, ends: &[u32]) {
        let c = &self.settings;
        for (token, bias) in &c.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if tokens < c.min_tokens {
            for token in ends.iter().chain(&c.stop_tokens) {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn choose(
        &mut self,
        logits: &mut [f32],
        so_far: &[u32],
        answer: usize,
    ) -> candle_core::Result<u32> {
        let c = &self.settings;
        subtract(
            logits,
            c.presence_penalty,
            c.frequency_penalty,
            so_far.get(answer..).unwrap_or_default(),
        );
        penalize(
            logits,
            c.repeat_penalty,
            &so_far[so_far.len().saturating_sub(c.repeat_last)..],
        );
        let top_p = c.top_p.filter(|&p| p < 1.0);
        let found = &mut self.candidates;
        found.clear();
        let mass = match c.top_k.filter(|&k| k < logits.len()) {
            _ if c.temperature < 1e-7 => {
                likeliest(logits, 1, found);
                return found.first().map(|&(_, token)| token).ok_or_else(no_token);
            }
            k if c.min_p.is_some() || c.typical_p.is_some() => {
                narrowed(logits, c, k, found);
                let Some(&(max, _)) = found.first() else {
                    return Err(no_token());
                };
                mass(found.iter().map(|&(l, _)| l), max, c.temperature)
            }
            Some(k) => {
                likeliest(logits, k, found);
                let Some(&(max, _)) = found.first() else {
                    return Err(no_token());
                };
                mass(found.iter().map(|&(l, _)| l), max, c.temperature)
            }
            None => match top_p {
                Some(p) => nucleus_and_more(logits, p, c.temperature, found),
                None => {
                    let temperature = c.temperature;
                    return self.draw_of_all(logits, temperature);
                }
            },
        };
        if let Some(p) = top_p {
            keep_nucleus(found, p, mass, c.temperature);
        }
        if let Some(p) = c.typical_p {
            narrow::keep_typical(found, p, c.temperature);
        }
        let kept: Vec<f32> = found.iter().map(|&(l, _)| l).collect();
        let kept = Tensor::from_vec(kept, found.len(), &Device::Cpu)?;
        let drawn = self.inner.sample(&kept)?;
        Ok(found[drawn as usize].1)
    }
}

/// How probable `token` is by the model's own logits, and the `n` likeliest.
pub(super) fn logprobs_of(logits: &[f32], token: u32, n: usize) -> TokenLogprobs {
    let mut top = Vec::new();
    likeliest(logits, n.max(1), &mut top);
    let max = top.first().map_or(0.0, |t| t.0);
    let log_mass = max + mass_of(logits, max, 1.0).ln();
    let logit = logits.get(token as usize).copied();
    TokenLogprobs {
        logprob: logit.unwrap_or(f32::NEG_INFINITY) - log_mass,
        top: (top.iter().take(n))
            .map(|&(logit, token)| (token, logit - log_mass))
            .collect(),
    }
}

/// Tokens that are drawn among together, where all may be drawn.
const GROUP: usize = 256;

fn no_token() -> candle_core::Error {
    candle_core::Error::Msg("a vocabulary of no tokens".into())
}

/// Divides the logit of every recent token, once, or multiplies it where it is
/// negative (Keskar et al., "CTRL", 2019).
fn penalize(logits: &mut [f32], penalty: f32, recent: &[u32]) {
    #[expect(clippy::float_cmp, reason = "1 as given means no penalty")]
    if penalty == 1.0 {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for token in recent.iter().filter(|t| seen.insert(**t)) {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = if *logit >= 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
    }
}

/// OpenAI's penalties: the logit of a token that the answer has `n` times
/// loses `presence + n * frequency`.
fn subtract(logits: &mut [f32], presence: f32, frequency: f32, answer: &[u32]) {
    if presence == 0.0 && frequency == 0.0 {
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for token in answer {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit -= frequency;
            if seen.insert(token) {
                *logit -= presence;
            }
        }
    }
}

/// Greatest logit first, then lowest token. Not-a-number comes first, so that
/// it is never passed over in silence.
fn by_logit(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The `k` greatest logits, sorted.
fn likeliest(logits: &[f32], k: usize, found: &mut Vec<(f32, u32)>) {
    let mut least = f32::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        // Most are below what was found; not-a-number is not.
        if logit <= least && found.len() >= k {
            continue;
        }
        found.push((logit, token));
        if found.len() == 4 * k {
            found.select_nth_unstable_by(k - 1, by_logit);
            found.truncate(k);
            least = found[k - 1].0;
        }
    }
    found.sort_unstable_by(by_logit);
    found.truncate(k);
}

/// Sum of `e^((logit - max) / temperature)`.
fn mass(logits: impl Iterator<Item = f32>, max: f32, temperature: f64) -> f32 {
    logits.map(|l| power(l, max, temperature)).sum()
}

/// [`mass`] of many, in eight sums side by side: one sum would wait for itself.
fn mass_of(logits: &[f32], max: f32, temperature: f64) -> f32 {
    let mut sums = [0.0; 8];
    let (eights, rest) = logits.as_chunks::<8>();
    for eight in eights {
        for (sum, logit) in sums.iter_mut().zip(eight) {
            *sum += power(*logit, max, temperature);
        }
    }
    sums.iter().sum::<f32>() + mass(rest.iter().copied(), max, temperature)
}

#[expect(clippy::cast_possible_truncation, reason = "at most 100")]
fn power(logit: f32, max: f32, temperature: f64) -> f32 {
    exp((logit - max) / temperature as f32)
}

/// Tokens that min-p allows, sorted; the `k` likeliest of them where there is one.
fn narrowed(logits: &[f32], c: &SamplingConfig, k: Option<usize>, found: &mut Vec<(f32, u32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let least = c
        .min_p
        .map_or(f32::MIN, |p| narrow::least_logit(max, p, c.temperature));
    let tokens = (0u32..).zip(logits).map(|(token, &logit)| (logit, token));
    // Not-a-number is kept, so that it is never passed over in silence.
    found.extend(tokens.filter(|(logit, _)| logit.is_nan() || *logit >= least));
    found.sort_unstable_by(by_logit);
    found.truncate(k.unwrap_or(usize::MAX));
}

/// Every token that can belong to the nucleus, sorted; returns the mass of all
/// tokens. Those below `(1 - p) / tokens` together have less than `1 - p`, so
/// the nucleus is complete without them.
fn nucleus_and_more(logits: &[f32], p: f64, temperature: f64, found: &mut Vec<(f32, u32)>) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mass = mass_of(logits, max, temperature);
    let least = f64::from(mass) * (1.0 - p) / logits.len() as f64;
    // The least logit with that power.
    #[expect(clippy::cast_possible_truncation, reason = "a logit")]
    let least = (f64::from(max) + least.ln() * temperature) as f32;
    for (token, &logit) in (0u32..).zip(logits) {
        if logit < least {
            continue;
        }
        found.push((logit, token));
    }
    found.sort_unstable_by(by_logit);
    mass
}

/// Cuts after the first tokens that together have the share `p` of `mass`
/// (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
fn keep_nucleus(found: &mut Vec<(f32, u32)>, p: f64, mass: f32, temperature: f64) {
    let Some(&(max, _)) = found.first() else {
        return;
    };
    let mut sum = 0.0;
    let enough = found.iter().position(|&(logit, _)| {
        sum += f64::from(power(logit, max, temperature));
        sum >= p * f64::from(mass)
    });
    if let Some(last) = enough {
        found.truncate(last + 1);
    }
}

#[cfg(test)]
mod tests;
