//! Keys and values as blocks hold them, by encoding.
//!
//! Owns how a slice of each encoding is read value by value; vector kernels
//! add how they read eight. Out of scope: where blocks lie.

use crate::kv::{self, BlockView, GROUP, KvType};
use half::f16;
use std::ops::Range;

/// Rows of `head_dim` values of one head of one block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coded<'a> {
    /// [`KvType::F16`].
    F16(&'a [f16]),
    /// [`KvType::Q8_0`].
    Q8(Q8<'a>),
    /// [`KvType::Q4_0`].
    Q4(Q4<'a>),
}

/// Codes, and a scale for each [`GROUP`] of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Q8<'a> {
    pub(super) codes: &'a [i8],
    pub(super) scales: &'a [f16],
}

/// Codes, eight in four bytes, the first in the lowest bits; a scale for each
/// [`GROUP`] of them; an offset for each channel of the head, so `head_dim`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Q4<'a> {
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) offsets: &'a [u8],
}

impl Q4<'_> {
    /// The code that stands for zero, between two whole ones.
    pub(super) const MIDDLE: f32 = 7.5;
}

/// What is read value by value.
pub(super) trait Source: Copy {
    /// Bytes that the codes of so many values take.
    fn bytes(values: usize) -> usize;
    /// Values.
    fn len(self) -> usize;
    /// One of them.
    fn value(self, at: usize) -> f32;
}

impl Source for &[f16] {
    #[inline(always)]
    fn bytes(values: usize) -> usize {
        2 * values
    }

    #[inline(always)]
    fn len(self) -> usize {
        <[f16]>::len(self)
    }

    #[inline(always)]
    fn value(self, at: usize) -> f32 {
        self[at].to_f32()
    }
}

impl Source for Q8<'_> {
    #[inline(always)]
    fn bytes(values: usize) -> usize {
        values
    }

    #[inline(always)]
    fn len(self) -> usize {
        self.codes.len()
    }

    #[inline(always)]
    fn value(self, at: usize) -> f32 {
        f32::from(self.codes[at]) * self.scales[at / GROUP].to_f32()
    }
}

impl Source for Q4<'_> {
    #[inline(always)]
    fn bytes(values: usize) -> usize {
        values / 2
    }

    #[inline(always)]
    fn len(self) -> usize {
        2 * self.codes.len()
    }

    #[inline(always)]
    fn value(self, at: usize) -> f32 {
        let code = self.codes[at / 2] >> (4 * (at % 2)) & 15;
        let offset = kv::offset(self.offsets[at % self.offsets.len()]);
        (f32::from(code) - Self::MIDDLE) * kv::scale(self.scales[at / GROUP]) + offset
    }
}

impl<'a> Coded<'a> {
    /// Values.
    pub(super) fn len(self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::Q8(q) => q.len(),
            Self::Q4(q) => q.len(),
        }
    }

    /// The codes as they lie, to be fetched ahead.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Self::F16(values) => bytemuck::cast_slice(half_bits(values)),
            Self::Q8(q) => bytemuck::cast_slice(q.codes),
            Self::Q4(q) => q.codes,
        }
    }

    /// Keys and values of some tokens of one head.
    ///
    /// # Safety
    /// `block` is one layer of a block whose heads have `head_dim` values,
    /// whole groups of its encoding, and `block_tokens` tokens, for which its
    /// encoding has room; it has so many
    /// `kv_heads`, of which `head` is one. It is readable and no thread writes
    /// those tokens for as long as `'a`.
    pub(super) unsafe fn of(
        block: &BlockView<'_>,
        (kv_heads, block_tokens, head_dim): (usize, usize, usize),
        head: usize,
        tokens: Range<usize>,
    ) -> (Self, Self) {
        assert!(head < kv_heads && tokens.start <= tokens.end && tokens.end <= block_tokens);
        let at = (head * block_tokens + tokens.start) * head_dim;
        let len = tokens.len() * head_dim;
        let all = kv_heads * block_tokens * head_dim;
        let rows = |from: *const u8| {
            // SAFETY: the values lie within the layer, and the scales and
            // offsets, which follow all values, too; blocks are aligned for f16 and sizes
            // are even.
            unsafe {
                match block.kind {
                    KvType::F16 => {
                        Self::F16(std::slice::from_raw_parts(from.cast::<f16>().add(at), len))
                    }
                    KvType::Q8_0 => {
                        let codes = std::slice::from_raw_parts(from.cast::<i8>().add(at), len);
                        let scales = from.add(all).cast::<f16>().add(at / GROUP);
                        let scales = std::slice::from_raw_parts(scales, len / GROUP);
                        Self::Q8(Q8 { codes, scales })
                    }
                    KvType::Q4_0 => {
                        let part = |first, len| std::slice::from_raw_parts(from.add(first), len);
                        Self::Q4(Q4 {
                            codes: part(at / 2, len / 2),
                            scales: part(all / 2 + at / GROUP, len / GROUP),
                            offsets: part(all / 2 + all / GROUP + head * head_dim, head_dim),
                        })
                    }
                }
            }
        };
        (rows(block.k), rows(block.v))
    }
}

fn half_bits(values: &[f16]) -> &[u16] {
    use half::slice::HalfFloatSliceExt;
    values.reinterpret_cast()
}
