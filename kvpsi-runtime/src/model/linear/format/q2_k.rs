//! Q2_K: 2-bit codes, 4-bit scales and minimums for 16, two f16 for 256.

use super::codes::Two;
use super::super16;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q2_K of ggml.
pub struct Q2K;

type C = Two;

impl Layout for Q2K {
    const NAME: &'static str = "Q2_K";
    const ID: u32 = 10;
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 84;
    const TILE_BYTES: usize = super16::tile_bytes::<C>(true);
    const HIGH_BYTES: &'static [usize] = &[81, 83];
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let scales = std::array::from_fn(|i| src[i]);
        super16::pack_scales::<C>(dst, r, &src[80..], &scales);
        for g in 0..8 {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[16 + g / 4 * 32..][..32];
            let codes = std::array::from_fn(|i| low[i] >> (2 * (g % 4)) & 3);
            super16::pack_group::<C>(dst, r, g, &codes);
        }
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        super16::values::<C, true>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        super16::product::<C, true>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { super16::kernel::<S, C, true, MT>(tile, blocks, acts, out) }
    }
}
