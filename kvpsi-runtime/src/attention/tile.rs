//! Tiles of f32: blocks widened, and matrix products.

#![expect(
    clippy::needless_range_loop,
    reason = "indices name registers of several arrays at once"
)]

use super::simd::{Codes, Kernel, LANES, Simd, codes8, fma8, load8, padded, store8};

/// A row-major matrix: its values, and how far its rows are apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The values, row by row.
    pub(super) data: &'a [f32],
    /// From one row to the next.
    pub(super) stride: usize,
}

/// Values of rows of `d` to f32.
pub(super) struct Widen<'a, C> {
    pub(super) v: C,
    pub(super) d: usize,
    pub(super) out: &'a mut [f32],
}

/// Keys `[tokens, d]` to f32 `[d, padded(tokens)]`; padding is 0.
pub(super) struct Transposed<'a, C> {
    pub(super) k: C,
    pub(super) d: usize,
    pub(super) out: &'a mut [f32],
}

/// `c = a * b`, or `c[i] = keep[i] * c[i] + (a * b)[i]`: `a` `[m, k]`, `b`
/// `[k, n]`, `c` `[m, n]` with rows `n` apart.
pub(super) struct Product<'a> {
    pub(super) a: Rows<'a>,
    pub(super) b: Rows<'a>,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) keep: Option<&'a [f32]>,
    pub(super) c: &'a mut [f32],
}

impl<C: Codes> Kernel for Widen<'_, C> {
    type Out = ();

    fn scalar(self) {
        for (at, out) in self.out.iter_mut().enumerate().take(self.v.len()) {
            *out = self.v.value(at);
        }
    }

    /// Where `d` is no multiple of the width, the encoding has no offsets.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.v.len() / S::WIDTH * S::WIDTH;
        let mut channel = 0;
        for i in (0..whole).step_by(S::WIDTH) {
            // SAFETY: a register's values from `i` lie in both.
            unsafe { S::store(self.out.as_mut_ptr().add(i), self.v.load::<S>(i, channel)) };
            channel += S::WIDTH;
            if channel >= self.d {
                channel = 0;
            }
        }
        let rest = self.out.iter_mut().enumerate().take(self.v.len());
        rest.skip(whole).for_each(|(i, o)| *o = self.v.value(i));
    }
}

impl<C: Codes> Kernel for Transposed<'_, C> {
    type Out = ();

    fn scalar(self) {
        let columns = padded(self.k.len() / self.d);
        self.out[..self.d * columns].fill(0.0);
        for at in 0..self.k.len() {
            self.out[at % self.d * columns + at / self.d] = self.k.value(at);
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (d, tokens, out) = (self.d, self.k.len() / self.d, self.out.as_mut_ptr());
        let columns = padded(tokens);
        for t in (0..tokens).step_by(LANES) {
            for c in (0..d).step_by(LANES) {
                // SAFETY: rows below `tokens`, columns `c..c + 8` within `d`;
                // `out` has `d` rows of `columns`, a multiple of 8.
                unsafe {
                    let mut rows = [S::eight(0.0); LANES];
                    for (j, row) in rows.iter_mut().enumerate().take(tokens - t) {
                        *row = codes8::<S>(self.k, (t + j) * d + c, c);
                    }
                    for (j, row) in S::transpose(rows).into_iter().enumerate() {
                        store8::<S>(out.add((c + j) * columns + t), row);
                    }
                }
            }
        }
    }
}

impl Kernel for Product<'_> {
    type Out = ();

    fn scalar(self) {
        let Self { a, b, .. } = self;
        for (i, c) in self.c.chunks_exact_mut(self.n).enumerate() {
            match self.keep {
                Some(keep) => c.iter_mut().for_each(|c| *c *= keep[i]),
                None => c.fill(0.0),
            }
            for (t, a) in a.data[i * a.stride..][..self.k].iter().enumerate() {
                for (c, b) in c.iter_mut().zip(&b.data[t * b.stride..][..self.n]) {
                    *c += a * b;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (m, n) = (self.c.len() / self.n, self.n);
        let mut j = 0;
        while j < n {
            let wide = match ((n - j) / LANES).min(S::TILE.1) {
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let mut i = 0;
            while i < m {
                let tall = (m - i).min(S::TILE.0);
                // SAFETY: rows `i..i + tall` within `m`, columns
                // `j..j + 8 * wide` within `n`.
                unsafe {
                    match (tall, wide) {
                        (4, 4) => self.tile::<S, 4, 4>(i, j),
                        (4, 2) => self.tile::<S, 4, 2>(i, j),
                        (4, _) => self.tile::<S, 4, 1>(i, j),
                        (3, 4) => self.tile::<S, 3, 4>(i, j),
                        (3, 2) => self.tile::<S, 3, 2>(i, j),
                        (3, _) => self.tile::<S, 3, 1>(i, j),
                        (2, 4) => self.tile::<S, 2, 4>(i, j),
                        (2, 2) => self.tile::<S, 2, 2>(i, j),
                        (2, _) => self.tile::<S, 2, 1>(i, j),
                        (_, 4) => self.tile::<S, 1, 4>(i, j),
                        (_, 2) => self.tile::<S, 1, 2>(i, j),
                        (_, _) => self.tile::<S, 1, 1>(i, j),
                    }
                }
                i += tall;
            }
            j += wide * LANES;
        }
    }
}

impl Product<'_> {
    /// # Safety
    /// As [`Kernel::run`]; `i + M` rows of `a` and `c`, `j + 8 * N` columns of
    /// `b` and `c`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(&mut self, i: usize, j: usize) {
        let Self { a, b, n, .. } = *self;
        // SAFETY: rows and columns within the matrices by the caller's promise,
        // `k` columns of `a` and rows of `b` by the shapes.
        unsafe {
            let (left, right) = (a.data.as_ptr().add(i * a.stride), b.data.as_ptr().add(j));
            let c = self.c.as_mut_ptr().add(i * n + j);
            let mut acc = [[S::eight(0.0); N]; M];
            for t in 0..self.k {
                // M factors and one vector at a time: 16 registers hold no more
                // beside 12 sums.
                let mut factors = [S::eight(0.0); M];
                for x in 0..M {
                    factors[x] = S::eight(*left.add(x * a.stride + t));
                }
                for y in 0..N {
                    let row = load8::<S>(right.add(t * b.stride + y * LANES));
                    for x in 0..M {
                        acc[x][y] = fma8::<S>(factors[x], row, acc[x][y]);
                    }
                }
            }
            for x in 0..M {
                for y in 0..N {
                    let at = c.add(x * n + y * LANES);
                    let value = match self.keep {
                        Some(keep) => fma8::<S>(S::eight(keep[i + x]), load8::<S>(at), acc[x][y]),
                        None => acc[x][y],
                    };
                    store8::<S>(at, value);
                }
            }
        }
    }
}
