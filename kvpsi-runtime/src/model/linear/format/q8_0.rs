//! Q8_0: 8-bit signed codes, an f16 scale for 32.

use super::FileFormat;
use super::block32::Block32;
use super::codes::Eight;

/// Q8_0 of ggml.
pub struct Q8_0;

impl FileFormat for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const ID: u32 = 8;
    const FILE_BYTES: usize = 34;
    const HIGH_BYTES: &'static [usize] = &[1];
    type Layout = Block32<Eight>;

    fn pack(src: &[u8], dst: &mut [u8], r: usize) {
        let codes = std::array::from_fn(|i| src[2 + i]);
        Self::Layout::pack(dst, r, &codes, &src[..2]);
    }
}
