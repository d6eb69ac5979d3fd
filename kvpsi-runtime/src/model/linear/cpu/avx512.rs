//! AVX-512 kernels: `dpbusd` into i32, a whole tile to a vector.

use super::super::format::Layout;
use super::super::simd::{Simd, TILE_ROWS, entry, ops};
use std::arch::x86_64::*;

/// AVX-512 F, BW, VL and VNNI.
pub struct Avx512;

entry!(Avx512, "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c");

type I = __m512i;
type F = __m512;

impl Simd for Avx512 {
    type I = I;
    type F = F;
    type W = I;
    type Parts<T: Copy> = [T; 1];
    const LANES: usize = 16;
    const AHEAD: usize = 1536;
    const I32_SUMS: bool = true;
    const WIDE_OFFSET: i32 = 128;

    #[inline(always)]
    fn each<T: Copy>(v: T) -> [T; 1] {
        [v]
    }
    #[inline(always)]
    unsafe fn fold(acc: I) -> I {
        acc
    }
    ops! {
        fn prefetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        fn load(p: *const u8) -> I { _mm512_loadu_si512(p.cast()) }
        fn load_f16(p: *const u8) -> F { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        fn load_bf16(p: *const u8) -> F {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
        fn load_f32(p: *const u8) -> F { _mm512_loadu_ps(p.cast()) }
        fn load_u8(p: *const u8) -> I { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
        fn load_i8(p: *const u8) -> I { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
        fn splat4(p: *const i8) -> I { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
        fn store_f(p: *mut f32, v: F) { _mm512_storeu_ps(p, v) }
        fn zero() -> I { _mm512_setzero_si512() }
        fn zero_f() -> F { _mm512_setzero_ps() }
        fn splat(v: i32) -> I { _mm512_set1_epi32(v) }
        fn splat_pair(low: i16, high: i16) -> I {
            _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_set1_epi16(low), _mm512_set1_epi16(high))
        }
        fn splat_f(v: f32) -> F { _mm512_set1_ps(v) }
        fn and_bytes(v: I, mask: u8) -> I { _mm512_and_si512(v, _mm512_set1_epi8(mask.cast_signed())) }
        fn or(a: I, b: I) -> I { _mm512_or_si512(a, b) }
        fn shr(v: I, by: u8) -> I { _mm512_srl_epi16(v, _mm_cvtsi32_si128(i32::from(by))) }
        fn shl(v: I, by: u8) -> I { _mm512_sll_epi16(v, _mm_cvtsi32_si128(i32::from(by))) }
        fn lookup(v: I, table: &[i8; 16]) -> I {
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), v)
        }
        fn add(a: I, b: I) -> I { _mm512_add_epi32(a, b) }
        fn sub(a: I, b: I) -> I { _mm512_sub_epi32(a, b) }
        fn mul32(a: I, b: I) -> I { _mm512_mullo_epi32(a, b) }
        fn shl32(v: I, by: u8) -> I { _mm512_sll_epi32(v, _mm_cvtsi32_si128(i32::from(by))) }
        fn mul_pairs(a: I, b: I) -> I { _mm512_madd_epi16(a, b) }
        fn pair(low: I, high: I) -> I {
            _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high))
        }
        fn to_f32(v: I) -> F { _mm512_cvtepi32_ps(v) }
        fn as_f32(v: I) -> F { _mm512_castsi512_ps(v) }
        fn mul(a: F, b: F) -> F { _mm512_mul_ps(a, b) }
        fn add_f(a: F, b: F) -> F { _mm512_add_ps(a, b) }
        fn fma(a: F, b: F, c: F) -> F { _mm512_fmadd_ps(a, b, c) }
        fn fnma(a: F, b: F, c: F) -> F { _mm512_fnmadd_ps(a, b, c) }
        fn dot(acc: I, w: I, a: I) -> I { _mm512_dpbusd_epi32(acc, w, a) }
        fn fold_scaled(acc: I, scale: I) -> I { _mm512_mullo_epi32(acc, scale) }
        fn prepare8(w: I) -> I { _mm512_xor_si512(w, _mm512_set1_epi8(i8::MIN)) }
        fn dot8(acc: I, w: I, a: I) -> I { _mm512_dpbusd_epi32(acc, w, a) }
    }
}
