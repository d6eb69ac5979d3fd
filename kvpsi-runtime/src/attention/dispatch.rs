//! The arithmetic of attention over slices, by instruction set.
//!
//! Owns the choice of instruction set and the shapes each kernel demands, which
//! are asserted here, so that the kernels may rely on them. Out of scope:
//! blocks, sequences, threads.

use super::blocks::{Scores, Weigh};
use super::coded::Coded;
use super::simd::{Kernel, LANES, padded};
use super::softmax::{Settle, Step};
use super::tile::{Product, Rows, Transposed, Widen};

/// Instruction sets there are kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Any processor, any head size.
    Scalar,
    /// AVX2 with FMA and F16C, head sizes that are multiples of [`LANES`].
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// NEON, head sizes that are multiples of [`LANES`].
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The fastest set this processor has for heads of `head_dim` values.
    pub(super) fn detect(head_dim: usize) -> Isa {
        #[cfg(target_arch = "x86_64")]
        if head_dim.is_multiple_of(LANES) && super::avx2::available() {
            return Isa::Avx2;
        }
        #[cfg(target_arch = "aarch64")]
        if head_dim.is_multiple_of(LANES) {
            return Isa::Neon;
        }
        let _ = head_dim;
        Isa::Scalar
    }

    /// Runs a kernel over rows of `width` values.
    fn run<K: Kernel>(self, width: usize, kernel: K) -> K::Out {
        match self {
            Isa::Scalar => kernel.scalar(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                assert!(width.is_multiple_of(LANES));
                // SAFETY: `Isa::detect` found the features; the caller has
                // checked all other shapes.
                unsafe { super::avx2::run(kernel) }
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                assert!(width.is_multiple_of(LANES));
                // SAFETY: every aarch64 processor has NEON; the caller has
                // checked all other shapes.
                unsafe { super::neon::run(kernel) }
            }
        }
    }
}

/// One call for each encoding.
macro_rules! read {
    ($coded:ident, |$source:ident| $call:expr) => {
        match $coded {
            Coded::F16($source) => $call,
            Coded::Q8($source) => $call,
            Coded::Q4($source) => $call,
        }
    };
}

/// [`Scores`].
pub(super) fn scores(
    isa: Isa,
    q: &[f32],
    k: Coded<'_>,
    d: usize,
    out: &mut [f32],
    stride: usize,
    next: &[u8],
) {
    let (queries, tokens) = (q.len() / d, k.len() / d);
    assert!(tokens <= stride && out.len() >= queries * stride);
    read!(k, |k| isa.run(
        d,
        Scores {
            q,
            k,
            d,
            out,
            stride,
            next
        }
    ));
}

/// [`Weigh`].
#[expect(clippy::too_many_arguments, reason = "matrices and their strides")]
pub(super) fn weigh(
    isa: Isa,
    p: &[f32],
    stride: usize,
    v: Coded<'_>,
    d: usize,
    keep: &[f32],
    acc: &mut [f32],
    next: &[u8],
) {
    let (queries, tokens) = (acc.len() / d, v.len() / d);
    assert!(tokens <= stride && p.len() >= queries * stride && keep.len() >= queries);
    read!(v, |v| isa.run(
        d,
        Weigh {
            p,
            stride,
            v,
            d,
            keep,
            acc,
            next
        }
    ));
}

/// [`Step`].
pub(super) fn softmax_step(isa: Isa, scores: &mut [f32], max: f32) -> (f32, f32) {
    isa.run(LANES, Step { scores, max })
}

/// [`Settle`].
pub(super) fn settle(isa: Isa, mass: &mut [f32], at: &[f32], max: f32) {
    assert_eq!(mass.len(), at.len());
    isa.run(LANES, Settle { mass, at, max });
}

/// [`Transposed`].
pub(super) fn widen_transposed(isa: Isa, k: Coded<'_>, d: usize, out: &mut [f32]) {
    assert!(out.len() >= d * padded(k.len() / d));
    read!(k, |k| isa.run(d, Transposed { k, d, out }));
}

/// [`Widen`], as many as `v` has.
pub(super) fn widen(isa: Isa, v: Coded<'_>, d: usize, out: &mut [f32]) {
    assert!(out.len() >= v.len());
    read!(v, |v| isa.run(LANES, Widen { v, d, out }));
}

/// [`Product`].
pub(super) fn matmul(
    isa: Isa,
    a: Rows<'_>,
    b: Rows<'_>,
    k: usize,
    n: usize,
    keep: Option<&[f32]>,
    c: &mut [f32],
) {
    let m = c.len() / n;
    if m == 0 {
        return;
    }
    assert!(k <= a.stride && a.data.len() >= (m - 1) * a.stride + k);
    assert!(k == 0 || (n <= b.stride && b.data.len() >= (k - 1) * b.stride + n));
    assert!(keep.is_none_or(|keep| keep.len() >= m));
    isa.run(
        n,
        Product {
            a,
            b,
            k,
            n,
            keep,
            c,
        },
    );
}
