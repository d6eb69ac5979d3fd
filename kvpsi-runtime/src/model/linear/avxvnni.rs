//! AVX-VNNI kernels: `dpbusd` into i32.

use super::acts::ActBlock;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS};
use super::tile_kernels::tile_kernels;
use super::x86_256::primitives_256;
use std::arch::x86_64::*;

primitives_256!("avx2,fma,f16c,avxvnni");
tile_kernels!("avx2,fma,f16c,avxvnni");

/// 6-bit groups that may be summed before scaling: all that share a scale.
const U6_RUN: usize = 4;
/// 8-bit codes are made unsigned by adding this.
const Q8_OFFSET: i32 = 128;

/// Adds products, i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn dot(acc: I, w: I, a: I) -> I {
    _mm256_dpbusd_avx_epi32(acc, w, a)
}

/// Sums are i32 already.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn fold(acc: I) -> I {
    acc
}

/// Sums times a scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn fold_scaled(acc: I, scale: I) -> I {
    _mm256_mullo_epi32(acc, scale)
}

/// Signed to offset codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn prepare8(w: I) -> I {
    _mm256_xor_si256(w, _mm256_set1_epi8(i8::MIN))
}

/// Adds products of offset 8-bit codes, i32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn dot8(acc: I, w: I, a: I) -> I {
    dot(acc, w, a)
}
