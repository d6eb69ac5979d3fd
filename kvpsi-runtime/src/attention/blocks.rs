//! Products with keys and values as blocks hold them.
//!
//! Every code is widened once for all queries that are taken at once. Register
//! plans are the families' ([`Simd`]): a dozen sums hide the latency of a fused
//! multiply-add.

#![expect(
    clippy::needless_range_loop,
    reason = "indices name registers of several arrays at once"
)]

use super::simd::{Codes, Kernel, LANES, Simd, codes8, fma8, load8, store8};

/// Scores of every query of `q` `[queries, d]` against every key of `k`
/// `[tokens, d]`, to `out` `[queries, stride]`. Meanwhile `next`, what the
/// caller reads next, is fetched into the cache.
pub(super) struct Scores<'a, C> {
    pub(super) q: &'a [f32],
    pub(super) k: C,
    pub(super) d: usize,
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) next: &'a [u8],
}

/// `acc[i] = keep[i] * acc[i] + sum over t of p[i][t] * v[t]`, with `p`
/// `[queries, stride]`, `v` `[tokens, d]`, `acc` `[queries, d]`. Meanwhile
/// `next` is fetched into the cache.
pub(super) struct Weigh<'a, C> {
    pub(super) p: &'a [f32],
    pub(super) stride: usize,
    pub(super) v: C,
    pub(super) d: usize,
    pub(super) keep: &'a [f32],
    pub(super) acc: &'a mut [f32],
    pub(super) next: &'a [u8],
}

/// Queries to take at once when so many are left: few kinds, and no lone rest
/// where two equal parts do.
fn together(left: usize) -> usize {
    match left {
        0..=4 => left,
        5 | 6 => 3,
        _ => 4,
    }
}

/// Asks for the cache lines of `bytes[at..at + len]`, as far as they exist.
/// The processor's own prefetch stops at pages, and one head's part of a block
/// is about a page.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
unsafe fn fetch<S: Simd>(bytes: &[u8], at: usize, len: usize) {
    for line in (at..bytes.len().min(at + len)).step_by(64) {
        // SAFETY: within `bytes`; a prefetch reads nothing anyway.
        unsafe { S::prefetch(bytes.as_ptr().add(line)) };
    }
}

impl<C: Codes> Kernel for Scores<'_, C> {
    type Out = ();

    fn scalar(self) {
        let (q, d) = (self.q.chunks_exact(self.d), self.d);
        for (q, out) in q.zip(self.out.chunks_mut(self.stride)) {
            for (t, out) in out.iter_mut().enumerate().take(self.k.len() / d) {
                let products = q.iter().enumerate();
                *out = products.map(|(c, q)| q * self.k.value(t * d + c)).sum();
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let queries = self.q.len() / self.d;
        let (mut i, mut next) = (0, self.next);
        while i < queries {
            let n = together(queries - i);
            let part = Scores {
                q: &self.q[i * self.d..],
                out: &mut self.out[i * self.stride..],
                next,
                ..self
            };
            // SAFETY: `n` queries and rows of scores are left.
            unsafe {
                match n {
                    1 => part.of::<S, 1>(),
                    2 => part.of::<S, 2>(),
                    3 => part.of::<S, 3>(),
                    _ => part.of::<S, 4>(),
                }
            }
            i += n;
            next = &[];
        }
    }
}

impl<C: Codes> Scores<'_, C> {
    /// # Safety
    /// As [`Kernel::run`]; there are `H` queries and rows of scores.
    #[inline(always)]
    unsafe fn of<S: Simd, const H: usize>(self) {
        let tokens = self.k.len() / self.d;
        let (q, out) = (self.q.as_ptr(), self.out.as_mut_ptr());
        let mut t = 0;
        // SAFETY: as many keys are left; the first `tokens <= stride` scores of
        // each row are there.
        unsafe {
            while S::KEYS == 4 && t + 4 <= tokens {
                keys::<S, C, H, 4>(q, self.k, self.d, t, out, self.stride, self.next);
                t += 4;
            }
            while t < tokens {
                keys::<S, C, H, 1>(q, self.k, self.d, t, out, self.stride, self.next);
                t += 1;
            }
        }
    }
}

/// Scores of `H` queries against `J` keys from `t` on.
///
/// # Safety
/// As [`Kernel::run`]; `H` rows of `d` and of `stride`, `t + J` keys.
#[inline(always)]
unsafe fn keys<S: Simd, C: Codes, const H: usize, const J: usize>(
    q: *const f32,
    k: C,
    d: usize,
    t: usize,
    out: *mut f32,
    stride: usize,
    next: &[u8],
) {
    // SAFETY: `c + 8 <= d`, a multiple of 8; the rest by the caller's promises.
    unsafe {
        fetch::<S>(next, C::bytes(t * d), C::bytes(J * d));
        let mut acc = [[S::eight(0.0); J]; H];
        for c in (0..d).step_by(LANES) {
            let mut query = [S::eight(0.0); H];
            for h in 0..H {
                query[h] = load8::<S>(q.add(h * d + c));
            }
            for j in 0..J {
                let key = codes8::<S>(k, (t + j) * d + c, c);
                for h in 0..H {
                    acc[h][j] = fma8::<S>(query[h], key, acc[h][j]);
                }
            }
        }
        for h in 0..H {
            S::store_sums(out.add(h * stride + t), acc[h]);
        }
    }
}

impl<C: Codes> Kernel for Weigh<'_, C> {
    type Out = ();

    fn scalar(self) {
        let rows = self.p.chunks(self.stride).zip(self.keep);
        for (acc, (p, keep)) in self.acc.chunks_exact_mut(self.d).zip(rows) {
            acc.iter_mut().for_each(|a| *a *= keep);
            for (t, p) in p.iter().enumerate().take(self.v.len() / self.d) {
                for (c, a) in acc.iter_mut().enumerate() {
                    *a += p * self.v.value(t * self.d + c);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let queries = self.acc.len() / self.d;
        let (mut i, mut next) = (0, self.next);
        while i < queries {
            let n = match together(queries - i) {
                4 if S::QUERIES < 4 => 2,
                n => n,
            };
            let mut part = Weigh {
                p: &self.p[i * self.stride..],
                keep: &self.keep[i..],
                acc: &mut self.acc[i * self.d..],
                next,
                ..self
            };
            // SAFETY: `n` rows of each are left.
            unsafe {
                match n {
                    1 => part.of::<S, 1>(),
                    2 => part.of::<S, 2>(),
                    4 if S::QUERIES == 4 => part.of::<S, 4>(),
                    _ => part.of::<S, 3>(),
                }
            }
            i += n;
            next = &[];
        }
    }
}

impl<C: Codes> Weigh<'_, C> {
    /// # Safety
    /// As [`Kernel::run`]; there are `H` rows of `p`, `keep` and `acc`.
    #[inline(always)]
    unsafe fn of<S: Simd, const H: usize>(&mut self) {
        let mut c = 0;
        while c < self.d {
            let left = ((self.d - c) / LANES).min(S::COLUMNS);
            // SAFETY: the columns taken lie within `d`.
            c += LANES
                * unsafe {
                    match left {
                        4.. => self.columns::<S, H, 4>(c),
                        2.. => self.columns::<S, H, 2>(c),
                        _ => self.columns::<S, H, 1>(c),
                    }
                };
            self.next = &[];
        }
    }

    /// Sums `N` eights from column `c` on; returns `N`.
    ///
    /// # Safety
    /// As [`Weigh::of`]; `c + 8 * N <= d`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const H: usize, const N: usize>(&mut self, c: usize) -> usize {
        let (d, tokens) = (self.d, self.v.len() / self.d);
        let (p, acc) = (self.p.as_ptr(), self.acc.as_mut_ptr());
        // SAFETY: columns `c..c + 8 * N` of `tokens` rows of `v` and `H` rows of
        // `acc`; `tokens <= stride` weights of `H` rows of `p`.
        unsafe {
            let mut sums = [[S::eight(0.0); N]; H];
            for t in 0..tokens {
                fetch::<S>(self.next, C::bytes(t * d), C::bytes(d));
                let mut weight = [S::eight(0.0); H];
                for h in 0..H {
                    weight[h] = S::eight(*p.add(h * self.stride + t));
                }
                for j in 0..N {
                    let value = codes8::<S>(self.v, t * d + c + j * LANES, c + j * LANES);
                    for h in 0..H {
                        sums[h][j] = fma8::<S>(weight[h], value, sums[h][j]);
                    }
                }
            }
            for h in 0..H {
                let keep = S::eight(self.keep[h]);
                for j in 0..N {
                    let at = acc.add(h * d + c + j * LANES);
                    store8::<S>(at, fma8::<S>(keep, load8::<S>(at), sums[h][j]));
                }
            }
        }
        N
    }
}
