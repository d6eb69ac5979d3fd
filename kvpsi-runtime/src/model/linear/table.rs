//! The one table of formats and families.
//!
//! Owns [`Format`], a format as a value, and which kernel runs a format on a
//! family. A new format is a file in `format` and a line in `FORMATS`; a new
//! family is a file in `cpu`, a line in `kernels` and one in `isa`.

use super::acts::{ActBlock, ActKind, quantize_scalar};
use super::cpu;
use super::format::*;
use super::isa::{Family, Isa};
use super::simd::TILE_ROWS;

/// Rows of activations that kernels take at once, fewest first.
pub(super) const STEPS: [usize; 4] = [1, 2, 4, 8];

/// A kernel: tile, its blocks, activations, products. See [`cpu::scalar::run`].
type Kernel = unsafe fn(*const u8, usize, *const (), *mut [f32; TILE_ROWS]);

/// Kernels of one format, as many of [`STEPS`] as a family gains by: the sums of
/// more rows do not stay in its registers.
type Kernels = &'static [Kernel];

/// The formats, each by its file.
static FORMATS: [Format; 16] = [
    format::<F32>(),
    format::<F16>(),
    format::<BF16>(),
    format::<Q4_0>(),
    format::<Q4_1>(),
    format::<Q5_0>(),
    format::<Q5_1>(),
    format::<Q8_0>(),
    format::<Q2K>(),
    format::<Q3K>(),
    format::<Q4K>(),
    format::<Q5K>(),
    format::<Q6K>(),
    format::<Iq4Nl>(),
    format::<Iq4Xs>(),
    format::<MXFP4>(),
];

/// The kernels of a layout on a family.
fn kernels<F: Layout>(family: Family) -> Kernels {
    macro_rules! of {
        ($run:path) => {{
            use $run as run;
            const { &[run::<F, 1> as Kernel, run::<F, 2>, run::<F, 4>] }
        }};
        ($run:path, 8) => {{
            use $run as run;
            const { &[run::<F, 1> as Kernel, run::<F, 2>, run::<F, 4>, run::<F, 8>] }
        }};
    }
    match family {
        #[cfg(target_arch = "x86_64")]
        Family::Avx2 => of!(cpu::avx2::run),
        #[cfg(target_arch = "x86_64")]
        Family::AvxVnni => of!(cpu::avxvnni::run),
        #[cfg(target_arch = "x86_64")]
        Family::Avx512Vnni => of!(cpu::avx512::run, 8),
        #[cfg(target_arch = "aarch64")]
        Family::Neon => of!(cpu::neon::run),
        #[cfg(target_arch = "aarch64")]
        Family::NeonDot => of!(cpu::neon_dot::run),
        // The reference takes as many rows as any family.
        _ => of!(cpu::scalar::run, 8),
    }
}

/// The most rows that a family's kernels take at once.
pub(super) fn most_rows(isa: Isa) -> usize {
    STEPS[kernels::<<F32 as FileFormat>::Layout>(isa.family()).len() - 1]
}

/// A format of weights.
pub struct Format {
    /// ggml's name.
    pub name: &'static str,
    /// ggml's number, by which a GGUF file names it.
    pub id: u32,
    /// Weights of one row in a block.
    pub block: usize,
    /// Bytes of one block of one row in a GGUF file.
    pub file_bytes: usize,
    /// Bytes of one block of 16 rows in a tile.
    pub tile_bytes: usize,
    /// How activations are quantized.
    pub acts: ActKind,
    /// The most significant byte of each float in a file block.
    pub(super) high_bytes: &'static [usize],
    first_bad_block: fn(&[u8]) -> Option<usize>,
    pack: fn(&[u8], usize, &mut [u8]),
    values: fn(&[u8], usize, &mut [f32]),
    kernels: fn(Family) -> Kernels,
}

const fn format<F: FileFormat>() -> Format {
    Format {
        name: F::NAME,
        id: F::ID,
        block: F::Layout::BLOCK,
        file_bytes: F::FILE_BYTES,
        tile_bytes: F::Layout::TILE_BYTES,
        acts: F::Layout::ACTS,
        high_bytes: F::HIGH_BYTES,
        first_bad_block: first_bad_block::<F>,
        pack: pack::<F>,
        values: values::<F::Layout>,
        kernels: kernels::<F::Layout>,
    }
}

fn first_bad_block<F: FileFormat>(data: &[u8]) -> Option<usize> {
    let mut blocks = data.chunks_exact(F::FILE_BYTES);
    blocks.position(|block| !F::finite(block))
}

fn pack<F: FileFormat>(rows: &[u8], row_blocks: usize, tile: &mut [u8]) {
    for (r, row) in rows.chunks_exact(row_blocks * F::FILE_BYTES).enumerate() {
        let blocks = row.chunks_exact(F::FILE_BYTES);
        for (src, dst) in blocks.zip(tile.chunks_exact_mut(F::Layout::TILE_BYTES)) {
            F::pack(src, dst, r);
        }
    }
}

fn values<F: Layout>(tile: &[u8], r: usize, out: &mut [f32]) {
    let blocks = tile.chunks_exact(F::TILE_BYTES);
    for (block, out) in blocks.zip(out.chunks_exact_mut(F::BLOCK)) {
        F::values(block, r, out);
    }
}

impl Format {
    /// All of them.
    pub fn all() -> impl Iterator<Item = &'static Format> {
        FORMATS.iter()
    }

    /// The format that a GGUF file means by a number.
    pub fn by_id(id: u32) -> Option<&'static Format> {
        Format::all().find(|f| f.id == id)
    }

    /// Bytes of an `[n, k]` matrix in a file, if its rows are whole blocks.
    pub fn matrix_bytes(&self, n: usize, k: usize) -> Option<usize> {
        let blocks = n.checked_mul(k / self.block)?;
        let whole = k > 0 && k.is_multiple_of(self.block);
        whole.then(|| blocks.checked_mul(self.file_bytes)).flatten()
    }

    /// The first file block with a scale that is infinite or not a number.
    pub fn first_bad_block(&self, data: &[u8]) -> Option<usize> {
        (self.first_bad_block)(data)
    }

    /// A vector of `len` values from whole blocks of a file.
    pub fn dequantize(&self, data: &[u8], len: usize) -> Vec<f32> {
        let (blocks, mut out) = (len / self.block, vec![0.0; len]);
        let mut tile = vec![0; blocks * self.tile_bytes];
        self.pack(data, blocks, &mut tile);
        self.values(&tile, 0, &mut out);
        out
    }

    /// Puts up to 16 rows of so many file blocks into a tile of zeros.
    pub(super) fn pack(&self, rows: &[u8], row_blocks: usize, tile: &mut [u8]) {
        (self.pack)(rows, row_blocks, tile);
    }

    /// The weights of row `r` of a tile, by ggml's own arithmetic.
    pub(super) fn values(&self, tile: &[u8], r: usize, out: &mut [f32]) {
        (self.values)(tile, r, out);
    }

    /// A kernel that takes `STEPS[step]` rows, and how it wants to be called.
    pub(super) fn kernel(&self, isa: Isa, step: usize) -> TileKernel {
        TileKernel {
            run: (self.kernels)(isa.family())[step],
            rows: STEPS[step],
            block: self.block,
            tile_bytes: self.tile_bytes,
            floats: self.acts == ActKind::Floats,
        }
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// Activations of some rows, as a format wants them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Acts<'a> {
    Quantized(&'a [ActBlock]),
    Floats(&'a [f32]),
}

/// A kernel of one format on a family that the processor has.
#[derive(Clone, Copy)]
pub(super) struct TileKernel {
    run: Kernel,
    rows: usize,
    block: usize,
    tile_bytes: usize,
    floats: bool,
}

impl TileKernel {
    /// The products of a tile of whole blocks with rows of activations that
    /// have its inputs. `out` has as many rows as the kernel takes.
    pub(super) fn run(self, tile: &[u8], kind: Acts<'_>, out: &mut [[f32; TILE_ROWS]]) {
        let blocks = tile.len() / self.tile_bytes;
        let (inputs, acts) = match kind {
            Acts::Quantized(acts) => (acts.len() * 32, acts.as_ptr().cast()),
            Acts::Floats(acts) => (acts.len(), acts.as_ptr().cast()),
        };
        assert_eq!(self.floats, matches!(kind, Acts::Floats(_)));
        assert_eq!(inputs, self.rows * blocks * self.block);
        assert_eq!(out.len(), self.rows);
        // SAFETY: an `Isa` is only made where the processor has the family;
        // what the activations are and all lengths were checked just now.
        unsafe { (self.run)(tile.as_ptr(), blocks, acts, out.as_mut_ptr()) }
    }
}

/// Quantizes whole blocks of `x`.
pub(super) fn quantize(isa: Isa, kind: ActKind, x: &[f32], out: &mut [ActBlock]) {
    match isa.family() {
        #[cfg(target_arch = "x86_64")]
        Family::Avx2 | Family::AvxVnni | Family::Avx512Vnni => {
            // SAFETY: an `Isa` is only made where the processor has the family.
            unsafe { cpu::quantize_avx2::quantize(kind, x, out) }
        }
        #[cfg(target_arch = "aarch64")]
        Family::Neon | Family::NeonDot => {
            // SAFETY: an `Isa` is only made where the processor has the family.
            unsafe { cpu::quantize_neon::quantize(kind, x, out) }
        }
        _ => quantize_scalar(kind, x, out),
    }
}
