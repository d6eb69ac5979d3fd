//! The reference kernel: safe Rust over the tile layout.
//!
//! It fixes the arithmetic that every other family repeats exactly: integer
//! dot products per block, then one fused multiply-add per block for the scale
//! and one for the minimum, in the order of the blocks. So the families are
//! compared bit for bit.

use super::acts::ActBlock;
use super::pack::layout::*;
use super::pack::{Format, QUANT, TILE_ROWS, codes, q6k_scale};
use half::f16;

/// Products of the 16 rows of `tile` with one row of activations.
pub fn tile_row(format: Format, tile: &[u8], acts: &[ActBlock]) -> [f32; TILE_ROWS] {
    let mut out = [0.0; TILE_ROWS];
    let per = format.block_weights() / QUANT;
    let blocks = tile.chunks_exact(format.tile_block_bytes());
    for (block, acts) in blocks.zip(acts.chunks_exact(per)) {
        for (row, out) in out.iter_mut().enumerate() {
            *out = block_row(format, block, row, acts, *out);
        }
    }
    out
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the kernels convert the same integers to f32"
)]
fn block_row(format: Format, block: &[u8], r: usize, acts: &[ActBlock], acc: f32) -> f32 {
    let half = |at: usize| f16::from_le_bytes([block[at + 2 * r], block[at + 2 * r + 1]]).to_f32();
    let dot = |group: usize, part: std::ops::Range<usize>| -> i32 {
        let codes = codes(format, block, group, r);
        let pairs = codes[part.clone()].iter().zip(&acts[group].q[part]);
        pairs.map(|(&w, &a)| i32::from(w) * i32::from(a)).sum()
    };
    let d = acts[0].d;
    match format {
        Format::Q4_0 => (dot(0, 0..32) as f32).mul_add(half(NIBBLES) * d, acc),
        Format::Q8_0 => (dot(0, 0..32) as f32).mul_add(half(BYTES) * d, acc),
        Format::Q4_1 => {
            let acc = (dot(0, 0..32) as f32).mul_add(half(NIBBLES) * d, acc);
            half(NIBBLES + HALVES).mul_add(acts[0].s, acc)
        }
        Format::Q4K => {
            let (mut sum, mut mins) = (0, 0);
            for (group, a) in acts.iter().enumerate() {
                let at = group * TILE_ROWS + r;
                sum += dot(group, 0..32) * i32::from(block[Q4K_SCALES + at]);
                mins += a.sum * i32::from(block[Q4K_MINS + at]);
            }
            let acc = (sum as f32).mul_add(half(Q4K_D) * d, acc);
            (-(mins as f32)).mul_add(half(Q4K_D + HALVES) * d, acc)
        }
        Format::Q6K => {
            let mut sum = 0;
            for group in 0..acts.len() {
                for h in 0..2 {
                    let scale = i32::from(q6k_scale(block, group, h, r));
                    sum += dot(group, 16 * h..16 * h + 16) * scale;
                }
            }
            (sum as f32).mul_add(half(Q6K_D) * d, acc)
        }
    }
}
