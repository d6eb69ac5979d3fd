//! Q4_0: 4-bit codes minus 8, an f16 scale for 32.

use super::block32::{self, Half};
use super::codes::Four;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q4_0 of ggml.
pub struct Q4_0;

type C = Four<8>;

impl Layout for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const ID: u32 = 2;
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 18;
    const TILE_BYTES: usize = block32::tile_bytes::<C, Half>(false);
    const HIGH_BYTES: &'static [usize] = &[1];
    const ACTS: ActKind = ActKind::Block32;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let nibbles = &src[2..2 + 16];
        let codes = std::array::from_fn(|i| nibbles[i % 16] >> (4 * (i / 16)) & 15);
        block32::pack::<C, Half>(dst, r, &codes, &src[..2]);
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        block32::values::<C, Half, false>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        block32::product::<C, Half, false>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { block32::kernel::<S, C, Half, false, MT>(tile, blocks, acts, out) }
    }
}
