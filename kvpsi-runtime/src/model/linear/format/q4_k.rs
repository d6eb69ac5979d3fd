//! Q4_K: 4-bit codes, 6-bit scales and minimums for 32, two f16 for 256.

use super::codes::Four;
use super::super256::Super256;
use super::{FileFormat, scales_6};

/// Q4_K of ggml.
pub struct Q4K;

impl FileFormat for Q4K {
    const NAME: &'static str = "Q4_K";
    const ID: u32 = 12;
    const FILE_BYTES: usize = 144;
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    type Layout = Super256<Four<0>, 32, true>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let scales = scales_6(&src[4..16]);
        Self::Layout::pack(dst, r, &src[..4], &scales, |g| {
            let low = &src[16 + g / 2 * 32..][..32];
            std::array::from_fn(|i| low[i] >> (4 * (g % 2)) & 15)
        });
    }
}
