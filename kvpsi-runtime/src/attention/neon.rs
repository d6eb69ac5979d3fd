//! Attention kernels for NEON: over blocks' codes, and the softmax. The ones for tiles
//! of f32 are in `neon_tile`. Shapes as in `kernels`, which checked them; head
//! sizes and matrix widths are multiples of 8. Every aarch64 processor has what
//! is used here: f16 is only converted, which std keeps unstable, so that the
//! instruction is written out.

#![expect(
    clippy::needless_range_loop,
    reason = "indices name registers of several arrays at once"
)]

use super::coded::{Q4, Q8, Source};
use crate::kv::{self, GROUP};
use half::f16;
use std::arch::{aarch64::*, asm};

/// f32 values of a register.
const FOUR: usize = 4;

/// What is read four values at a time.
pub(super) trait Fours: Source {
    /// Four values, widened.
    ///
    /// # Safety
    /// There are four from `at`, a multiple of 4, which is channel `channel`
    /// of its head.
    unsafe fn four(self, at: usize, channel: usize) -> float32x4_t;
}

// The methods have no `target_feature`, which `inline(always)` excludes: they
// become part of kernels that have it.
impl Fours for &[f16] {
    #[inline(always)]
    unsafe fn four(self, at: usize, _channel: usize) -> float32x4_t {
        let wide: float32x4_t;
        // SAFETY: the caller's promise; f16 is 16 bits wide. The conversion
        // touches registers only.
        unsafe {
            let half = vld1_u16(self.as_ptr().add(at).cast());
            asm!("fcvtl {wide:v}.4s, {half:v}.4h", wide = lateout(vreg) wide,
                half = in(vreg) half, options(pure, nomem, nostack));
        }
        wide
    }
}

impl Fours for Q8<'_> {
    #[inline(always)]
    unsafe fn four(self, at: usize, _channel: usize) -> float32x4_t {
        // SAFETY: the caller's promise; four values from a multiple of 4 have
        // one scale.
        unsafe {
            let codes = self.codes.as_ptr().add(at).cast::<i32>().read_unaligned();
            let wide = vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(u64::from(
                codes.cast_unsigned(),
            )))));
            let scale = self.scales.get_unchecked(at / GROUP).to_f32();
            vmulq_n_f32(vcvtq_f32_s32(wide), scale)
        }
    }
}

impl Fours for Q4<'_> {
    #[inline(always)]
    unsafe fn four(self, at: usize, channel: usize) -> float32x4_t {
        const DOWN: [i32; FOUR] = [0, -4, -8, -12];
        // SAFETY: the caller's promise; four values from a multiple of 4 have
        // one scale and lie in two bytes, and there are as many offsets as
        // channels.
        unsafe {
            let word = self.codes.as_ptr().add(at / 2).cast::<u16>();
            let word = vdupq_n_u32(u32::from(word.read_unaligned()));
            let codes = vandq_u32(vshlq_u32(word, vld1q_s32(DOWN.as_ptr())), vdupq_n_u32(15));
            let levels = vsubq_f32(vcvtq_f32_u32(codes), vdupq_n_f32(Self::MIDDLE));
            // Sign, exponent and mantissa to their places in an f32, of which
            // the exponent is then 120 too small.
            let offsets = self.offsets.as_ptr().add(channel).cast::<u32>();
            let bytes = vcreate_s8(u64::from(offsets.read_unaligned()));
            let wide = vshlq_n_s32::<20>(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
            let kept = vandq_u32(vreinterpretq_u32_s32(wide), vdupq_n_u32(0x87f0_0000));
            let offsets = vmulq_n_f32(
                vreinterpretq_f32_u32(kept),
                f32::from_bits((127 + 120) << 23),
            );
            vfmaq_n_f32(
                offsets,
                levels,
                kv::scale(*self.scales.get_unchecked(at / GROUP)),
            )
        }
    }
}

/// Asks for the cache line of `bytes[at]`, if there is one.
#[inline]
#[target_feature(enable = "neon")]
fn fetch(bytes: &[u8], at: usize) {
    if let Some(value) = bytes.get(at) {
        // SAFETY: a prefetch reads nothing.
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) value,
                options(nostack, preserves_flags, readonly));
        }
    }
}

/// 2^x for x <= 0, relative error below 3e-7; 0 below 2^-126, not-a-number
/// stays so. Taylor series of 2^r on -0.5..=0.5, coefficients ln(2)^k / k!.
#[inline]
#[target_feature(enable = "neon")]
fn exp2(x: float32x4_t) -> float32x4_t {
    let least = vdupq_n_f32(-126.0);
    let clamped = vmaxq_f32(least, x);
    let whole = vrndnq_f32(clamped);
    let r = vsubq_f32(clamped, whole);
    let mut poly = vdupq_n_f32(1.540_353e-4);
    for c in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
        1.0,
    ] {
        poly = vfmaq_f32(vdupq_n_f32(c), poly, r);
    }
    let exponent = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
    let power = vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent));
    // Not below the least, or not a number.
    let gone = vcltq_f32(x, least);
    let value = vreinterpretq_u32_f32(vmulq_f32(poly, power));
    vreinterpretq_f32_u32(vbicq_u32(value, gone))
}

/// # Safety
/// Shapes as `kernels::scores` asserts.
#[target_feature(enable = "neon")]
pub(super) unsafe fn scores<S: Fours>(
    q: &[f32],
    k: S,
    d: usize,
    out: &mut [f32],
    stride: usize,
    mut next: &[u8],
) {
    let queries = q.len() / d;
    let mut i = 0;
    while i < queries {
        let n = (queries - i).min(4);
        let (q, out) = (&q[i * d..], &mut out[i * stride..]);
        // SAFETY: `n` queries of `d` values and `n` rows of `stride` scores
        // are left; `stride` is at least the tokens of `k`.
        unsafe {
            match n {
                1 => scores_of::<1, S>(q, k, d, out, stride, next),
                2 => scores_of::<2, S>(q, k, d, out, stride, next),
                3 => scores_of::<3, S>(q, k, d, out, stride, next),
                _ => scores_of::<4, S>(q, k, d, out, stride, next),
            }
        }
        i += n;
        next = &[];
    }
}

/// # Safety
/// `q` has `H` rows of `d`, `out` `H` rows of `stride`.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn scores_of<const H: usize, S: Fours>(
    q: &[f32],
    k: S,
    d: usize,
    out: &mut [f32],
    stride: usize,
    next: &[u8],
) {
    let tokens = k.len() / d;
    let (q, out) = (q.as_ptr(), out.as_mut_ptr());
    for t in 0..tokens {
        for line in (0..S::bytes(d)).step_by(64) {
            fetch(next, S::bytes(t * d) + line);
        }
        let mut acc = [[vdupq_n_f32(0.0); 2]; H];
        for c in (0..d).step_by(2 * FOUR) {
            // SAFETY: `t < tokens` and `c + 8 <= d`, a multiple of 8.
            unsafe {
                let key = t * d + c;
                let (low, high) = (k.four(key, c), k.four(key + FOUR, c + FOUR));
                for h in 0..H {
                    let query = q.add(h * d + c);
                    acc[h][0] = vfmaq_f32(acc[h][0], vld1q_f32(query), low);
                    acc[h][1] = vfmaq_f32(acc[h][1], vld1q_f32(query.add(FOUR)), high);
                }
            }
        }
        for h in 0..H {
            // SAFETY: `t < tokens <= stride`, of `H` rows.
            unsafe { *out.add(h * stride + t) = vaddvq_f32(vaddq_f32(acc[h][0], acc[h][1])) };
        }
    }
}

/// # Safety
/// Shapes as `kernels::weigh` asserts.
#[target_feature(enable = "neon")]
pub(super) unsafe fn weigh<S: Fours>(
    p: &[f32],
    stride: usize,
    v: S,
    d: usize,
    keep: &[f32],
    acc: &mut [f32],
    mut next: &[u8],
) {
    let queries = acc.len() / d;
    let mut i = 0;
    while i < queries {
        let n = (queries - i).min(4);
        let (p, keep, acc) = (&p[i * stride..], &keep[i..], &mut acc[i * d..]);
        for c in (0..d).step_by(2 * FOUR) {
            // SAFETY: `n` rows of each are left; `c + 8 <= d`.
            unsafe {
                match n {
                    1 => weigh_columns::<1, S>(p, stride, v, d, c, keep, acc, next),
                    2 => weigh_columns::<2, S>(p, stride, v, d, c, keep, acc, next),
                    3 => weigh_columns::<3, S>(p, stride, v, d, c, keep, acc, next),
                    _ => weigh_columns::<4, S>(p, stride, v, d, c, keep, acc, next),
                }
            }
            next = &[];
        }
        i += n;
    }
}

/// # Safety
/// `H` rows of `p`, `keep` and `acc`; `c + 8 <= d`.
#[expect(clippy::too_many_arguments, reason = "matrices and where in them")]
#[inline]
#[target_feature(enable = "neon")]
unsafe fn weigh_columns<const H: usize, S: Fours>(
    p: &[f32],
    stride: usize,
    v: S,
    d: usize,
    c: usize,
    keep: &[f32],
    acc: &mut [f32],
    next: &[u8],
) {
    let tokens = v.len() / d;
    let mut sums = [[vdupq_n_f32(0.0); 2]; H];
    for t in 0..tokens {
        for line in (0..S::bytes(d)).step_by(64) {
            fetch(next, S::bytes(t * d) + line);
        }
        // SAFETY: columns `c..c + 8` of `tokens` rows of `v`; `tokens <=
        // stride` weights of `H` rows of `p`.
        unsafe {
            let value = t * d + c;
            let (low, high) = (v.four(value, c), v.four(value + FOUR, c + FOUR));
            for h in 0..H {
                let weight = *p.as_ptr().add(h * stride + t);
                sums[h][0] = vfmaq_n_f32(sums[h][0], low, weight);
                sums[h][1] = vfmaq_n_f32(sums[h][1], high, weight);
            }
        }
    }
    for h in 0..H {
        for j in 0..2 {
            // SAFETY: columns `c..c + 8` of row `h` of `acc`.
            unsafe {
                let at = acc.as_mut_ptr().add(h * d + c + j * FOUR);
                vst1q_f32(at, vfmaq_n_f32(sums[h][j], vld1q_f32(at), keep[h]));
            }
        }
    }
}

/// Up to four values, the rest filled.
#[inline]
#[target_feature(enable = "neon")]
fn some(values: &[f32], fill: f32) -> float32x4_t {
    let mut four = [fill; FOUR];
    four[..values.len()].copy_from_slice(values);
    // SAFETY: four values.
    unsafe { vld1q_f32(four.as_ptr()) }
}

/// The first values of a register.
#[inline]
#[target_feature(enable = "neon")]
fn put(v: float32x4_t, to: &mut [f32]) {
    let mut four = [0.0; FOUR];
    // SAFETY: four values.
    unsafe { vst1q_f32(four.as_mut_ptr(), v) };
    to.copy_from_slice(&four[..to.len()]);
}

/// # Safety
/// None but the processor's: NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn softmax_step(scores: &mut [f32], max: f32) -> (f32, f32) {
    let mut most = vdupq_n_f32(max);
    for four in scores.chunks(FOUR) {
        // As `f32::max`: not-a-number is passed over.
        most = vmaxnmq_f32(most, some(four, f32::NEG_INFINITY));
    }
    let max = vmaxnmvq_f32(most);
    let most = vdupq_n_f32(max);
    let mut total = vdupq_n_f32(0.0);
    for four in scores.chunks_mut(FOUR) {
        let power = exp2(vsubq_f32(some(four, f32::NEG_INFINITY), most));
        total = vaddq_f32(total, power);
        put(power, four);
    }
    (max, vaddvq_f32(total))
}

/// # Safety
/// As many `at` as `mass`.
#[target_feature(enable = "neon")]
pub(super) unsafe fn settle(mass: &mut [f32], at: &[f32], max: f32) {
    let most = vdupq_n_f32(max);
    for (mass, at) in mass.chunks_mut(FOUR).zip(at.chunks(FOUR)) {
        let sums = some(mass, 0.0);
        let factor = exp2(vsubq_f32(some(at, max), most));
        let none = vceqzq_f32(sums);
        let settled = vreinterpretq_u32_f32(vmulq_f32(sums, factor));
        put(vreinterpretq_f32_u32(vbicq_u32(settled, none)), mass);
    }
}
