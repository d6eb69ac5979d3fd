//! Q8_0: 8-bit signed codes, an f16 scale for 32.

use super::block32::{self, Half};
use super::codes::Eight;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q8_0 of ggml.
pub struct Q8_0;

type C = Eight;

impl Layout for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const ID: u32 = 8;
    const BLOCK: usize = 32;
    const FILE_BYTES: usize = 34;
    const TILE_BYTES: usize = block32::tile_bytes::<C, Half>(false);
    const HIGH_BYTES: &'static [usize] = &[1];
    const ACTS: ActKind = ActKind::Block32;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let codes = std::array::from_fn(|i| src[2 + i]);
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
