//! NEON kernels for every aarch64 processor: products in i16, pairs summed.
//!
//! Saturation: two products of 8-bit codes are at most 2 * 128 * 127 = 32,512,
//! which fits i16, and are widened at once.

use super::super::format::Layout;
use super::super::simd::{Simd, TILE_ROWS, entry, ops};
use super::neon_128::{operations_128, widen_f16};
use std::arch::{aarch64::*, asm};

/// NEON as every aarch64 processor has it.
pub struct Neon;

entry!(Neon, "neon");

impl Simd for Neon {
    operations_128!();
    ops! {
        fn dot(acc: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t { add_products(acc, w, a) }
    }
}

/// Adds products of signed codes, i32.
///
/// # Safety
/// The processor has NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_products(acc: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t {
    let (w, a) = (vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a));
    let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
    vpadalq_s16(acc, vpaddq_s16(low, vmull_high_s8(w, a)))
}
