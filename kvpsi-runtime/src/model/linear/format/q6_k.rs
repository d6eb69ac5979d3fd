//! Q6_K: 6-bit codes minus 32, 8-bit scales for 16, an f16 for 256.

use super::FileFormat;
use super::codes::Six;
use super::super256::Super256;

/// Q6_K of ggml.
pub struct Q6K;

impl FileFormat for Q6K {
    const NAME: &'static str = "Q6_K";
    const ID: u32 = 14;
    const FILE_BYTES: usize = 210;
    const HIGH_BYTES: &'static [usize] = &[209];
    type Layout = Super256<Six, 16>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &src[208..], &src[192..208], |g| {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[g / 4 * 64 + g % 2 * 32..][..32];
            let high = &src[128 + g / 4 * 32..][..32];
            std::array::from_fn(|i| {
                low[i] >> (4 * (g % 4 / 2)) & 15 | (high[i] >> (2 * (g % 4)) & 3) << 4
            })
        });
    }
}
