//! The basis that keys and values are stored in.
//!
//! Owns a rotation of every head: a Hadamard transform of the head, or, where
//! its size is no power of two, of parts of it. Channels far off their fellows
//! are spread over all, so that 32 values can share a scale (QuaRot,
//! arXiv:2404.00456). It is orthonormal and its own inverse: turned queries
//! and keys have the products they had, and outputs are turned back. All
//! encodings share it, or else one call could not read them mixed and blocks
//! could not be recoded where they lie. Out of scope: encodings.
//!
//! The loops are compiled twice on x86-64, for AVX2 and for what every
//! processor has; the results are the same bits.

/// Values of a vector.
const LANES: usize = 8;

/// Rotates every head of `x`, where it lies. Doing so twice is nothing.
pub(crate) fn rotate(x: &mut [f32], head_dim: usize) {
    let part = 1 << head_dim.trailing_zeros();
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2(x: &mut [f32], part: usize) {
            parts(x, part);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has it.
            return unsafe { with_avx2(x, part) };
        }
    }
    parts(x, part);
}

#[inline(always)]
fn parts(x: &mut [f32], part: usize) {
    match part {
        // Sizes that are known get their loops unrolled.
        64 => each(x, 64),
        128 => each(x, 128),
        _ => each(x, part),
    }
}

#[inline(always)]
fn each(x: &mut [f32], part: usize) {
    let scale = 1.0 / (part as f32).sqrt();
    for part in x.chunks_exact_mut(part) {
        let (eights, rest) = part.as_chunks_mut::<LANES>();
        if rest.is_empty() {
            for eight in eights.iter_mut() {
                *eight = within(*eight, scale);
            }
            across(eights);
        } else {
            // 1, 2 or 4 values.
            let mut wide = 1;
            while wide < rest.len() {
                for i in (0..rest.len()).filter(|i| i & wide == 0) {
                    (rest[i], rest[i + wide]) =
                        (rest[i] + rest[i + wide], rest[i] - rest[i + wide]);
                }
                wide *= 2;
            }
            rest.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// The steps within a vector: each value and the one `wide` beside it become
/// their sum and their difference.
#[inline(always)]
fn within(v: [f32; LANES], scale: f32) -> [f32; LANES] {
    const ONES: [[f32; LANES]; 3] = [
        [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0],
        [1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0],
        [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0],
    ];
    let v: [f32; LANES] = std::array::from_fn(|i| v[i ^ 1] + ONES[0][i] * v[i]);
    let v: [f32; LANES] = std::array::from_fn(|i| v[i ^ 2] + ONES[1][i] * v[i]);
    std::array::from_fn(|i| (v[i ^ 4] + ONES[2][i] * v[i]) * scale)
}

/// The steps from vector to vector.
#[inline(always)]
fn across(eights: &mut [[f32; LANES]]) {
    let mut wide = 1;
    while wide < eights.len() {
        for pair in eights.chunks_exact_mut(2 * wide) {
            let (low, high) = pair.split_at_mut(wide);
            for (low, high) in low.iter_mut().zip(high) {
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        wide *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    proptest! {
        #[test]
        fn products_stay_and_twice_is_nothing(
            head_dim in prop::sample::select(vec![1usize, 2, 4, 6, 8, 12, 24, 40, 64, 80, 96, 128, 256]),
            values in prop::collection::vec(-9f32..9.0, 1024),
        ) {
            let (a, b) = (&values[..2 * head_dim], &values[512..][..2 * head_dim]);
            let (mut x, mut y) = (a.to_vec(), b.to_vec());
            rotate(&mut x, head_dim);
            rotate(&mut y, head_dim);
            for at in [0, head_dim] {
                let (got, want) = (dot(&x[at..][..head_dim], &y[at..][..head_dim]), dot(&a[at..][..head_dim], &b[at..][..head_dim]));
                prop_assert!((got - want).abs() <= 2e-2);
            }
            rotate(&mut x, head_dim);
            for (x, a) in x.iter().zip(a) {
                prop_assert!((x - a).abs() <= 1e-4);
            }
        }
    }

    #[test]
    fn one_channel_is_spread_over_all_of_its_head() {
        let mut x = [0.0; 128];
        x[3] = 8.0;
        rotate(&mut x, 64);
        assert!(x[..64].iter().all(|v| v.abs() == 1.0));
        assert!(x[64..].iter().all(|v| *v == 0.0));
    }
}
