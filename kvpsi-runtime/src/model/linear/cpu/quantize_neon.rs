//! Activation quantization with NEON: the same codes as the scalar reference,
//! bit for bit. Used by both NEON families.

use super::super::acts::{self, ActBlock, ActKind, QUANT};
use std::arch::aarch64::*;

/// Quantizes whole blocks of `x`.
///
/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
pub(in super::super) unsafe fn quantize(kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    acts::quantize(
        kind,
        x,
        out,
        |x| largest_magnitude(x),
        |x, scale, out| encode(x, scale, out),
    );
}

/// The largest magnitude; not-a-number is passed over, as `f32::max` does.
#[inline]
#[target_feature(enable = "neon")]
fn largest_magnitude(x: &[f32]) -> f32 {
    let mut most = vdupq_n_f32(0.0);
    for four in x.as_chunks::<4>().0 {
        // SAFETY: 4 floats are readable.
        let v = unsafe { vld1q_f32(four.as_ptr()) };
        most = vmaxnmq_f32(most, vabsq_f32(v));
    }
    vmaxnmvq_f32(most)
}

/// Codes and sums of 32 values.
#[inline]
#[target_feature(enable = "neon")]
fn encode(x: &[f32; QUANT], scale: f32, out: &mut ActBlock) {
    let halves = x.as_chunks::<16>().0.iter();
    let places = out.q.as_chunks_mut::<16>().0.iter_mut();
    for ((x, q), sum) in halves.zip(places).zip(&mut out.halves) {
        let mut words = [vdup_n_s16(0); 4];
        for (word, four) in words.iter_mut().zip(x.as_chunks::<4>().0) {
            // SAFETY: 4 floats are readable.
            let v = unsafe { vld1q_f32(four.as_ptr()) };
            // Half away from zero, saturating at every step; not-a-number to 0.
            *word = vqmovn_s32(vcvtaq_s32_f32(vmulq_n_f32(v, scale)));
        }
        let low = vqmovn_s16(vcombine_s16(words[0], words[1]));
        let high = vqmovn_s16(vcombine_s16(words[2], words[3]));
        let codes = vmaxq_s8(vcombine_s8(low, high), vdupq_n_s8(-127));
        // SAFETY: 16 bytes are writable.
        unsafe { vst1q_s8(q.as_mut_ptr(), codes) };
        *sum = vaddlvq_s8(codes);
    }
    out.sum = i32::from(out.halves[0]) + i32::from(out.halves[1]);
}
