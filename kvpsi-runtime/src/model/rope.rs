//! The rotary embedding and its stretched forms (Su et al., "RoFormer", 2021).
//!
//! Owns frequencies and angles. Invariant: angles are computed for the rows at
//! hand, in f64, so that positions of a million are as exact as the first, and
//! no table is sized by the context. Refuses to know which layers turn by which
//! embedding.

use super::step::ops::RopePairs;
use crate::attention::RowSpan;
use candle_core::{Device, Result, Tensor};
use std::f64::consts::TAU;

/// How a model was made to see further than it was first trained for. The
/// factors of Llama 3.1 are not here: files hold them as a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by this (Chen et al., "Position Interpolation", 2023).
    Linear(f64),
    /// Each frequency by its own measure.
    Yarn(Yarn),
}

/// Peng et al., "YaRN: Efficient Context Window Extension of Large Language
/// Models", 2023, as its authors' code, transformers and llama.cpp have it: the
/// ramp runs over whole dimensions, and the temperature goes into the cosines
/// and sines, by which both queries and keys are multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How many times further the model is to see.
    pub factor: f64,
    /// Tokens that it was first trained for.
    pub original_context: f64,
    /// Turns over the original context above which a frequency stays (32).
    pub beta_fast: f64,
    /// Turns below which a frequency is divided by `factor` (1).
    pub beta_slow: f64,
    /// How much of the ramp is used (1).
    pub extrapolation: f64,
    /// Multiplies the temperature (1).
    pub attention: f64,
}

impl Yarn {
    /// Dimension pair that makes so many turns over the original context.
    fn pair_of(&self, turns: f64, dim: f64, base: f64) -> f64 {
        dim * (self.original_context / (turns * TAU)).ln() / (2.0 * base.ln())
    }

    /// Where the ramp begins and ends, in pairs.
    fn ramp(&self, dim: f64, base: f64) -> (f64, f64) {
        let low = self.pair_of(self.beta_fast, dim, base).floor().max(0.0);
        let high = self.pair_of(self.beta_slow, dim, base).ceil();
        (low, high.min(dim - 1.0))
    }

    /// What cosines and sines are multiplied by.
    fn magnitude(&self) -> f64 {
        if self.extrapolation == 0.0 {
            return self.attention;
        }
        self.attention * (1.0 + 0.1 * self.factor.ln())
    }
}

/// The rotary embedding of some layers.
#[derive(Debug)]
pub(super) struct Rope {
    /// Radians per position, one for each pair of a head.
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    /// For heads of `dim` values; `factors` divide the frequencies, one for
    /// each pair (Llama 3.1 and later, which stretch the low ones).
    pub(super) fn new(
        dim: usize,
        base: f64,
        scaling: RopeScaling,
        factors: Option<&[f32]>,
    ) -> Self {
        let frequency = |pair: usize| {
            let plain = base.powf(-2.0 * pair as f64 / dim as f64);
            let plain = factors.map_or(plain, |by| plain / f64::from(by[pair]));
            match scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear(by) => plain / by,
                RopeScaling::Yarn(yarn) => {
                    let (low, high) = yarn.ramp(dim as f64, base);
                    let along = (pair as f64 - low) / (high - low).max(0.001);
                    let kept = (1.0 - along.clamp(0.0, 1.0)) * yarn.extrapolation;
                    plain * kept + plain / yarn.factor * (1.0 - kept)
                }
            }
        };
        Self {
            frequencies: (0..dim / 2).map(frequency).collect(),
            magnitude: match scaling {
                RopeScaling::Yarn(yarn) => yarn.magnitude(),
                RopeScaling::None | RopeScaling::Linear(_) => 1.0,
            },
        }
    }

    /// Cosines and sines of a position, half a head each.
    pub(super) fn angles(&self, pos: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let (s, c) = (pos as f64 * f).sin_cos();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded to f32 on purpose, once and last"
            )]
            {
                (*sin, *cos) = ((s * self.magnitude) as f32, (c * self.magnitude) as f32);
            }
        }
    }

    /// Cosines and sines, each `[rows, 1, half a head]`.
    pub(super) fn tables(&self, rows: &[RowSpan]) -> Result<(Tensor, Tensor)> {
        let count: usize = rows.iter().map(|s| s.rows).sum();
        let half = self.frequencies.len();
        let (mut cos, mut sin) = (vec![0.0; count * half], vec![0.0; count * half]);
        let positions = rows.iter().flat_map(|s| s.first_pos..s.first_pos + s.rows);
        let tables = cos.chunks_exact_mut(half).zip(sin.chunks_exact_mut(half));
        for (pos, (cos, sin)) in positions.zip(tables) {
            self.angles(pos, cos, sin);
        }
        let shape = (count, 1, half);
        Ok((
            Tensor::from_vec(cos, shape, &Device::Cpu)?,
            Tensor::from_vec(sin, shape, &Device::Cpu)?,
        ))
    }
}

/// Turns `[rows, heads * head_dim]` by tables of [`Rope::tables`]: every row is
/// a batch of its own, so rows of different sequences may stand at any
/// positions and nothing is transposed.
pub(super) fn rotate(
    x: &Tensor,
    heads: usize,
    (cos, sin): &(Tensor, Tensor),
    pairs: RopePairs,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let x = x.reshape((rows, heads, 1, width / heads))?;
    let turned = match pairs {
        RopePairs::Adjacent => candle_nn::rotary_emb::rope_i(&x, cos, sin)?,
        RopePairs::Halves => candle_nn::rotary_emb::rope(&x, cos, sin)?,
    };
    turned.reshape((rows, width))
}
