//! NEON kernels with the dot product of ARMv8.2 (`sdot`; Cortex-A76, A78AE,
//! and what NVIDIA's Orin has). The matrix product of ARMv8.6 (`smmla`) wants
//! eight inputs of a row side by side, which the tiles do not have.

use super::super::format::Layout;
use super::super::simd::{Simd, TILE_ROWS, entry, ops};
use super::neon_128::{operations_128, widen_f16};
use std::arch::{aarch64::*, asm};

/// NEON with the dot product.
pub struct NeonDot;

entry!(NeonDot, "neon,dotprod");

impl Simd for NeonDot {
    operations_128!();
    ops! {
        fn dot(acc: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t { sdot(acc, w, a) }
    }
}

/// Adds products of signed codes, i32.
///
/// # Safety
/// The processor has the dot product.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(acc: int32x4_t, w: int32x4_t, a: int32x4_t) -> int32x4_t {
    let mut sums = acc;
    // SAFETY: registers only, and the processor has the instruction.
    unsafe {
        asm!("sdot {sums:v}.4s, {w:v}.16b, {a:v}.16b", sums = inout(vreg) sums,
            w = in(vreg) w, a = in(vreg) a, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}
