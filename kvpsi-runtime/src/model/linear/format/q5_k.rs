//! Q5_K: 5-bit codes, 6-bit scales and minimums for 32, two f16 for 256.

use super::codes::Five;
use super::super256::Super256;
use super::{FileFormat, scales_6};

/// Q5_K of ggml.
pub struct Q5K;

impl FileFormat for Q5K {
    const NAME: &'static str = "Q5_K";
    const ID: u32 = 13;
    const FILE_BYTES: usize = 176;
    const HIGH_BYTES: &'static [usize] = &[1, 3];
    type Layout = Super256<Five<0>, 32, true>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let (scales, high) = (scales_6(&src[4..16]), &src[16..48]);
        Self::Layout::pack(dst, r, &src[..4], &scales, |g| {
            let low = &src[48 + g / 2 * 32..][..32];
            std::array::from_fn(|i| low[i] >> (4 * (g % 2)) & 15 | (high[i] >> g & 1) << 4)
        });
    }
}
