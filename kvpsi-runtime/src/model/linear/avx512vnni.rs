//! AVX-512 kernels: `dpbusd` into i32, a whole tile to a vector.

use super::acts::ActBlock;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS};
use super::tile_kernels::tile_kernels;
use std::arch::x86_64::*;

type I = __m512i;
type F = __m512;
/// Rows in a vector.
const LANES: usize = 16;
/// Bytes ahead of the block in hand that are fetched.
const AHEAD: usize = 1536;
/// 6-bit groups that may be summed before scaling: all that share a scale.
const U6_RUN: usize = 4;
/// 8-bit codes are made unsigned by adding this.
const Q8_OFFSET: i32 = 128;

tile_kernels!("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c");

/// Expands one-line primitives.
macro_rules! primitives {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {$(
        $(#[$doc])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn $name($($arg: $ty),*) -> $ret { $body }
    )*};
}

/// Expands one-line primitives that read memory.
macro_rules! loads {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $body:expr })*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// What it reads or writes is there.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: the caller's promise.
            unsafe { $body }
        }
    )*};
}

loads! {
    /// 64 bytes.
    fn load(p: *const u8) -> I { _mm512_loadu_si512(p.cast()) }
    /// 16 f16 values.
    fn load_f16(p: *const u8) -> F { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    /// 16 bytes to i32.
    fn load_u8(p: *const u8) -> I { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    /// 16 signed bytes to i32.
    fn load_i8(p: *const u8) -> I { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    /// 4 codes in every row's place.
    fn splat4(p: *const i8) -> I { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    /// 16 floats.
    fn store_f(p: *mut f32, v: F) -> () { _mm512_storeu_ps(p, v) }
}

primitives! {
    fn zero() -> I { _mm512_setzero_si512() }
    fn zero_f() -> F { _mm512_setzero_ps() }
    fn splat(v: i32) -> I { _mm512_set1_epi32(v) }
    fn splat_f(v: f32) -> F { _mm512_set1_ps(v) }
    fn low_nibbles(v: I) -> I { _mm512_and_si512(v, _mm512_set1_epi8(15)) }
    fn high_nibbles(v: I) -> I { low_nibbles(_mm512_srli_epi16::<4>(v)) }
    /// The low nibbles with bits 0 and 1 of `high` above them.
    fn with_high_bits(low: I, high: I) -> I {
        _mm512_or_si512(low, _mm512_slli_epi16::<4>(_mm512_and_si512(high, _mm512_set1_epi8(3))))
    }
    /// Shifts bits between bytes: only a byte's lower bits are used after.
    fn shift_right_2(v: I) -> I { _mm512_srli_epi16::<2>(v) }
    fn add(a: I, b: I) -> I { _mm512_add_epi32(a, b) }
    fn sub(a: I, b: I) -> I { _mm512_sub_epi32(a, b) }
    fn times_32(v: I) -> I { _mm512_slli_epi32::<5>(v) }
    /// Sum of the products of the two i16 in each i32.
    fn mul_pairs(a: I, b: I) -> I { _mm512_madd_epi16(a, b) }
    /// i32 values that fit i16, `low` and `high` side by side.
    fn pair(low: I, high: I) -> I {
        _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high))
    }
    fn to_f32(v: I) -> F { _mm512_cvtepi32_ps(v) }
    fn mul(a: F, b: F) -> F { _mm512_mul_ps(a, b) }
    fn fma(a: F, b: F, c: F) -> F { _mm512_fmadd_ps(a, b, c) }
    fn fnma(a: F, b: F, c: F) -> F { _mm512_fnmadd_ps(a, b, c) }
    /// Adds products, i32.
    fn dot(acc: I, w: I, a: I) -> I { _mm512_dpbusd_epi32(acc, w, a) }
    /// Sums are i32 already.
    fn fold(acc: I) -> I { acc }
    /// Sums times a scale.
    fn fold_scaled(acc: I, scale: I) -> I { _mm512_mullo_epi32(acc, scale) }
    /// Signed to offset codes.
    fn prepare8(w: I) -> I { _mm512_xor_si512(w, _mm512_set1_epi8(i8::MIN)) }
    /// Adds products of offset 8-bit codes, i32.
    fn dot8(acc: I, w: I, a: I) -> I { dot(acc, w, a) }
    /// Two i16 in every i32.
    fn splat_pair(low: i16, high: i16) -> I {
        _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_set1_epi16(low), _mm512_set1_epi16(high))
    }
}

#[inline]
fn prefetch(p: *const u8) {
    // SAFETY: a prefetch of any address is a hint and cannot fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
}
