//! MXFP4: 4-bit floats, a power of two for 32 (OCP Microscaling Formats 1.0).

use super::block32::{self, HalfPower};
use super::codes::Float4;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// MXFP4 of ggml.
pub struct MXFP4;

type C = Float4;

impl Layout for MXFP4 {
    const NAME: &'static str = "MXFP4";
    const ID: u32 = 39;
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 17;
    const TILE_BYTES: usize = block32::tile_bytes::<C, HalfPower>(false);
    const HIGH_BYTES: &'static [usize] = &[0];
    const ACTS: ActKind = ActKind::Block32;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn finite(block: &[u8]) -> bool {
        block[0] != 0xff
    }

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let nibbles = &src[1..1 + 16];
        let codes = std::array::from_fn(|i| nibbles[i % 16] >> (4 * (i / 16)) & 15);
        block32::pack::<C, HalfPower>(dst, r, &codes, &src[..1]);
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        block32::values::<C, HalfPower, false>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        block32::product::<C, HalfPower, false>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { block32::kernel::<S, C, HalfPower, false, MT>(tile, blocks, acts, out) }
    }
}
