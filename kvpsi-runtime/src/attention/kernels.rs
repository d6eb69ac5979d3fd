//! The arithmetic of attention over slices, by instruction set.
//!
//! Owns the choice of instruction set and the shapes each kernel demands;
//! knows nothing of blocks, sequences or threads. Shapes are asserted here, so
//! the vector kernels below may rely on them. Scores are base-2 logarithms:
//! the caller scales queries by `scale * log2(e)`.

use super::coded::Coded;
use super::scalar;

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx2_tile};
#[cfg(target_arch = "aarch64")]
use super::{neon, neon_tile};

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

/// f32 values of a vector; score rows and key tiles are padded to it.
pub(super) const LANES: usize = 8;

impl Isa {
    /// The fastest set this processor has for heads of `head_dim` values.
    pub(super) fn detect(head_dim: usize) -> Isa {
        #[cfg(target_arch = "x86_64")]
        if head_dim.is_multiple_of(LANES) && avx2::available() {
            return Isa::Avx2;
        }
        #[cfg(target_arch = "aarch64")]
        if head_dim.is_multiple_of(LANES) {
            return Isa::Neon;
        }
        let _ = head_dim;
        Isa::Scalar
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

/// Scores of every query of `q` `[queries, head_dim]` against every key of
/// `k` `[tokens, head_dim]`, to `out` `[queries, stride]`. Meanwhile `next`,
/// what the caller reads next, is fetched into the cache.
pub(super) fn scores(
    isa: Isa,
    q: &[f32],
    k: Coded<'_>,
    head_dim: usize,
    out: &mut [f32],
    stride: usize,
    next: &[u8],
) {
    let (queries, tokens) = (q.len() / head_dim, k.len() / head_dim);
    assert!(tokens <= stride && out.len() >= queries * stride);
    match isa {
        Isa::Scalar => read!(k, |k| scalar::scores(q, k, head_dim, out, stride)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: `Isa::detect` found the features; shapes checked above.
            read!(k, |k| unsafe {
                avx2::scores(q, k, head_dim, out, stride, next)
            })
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: every aarch64 processor has NEON; shapes checked above.
            read!(k, |k| unsafe {
                neon::scores(q, k, head_dim, out, stride, next)
            })
        }
    }
}

/// `acc[i] = keep[i] * acc[i] + sum over t of p[i][t] * v[t]`, with `p`
/// `[queries, stride]`, `v` `[tokens, head_dim]`, `acc` `[queries, head_dim]`. Meanwhile `next` is
/// fetched into the cache.
#[expect(clippy::too_many_arguments, reason = "matrices and their strides")]
pub(super) fn weigh(
    isa: Isa,
    p: &[f32],
    stride: usize,
    v: Coded<'_>,
    head_dim: usize,
    keep: &[f32],
    acc: &mut [f32],
    next: &[u8],
) {
    let (queries, tokens) = (acc.len() / head_dim, v.len() / head_dim);
    assert!(tokens <= stride && p.len() >= queries * stride && keep.len() >= queries);
    match isa {
        Isa::Scalar => read!(v, |v| scalar::weigh(p, stride, v, head_dim, keep, acc)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: `Isa::detect` found the features; shapes checked above.
            read!(v, |v| unsafe {
                avx2::weigh(p, stride, v, head_dim, keep, acc, next)
            })
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: every aarch64 processor has NEON; shapes checked above.
            read!(v, |v| unsafe {
                neon::weigh(p, stride, v, head_dim, keep, acc, next)
            })
        }
    }
}

/// One step of the online softmax: replaces scores by `2^(score - m)` with `m`
/// the maximum of `max` and the scores. Returns `m` and the sum of the powers.
pub(super) fn softmax_step(isa: Isa, scores: &mut [f32], max: f32) -> (f32, f32) {
    match isa {
        Isa::Scalar => scalar::softmax_step(scores, max),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::detect` found the features.
        Isa::Avx2 => unsafe { avx2::softmax_step(scores, max) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 processor has NEON.
        Isa::Neon => unsafe { neon::softmax_step(scores, max) },
    }
}

/// `mass[i] *= 2^(at[i] - max)`: brings sums taken against earlier maxima to
/// the last one. A sum of zero stays zero whatever its `at`.
pub(super) fn settle(isa: Isa, mass: &mut [f32], at: &[f32], max: f32) {
    assert_eq!(mass.len(), at.len());
    match isa {
        Isa::Scalar => scalar::settle(mass, at, max),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::detect` found the features; lengths checked above.
        Isa::Avx2 => unsafe { avx2::settle(mass, at, max) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 processor has NEON; lengths checked above.
        Isa::Neon => unsafe { neon::settle(mass, at, max) },
    }
}

/// Columns of a key tile for so many tokens.
pub(super) fn padded(tokens: usize) -> usize {
    tokens.next_multiple_of(LANES)
}

/// Keys `[tokens, head_dim]` to f32 `[head_dim, padded(tokens)]`; padding is 0.
pub(super) fn widen_transposed(isa: Isa, k: Coded<'_>, head_dim: usize, out: &mut [f32]) {
    assert!(out.len() >= head_dim * padded(k.len() / head_dim));
    match isa {
        Isa::Scalar => read!(k, |k| scalar::widen_transposed(k, head_dim, out)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: `Isa::detect` found the features; shapes checked above.
            read!(k, |k| unsafe {
                avx2_tile::widen_transposed(k, head_dim, out)
            })
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            assert!(head_dim.is_multiple_of(LANES));
            // SAFETY: every aarch64 processor has NEON; shapes checked above.
            read!(k, |k| unsafe {
                neon_tile::widen_transposed(k, head_dim, out)
            })
        }
    }
}

/// Values `[tokens, head_dim]` to f32, as many as `v` has.
pub(super) fn widen(isa: Isa, v: Coded<'_>, head_dim: usize, out: &mut [f32]) {
    assert!(out.len() >= v.len());
    match isa {
        Isa::Scalar => read!(v, |v| scalar::widen(v, out)),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::detect` found the features; lengths checked above.
        Isa::Avx2 => read!(v, |v| unsafe { avx2_tile::widen(v, head_dim, out) }),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every aarch64 processor has NEON; lengths checked above.
        Isa::Neon => read!(v, |v| unsafe { neon_tile::widen(v, head_dim, out) }),
    }
}

/// A row-major matrix: its values, and how far its rows are apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The values, row by row.
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
}

/// `c = a * b`, or `c[i] = keep[i] * c[i] + (a * b)[i]`: `a` `[m, k]`, `b`
/// `[k, n]`, `c` `[m, n]` with rows `n` apart.
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
    match isa {
        Isa::Scalar => scalar::matmul(a, b, k, n, keep, c),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => {
            assert!(n.is_multiple_of(LANES));
            // SAFETY: `Isa::detect` found the features; shapes checked above.
            unsafe { avx2_tile::matmul(a, b, k, n, keep, c) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => {
            assert!(n.is_multiple_of(LANES));
            // SAFETY: every aarch64 processor has NEON; shapes checked above.
            unsafe { neon_tile::matmul(a, b, k, n, keep, c) }
        }
    }
}
