//! AVX2 kernels: `maddubs` into i16, widened once per block.
//!
//! Saturation: a sum of 8 products of 4-bit codes stays under 8 * 2 * 15 * 127
//! = 30,480, and of two products of 6-bit codes under 2 * 2 * 63 * 127 =
//! 32,004; both fit i16. 8-bit codes take |w| * sign(a, w), at most
//! 2 * 128 * 127 = 32,512, widened at once. All need activations above -128.

use super::acts::ActBlock;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS};
use super::tile_kernels::tile_kernels;
use super::x86_256::primitives_256;
use std::arch::{asm, x86_64::*};

primitives_256!("avx2,fma,f16c");
tile_kernels!("avx2,fma,f16c");

/// 6-bit groups that may be summed before widening.
const U6_RUN: usize = 2;
/// What 8-bit codes are shifted by: nothing, signs are handled.
const Q8_OFFSET: i32 = 0;

/// Adds pairs of products, i16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(acc: I, w: I, a: I) -> I {
    pin(_mm256_add_epi16(acc, _mm256_maddubs_epi16(w, a)))
}

/// `v`, from a register, in the order of the program. Integer sums may be
/// regrouped, and the compiler does: it holds back the sums of half a tile
/// and spills all codes and activations meanwhile, at half the speed.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pin(mut v: I) -> I {
    // SAFETY: no instruction.
    unsafe {
        asm!("/* {v} */", v = inout(ymm_reg) v, options(nomem, nostack, preserves_flags));
    }
    v
}

/// i16 pairs to i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold(acc: I) -> I {
    _mm256_madd_epi16(acc, _mm256_set1_epi16(1))
}

/// i16 pairs to i32, times a scale that fits i16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn fold_scaled(acc: I, scale: I) -> I {
    _mm256_madd_epi16(acc, pair(scale, scale))
}

/// Signed codes and their magnitudes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn prepare8(w: I) -> (I, I) {
    (w, _mm256_abs_epi8(w))
}

/// Adds products of signed 8-bit codes, i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot8(acc: I, (w, magnitude): (I, I), a: I) -> I {
    let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(a, w));
    pin(add(acc, fold(pairs)))
}
