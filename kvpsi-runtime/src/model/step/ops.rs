//! The small operations of a decode step, on rows that lie in the L1 cache:
//! norm, rotary embedding, gated activation.
//!
//! Plain loops that the compiler turns into vector code, on x86-64 twice:
//! for AVX2, and for what every processor has. The results are the same bits.
//! Fusing them further into the quantization would win nothing that can be
//! seen: they are some hundredths of a step. Refuses to know of weights,
//! sequences and threads.

use crate::curves::{exp, wide};

/// Values that one loop turn takes.
const LANES: usize = 8;

/// `out = x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich, "Root Mean
/// Square Layer Normalization", 2019). All of one length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    wide(|| {
        let scale = inverse_rms(x, eps);
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    });
}

/// `x += h`.
pub fn add(x: &mut [f32], h: &[f32]) {
    x.iter_mut().zip(h).for_each(|(x, h)| *x += h);
}

/// [`rms_norm`] of each stretch of `weight`'s length, where it lies: the norm
/// of every head.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    wide(|| {
        for x in x.chunks_exact_mut(weight.len()) {
            let scale = inverse_rms(x, eps);
            for (x, w) in x.iter_mut().zip(weight) {
                *x *= scale * w;
            }
        }
    });
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let (eights, rest) = x.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for eight in eights {
        for (sum, v) in sums.iter_mut().zip(eight) {
            *sum += v * v;
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>();
    (sum / x.len() as f32 + eps).sqrt().recip()
}

/// Which values of a head the rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `2 i` and `2 i + 1`: GGUF files of llama and its like.
    Adjacent,
    /// `i` and `half + i`: GPT-NeoX, qwen, gemma and most others.
    Halves,
}

/// Turns the first `turned` values of every head of one row; `cos` and `sin`
/// have one value for each pair of a head (Su et al., "RoFormer", 2021).
pub fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], pairs: RopePairs, turned: usize) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let head = &mut head[..turned];
        match pairs {
            RopePairs::Adjacent => {
                for ([a, b], (c, s)) in head
                    .as_chunks_mut::<2>()
                    .0
                    .iter_mut()
                    .zip(cos.iter().zip(sin))
                {
                    (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                }
            }
            RopePairs::Halves => {
                let (low, high) = head.split_at_mut(turned / 2);
                for ((a, b), (c, s)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                    (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
                }
            }
        }
    }
}

/// What the feed-forward network bends its gate with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tangent form of GELU: `x * sigmoid(2 z)` with
    /// `z = sqrt(2 / pi) (x + 0.044715 x^3)` (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// gpt-oss: `x sigmoid(1.702 x)` of an `x` of 7 at most, and the other side
    /// between -7 and 7, plus one.
    Clamped,
}

/// `gate = act(gate) * up`, value by value.
pub fn gated(gate: &mut [f32], up: &[f32], act: Gate) {
    match act {
        Gate::Silu => wide(|| apply(gate, up, |x| x)),
        Gate::Clamped => wide(|| clamped(gate, up)),
        Gate::GeluTanh => wide(|| {
            let two_root = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
            apply(gate, up, |x| two_root * x * (1.0 + 0.044_715 * x * x));
        }),
    }
}

/// gpt-oss's limit and slope (transformers' `swiglu_limit`, `swiglu_alpha`).
const CLAMP: f32 = 7.0;
const SLOPE: f32 = 1.702;

fn clamped(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        // `min` and `max` would lose what is not a number.
        let x = if *g > CLAMP { CLAMP } else { *g };
        *g = x / (1.0 + exp(-SLOPE * x)) * (u.clamp(-CLAMP, CLAMP) + 1.0);
    }
}

/// `gate = gate * sigmoid(of(gate)) * up`.
#[inline(always)]
fn apply(gate: &mut [f32], up: &[f32], of: impl Fn(f32) -> f32) {
    let one = |g: &mut f32, u: &f32| *g = *g / (1.0 + exp(-of(*g))) * u;
    let (gates, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (ups, up_rest) = up.as_chunks::<LANES>();
    for (gate, up) in gates.iter_mut().zip(ups) {
        gate.iter_mut().zip(up).for_each(|(g, u)| one(g, u));
    }
    gate_rest
        .iter_mut()
        .zip(up_rest)
        .for_each(|(g, u)| one(g, u));
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    fn tensor(x: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(x, shape, &Device::Cpu).unwrap()
    }

    fn assert_near(got: &[f32], want: &Tensor) {
        let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 2e-6 * w.abs().max(1.0), "{g} {w}");
        }
    }

    fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
        prop::collection::vec(-9f32..9.0, len)
    }

    proptest! {
        #[test]
        fn the_norm_is_candles(x in (1usize..200).prop_flat_map(values)) {
            let weight: Vec<f32> = x.iter().rev().map(|v| v * 0.3).collect();
            let n = x.len();
            let want = candle_nn::ops::rms_norm(&tensor(&x, &[1, n]), &tensor(&weight, &[n]), 1e-5).unwrap();
            let mut got = vec![0.0; n];
            rms_norm(&x, &weight, 1e-5, &mut got);
            assert_near(&got, &want);
            let mut twice = [&x[..], &x[..]].concat();
            rms_norm_in_place(&mut twice, &weight, 1e-5);
            assert_near(&twice[..n], &want);
            assert_near(&twice[n..], &want);
        }

        #[test]
        fn both_rotary_embeddings_are_candles(
            heads in 1usize..4, half in 1usize..40, x in values(240), angles in values(40),
        ) {
            let x = &x[..heads * 2 * half.min(40)];
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles[..half].iter().map(|a| (a.cos(), a.sin())).unzip();
            let t = tensor(x, &[1, heads, 1, 2 * half]);
            let (c, s) = (tensor(&cos, &[1, half]), tensor(&sin, &[1, half]));
            for (pairs, want) in [
                (RopePairs::Adjacent, candle_nn::rotary_emb::rope_i(&t, &c, &s).unwrap()),
                (RopePairs::Halves, candle_nn::rotary_emb::rope(&t, &c, &s).unwrap()),
            ] {
                let mut got = x.to_vec();
                rotate(&mut got, &cos, &sin, pairs, 2 * half);
                assert_near(&got, &want);
            }
        }

        #[test]
        fn gates_are_candles(x in (1usize..100).prop_flat_map(values)) {
            let up: Vec<f32> = x.iter().map(|v| v * 0.1 + 1.0).collect();
            let (t, u) = (tensor(&x, &[x.len()]), tensor(&up, &[x.len()]));
            for (act, want) in [(Gate::Silu, t.silu().unwrap()), (Gate::GeluTanh, t.gelu().unwrap())] {
                let mut got = x.clone();
                gated(&mut got, &up, act);
                assert_near(&got, &(want * &u).unwrap());
            }
        }
    }

    #[test]
    fn not_a_number_is_not_hidden() {
        let mut gate = [f32::NAN, 1.0];
        gated(&mut gate, &[1.0, f32::NAN], Gate::Silu);
        assert!(gate.iter().all(|v| v.is_nan()));
        let mut out = [0.0; 2];
        rms_norm(&[1.0, f32::NAN], &[1.0; 2], 1e-5, &mut out);
        assert!(out.iter().all(|v| v.is_nan()));
    }
}
