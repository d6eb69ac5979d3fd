//! Weights repacked into tiles of 16 rows.
//!
//! Owns the memory of a matrix: its own, or a part of a mapped file. A tile
//! holds, for 16 consecutive output rows, one block of inputs after the other,
//! as the format lays it out, whatever family of kernels reads it. Sizes stay
//! within a twentieth of the file's, plus at most 15 rows of zeros that fill
//! the last tile. Out of scope: activations, threads, what file is mapped.

use super::error::LinearError;
use super::simd::TILE_ROWS;
use super::table::Format;
use crate::mapped::MappedWeights;
use std::{ops::Range, sync::Arc};

/// A cache line: what tiles are allocated in, so that loads of 64 bytes of a
/// layout whose blocks are multiples of 64 never cross one.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// A weight matrix `[n, k]` in tiles.
pub struct Packed {
    format: &'static Format,
    n: usize,
    k: usize,
    tiles: Tiles,
}

/// Where tiles are.
enum Tiles {
    /// In anonymous memory.
    Own(Vec<Line>),
    /// In a mapped file; the range lies within it.
    Mapped(Arc<MappedWeights>, Range<usize>),
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
    /// `data` is not `n` rows of whole blocks, a scale is not finite, or there is no
    /// memory for it.
    pub fn new(
        tensor: &str,
        format: &'static Format,
        (n, k): (usize, usize),
        data: &[u8],
    ) -> Result<Packed, LinearError> {
        if format.matrix_bytes(n, k) != Some(data.len()) {
            return Err(LinearError::Shape {
                tensor: tensor.to_owned(),
                shape: vec![n, k],
                bytes: data.len(),
                format: format.name,
            });
        }
        let row_blocks = k / format.block;
        if let Some(block) = format.first_bad_block(data) {
            return Err(LinearError::NonFiniteScale {
                tensor: tensor.to_owned(),
                row: block / row_blocks,
            });
        }
        // Within a constant factor of `data`, which is already in memory.
        let tile_bytes = row_blocks * format.tile_bytes;
        let bytes = n.div_ceil(TILE_ROWS) * tile_bytes;
        // Where this is refused a vector of zeros ends the process.
        let tried = Vec::<Line>::new().try_reserve_exact(bytes.div_ceil(64));
        tried.map_err(|_| LinearError::Memory {
            tensor: tensor.to_owned(),
            bytes,
        })?;
        let mut lines = vec![Line([0; 64]); bytes.div_ceil(64)];
        let out: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        let rows = data.chunks(TILE_ROWS * row_blocks * format.file_bytes);
        for (rows, tile) in rows.zip(out.chunks_exact_mut(tile_bytes)) {
            format.pack(rows, row_blocks, tile);
        }
        Ok(Packed {
            format,
            n,
            k,
            tiles: Tiles::Own(lines),
        })
    }

    /// Bytes that an `[n, k]` matrix has in tiles, if its rows are whole blocks.
    pub fn bytes_of(format: &Format, n: usize, k: usize) -> Option<usize> {
        format.matrix_bytes(n, k)?;
        let tile_bytes = (k / format.block).checked_mul(format.tile_bytes)?;
        let bytes = n.div_ceil(TILE_ROWS).checked_mul(tile_bytes)?;
        bytes.checked_next_multiple_of(64)
    }

    /// A matrix whose tiles begin at byte `at` of a mapping. `None` where they
    /// do not lie in it, are not aligned to a cache line, or the rows are no
    /// whole blocks. That the tiles were packed by this layout and hold finite
    /// scales is the caller's promise.
    pub fn mapped(
        format: &'static Format,
        (n, k): (usize, usize),
        map: &Arc<MappedWeights>,
        at: usize,
    ) -> Option<Packed> {
        let end = at.checked_add(Self::bytes_of(format, n, k)?)?;
        let fits = at.is_multiple_of(64) && end <= map.len();
        fits.then(|| Packed {
            format,
            n,
            k,
            tiles: Tiles::Mapped(map.clone(), at..end),
        })
    }

    /// The same shape without any weights: for a decoder that is made only to
    /// see what there is, and never run.
    pub(in crate::model) fn emptied(self) -> Packed {
        Packed {
            tiles: Tiles::Own(Vec::new()),
            ..self
        }
    }

    /// The format.
    pub fn format(&self) -> &'static Format {
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
        self.as_bytes().len()
    }

    /// All tiles.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.tiles {
            Tiles::Own(lines) => bytemuck::cast_slice(lines),
            Tiles::Mapped(map, range) => &map[range.clone()],
        }
    }

    /// Tiles, the last one perhaps not full.
    pub fn tiles(&self) -> usize {
        self.n.div_ceil(TILE_ROWS)
    }

    /// The blocks of one tile, one after the other.
    pub fn tile(&self, tile: usize) -> &[u8] {
        let bytes = self.k / self.format.block * self.format.tile_bytes;
        &self.as_bytes()[tile * bytes..(tile + 1) * bytes]
    }

    /// Writes row `row` as f32, by ggml's own arithmetic. `out` has `k`
    /// elements, `row` is less than `n`.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let tile = self.tile(row / TILE_ROWS);
        self.format.values(tile, row % TILE_ROWS, out);
    }
}
