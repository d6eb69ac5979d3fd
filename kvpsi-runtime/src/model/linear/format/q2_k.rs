//! Q2_K: 2-bit codes, 4-bit scales and minimums for 16, two f16 for 256.

use super::FileFormat;
use super::codes::Two;
use super::super256::Super256;

/// Q2_K of ggml.
pub struct Q2K;

impl FileFormat for Q2K {
    const NAME: &'static str = "Q2_K";
    const ID: u32 = 10;
    const FILE_BYTES: usize = 84;
    const HIGH_BYTES: &'static [usize] = &[81, 83];
    type Layout = Super256<Two, 16, true>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        Self::Layout::pack(dst, r, &src[80..], &src[..16], |g| {
            // The file keeps 128 inputs together: four groups of 32.
            let low = &src[16 + g / 4 * 32..][..32];
            std::array::from_fn(|i| low[i] >> (2 * (g % 4)) & 3)
        });
    }
}
