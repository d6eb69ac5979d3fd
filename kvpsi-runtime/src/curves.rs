//! Exponential and tangent as loops that become vector code.
//!
//! On x86-64 they are compiled twice, for AVX2 and for what every processor
//! has; the results are the same bits. Out of scope: what they bend.

/// Runs `f`, compiled for AVX2 where the processor has it.
#[inline]
pub(crate) fn wide(f: impl FnOnce()) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2(f: impl FnOnce()) {
            f();
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return unsafe { with_avx2(f) };
        }
    }
    f();
}

/// `e^x` to about a millionth, without branches so that it becomes vector
/// code; beyond -87 and 88 it stays what it is there. `x = n ln 2 + r`, and
/// the Taylor series of `e^r` on half an ln 2 either side of zero.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and taking off 1.5 * 2^23 rounds to the nearest whole number,
    // where the processor has no instruction for it.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut sum = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + c;
    }
    // The whole number stands in the lowest bits of `shifted`.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    sum * f32::from_bits(n.wrapping_add(127) << 23)
}

/// `x = cap tanh(x / cap)`.
pub(crate) fn soft_cap(x: &mut [f32], cap: f32) {
    // tanh(z) = 1 - 2 / (1 + e^2z), which is right at both ends.
    let by = 2.0 / cap;
    wide(|| {
        x.iter_mut()
            .for_each(|x| *x = cap - 2.0 * cap / (1.0 + exp(*x * by)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_accurate_to_a_millionth_and_never_overflows() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 1e-6, "e^{x}: {got} for {want}");
            x += 0.0037;
        }
        for x in [f32::INFINITY, 1e30, -1e30, f32::NEG_INFINITY] {
            assert!(exp(x).is_finite());
        }
    }

    #[test]
    fn a_soft_cap_is_a_tangent() {
        for cap in [0.5f32, 30.0, 50.0] {
            let mut x: Vec<f32> = (-400i16..400).map(|i| f32::from(i) * 0.25).collect();
            let want = x.clone();
            soft_cap(&mut x, cap);
            for (x, w) in x.iter().zip(want) {
                let want = f64::from(cap) * (f64::from(w) / f64::from(cap)).tanh();
                assert!(
                    (f64::from(*x) - want).abs() < 1e-5 * f64::from(cap),
                    "{w}: {x}"
                );
            }
        }
        let mut x = [f32::NAN];
        soft_cap(&mut x, 1.0);
        assert!(x[0].is_nan());
    }
}
