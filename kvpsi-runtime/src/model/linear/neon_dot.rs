//! NEON kernels with the dot product of ARMv8.2 (`sdot`; Cortex-A76, A78AE,
//! and what NVIDIA's Orin has). The matrix product of ARMv8.6 (`smmla`) wants
//! eight inputs of a row side by side, which the tiles do not have.

use super::acts::ActBlock;
use super::neon_128::primitives_128;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS};
use super::tile_kernels::tile_kernels;
use std::arch::aarch64::*;
use std::arch::asm;

primitives_128!("neon,dotprod");
tile_kernels!("neon,dotprod");

/// Adds products of signed codes, i32.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(acc: I, w: I, a: I) -> I {
    let mut sums = acc;
    // SAFETY: registers only, and the processor has the instruction.
    unsafe {
        asm!("sdot {sums:v}.4s, {w:v}.16b, {a:v}.16b", sums = inout(vreg) sums,
            w = in(vreg) w, a = in(vreg) a, options(pure, nomem, nostack, preserves_flags));
    }
    sums
}
