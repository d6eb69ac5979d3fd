//! NEON. Of 32 registers, matrix products take 4 rows x 16 values. Every
//! aarch64 processor has what is used here: f16 is only converted, which std
//! keeps unstable, so that the instruction is written out.

use super::coded::{Q4, Q8};
use super::simd::{Kernel, LANES, Simd};
use crate::kv::{self, GROUP};
use crate::simd_ops::ops;
use half::f16;
use std::arch::{aarch64::*, asm};

/// NEON.
pub(super) struct Neon;

/// A kernel, compiled for the family.
///
/// # Safety
/// As [`Kernel::run`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's promises.
    unsafe { kernel.run::<Neon>() }
}

type V = float32x4_t;
type Eight = [V; 2];

/// f32 values of a register.
const FOUR: usize = 4;

impl Simd for Neon {
    type V = V;
    type Eight = Eight;
    const WIDTH: usize = FOUR;
    const KEYS: usize = 1;
    const QUERIES: usize = 4;
    const COLUMNS: usize = 1;
    const TILE: (usize, usize) = (4, 2);

    ops! {
        fn eight(v: f32) -> Eight { [vdupq_n_f32(v); 2] }
        fn splat(v: f32) -> V { vdupq_n_f32(v) }
        fn load(p: *const f32) -> V { vld1q_f32(p) }
        fn store(p: *mut f32, v: V) { vst1q_f32(p, v) }
        fn load_first(values: &[f32], fill: f32) -> V {{
            let mut four = [fill; FOUR];
            four[..values.len()].copy_from_slice(values);
            vld1q_f32(four.as_ptr())
        }}
        fn store_first(to: &mut [f32], v: V) {{
            let mut four = [0.0; FOUR];
            vst1q_f32(four.as_mut_ptr(), v);
            to.copy_from_slice(&four[..to.len()]);
        }}
        // The conversion touches registers only.
        fn f16(values: &[f16], at: usize) -> V {{
            let wide: V;
            let half = vld1_u16(values.as_ptr().add(at).cast());
            asm!("fcvtl {wide:v}.4s, {half:v}.4h", wide = lateout(vreg) wide,
                half = in(vreg) half, options(pure, nomem, nostack));
            wide
        }}
        // Four values from a multiple of 4 have one scale.
        fn q8(values: Q8<'_>, at: usize) -> V {{
            let codes = values.codes.as_ptr().add(at).cast::<i32>().read_unaligned();
            let bytes = vcreate_s8(u64::from(codes.cast_unsigned()));
            let wide = vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
            vmulq_n_f32(vcvtq_f32_s32(wide), values.scales.get_unchecked(at / GROUP).to_f32())
        }}
        // And lie in two bytes; there are as many offsets as channels.
        fn q4(values: Q4<'_>, at: usize, channel: usize) -> V {{
            const DOWN: [i32; FOUR] = [0, -4, -8, -12];
            let word = values.codes.as_ptr().add(at / 2).cast::<u16>();
            let word = vdupq_n_u32(u32::from(word.read_unaligned()));
            let codes = vandq_u32(vshlq_u32(word, vld1q_s32(DOWN.as_ptr())), vdupq_n_u32(15));
            let levels = vsubq_f32(vcvtq_f32_u32(codes), vdupq_n_f32(Q4::MIDDLE));
            // Sign, exponent and mantissa to their places in an f32, of which
            // the exponent is then 120 too small.
            let offsets = values.offsets.as_ptr().add(channel).cast::<u32>();
            let bytes = vcreate_s8(u64::from(offsets.read_unaligned()));
            let wide = vshlq_n_s32::<20>(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
            let kept = vandq_u32(vreinterpretq_u32_s32(wide), vdupq_n_u32(0x87f0_0000));
            let offsets = vmulq_n_f32(vreinterpretq_f32_u32(kept), f32::from_bits((127 + 120) << 23));
            vfmaq_n_f32(offsets, levels, kv::scale(*values.scales.get_unchecked(at / GROUP)))
        }}
        fn fma(a: V, b: V, c: V) -> V { vfmaq_f32(c, a, b) }
        fn add(a: V, b: V) -> V { vaddq_f32(a, b) }
        fn sub(a: V, b: V) -> V { vsubq_f32(a, b) }
        fn mul(a: V, b: V) -> V { vmulq_f32(a, b) }
        fn max(a: V, b: V) -> V { vmaxnmq_f32(b, a) }
        fn at_least(v: V, least: V) -> V { vmaxq_f32(least, v) }
        fn round(v: V) -> V { vrndnq_f32(v) }
        fn power(whole: V) -> V {{
            let exponent = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }}
        fn unless_less(v: V, x: V, least: V) -> V {
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, least)))
        }
        fn unless_zero(v: V, x: V) -> V {
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vceqzq_f32(x)))
        }
        fn greatest(v: V) -> f32 { vmaxnmvq_f32(v) }
        fn sum(v: V) -> f32 { vaddvq_f32(v) }
        // Four 4 x 4 matrices, of which two change places.
        fn transpose(rows: [Eight; LANES]) -> [Eight; LANES] {{
            let four = |r: usize, p: usize| transpose([rows[r][p], rows[r + 1][p], rows[r + 2][p], rows[r + 3][p]]);
            let (a, b, c, d) = (four(0, 0), four(4, 0), four(0, 1), four(4, 1));
            std::array::from_fn(|j| if j < FOUR { [a[j], b[j]] } else { [c[j - FOUR], d[j - FOUR]] })
        }}
        fn prefetch(p: *const u8) {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly))
        }
    }

    #[inline(always)]
    unsafe fn store_sums<const J: usize>(p: *mut f32, v: [Eight; J]) {
        for (j, [low, high]) in v.into_iter().enumerate() {
            // SAFETY: the caller's promises.
            unsafe { *p.add(j) = vaddvq_f32(vaddq_f32(low, high)) };
        }
    }
}

/// A 4 x 4 matrix, rows to columns.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let wide = vreinterpretq_f64_f32;
    let (even_01, odd_01) = (wide(vtrn1q_f32(r[0], r[1])), wide(vtrn2q_f32(r[0], r[1])));
    let (even_23, odd_23) = (wide(vtrn1q_f32(r[2], r[3])), wide(vtrn2q_f32(r[2], r[3])));
    [
        vreinterpretq_f32_f64(vtrn1q_f64(even_01, even_23)),
        vreinterpretq_f32_f64(vtrn1q_f64(odd_01, odd_23)),
        vreinterpretq_f32_f64(vtrn2q_f64(even_01, even_23)),
        vreinterpretq_f32_f64(vtrn2q_f64(odd_01, odd_23)),
    ]
}
