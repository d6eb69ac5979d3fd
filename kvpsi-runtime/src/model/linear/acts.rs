//! Activations quantized to int8.
//!
//! Owns the rounding, which is candle's own for the same weights (Q8_0 and
//! Q8_1 for blocks of 32, Q8_K for blocks of 256), so that logits stay within
//! float summation order of candle's. One [`QuantizedRows`] serves every
//! weight of the same [`ActKind`]: q, k and v share one, gate and up another.
//! Not-a-number quantizes to 0, as in candle.

use super::isa::Isa;
use super::pack::{Format, QUANT, SUPER};
use crate::profile::{Part, clock};
use crate::thread_pool::{FEW, thread_pool};
use half::f16;

/// How activations are quantized for a weight format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActKind {
    /// A scale for 32 values, rounded to f16 (Q8_0, Q8_1).
    Block32,
    /// A scale for 256 values in f32 (Q8_K).
    Super256,
}

impl ActKind {
    /// What weights of `format` want.
    pub fn of(format: Format) -> ActKind {
        match format {
            Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => ActKind::Block32,
            Format::Q4K | Format::Q6K => ActKind::Super256,
        }
    }

    /// Values that share a scale.
    pub fn block(self) -> usize {
        match self {
            ActKind::Block32 => QUANT,
            ActKind::Super256 => SUPER,
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
    const ZERO: ActBlock = ActBlock {
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

/// Rows of activations, quantized once and used by any number of weights.
#[derive(Debug, Clone)]
pub struct QuantizedRows {
    kind: ActKind,
    rows: usize,
    row_blocks: usize,
    blocks: Vec<ActBlock>,
}

/// Rows from which quantizing is worth the threads.
const PARALLEL_ROWS: usize = 8;

impl QuantizedRows {
    /// Quantizes `x`, rows of `k` values; `k` is a multiple of the kind's
    /// block and `x` of `k`.
    pub fn new(isa: Isa, kind: ActKind, x: &[f32], k: usize) -> QuantizedRows {
        let mut rows = QuantizedRows::with_room(0);
        rows.fill(isa, kind, x, k);
        rows
    }

    /// No rows, and room for so many values before [`QuantizedRows::fill`]
    /// has to ask for memory.
    pub fn with_room(values: usize) -> QuantizedRows {
        QuantizedRows {
            kind: ActKind::Block32,
            rows: 0,
            row_blocks: 0,
            blocks: Vec::with_capacity(values.div_ceil(QUANT)),
        }
    }

    /// Replaces the rows by those of `x`; as [`QuantizedRows::new`], in the
    /// memory at hand.
    pub fn fill(&mut self, isa: Isa, kind: ActKind, x: &[f32], k: usize) {
        let _clock = clock(Part::Linear);
        assert!(k > 0 && k.is_multiple_of(kind.block()) && x.len().is_multiple_of(k));
        let (rows, row_blocks) = (x.len() / k, k / QUANT);
        (self.kind, self.rows, self.row_blocks) = (kind, rows, row_blocks);
        let blocks = &mut self.blocks;
        blocks.resize(rows * row_blocks, ActBlock::ZERO);
        if rows < PARALLEL_ROWS {
            quantize(isa, kind, x, blocks);
        } else {
            let base = super::matmul::SendPtr(blocks.as_mut_ptr());
            thread_pool().spread_range(rows, FEW, |range| {
                let len = range.len() * row_blocks;
                // SAFETY: the pool hands out disjoint ranges of 0..rows, each
                // row is `row_blocks` blocks of `blocks`, which outlives the
                // call and is not touched otherwise until it returns.
                let out = unsafe {
                    std::slice::from_raw_parts_mut(base.get().add(range.start * row_blocks), len)
                };
                quantize(isa, kind, &x[range.start * k..range.end * k], out);
            });
        }
    }

    /// How the rows were quantized.
    pub fn kind(&self) -> ActKind {
        self.kind
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn k(&self) -> usize {
        self.row_blocks * QUANT
    }

    /// The blocks of rows `from..from + rows`, row by row.
    pub fn blocks(&self, from: usize, rows: usize) -> &[ActBlock] {
        &self.blocks[from * self.row_blocks..(from + rows) * self.row_blocks]
    }
}

/// Quantizes whole blocks.
fn quantize(isa: Isa, kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => {
            // SAFETY: these families are chosen only where AVX2, FMA and F16C
            // were detected.
            unsafe { super::acts_avx2::quantize(kind, x, out) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::NeonDot => {
            // SAFETY: every aarch64 processor has NEON.
            unsafe { super::acts_neon::quantize(kind, x, out) }
        }
        _ => quantize_scalar(kind, x, out),
    }
}

/// The reference.
pub fn quantize_scalar(kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    let per = kind.block() / QUANT;
    for (x, out) in x.chunks_exact(kind.block()).zip(out.chunks_exact_mut(per)) {
        let (scale, d) = match kind {
            ActKind::Block32 => {
                let amax = x.iter().fold(0f32, |a, v| a.max(v.abs()));
                block32_scale(amax)
            }
            ActKind::Super256 => {
                let mut peak = 0f32;
                for &v in x {
                    if v.abs() > peak.abs() {
                        peak = v;
                    }
                }
                super256_scale(peak)
            }
        };
        for (x, out) in x.chunks_exact(QUANT).zip(out) {
            for (q, &v) in out.q.iter_mut().zip(x) {
                *q = code(v * scale);
            }
            out.set_sums();
            out.d = d;
            out.s = match kind {
                ActKind::Block32 => sum_term(out.sum, d),
                ActKind::Super256 => 0.0,
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
pub(super) fn block32_scale(amax: f32) -> (f32, f32) {
    let d = amax / 127.0;
    let scale = if d == 0.0 { 0.0 } else { 1.0 / d };
    (scale, f16::from_f32(d).to_f32())
}

/// Multiplier and step for a block of 256 whose value of largest magnitude is
/// `peak`. ggml maps it to -127.
pub(super) fn super256_scale(peak: f32) -> (f32, f32) {
    if peak == 0.0 {
        return (0.0, 0.0);
    }
    let scale = -127.0 / peak;
    (scale, 1.0 / scale)
}

/// Q8_1's `s`: both factors and the product rounded to f16.
#[expect(clippy::cast_precision_loss, reason = "at most 32 * 127")]
pub(super) fn sum_term(sum: i32, d: f32) -> f32 {
    let sum = f16::from_f32(sum as f32).to_f32();
    f16::from_f32(sum * d).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_family_quantizes_exactly_as_the_reference(
            seed in 0u64..1 << 40, rows in 1usize..12, blocks in 1usize..4, big in any::<bool>(), wide in any::<bool>(),
        ) {
            let kind = if big { ActKind::Super256 } else { ActKind::Block32 };
            let k = kind.block() * blocks;
            let mut x = super::super::tests::noise(seed, rows * k);
            if wide {
                // Exact ties, repeated peaks of both signs, zeros, extremes.
                for (i, v) in x.iter_mut().enumerate() {
                    *v = [0.0, 127.0, -127.0, 0.5, -0.5, 2.5, 63.5, f32::NAN, 1e-30, *v][(i * 7 + rows) % 10];
                }
            }
            let want = QuantizedRows::new(Isa::Scalar, kind, &x, k);
            for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                let got = QuantizedRows::new(isa, kind, &x, k);
                prop_assert_eq!(&got.blocks, &want.blocks, "{}", isa.name());
            }
        }

        #[test]
        fn a_code_times_its_step_is_within_half_a_step(seed in 0u64..1 << 40, big in any::<bool>()) {
            let kind = if big { ActKind::Super256 } else { ActKind::Block32 };
            let x = super::super::tests::noise(seed, kind.block());
            let got = QuantizedRows::new(Isa::Scalar, kind, &x, kind.block());
            for (x, b) in x.chunks(QUANT).zip(&got.blocks) {
                for (x, q) in x.iter().zip(b.q) {
                    // The step itself is rounded to f16: 127 times 2^-11.
                    prop_assert!((x - f32::from(q) * b.d).abs() <= 0.57 * b.d.abs());
                }
            }
        }
    }

    #[test]
    fn infinities_and_all_zero_blocks_do_not_panic() {
        for kind in [ActKind::Block32, ActKind::Super256] {
            for v in [
                0.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::NAN,
                f32::MIN_POSITIVE,
            ] {
                let x = vec![v; kind.block()];
                for isa in Isa::ALL.into_iter().filter(|i| i.available()) {
                    let got = QuantizedRows::new(isa, kind, &x, kind.block());
                    assert!(got.blocks.iter().all(|b| b.q.iter().all(|&q| q != i8::MIN)));
                }
            }
        }
    }
}
