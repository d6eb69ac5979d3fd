//! The 128-bit primitives of both NEON families.
//!
//! Vectors of integers go about as i32, four rows to a vector. Where std keeps
//! an intrinsic unstable (f16 conversion, dot products) the instruction is
//! written out.

/// Expands the primitives that do not depend on the dot product.
macro_rules! primitives_128 {
    ($features:literal) => {
        type I = int32x4_t;
        type F = float32x4_t;
        /// Rows in a vector.
        const LANES: usize = 4;
        /// Bytes ahead of the block in hand that are fetched.
        const AHEAD: usize = 1024;
        /// 6-bit groups that may be summed before scaling: all that share a
        /// scale, as sums are i32.
        const U6_RUN: usize = 4;
        /// Codes are signed here as in the file.
        const Q8_OFFSET: i32 = 0;

        #[inline]
        #[target_feature(enable = $features)]
        fn prefetch(p: *const u8) {
            // SAFETY: a prefetch reads nothing, whatever the address.
            unsafe {
                asm!("prfm pldl1keep, [{p}]", p = in(reg) p,
                    options(nostack, preserves_flags, readonly));
            }
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn zero() -> I {
            vdupq_n_s32(0)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn zero_f() -> F {
            vdupq_n_f32(0.0)
        }
        /// # Safety
        /// 16 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            vreinterpretq_s32_u8(unsafe { vld1q_u8(p) })
        }
        /// 4 f16 values.
        ///
        /// # Safety
        /// 8 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_f16(p: *const u8) -> F {
            let wide: F;
            // SAFETY: the caller's promise; the conversion touches registers.
            unsafe {
                let half = vreinterpret_u16_u8(vld1_u8(p));
                asm!("fcvtl {wide:v}.4s, {half:v}.4h", wide = lateout(vreg) wide,
                    half = in(vreg) half, options(pure, nomem, nostack));
            }
            wide
        }
        /// 4 bytes to i32.
        ///
        /// # Safety
        /// 4 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_u8(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            let four = unsafe { p.cast::<u32>().read_unaligned() };
            let words = vmovl_u8(vcreate_u8(u64::from(four)));
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)))
        }
        /// 4 signed bytes to i32.
        ///
        /// # Safety
        /// 4 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load_i8(p: *const u8) -> I {
            // SAFETY: the caller's promise.
            let four = unsafe { p.cast::<u32>().read_unaligned() };
            vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(u64::from(four)))))
        }
        /// 4 codes in every row's place.
        ///
        /// # Safety
        /// 4 bytes are readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn splat4(p: *const i8) -> I {
            // SAFETY: the caller's promise.
            vdupq_n_s32(unsafe { p.cast::<i32>().read_unaligned() })
        }
        /// # Safety
        /// 4 floats are writable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store_f(p: *mut f32, v: F) {
            // SAFETY: the caller's promise.
            unsafe { vst1q_f32(p, v) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn splat(v: i32) -> I {
            vdupq_n_s32(v)
        }
        /// Two i16 in every i32.
        #[inline]
        #[target_feature(enable = $features)]
        fn splat_pair(low: i16, high: i16) -> I {
            pair(splat(i32::from(low)), splat(i32::from(high)))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn splat_f(v: f32) -> F {
            vdupq_n_f32(v)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn low_nibbles(v: I) -> I {
            vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(v), vdupq_n_u8(15)))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn high_nibbles(v: I) -> I {
            vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(v)))
        }
        /// The low nibbles with bits 0 and 1 of `high` above them.
        #[inline]
        #[target_feature(enable = $features)]
        fn with_high_bits(low: I, high: I) -> I {
            let two = vandq_u8(vreinterpretq_u8_s32(high), vdupq_n_u8(3));
            let two = vreinterpretq_s32_u8(vshlq_n_u8::<4>(two));
            vorrq_s32(low, two)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn shift_right_2(v: I) -> I {
            vreinterpretq_s32_u8(vshrq_n_u8::<2>(vreinterpretq_u8_s32(v)))
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn add(a: I, b: I) -> I {
            vaddq_s32(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn sub(a: I, b: I) -> I {
            vsubq_s32(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn times_32(v: I) -> I {
            vshlq_n_s32::<5>(v)
        }
        /// Sum of the products of the two i16 in each i32.
        #[inline]
        #[target_feature(enable = $features)]
        fn mul_pairs(a: I, b: I) -> I {
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vpaddq_s32(low, vmull_high_s16(a, b))
        }
        /// i32 values that fit i16, `low` and `high` side by side.
        #[inline]
        #[target_feature(enable = $features)]
        fn pair(low: I, high: I) -> I {
            vsliq_n_s32::<16>(low, high)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn to_f32(v: I) -> F {
            vcvtq_f32_s32(v)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn mul(a: F, b: F) -> F {
            vmulq_f32(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn fma(a: F, b: F, c: F) -> F {
            vfmaq_f32(c, a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn fnma(a: F, b: F, c: F) -> F {
            vfmsq_f32(c, a, b)
        }
        /// Sums are i32 already.
        #[inline]
        #[target_feature(enable = $features)]
        fn fold(acc: I) -> I {
            acc
        }
        /// Sums times a scale.
        #[inline]
        #[target_feature(enable = $features)]
        fn fold_scaled(acc: I, scale: I) -> I {
            vmulq_s32(acc, scale)
        }
        #[inline]
        #[target_feature(enable = $features)]
        fn prepare8(w: I) -> I {
            w
        }
        /// Adds products of signed 8-bit codes, i32.
        #[inline]
        #[target_feature(enable = $features)]
        fn dot8(acc: I, w: I, a: I) -> I {
            dot(acc, w, a)
        }
    };
}
pub(super) use primitives_128;
