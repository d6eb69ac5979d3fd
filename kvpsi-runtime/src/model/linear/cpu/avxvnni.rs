//! AVX-VNNI kernels: `dpbusd` into i32.

use super::super::format::Layout;
use super::super::simd::{Simd, TILE_ROWS, entry, ops};
use super::x86_256::operations_256;
use std::arch::x86_64::*;

/// AVX2 with the 256-bit VNNI dot product.
pub struct AvxVnni;

entry!(AvxVnni, "avx2,fma,f16c,avxvnni");

impl Simd for AvxVnni {
    operations_256!();
    type W = __m256i;
    const I32_SUMS: bool = true;
    const WIDE_OFFSET: i32 = 128;
    #[inline(always)]
    unsafe fn fold(acc: __m256i) -> __m256i {
        acc
    }
    ops! {
        fn dot(acc: __m256i, w: __m256i, a: __m256i) -> __m256i { _mm256_dpbusd_avx_epi32(acc, w, a) }
        fn fold_scaled(acc: __m256i, scale: __m256i) -> __m256i { _mm256_mullo_epi32(acc, scale) }
        fn prepare8(w: __m256i) -> __m256i { _mm256_xor_si256(w, _mm256_set1_epi8(i8::MIN)) }
        fn dot8(acc: __m256i, w: __m256i, a: __m256i) -> __m256i { _mm256_dpbusd_avx_epi32(acc, w, a) }
    }
}
