//! Heavy hitters: accumulated attention (Zhang et al., "H2O: Heavy-Hitter
//! Oracle for Efficient Generative Inference of Large Language Models",
//! arXiv:2306.14048). The mass is that of every sixteenth row, not of all, and
//! is summed over the query heads of a KV head.

use super::{HeadRows, Policy};

/// A row is worth the attention that fell on it.
#[derive(Clone, Copy, Debug)]
pub struct Heavy;

impl Policy for Heavy {
    fn name(&self) -> &'static str {
        "heavy"
    }

    fn score(&self, rows: &HeadRows<'_>, out: &mut [f32]) {
        // Without masses all are equal; the oldest go first then.
        for (out, mass) in out.iter_mut().zip(rows.mass) {
            *out = *mass;
        }
    }
}
