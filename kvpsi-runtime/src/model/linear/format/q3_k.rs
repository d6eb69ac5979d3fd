//! Q3_K: 3-bit codes minus 4, 6-bit scales for 16, an f16 for 256.

use super::codes::Three;
use super::super16;
use super::{ActBlock, ActKind, Layout, Simd, TILE_ROWS};

/// Q3_K of ggml.
pub struct Q3K;

type C = Three;

impl Layout for Q3K {
    const NAME: &'static str = "Q3_K";
    const ID: u32 = 11;
    const BLOCK: usize = 256;
    const FILE_BYTES: usize = 110;
    const TILE_BYTES: usize = super16::tile_bytes::<C>(false);
    const HIGH_BYTES: &'static [usize] = &[109];
    const ACTS: ActKind = ActKind::Super256;
    type Act = ActBlock;
    const ACT_WEIGHTS: usize = 32;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let (high, packed) = (&src[..32], &src[96..108]);
        // 6-bit scales plus 32: four bits, then two (ggml's `dequantize_row_q3_K`).
        let scales = std::array::from_fn(|i| {
            let low = packed[i % 8] >> (4 * (i / 8)) & 15;
            let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            (low | high << 4).wrapping_sub(32)
        });
        super16::pack_scales::<C>(dst, r, &src[108..], &scales);
        for g in 0..8 {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[32 + g / 4 * 32..][..32];
            let codes =
                std::array::from_fn(|i| low[i] >> (2 * (g % 4)) & 3 | (high[i] >> g & 1) << 2);
            super16::pack_group::<C>(dst, r, g, &codes);
        }
    }

    fn values(block: &[u8], r: usize, out: &mut [f32]) {
        super16::values::<C, false>(block, r, out);
    }

    fn reference(tile: &[u8], r: usize, acts: &[ActBlock]) -> f32 {
        super16::product::<C, false>(tile, r, acts)
    }

    #[inline(always)]
    unsafe fn products<S: Simd, const MT: usize>(
        tile: *const u8,
        blocks: usize,
        acts: *const ActBlock,
        out: &mut [[f32; TILE_ROWS]; MT],
    ) {
        // SAFETY: the caller's promises.
        unsafe { super16::kernel::<S, C, false, MT>(tile, blocks, acts, out) }
    }
}
