//! Q5_1: 5-bit codes, an f16 scale and an f16 minimum for 32.

use super::block32::{self, Half};
use super::codes::Five;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q5_1 of ggml.
pub struct Q5_1;

type C = Five<0>;

impl Layout for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const ID: u32 = 7;
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 24;
    const TILE_BYTES: usize = block32::tile_bytes::<C, Half>(true);
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    const ACTS: ActKind = ActKind::Block32;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let high = u32::from_le_bytes([src[4], src[5], src[6], src[7]]);
        let nibbles = &src[8..8 + 16];
        let codes = std::array::from_fn(|i| {
            let bit = u8::from(high >> i & 1 == 1) << 4;
            nibbles[i % 16] >> (4 * (i / 16)) & 15 | bit
        });
        block32::pack::<C, Half>(dst, r, &codes, &src[..4]);
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        block32::values::<C, Half, true>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        block32::product::<C, Half, true>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { block32::kernel::<S, C, Half, true, MT>(tile, blocks, acts, out) }
    }
}
