//! Q3_K: 3-bit codes minus 4, 6-bit scales for 16, an f16 for 256.

use super::FileFormat;
use super::codes::Three;
use super::super256::Super256;

/// Q3_K of ggml.
pub struct Q3K;

impl FileFormat for Q3K {
    const NAME: &'static str = "Q3_K";
    const ID: u32 = 11;
    const FILE_BYTES: usize = 110;
    const HIGH_BYTES: &'static [usize] = &[109];
    type Layout = Super256<Three, 16>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let (high, packed) = (&src[..32], &src[96..108]);
        // 6-bit scales plus 32: four bits, then two (ggml's `dequantize_row_q3_K`).
        let scales: [u8; 16] = std::array::from_fn(|i| {
            let low = packed[i % 8] >> (4 * (i / 8)) & 15;
            let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            (low | high << 4).wrapping_sub(32)
        });
        Self::Layout::pack(dst, r, &src[108..], &scales, |g| {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[32 + g / 4 * 32..][..32];
            std::array::from_fn(|i| low[i] >> (2 * (g % 4)) & 3 | (high[i] >> g & 1) << 2)
        });
    }
}
