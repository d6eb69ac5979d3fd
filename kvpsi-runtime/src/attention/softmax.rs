//! The online softmax. Scores are base-2 logarithms: the caller scales queries
//! by `scale * log2(e)`.

use super::simd::{Kernel, Simd};

/// One step: replaces scores by `2^(score - m)` with `m` the maximum of `max`
/// and the scores. Returns `m` and the sum of the powers.
pub(super) struct Step<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) max: f32,
}

/// `mass[i] *= 2^(at[i] - max)`: brings sums taken against earlier maxima to
/// the last one. A sum of zero stays zero whatever its `at`.
pub(super) struct Settle<'a> {
    pub(super) mass: &'a mut [f32],
    pub(super) at: &'a [f32],
    pub(super) max: f32,
}

/// 2^x for x <= 0, relative error below 3e-7; 0 below 2^-126, not-a-number
/// stays so. Taylor series of 2^r on -0.5..=0.5, coefficients ln(2)^k / k!.
///
/// # Safety
/// The processor has the family's features.
#[inline(always)]
unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let least = S::splat(-126.0);
        let clamped = S::at_least(x, least);
        let whole = S::round(clamped);
        let r = S::sub(clamped, whole);
        let mut poly = S::splat(1.540_353e-4);
        for c in [
            1.333_355_8e-3,
            9.618_129e-3,
            5.550_411e-2,
            2.402_265e-1,
            std::f32::consts::LN_2,
            1.0,
        ] {
            poly = S::fma(poly, r, S::splat(c));
        }
        S::unless_less(S::mul(poly, S::power(whole)), x, least)
    }
}

impl Kernel for Step<'_> {
    type Out = (f32, f32);

    fn scalar(self) -> (f32, f32) {
        let max = self.scores.iter().copied().fold(self.max, f32::max);
        let mut sum = 0.0;
        for score in self.scores {
            *score = (*score - max).exp2();
            sum += *score;
        }
        (max, sum)
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        let whole = self.scores.len() / S::WIDTH * S::WIDTH;
        let (scores, rest) = self.scores.split_at_mut(whole);
        let at = scores.as_mut_ptr();
        // SAFETY: whole registers lie in `scores`.
        unsafe {
            let mut most = S::splat(self.max);
            for i in (0..whole).step_by(S::WIDTH) {
                most = S::max(S::load(at.add(i)), most);
            }
            if !rest.is_empty() {
                most = S::max(S::load_first(rest, f32::NEG_INFINITY), most);
            }
            let max = S::greatest(most);
            let most = S::splat(max);
            let mut total = S::splat(0.0);
            for i in (0..whole).step_by(S::WIDTH) {
                let power = exp2::<S>(S::sub(S::load(at.add(i)), most));
                total = S::add(total, power);
                S::store(at.add(i), power);
            }
            if !rest.is_empty() {
                let last = S::load_first(rest, f32::NEG_INFINITY);
                let power = exp2::<S>(S::sub(last, most));
                total = S::add(total, power);
                S::store_first(rest, power);
            }
            (max, S::sum(total))
        }
    }
}

impl Kernel for Settle<'_> {
    type Out = ();

    fn scalar(self) {
        for (mass, at) in self.mass.iter_mut().zip(self.at) {
            if *mass != 0.0 {
                *mass *= (at - self.max).exp2();
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let rows = self.mass.chunks_mut(S::WIDTH);
        for (mass, at) in rows.zip(self.at.chunks(S::WIDTH)) {
            // SAFETY: the caller's promise.
            unsafe {
                let sums = S::load_first(mass, 0.0);
                let at = S::load_first(at, self.max);
                let factor = exp2::<S>(S::sub(at, S::splat(self.max)));
                S::store_first(mass, S::unless_zero(S::mul(sums, factor), sums));
            }
        }
    }
}
