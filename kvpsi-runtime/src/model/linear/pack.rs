//! Weights repacked into tiles of [`TILE_ROWS`] rows.
//!
//! Owns the tile layout, which every kernel family shares. A tile holds, for
//! 16 consecutive output rows, one block of inputs after the other; within a
//! block the codes of 4 inputs of one row are adjacent and the 16 rows follow
//! each other, so that one load gives 4 inputs of many rows and the integer
//! dot products of the rows come out in separate lanes: no horizontal sums.
//!
//! Sizes stay those of the file (Q4_K: 2.8 % more, its 6-bit scales are kept
//! as bytes), plus at most 15 rows of zeros that fill the last tile.
//! Refuses to know about activations, threads and candle.

use super::error::LinearError;
use candle_core::quantized::GgmlDType;
use half::f16;

/// Output rows in a tile.
pub const TILE_ROWS: usize = 16;
/// Weights of a row that share one activation scale and its sums.
pub const QUANT: usize = 32;
/// Weights in a super-block of a K quantization.
pub const SUPER: usize = 256;

/// The quantizations that have kernels of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 4-bit codes minus 8, one scale for 32.
    Q4_0,
    /// 4-bit codes, one scale and one minimum for 32.
    Q4_1,
    /// 8-bit signed codes, one scale for 32.
    Q8_0,
    /// 4-bit codes, 6-bit scales and minimums for 32, two f16 for 256.
    Q4K,
    /// 6-bit codes minus 32, 8-bit scales for 16, one f16 for 256.
    Q6K,
}

/// Byte offsets in one block of a tile. Codes come first.
///
/// 4-bit codes: byte `g * 64 + row * 4 + i` of a group of 32 inputs holds input
/// `4 g + i` in its low and input `16 + 4 g + i` in its high half, g < 4.
pub mod layout {
    /// Bytes of 4-bit codes: 32 inputs of 16 rows.
    pub const NIBBLES: usize = 256;
    /// Bytes of 8-bit codes: 32 inputs of 16 rows; input `4 g + i` at
    /// `g * 64 + row * 4 + i`, g < 8.
    pub const BYTES: usize = 512;
    /// Bytes of 16 f16 values, one per row.
    pub const HALVES: usize = 32;
    /// Q4_K: 8 groups of nibbles, then scales, minimums (a byte each,
    /// `group * 16 + row`), then `d` and `dmin`.
    pub const Q4K_SCALES: usize = 8 * NIBBLES;
    /// Q4_K minimums.
    pub const Q4K_MINS: usize = Q4K_SCALES + 128;
    /// Q4_K `d`, then `dmin`.
    pub const Q4K_D: usize = Q4K_MINS + 128;
    /// Q6_K: bytes of one group of 32 inputs: nibbles, then the upper two
    /// bits. Bits `2 j` of byte `h * 64 + row * 4 + i` belong to input
    /// `16 h + 4 j + i`, h < 2, j < 4.
    pub const Q6K_GROUP: usize = NIBBLES + 128;
    /// Q6_K scales: a signed byte each, `(2 * group + half) * 16 + row`.
    pub const Q6K_SCALES: usize = 8 * Q6K_GROUP;
    /// Q6_K `d`.
    pub const Q6K_D: usize = Q6K_SCALES + 256;
}
use layout::*;

impl Format {
    /// The format of a GGUF type, if it has kernels here.
    pub fn of(dtype: GgmlDType) -> Option<Format> {
        Some(match dtype {
            GgmlDType::Q4_0 => Format::Q4_0,
            GgmlDType::Q4_1 => Format::Q4_1,
            GgmlDType::Q8_0 => Format::Q8_0,
            GgmlDType::Q4K => Format::Q4K,
            GgmlDType::Q6K => Format::Q6K,
            _ => return None,
        })
    }

    /// Weights of one row in a block: 32, or 256 for K quantizations.
    pub const fn block_weights(self) -> usize {
        match self {
            Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => QUANT,
            Format::Q4K | Format::Q6K => SUPER,
        }
    }

    /// Bytes of one block of one row in a GGUF file.
    pub const fn file_block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q8_0 => 34,
            Format::Q4K => 144,
            Format::Q6K => 210,
        }
    }

    /// Bytes of one block of 16 rows in a tile.
    pub const fn tile_block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => NIBBLES + HALVES,
            Format::Q4_1 => NIBBLES + 2 * HALVES,
            Format::Q8_0 => BYTES + HALVES,
            Format::Q4K => Q4K_D + 2 * HALVES,
            Format::Q6K => Q6K_D + HALVES,
        }
    }
}

/// Where the f16 scales stand in a file block of `dtype`.
fn scale_offsets(dtype: GgmlDType) -> &'static [usize] {
    match dtype {
        GgmlDType::Q4_0 | GgmlDType::Q5_0 | GgmlDType::Q8_0 => &[0],
        GgmlDType::Q4_1 | GgmlDType::Q5_1 | GgmlDType::Q8_1 => &[0, 2],
        GgmlDType::Q2K => &[80, 82],
        GgmlDType::Q3K => &[108],
        GgmlDType::Q4K | GgmlDType::Q5K => &[0, 2],
        GgmlDType::Q6K => &[208],
        GgmlDType::F16 => &[0],
        _ => &[],
    }
}

/// The first of `blocks` (each `block_bytes` long) with a scale that is
/// infinite or not a number. f32 and bf16 data is looked at value by value.
pub fn first_bad_block(dtype: GgmlDType, block_bytes: usize, data: &[u8]) -> Option<usize> {
    let offsets = scale_offsets(dtype);
    data.chunks_exact(block_bytes)
        .position(|block| match dtype {
            GgmlDType::F32 => {
                !f32::from_le_bytes([block[0], block[1], block[2], block[3]]).is_finite()
            }
            GgmlDType::BF16 => !half::bf16::from_le_bytes([block[0], block[1]]).is_finite(),
            _ => offsets.iter().any(|&o| !half_at(block, o).is_finite()),
        })
}

fn half_at(bytes: &[u8], offset: usize) -> f16 {
    f16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// A cache line: what tiles are allocated in, so that loads of 64 bytes of a
/// layout whose blocks are multiples of 64 never cross one.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// A weight matrix `[n, k]` in tiles.
pub struct Packed {
    format: Format,
    n: usize,
    k: usize,
    lines: Vec<Line>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?} [{}, {}])", self.format, self.n, self.k)
    }
}

impl Packed {
    /// Repacks `data`, the rows of an `[n, k]` matrix as a GGUF file has them.
    ///
    /// # Errors
    /// `data` is not `n` rows of whole blocks, or a scale is not finite.
    pub fn new(
        tensor: &str,
        format: Format,
        dtype: GgmlDType,
        (n, k): (usize, usize),
        data: &[u8],
    ) -> Result<Packed, LinearError> {
        let (block_bytes, tile_bytes) = (format.file_block_bytes(), format.tile_block_bytes());
        let row_blocks = k / format.block_weights();
        let whole = k.is_multiple_of(format.block_weights())
            && row_blocks > 0
            && n.checked_mul(row_blocks)
                .and_then(|b| b.checked_mul(block_bytes))
                == Some(data.len());
        if !whole {
            return Err(LinearError::Shape {
                tensor: tensor.to_owned(),
                shape: vec![n, k],
                bytes: data.len(),
                dtype: format!("{dtype:?}"),
            });
        }
        if let Some(block) = first_bad_block(dtype, block_bytes, data) {
            return Err(LinearError::NonFiniteScale {
                tensor: tensor.to_owned(),
                row: block / row_blocks,
            });
        }
        // Within a constant factor of `data`, which is already in memory.
        let bytes = n.div_ceil(TILE_ROWS) * row_blocks * tile_bytes;
        let mut lines = vec![Line([0; 64]); bytes.div_ceil(64)];
        let out: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        for (i, block) in data.chunks_exact(block_bytes).enumerate() {
            let (row, b) = (i / row_blocks, i % row_blocks);
            let at = (row / TILE_ROWS * row_blocks + b) * tile_bytes;
            pack_block(
                format,
                block,
                &mut out[at..at + tile_bytes],
                row % TILE_ROWS,
            );
        }
        Ok(Packed {
            format,
            n,
            k,
            lines,
        })
    }

    /// The quantization.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes held, the fill of the last tile included.
    pub fn bytes(&self) -> usize {
        self.lines.len() * 64
    }

    /// Tiles, the last one perhaps not full.
    pub fn tiles(&self) -> usize {
        self.n.div_ceil(TILE_ROWS)
    }

    /// The blocks of one tile, one after the other.
    pub fn tile(&self, tile: usize) -> &[u8] {
        let bytes = self.k / self.format.block_weights() * self.format.tile_block_bytes();
        &bytemuck::cast_slice(&self.lines)[tile * bytes..(tile + 1) * bytes]
    }

    /// Writes row `row` as f32, by the same arithmetic as candle's
    /// dequantization. `out` has `k` elements, `row` is less than `n`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let r = row % TILE_ROWS;
        let blocks = self
            .tile(row / TILE_ROWS)
            .chunks_exact(self.format.tile_block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(self.format.block_weights())) {
            let half = |at: usize| half_at(block, at + 2 * r).to_f32();
            for (group, out) in out.chunks_exact_mut(QUANT).enumerate() {
                let codes = codes(self.format, block, group, r);
                let values = out.iter_mut().zip(codes);
                match self.format {
                    Format::Q4_0 => {
                        let d = half(NIBBLES);
                        values.for_each(|(o, c)| *o = f32::from(c) * d);
                    }
                    Format::Q4_1 => {
                        let (d, m) = (half(NIBBLES), half(NIBBLES + HALVES));
                        values.for_each(|(o, c)| *o = f32::from(c) * d + m);
                    }
                    Format::Q8_0 => {
                        let d = half(BYTES);
                        values.for_each(|(o, c)| *o = f32::from(c) * d);
                    }
                    Format::Q4K => {
                        let at = group * TILE_ROWS + r;
                        let d = half(Q4K_D) * f32::from(block[Q4K_SCALES + at]);
                        let m = half(Q4K_D + HALVES) * f32::from(block[Q4K_MINS + at]);
                        values.for_each(|(o, c)| *o = d * f32::from(c) - m);
                    }
                    Format::Q6K => {
                        let d = half(Q6K_D);
                        for (i, (o, c)) in values.enumerate() {
                            *o = d * f32::from(q6k_scale(block, group, i / 16, r)) * f32::from(c);
                        }
                    }
                }
            }
        }
    }
}

/// The scale of 16 inputs in a Q6_K block of a tile.
pub fn q6k_scale(block: &[u8], group: usize, half: usize, row: usize) -> i8 {
    i8::from_le_bytes([block[Q6K_SCALES + (2 * group + half) * TILE_ROWS + row]])
}

/// The 32 codes of group `group` of row `row` of one tile block, with the
/// format's constant offset taken off (Q4_K and Q4_1 have none).
pub fn codes(format: Format, block: &[u8], group: usize, row: usize) -> [i16; QUANT] {
    let mut out = [0; QUANT];
    let (base, offset) = match format {
        Format::Q4_0 => (0, 8),
        Format::Q4_1 | Format::Q8_0 => (0, 0),
        Format::Q4K => (group * NIBBLES, 0),
        Format::Q6K => (group * Q6K_GROUP, 32),
    };
    for (j, out) in out.iter_mut().enumerate() {
        let (half, g, i) = (j / 16, j % 16 / 4, j % 4);
        if format == Format::Q8_0 {
            *out = i16::from(i8::from_le_bytes([block[j / 4 * 64 + row * 4 + i]]));
            continue;
        }
        let mut code = (block[base + g * 64 + row * 4 + i] >> (4 * half)) & 15;
        if format == Format::Q6K {
            let high = block[base + NIBBLES + half * 64 + row * 4 + i];
            code |= ((high >> (2 * g)) & 3) << 4;
        }
        *out = i16::from(code) - offset;
    }
    out
}

/// Puts one block of one row where its tile block wants it.
fn pack_block(format: Format, src: &[u8], dst: &mut [u8], r: usize) {
    let mut copy_half = |from: usize, to: usize| {
        dst[to + 2 * r..to + 2 * r + 2].copy_from_slice(&src[from..from + 2]);
    };
    match format {
        Format::Q4_0 => {
            copy_half(0, NIBBLES);
            put_nibble_bytes(&src[2..18], dst, r);
        }
        Format::Q4_1 => {
            copy_half(0, NIBBLES);
            copy_half(2, NIBBLES + HALVES);
            put_nibble_bytes(&src[4..20], dst, r);
        }
        Format::Q8_0 => {
            copy_half(0, BYTES);
            for (g, four) in src[2..34].chunks_exact(4).enumerate() {
                dst[g * 64 + r * 4..][..4].copy_from_slice(four);
            }
        }
        Format::Q4K => {
            copy_half(0, Q4K_D);
            copy_half(2, Q4K_D + HALVES);
            let packed = &src[4..16];
            for group in 0..8 {
                let (scale, min) = q4k_scale_min(packed, group);
                dst[Q4K_SCALES + group * TILE_ROWS + r] = scale;
                dst[Q4K_MINS + group * TILE_ROWS + r] = min;
                let codes = &src[16 + group / 2 * 32..][..32];
                let code = |j: usize| (codes[j] >> (4 * (group % 2))) & 15;
                put_nibbles(code, &mut dst[group * NIBBLES..], r);
            }
        }
        Format::Q6K => {
            copy_half(208, Q6K_D);
            for group in 0..8 {
                // The file keeps 128 inputs together: four groups of 32.
                let (part, g) = (group / 4, group % 4);
                let low = &src[part * 64 + (g % 2) * 32..][..32];
                let high = &src[128 + part * 32..][..32];
                let two = |j: usize| (high[j] >> (2 * g)) & 3;
                let base = group * layout::Q6K_GROUP;
                put_nibbles(|j| (low[j] >> (4 * (g / 2))) & 15, &mut dst[base..], r);
                for h in 0..2 {
                    for i in 0..4 {
                        let at = |q: usize| two(16 * h + 4 * q + i) << (2 * q);
                        dst[base + NIBBLES + h * 64 + r * 4 + i] = at(0) | at(1) | at(2) | at(3);
                    }
                }
                for h in 0..2 {
                    dst[Q6K_SCALES + (2 * group + h) * TILE_ROWS + r] = src[192 + 2 * group + h];
                }
            }
        }
    }
}

/// 16 bytes that already pair inputs j and j + 16.
fn put_nibble_bytes(qs: &[u8], dst: &mut [u8], r: usize) {
    for (g, four) in qs.chunks_exact(4).enumerate() {
        dst[g * 64 + r * 4..][..4].copy_from_slice(four);
    }
}

fn put_nibbles(code: impl Fn(usize) -> u8, dst: &mut [u8], r: usize) {
    for j in 0..16 {
        dst[j / 4 * 64 + r * 4 + j % 4] = code(j) | (code(j + 16) << 4);
    }
}

/// The 6-bit scale and minimum of group `j`, from the 12 bytes of a Q4_K block
/// (ggml's `get_scale_min_k4`).
fn q4k_scale_min(q: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (q[j] & 63, q[j + 4] & 63)
    } else {
        (
            (q[j + 4] & 15) | ((q[j - 4] >> 6) << 4),
            (q[j + 4] >> 4) | ((q[j] >> 6) << 4),
        )
    }
}
