//! NEON kernels for every aarch64 processor: products in i16, pairs summed.
//!
//! Saturation: two products of 8-bit codes are at most 2 * 128 * 127 = 32,512,
//! which fits i16, and are widened at once.

use super::acts::ActBlock;
use super::neon_128::primitives_128;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS};
use super::tile_kernels::tile_kernels;
use std::arch::aarch64::*;
use std::arch::asm;

primitives_128!("neon");
tile_kernels!("neon");

/// Adds products of signed codes, i32.
#[inline]
#[target_feature(enable = "neon")]
fn dot(acc: I, w: I, a: I) -> I {
    let (w, a) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a));
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, a)))
}
