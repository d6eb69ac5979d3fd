//! Which of the likely tokens may be drawn: min-p and locally typical sampling.
//!
//! Pure, over candidates that are sorted by logit, likeliest first. Out of
//! scope: top-k and the nucleus.

use super::power;

/// The least logit whose probability is `min_p` of the greatest (Nguyen et al.,
/// "Turning Up the Heat: Min-p Sampling", 2024), after temperature as vLLM and
/// transformers have it.
#[expect(clippy::cast_possible_truncation, reason = "a logit")]
pub(super) fn least_logit(max: f32, min_p: f64, temperature: f64) -> f32 {
    (f64::from(max) + min_p.ln() * temperature) as f32
}

/// Keeps the tokens whose information is nearest to the entropy and that
/// together have the share `p` of the mass, one at least (Meister et al.,
/// "Locally Typical Sampling", 2022).
pub(super) fn keep_typical(found: &mut Vec<(f32, u32)>, p: f64, temperature: f64) {
    let Some(&(max, _)) = found.first() else {
        return;
    };
    let powers: Vec<f64> = (found.iter())
        .map(|&(l, _)| f64::from(power(l, max, temperature)))
        .collect();
    let mass: f64 = powers.iter().sum();
    let information = |power: f64| (mass / power).ln();
    let entropy: f64 = (powers.iter())
        .filter(|power| **power > 0.0)
        .map(|power| power / mass * information(*power))
        .sum();
    let mut order: Vec<usize> = (0..found.len()).filter(|&i| powers[i] > 0.0).collect();
    let apart = |i: usize| (information(powers[i]) - entropy).abs();
    order.sort_by(|&a, &b| apart(a).total_cmp(&apart(b)).then(a.cmp(&b)));
    let mut sum = 0.0;
    let enough = order.iter().position(|&i| {
        sum += powers[i];
        sum >= p * mass
    });
    order.truncate(enough.map_or(order.len(), |last| last + 1));
    order.sort_unstable();
    *found = order.into_iter().map(|i| found[i]).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(probabilities: &[f32]) -> Vec<(f32, u32)> {
        (probabilities.iter().zip(0u32..))
            .map(|(p, token)| (p.ln(), token))
            .collect()
    }

    fn tokens(found: &[(f32, u32)]) -> Vec<u32> {
        found.iter().map(|f| f.1).collect()
    }

    #[test]
    fn the_least_logit_has_the_share_of_the_greatest() {
        for temperature in [0.5, 1.0, 2.0] {
            let least = least_logit(3.0, 0.25, temperature);
            assert!((power(least, 3.0, temperature) - 0.25).abs() < 1e-5);
        }
    }

    #[test]
    fn typical_tokens_are_those_near_the_entropy_and_not_the_likeliest() {
        // The entropy is 1.23 nats, the first token's information 0.51 and that
        // of the others 2.30.
        let mut found = of(&[0.6, 0.1, 0.1, 0.1, 0.1]);
        keep_typical(&mut found, 0.5, 1.0);
        assert_eq!(tokens(&found), [0]);
        // The entropy is 1.74: the likeliest (1.20) is further from it than the
        // others (1.97).
        let mut found = of(&[0.3, 0.14, 0.14, 0.14, 0.14, 0.14]);
        keep_typical(&mut found, 0.3, 1.0);
        assert_eq!(tokens(&found), [1, 2, 3]);
        let mut found = of(&[0.5, 0.5, 0.0]);
        keep_typical(&mut found, 0.99, 1.0);
        assert_eq!(tokens(&found), [0, 1]);
        keep_typical(&mut Vec::new(), 0.5, 1.0);
    }
}
