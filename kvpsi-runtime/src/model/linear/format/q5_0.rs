//! Q5_0: 5-bit codes minus 16, an f16 scale for 32.

use super::block32::Block32;
use super::codes::Five;
use super::{FileFormat, nibbles};

/// Q5_0 of ggml.
pub struct Q5_0;

impl FileFormat for Q5_0 {
    const NAME: &'static str = "Q5_0";
    const ID: u32 = 6;
    const FILE_BYTES: usize = 22;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Block32<Five<16>>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let (high, low) = (&src[2..6], nibbles(&src[6..]));
        let codes = std::array::from_fn(|i| low[i] | (high[i / 8] >> (i % 8) & 1) << 4);
        Self::Layout::pack(dst, r, &codes, &src[..2]);
    }
}
