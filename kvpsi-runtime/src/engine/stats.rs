//! What a generation did, in numbers.

use serde::Serialize;
use std::{fmt, time::Duration};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its answer.
    Eos,
    /// `max_tokens` were generated.
    MaxTokens,
    /// A stop text came.
    StopText,
    /// The context is full.
    Length,
    /// The caller or the stop flag asked for it.
    Stopped,
    /// The KV pool could not give another position: its budget is spent and
    /// nothing more can be evicted.
    Exhausted,
}

impl fmt::Display for Finish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eos => "end of answer",
            Self::MaxTokens => "token limit",
            Self::StopText => "stop text",
            Self::Length => "length: the context is full",
            Self::Stopped => "stopped",
            Self::Exhausted => "the KV cache is full: --kv-budget gives it no more",
        })
    }
}

/// Figures of one generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenStats {
    /// Tokens that were prefilled (those already in the KV not counted).
    pub prompt_tokens: usize,
    /// Tokens generated, the end token not counted.
    pub tokens: usize,
    /// From the call to the first token.
    pub ttft: Duration,
    /// From the first to the last token.
    pub decode: Duration,
    /// Tokens that were guessed and computed before they were chosen.
    pub drafted: usize,
    /// Of these, those that were chosen.
    pub accepted: usize,
    /// Choosing tokens after the first, part of `decode`.
    pub sampling: Duration,
    /// Why it ended.
    pub finish: Finish,
    /// The stop text that ended it, by its place among those of the request.
    #[serde(skip)]
    pub stop: Option<usize>,
}

impl GenStats {
    /// Prompt tokens a second; 0 if there was no time to measure.
    #[must_use]
    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.ttft)
    }

    /// Tokens a second after the first.
    #[must_use]
    pub fn decode_rate(&self) -> f64 {
        rate(self.tokens.saturating_sub(1), self.decode)
    }

    /// Choosing tokens as a share of [`GenStats::decode`]; 0 if there was no
    /// time to measure: the first token is the prompt's.
    #[must_use]
    pub fn sampling_share(&self) -> f64 {
        if self.decode.is_zero() || self.tokens < 2 {
            0.0
        } else {
            (self.sampling.as_secs_f64() / self.decode.as_secs_f64()).min(1.0)
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are small")]
fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64()
    }
}

impl fmt::Display for GenStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "prompt {} tokens, {:.1} tokens/s; first token after {:.0} ms; {} tokens, {:.1} tokens/s, {:.1} % of it sampling",
            self.prompt_tokens,
            self.prefill_rate(),
            self.ttft.as_secs_f64() * 1e3,
            self.tokens,
            self.decode_rate(),
            self.sampling_share() * 1e2,
        )?;
        if self.drafted > 0 {
            let (accepted, drafted) = (self.accepted, self.drafted);
            write!(f, "; {accepted} of {drafted} drafts accepted")?;
        }
        write!(f, "; {}", self.finish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choosing_tokens_is_never_more_than_all_of_the_time() {
        let stats = GenStats {
            prompt_tokens: 1,
            tokens: 2,
            ttft: Duration::from_millis(50),
            decode: Duration::from_millis(10),
            drafted: 0,
            accepted: 0,
            sampling: Duration::from_millis(41),
            finish: Finish::Eos,
            stop: None,
        };
        assert!(
            stats.to_string().contains("100.0 % of it sampling"),
            "{stats}"
        );
    }
}
