//! The rotary embedding and its stretched forms (Su et al., "RoFormer", 2021).
//!
//! Owns frequencies and angles. Invariant: angles are computed for the rows at
//! hand, in f64, so that positions of a million are as exact as the first, and
//! no table is sized by the context. Refuses to know which layers turn by which
//! embedding.

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
    /// Each frequency by a factor of the file's.
    Long(LongRope),
}

impl RopeScaling {
    /// Whether so many tokens are further than the model was first trained for,
    /// where that decides between two stretches.
    pub(super) fn is_long(self, tokens: usize) -> bool {
        matches!(self, Self::Long(long) if tokens > long.original_context)
    }
}

/// Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million
/// Tokens", 2024: one set of factors up to the first context, one beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LongRope {
    /// Tokens that the model was first trained for.
    pub original_context: usize,
    /// Multiplies cosines and sines.
    pub attention: f64,
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
    /// Whether the ramp begins and ends at whole dimensions (all models but
    /// gpt-oss).
    pub whole: bool,
}

impl Yarn {
    /// Dimension pair that makes so many turns over the original context.
    fn pair_of(&self, turns: f64, dim: f64, base: f64) -> f64 {
        dim * (self.original_context / (turns * TAU)).ln() / (2.0 * base.ln())
    }

    /// Where the ramp begins and ends, in pairs.
    fn ramp(&self, dim: f64, base: f64) -> (f64, f64) {
        let low = self.pair_of(self.beta_fast, dim, base);
        let high = self.pair_of(self.beta_slow, dim, base);
        let (low, high) = match self.whole {
            true => (low.floor(), high.ceil()),
            false => (low, high),
        };
        (low.max(0.0), high.min(dim - 1.0))
    }

    /// What cosines and sines are multiplied by.
    fn magnitude(&self) -> f64 {
        if self.extrapolation == 0.0 {
            return self.attention;
        }
        self.attention * (1.0 + 0.1 * self.factor.ln())
    }
}

/// What divides the frequencies, one for each pair that is turned: the same at
/// any length (Llama 3.1), or one set up to a length and one beyond.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Factors<'a> {
    pub(super) short: Option<&'a [f32]>,
    pub(super) long: Option<&'a [f32]>,
}

/// The rotary embedding of some layers.
#[derive(Debug)]
pub(super) struct Rope {
    /// Radians per position, one for each pair of a head; those that are not
    /// turned have 0.
    short: Vec<f64>,
    long: Option<Vec<f64>>,
    /// Pairs that are turned, the first ones.
    turned: usize,
    magnitude: f64,
}

impl Rope {
    /// For heads of `dim` values, of which the first `turned` are.
    pub(super) fn new(
        (dim, turned): (usize, usize),
        base: f64,
        scaling: RopeScaling,
        factors: Factors<'_>,
    ) -> Self {
        let frequency = |pair: usize, factors: Option<&[f32]>| {
            let plain = base.powf(-2.0 * pair as f64 / turned as f64);
            let plain = factors.map_or(plain, |by| plain / f64::from(by[pair]));
            match scaling {
                RopeScaling::None | RopeScaling::Long(_) => plain,
                RopeScaling::Linear(by) => plain / by,
                RopeScaling::Yarn(yarn) => {
                    let (low, high) = yarn.ramp(turned as f64, base);
                    let along = (pair as f64 - low) / (high - low).max(0.001);
                    let kept = (1.0 - along.clamp(0.0, 1.0)) * yarn.extrapolation;
                    plain * kept + plain / yarn.factor * (1.0 - kept)
                }
            }
        };
        let all = |factors| {
            let mut all: Vec<_> = (0..turned / 2).map(|p| frequency(p, factors)).collect();
            all.resize(dim / 2, 0.0);
            all
        };
        Self {
            short: all(factors.short),
            long: factors.long.map(|by| all(Some(by))),
            turned: turned / 2,
            magnitude: match scaling {
                RopeScaling::Yarn(yarn) => yarn.magnitude(),
                RopeScaling::Long(long) => long.attention,
                RopeScaling::None | RopeScaling::Linear(_) => 1.0,
            },
        }
    }

    /// That of layers that know no positions: it turns nothing.
    pub(super) fn none(dim: usize) -> Self {
        Self::new((dim, 0), 1.0, RopeScaling::None, Factors::default())
    }

    /// Radians per position, by pair, of short or long sequences.
    pub(super) fn frequencies(&self, long: bool) -> &[f64] {
        self.long.as_ref().filter(|_| long).unwrap_or(&self.short)
    }

    /// Cosines and sines of a position, half a head each.
    pub(super) fn angles(&self, pos: usize, long: bool, cos: &mut [f32], sin: &mut [f32]) {
        let frequencies = self.frequencies(long).iter().enumerate();
        for (((pair, f), cos), sin) in frequencies.zip(cos).zip(sin) {
            let (s, c) = (pos as f64 * f).sin_cos();
            let magnitude = if pair < self.turned {
                self.magnitude
            } else {
                1.0
            };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounded to f32 on purpose, once and last"
            )]
            {
                (*sin, *cos) = ((s * magnitude) as f32, (c * magnitude) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the configuration of Qwen 2.5 says.
    const QWEN: Yarn = Yarn {
        factor: 4.0,
        original_context: 32_768.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        extrapolation: 1.0,
        attention: 1.0,
        whole: true,
    };

    fn assert_near(got: &[f64], want: &[(usize, f64)]) {
        for &(pair, want) in want {
            assert!(
                (got[pair] / want - 1.0).abs() < 1e-12,
                "{pair}: {} {want}",
                got[pair]
            );
        }
    }

    #[test]
    fn yarn_has_the_frequencies_of_transformers() {
        // By the formulas of transformers' _compute_yarn_parameters, in Python.
        let rope = Rope::new((128, 128), 1e6, RopeScaling::Yarn(QWEN), Factors::default());
        assert_near(
            &rope.short,
            &[
                (0, 1.0),
                (10, 0.115_478_198_468_945_8),
                (22, 0.008_659_643_233_600_653),
                (23, 0.006_978_305_848_598_663),
                (24, 0.005_375_321_490_790_102),
                (28, 0.001_848_276_564_706_878),
                (30, 0.001_064_360_981_247_001_7),
                (39, 6.490_394_320_837_028e-5),
                (40, 4.445_698_525_097_307e-5),
                (50, 5.133_812_566_142_866e-6),
                (63, 3.102_344_401_879_299e-7),
            ],
        );
        assert!((rope.magnitude - 1.138_629_436_111_989).abs() < 1e-12);
        let other = Yarn {
            factor: 16.0,
            original_context: 2048.0,
            beta_fast: 16.0,
            beta_slow: 2.0,
            ..QWEN
        };
        let rope = Rope::new((64, 64), 1e4, RopeScaling::Yarn(other), Factors::default());
        assert_near(
            &rope.short,
            &[
                (0, 1.0),
                (8, 0.1),
                (9, 0.074_989_420_933_245_58),
                (12, 0.024_211_188_335_664_154),
                (16, 0.002_968_75),
                (17, 0.001_347_466_157_394_256_8),
                (18, 0.000_351_463_328_243_968_2),
                (31, 8.334_508_951_020_775e-6),
            ],
        );
        assert!((rope.magnitude - 1.277_258_872_223_978_2).abs() < 1e-12);
    }

    #[test]
    fn yarn_without_extrapolation_is_linear_and_its_temperature_can_be_set() {
        let yarn = |extrapolation, attention| {
            let yarn = Yarn {
                extrapolation,
                attention,
                ..QWEN
            };
            Rope::new((64, 64), 1e4, RopeScaling::Yarn(yarn), Factors::default())
        };
        let linear = Rope::new((64, 64), 1e4, RopeScaling::Linear(4.0), Factors::default());
        assert_eq!(yarn(0.0, 1.0).short, linear.short);
        assert_eq!(yarn(0.0, 1.0).magnitude, 1.0);
        assert_eq!(yarn(1.0, 0.5).magnitude, 0.5 * yarn(1.0, 1.0).magnitude);
        // Turns that are never reached, or always: no ramp, and no division by it.
        for (beta_fast, beta_slow) in [(1e6, 1e6), (1e-3, 1e-3), (1e-3, 1e6)] {
            let yarn = Yarn {
                beta_fast,
                beta_slow,
                ..QWEN
            };
            let rope = Rope::new((64, 64), 1e4, RopeScaling::Yarn(yarn), Factors::default());
            assert!(rope.short.iter().all(|f| f.is_finite() && *f > 0.0));
        }
    }

    proptest! {
        #[test]
        fn angles_are_those_of_the_paper_at_any_position(
            half in 1usize..129, base in 2f64..1e7, by in 1f64..100.0, pos in 0usize..1 << 24,
            factors in prop::collection::vec(0.5f32..64.0, 128),
        ) {
            let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
            for (scaling, by) in [(RopeScaling::None, 1.0), (RopeScaling::Linear(by), by)] {
                for factors in [None, Some(&factors[..half])] {
                    let of = Factors { short: factors, long: None };
                    Rope::new((2 * half, 2 * half), base, scaling, of).angles(pos, false, &mut cos, &mut sin);
                    for i in 0..half {
                        // pos / base^(2 i / d), by logarithms.
                        let mut angle = pos as f64 / by
                            * (-(i as f64) / half as f64 * base.ln()).exp();
                        if let Some(factors) = factors {
                            angle /= f64::from(factors[i]);
                        }
                        prop_assert!((f64::from(cos[i]) - angle.cos()).abs() < 1e-6);
                        prop_assert!((f64::from(sin[i]) - angle.sin()).abs() < 1e-6);
                    }
                }
            }
        }

        #[test]
        fn the_temperature_scales_both_and_turns_nothing(pos in 0usize..131_072) {
            let (mut cos, mut sin) = ([0.0; 64], [0.0; 64]);
            let rope = Rope::new((128, 128), 1e6, RopeScaling::Yarn(QWEN), Factors::default());
            rope.angles(pos, false, &mut cos, &mut sin);
            for ((c, s), f) in cos.into_iter().zip(sin).zip(&rope.short) {
                let (c, s) = (f64::from(c), f64::from(s));
                prop_assert!((c.hypot(s) - 1.138_629_436_111_989).abs() < 1e-6);
                let off = (s.atan2(c) - pos as f64 * f).rem_euclid(TAU);
                prop_assert!(off.min(TAU - off) < 1e-6);
            }
        }
    }
}
