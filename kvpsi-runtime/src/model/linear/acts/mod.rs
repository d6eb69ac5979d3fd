//! Activations quantized to int8.
//!
//! Owns the rounding, which is candle's own for the same weights (Q8_0 and
//! Q8_1 for blocks of 32, Q8_K for blocks of 256), so that logits stay within
//! float summation order of candle's. Not-a-number quantizes to 0, as in candle.
//! Out of scope: rows and threads (`rows`).

use half::f16;

/// Activations that share one sum.
pub const QUANT: usize = 32;
/// Weights in a super-block of a K quantization.
pub const SUPER: usize = 256;

/// How activations are quantized for a weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActKind {
    /// A scale for 32 values, rounded to f16 (Q8_0, Q8_1).
    Block32,
    /// A scale for 256 values in f32 (Q8_K).
    Super256,
    /// They stay f32.
    Floats,
}

impl ActKind {
    /// Values that share a scale.
    pub fn block(self) -> usize {
        match self {
            ActKind::Block32 => QUANT,
            ActKind::Super256 => SUPER,
            ActKind::Floats => 1,
        }
    }
}

/// 32 quantized values. Codes are in -127..=127, which the AVX2 kernels rely
/// on to stay clear of i16 saturation.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActBlock {
    /// The codes.
    pub q: [i8; QUANT],
    /// Value of one step.
    pub d: f32,
    /// `d` times the sum of the codes, rounded as Q8_1 does (blocks of 32).
    pub s: f32,
    /// Sum of the codes.
    pub sum: i32,
    /// Sum of the first and of the last 16 codes.
    pub halves: [i16; 2],
}

impl ActBlock {
    pub(super) const ZERO: ActBlock = ActBlock {
        q: [0; QUANT],
        d: 0.0,
        s: 0.0,
        sum: 0,
        halves: [0; 2],
    };

    fn set_sums(&mut self) {
        let sum = |codes: &[i8]| codes.iter().map(|&q| i16::from(q)).sum::<i16>();
        self.halves = [sum(&self.q[..16]), sum(&self.q[16..])];
        self.sum = i32::from(self.halves[0]) + i32::from(self.halves[1]);
    }
}

/// The reference.
pub fn quantize_scalar(kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    let largest = |x: &[f32]| x.iter().fold(0f32, |a, v| a.max(v.abs()));
    quantize(kind, x, out, largest, |x, scale, out| {
        for (q, &v) in out.q.iter_mut().zip(x) {
            *q = code(v * scale);
        }
        out.set_sums();
    });
}

/// Quantizes whole blocks of `x`: `largest` is the largest magnitude, numbers
/// only; `encode` gives codes and sums of 32 values times a scale.
#[inline(always)]
pub(super) fn quantize(
    kind: ActKind,
    x: &[f32],
    out: &mut [ActBlock],
    largest: impl Fn(&[f32]) -> f32,
    encode: impl Fn(&[f32; QUANT], f32, &mut ActBlock),
) {
    let per = kind.block() / QUANT;
    for (x, out) in x.chunks_exact(kind.block()).zip(out.chunks_exact_mut(per)) {
        let amax = largest(x);
        let (scale, d) = match kind {
            ActKind::Block32 => block32_scale(amax),
            // Floats are not quantized.
            ActKind::Super256 | ActKind::Floats => {
                let peak = x.iter().copied().find(|v| v.abs() == amax);
                super256_scale(peak.unwrap_or(0.0))
            }
        };
        for (x, out) in x.as_chunks::<QUANT>().0.iter().zip(out) {
            encode(x, scale, out);
            out.d = d;
            out.s = match kind {
                ActKind::Block32 => sum_term(out.sum, d),
                ActKind::Super256 | ActKind::Floats => 0.0,
            };
        }
    }
}

/// Rounds half away from zero into -127..=127, not-a-number to 0.
#[expect(clippy::cast_possible_truncation, reason = "clamped to i8's range")]
fn code(v: f32) -> i8 {
    v.round().clamp(-127.0, 127.0) as i8
}

/// Multiplier and step for a block of 32 whose largest magnitude is `amax`.
fn block32_scale(amax: f32) -> (f32, f32) {
    let d = amax / 127.0;
    let scale = if d == 0.0 { 0.0 } else { 1.0 / d };
    (scale, f16::from_f32(d).to_f32())
}

/// Multiplier and step for a block of 256 whose value of largest magnitude is
/// `peak`. ggml maps it to -127.
fn super256_scale(peak: f32) -> (f32, f32) {
    if peak == 0.0 {
        return (0.0, 0.0);
    }
    let scale = -127.0 / peak;
    (scale, 1.0 / scale)
}

/// Q8_1's `s`: both factors and the product rounded to f16.
#[expect(clippy::cast_precision_loss, reason = "at most 32 * 127")]
fn sum_term(sum: i32, d: f32) -> f32 {
    let sum = f16::from_f32(sum as f32).to_f32();
    f16::from_f32(sum * d).to_f32()
}
