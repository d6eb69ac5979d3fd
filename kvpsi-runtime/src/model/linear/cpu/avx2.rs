//! AVX2 kernels: `maddubs` into i16, widened after as many products as fit.
//!
//! Saturation: a kernel folds before sums of unsigned codes can pass i16's
//! range (`format::kernels::run`). 8-bit codes take |w| * sign(a, w), at most
//! 2 * 128 * 127 = 32,512, widened at once. All need activations above -128.

use super::super::format::Layout;
use super::super::simd::{Simd, TILE_ROWS, entry, ops};
use super::x86_256::operations_256;
use std::arch::{asm, x86_64::*};

/// AVX2, FMA and F16C.
pub struct Avx2;

entry!(Avx2, "avx2,fma,f16c");

impl Simd for Avx2 {
    operations_256!();
    /// Signed codes and their magnitudes.
    type W = (__m256i, __m256i);
    const I32_SUMS: bool = false;
    const WIDE_OFFSET: i32 = 0;
    ops! {
        fn dot(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
            pin(_mm256_add_epi16(acc, _mm256_maddubs_epi16(w, a)))
        }
        fn fold(acc: __m256i) -> __m256i { _mm256_madd_epi16(acc, _mm256_set1_epi16(1)) }
        fn fold_scaled(acc: __m256i, scale: __m256i) -> __m256i {
            _mm256_madd_epi16(acc, Self::pair(scale, scale))
        }
        fn prepare8(w: __m256i) -> (__m256i, __m256i) { (w, _mm256_abs_epi8(w)) }
        fn dot8(acc: __m256i, w: (__m256i, __m256i), a: __m256i) -> __m256i {
            pin(_mm256_add_epi32(acc, Self::fold(_mm256_maddubs_epi16(w.1, _mm256_sign_epi8(a, w.0)))))
        }
    }
}

/// `v`, from a register, in the order of the program. Integer sums may be
/// regrouped, and the compiler does: it holds back the sums of half a tile
/// and spills all codes and activations meanwhile, at half the speed.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pin(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {v} */", v = inout(ymm_reg) v, options(nomem, nostack, preserves_flags));
    }
    v
}
