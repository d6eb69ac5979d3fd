//! What is wanted of a prompt whose rows are looked at, and what was seen of it.

use crate::engine::sampling::{TokenLogprobs, logprobs_of};

/// What is wanted of a prompt beside the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// How probable each token was after those before it, and so many of the
    /// likeliest in its place: [`super::StreamEvent::Prompt`] before the answer.
    Logprobs(usize),
    /// The mean of the last hidden states, of length 1: [`super::StreamEvent::Embedding`],
    /// and no answer.
    Embedding,
}

/// What was seen so far, of the first positions.
#[derive(Debug, Default)]
pub(super) struct Seen {
    positions: usize,
    pub logprobs: Vec<TokenLogprobs>,
    sum: Vec<f64>,
}

impl Seen {
    pub fn logits(&mut self, at: usize, logits: &[f32], next: Option<&u32>, n: usize) {
        if at == self.positions {
            self.positions += 1;
            self.logprobs
                .extend(next.map(|t| logprobs_of(logits, *t, n)));
        }
    }

    pub fn hidden(&mut self, at: usize, hidden: &[f32]) {
        if at == self.positions {
            self.positions += 1;
            self.sum.resize(hidden.len(), 0.0);
            let all = self.sum.iter_mut().zip(hidden);
            all.for_each(|(sum, h)| *sum += f64::from(*h));
        }
    }

    /// The mean has the direction of the sum.
    #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
    pub fn embedding(&mut self) -> Vec<f32> {
        let sum = std::mem::take(&mut self.sum);
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let by = if length > 0.0 { length } else { 1.0 };
        sum.iter().map(|x| (x / by) as f32).collect()
    }
}
