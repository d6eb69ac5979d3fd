//! The 128-bit operations of both NEON families.
//!
//! Vectors of integers go about as i32, four rows to a vector. Where std keeps
//! an intrinsic unstable (f16 conversion, dot products) the instruction is
//! written out.

/// Expands, within an `impl Simd`, what does not depend on the dot product.
macro_rules! operations_128 {
    () => {
        type I = int32x4_t;
        type F = float32x4_t;
        type W = int32x4_t;
        type Parts<T: Copy> = [T; 4];
        const LANES: usize = 4;
        const AHEAD: usize = 1024;
        const I32_SUMS: bool = true;
        /// Codes are signed here as in the file.
        const WIDE_OFFSET: i32 = 0;

        #[inline(always)]
        fn each<T: Copy>(v: T) -> [T; 4] {
            [v; 4]
        }
        #[inline(always)]
        unsafe fn fold(acc: int32x4_t) -> int32x4_t {
            acc
        }
        #[inline(always)]
        unsafe fn prepare8(w: int32x4_t) -> int32x4_t {
            w
        }
        ops! {
            fn prefetch(p: *const u8) {
                asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly))
            }
            fn load(p: *const u8) -> int32x4_t { vreinterpretq_s32_u8(vld1q_u8(p)) }
            fn load_f16(p: *const u8) -> float32x4_t { widen_f16(vreinterpret_u16_u8(vld1_u8(p))) }
            fn load_bf16(p: *const u8) -> float32x4_t {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vreinterpret_u16_u8(vld1_u8(p))))
            }
            fn load_f32(p: *const u8) -> float32x4_t { vreinterpretq_f32_u8(vld1q_u8(p)) }
            fn load_u8(p: *const u8) -> int32x4_t {
                vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(u64::from(
                    p.cast::<u32>().read_unaligned(),
                ))))))
            }
            fn load_i8(p: *const u8) -> int32x4_t {
                vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(u64::from(p.cast::<u32>().read_unaligned())))))
            }
            fn splat4(p: *const i8) -> int32x4_t { vdupq_n_s32(p.cast::<i32>().read_unaligned()) }
            fn store_f(p: *mut f32, v: float32x4_t) { vst1q_f32(p, v) }
            fn zero() -> int32x4_t { vdupq_n_s32(0) }
            fn zero_f() -> float32x4_t { vdupq_n_f32(0.0) }
            fn splat(v: i32) -> int32x4_t { vdupq_n_s32(v) }
            fn splat_pair(low: i16, high: i16) -> int32x4_t {
                Self::pair(vdupq_n_s32(i32::from(low)), vdupq_n_s32(i32::from(high)))
            }
            fn splat_f(v: f32) -> float32x4_t { vdupq_n_f32(v) }
            fn and_bytes(v: int32x4_t, mask: u8) -> int32x4_t {
                vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(mask)))
            }
            fn or(a: int32x4_t, b: int32x4_t) -> int32x4_t { vorrq_s32(a, b) }
            fn shr(v: int32x4_t, by: u8) -> int32x4_t {
                vreinterpretq_s32_u8(vshlq_u8(vreinterpretq_u8_s32(v), vdupq_n_s8(-by.cast_signed())))
            }
            fn shl(v: int32x4_t, by: u8) -> int32x4_t {
                vreinterpretq_s32_u8(vshlq_u8(vreinterpretq_u8_s32(v), vdupq_n_s8(by.cast_signed())))
            }
            fn lookup(v: int32x4_t, table: &[i8; 16]) -> int32x4_t {
                vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table.as_ptr()), vreinterpretq_u8_s32(v)))
            }
            fn add(a: int32x4_t, b: int32x4_t) -> int32x4_t { vaddq_s32(a, b) }
            fn sub(a: int32x4_t, b: int32x4_t) -> int32x4_t { vsubq_s32(a, b) }
            fn mul32(a: int32x4_t, b: int32x4_t) -> int32x4_t { vmulq_s32(a, b) }
            fn shl32(v: int32x4_t, by: u8) -> int32x4_t { vshlq_s32(v, vdupq_n_s32(i32::from(by))) }
            fn mul_pairs(a: int32x4_t, b: int32x4_t) -> int32x4_t {
                vpaddq_s32(
                    vmull_s16(vget_low_s16(vreinterpretq_s16_s32(a)), vget_low_s16(vreinterpretq_s16_s32(b))),
                    vmull_high_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b)),
                )
            }
            fn pair(low: int32x4_t, high: int32x4_t) -> int32x4_t { vsliq_n_s32::<16>(low, high) }
            fn to_f32(v: int32x4_t) -> float32x4_t { vcvtq_f32_s32(v) }
            fn as_f32(v: int32x4_t) -> float32x4_t { vreinterpretq_f32_s32(v) }
            fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
            fn add_f(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
            fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
            fn fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmsq_f32(c, a, b) }
            fn fold_scaled(acc: int32x4_t, scale: int32x4_t) -> int32x4_t { vmulq_s32(acc, scale) }
            fn dot8(acc: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t { Self::dot(acc, w, a) }
        }
    };
}
pub(super) use operations_128;

use std::arch::{aarch64::*, asm};

/// f16 to f32.
///
/// # Safety
/// The processor has NEON.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn widen_f16(half: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: the conversion touches registers.
    unsafe {
        asm!("fcvtl {wide:v}.4s, {half:v}.4h", wide = lateout(vreg) wide,
            half = in(vreg) half, options(pure, nomem, nostack));
    }
    wide
}
