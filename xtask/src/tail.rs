//! The tail of a neighbour's turns within bursts, and how sure it is.
//!
//! Owns the arithmetic: quantiles of turns of many bursts, intervals by
//! drawing bursts anew, and excess delay paired by burst. A turn alone is no
//! sample: those of a burst have one cause. Times are in us. Out of scope: which
//! turns a burst has (kvpsi-bench), tables.

use serde_json::Value;

/// What the neighbour had of one burst.
#[derive(Clone, Debug, Default)]
pub struct Burst {
    pub round: u64,
    pub number: u64,
    /// Turns from its beginning to a little after its end.
    pub turns: Vec<f64>,
    /// Time above the calm median, over turns up to the next burst.
    pub excess: f64,
}

impl Burst {
    /// From a row of `kvpsi-bench cotenant`, a burst of it, and the calm median.
    pub fn new(run: &Value, burst: &Value, calm: f64) -> Self {
        let turns = times(&burst["turns_us"]);
        let later = times(&burst["later_us"]);
        let all = turns.iter().chain(&later);
        Self {
            round: run["round"].as_u64().unwrap_or(0),
            number: burst["number"].as_u64().unwrap_or(0),
            excess: all.map(|t| (t - calm).max(0.0)).sum(),
            turns,
        }
    }
}

/// A list of times.
pub fn times(list: &Value) -> Vec<f64> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(Value::as_f64).collect()
}

/// How often bursts are drawn anew, and the share of draws beyond either end of
/// an interval.
const DRAWS: usize = 1000;
const BEYOND: usize = DRAWS / 40;

/// The place of a quantile among `n` sorted figures.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of turns"
)]
fn place(n: usize, share: f64) -> usize {
    ((n as f64 * share) as usize).min(n.saturating_sub(1))
}

/// All turns of some bursts, the longest first, each with its burst.
pub struct Turns {
    longest_first: Vec<(f64, usize)>,
    bursts: usize,
}

impl Turns {
    pub fn new(bursts: &[Burst]) -> Self {
        let all = bursts.iter().enumerate();
        let mut longest_first: Vec<(f64, usize)> = all
            .flat_map(|(i, b)| b.turns.iter().map(move |t| (*t, i)))
            .collect();
        longest_first.sort_by(|a, b| b.0.total_cmp(&a.0));
        Self {
            longest_first,
            bursts: bursts.len(),
        }
    }

    pub fn len(&self) -> usize {
        self.longest_first.len()
    }

    /// The turn that `share` of all turns are not longer than.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        self.of_draw(share, &vec![1; self.bursts])
    }

    /// The same where each burst was drawn so many times.
    fn of_draw(&self, share: f64, drawn: &[usize]) -> Option<f64> {
        let n: usize = self.longest_first.iter().map(|t| drawn[t.1]).sum();
        let mut longer = n.checked_sub(1)? - place(n, share);
        for (time, burst) in &self.longest_first {
            if longer < drawn[*burst] {
                return Some(*time);
            }
            longer -= drawn[*burst];
        }
        None
    }

    /// Where 95 % of the quantiles lie of bursts drawn anew.
    pub fn interval(&self, share: f64) -> Option<(f64, f64)> {
        interval(self.bursts, |drawn| self.of_draw(share, drawn))
    }
}

/// Where 95 % of the figures lie that `of` makes of `n` bursts drawn anew, with
/// repetition; it is told how often each was drawn. The same for the same figures.
pub fn interval(n: usize, of: impl Fn(&[usize]) -> Option<f64>) -> Option<(f64, f64)> {
    if n == 0 {
        return None;
    }
    // SplitMix64 (Steele, Lea and Flood 2014), from a fixed seed.
    let mut state = 18u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut figures: Vec<f64> = (0..DRAWS)
        .filter_map(|_| {
            let mut drawn = vec![0; n];
            for _ in 0..n {
                let i = next() % u64::try_from(n).ok()?;
                drawn[usize::try_from(i).ok()?] += 1;
            }
            of(&drawn)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let last = figures.len().checked_sub(1 + BEYOND)?;
    Some((*figures.get(BEYOND)?, figures[last]))
}

/// The mean excess delay of a burst, and its interval.
pub fn excess(bursts: &[Burst]) -> Option<(f64, (f64, f64))> {
    #[expect(clippy::cast_precision_loss, reason = "a count of bursts")]
    let mean = |drawn: &[usize]| {
        let sum = bursts.iter().zip(drawn);
        let sum: f64 = sum.map(|(b, n)| b.excess * *n as f64).sum();
        Some(sum / bursts.len() as f64)
    };
    let interval = interval(bursts.len(), mean)?;
    Some((mean(&vec![1; bursts.len()])?, interval))
}

/// Of the bursts that both have by round and number: how many, and in how many
/// `ours` has the lesser excess delay.
pub fn pairs(ours: &[Burst], other: &[Burst]) -> (usize, usize) {
    let both = ours.iter().filter_map(|a| {
        let same = |b: &&Burst| (b.round, b.number) == (a.round, a.number);
        Some((a.excess, other.iter().find(same)?.excess))
    });
    both.fold((0, 0), |(n, less), (a, b)| {
        (n + 1, less + usize::from(a < b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn burst(number: u64, turns: &[f64], excess: f64) -> Burst {
        Burst {
            round: 0,
            number,
            turns: turns.to_vec(),
            excess,
        }
    }

    #[test]
    fn quantiles_are_of_all_turns_of_all_bursts() {
        let turns: Vec<f64> = (1..=100).map(f64::from).collect();
        let t = Turns::new(&[burst(0, &turns[..30], 0.0), burst(1, &turns[30..], 0.0)]);
        assert_eq!(t.len(), 100);
        assert_eq!(t.quantile(0.0), Some(1.0));
        assert_eq!(t.quantile(0.5), Some(51.0));
        assert_eq!(t.quantile(0.99), Some(100.0));
        assert_eq!(t.quantile(1.0), Some(100.0));
        assert_eq!(Turns::new(&[]).quantile(0.5), None);
    }

    #[test]
    fn a_burst_that_was_drawn_twice_counts_twice() {
        let t = Turns::new(&[burst(0, &[1.0, 1.0], 0.0), burst(1, &[9.0, 9.0], 0.0)]);
        assert_eq!(t.of_draw(0.5, &[1, 1]), Some(9.0));
        assert_eq!(t.of_draw(0.5, &[2, 0]), Some(1.0));
        assert_eq!(t.of_draw(0.3, &[1, 3]), Some(9.0));
        assert_eq!(t.of_draw(0.5, &[0, 0]), None);
    }

    #[test]
    fn one_bad_burst_widens_the_interval_and_alike_bursts_do_not() {
        let alike: Vec<Burst> = (0..40).map(|i| burst(i, &[50.0; 50], 3.0)).collect();
        assert_eq!(Turns::new(&alike).interval(0.99), Some((50.0, 50.0)));
        let mut one = alike.clone();
        // One turn in forty: it is in p99 only where its burst was drawn.
        one[7].turns = vec![5000.0; 50];
        let (low, high) = Turns::new(&one).interval(0.99).unwrap();
        assert_eq!((low, high), (50.0, 5000.0));
        assert_eq!(
            Turns::new(&one).interval(0.99),
            Some((low, high)),
            "drawn by a seed"
        );
        assert_eq!(excess(&alike), Some((3.0, (3.0, 3.0))));
        assert_eq!(excess(&[]), None);
    }

    #[test]
    fn the_interval_of_a_mean_is_as_wide_as_its_error() {
        // 0 and 2 by turns, 100 times: the error of the mean is 0.1.
        let all: Vec<Burst> = (0..100u32)
            .map(|i| burst(i.into(), &[], f64::from(i % 2 * 2)))
            .collect();
        let (mean, (low, high)) = excess(&all).unwrap();
        assert!((mean - 1.0).abs() < 1e-9, "{mean}");
        let width = high - low;
        assert!((0.3..0.5).contains(&width), "{low} to {high}");
    }

    #[test]
    fn excess_is_what_turns_have_above_the_calm_median() {
        let run = json!({"round": 3});
        let told = json!({"number": 2, "turns_us": [40, 150], "later_us": [60, 50]});
        let b = Burst::new(&run, &told, 50.0);
        assert_eq!((b.round, b.number), (3, 2));
        assert!((b.excess - 110.0).abs() < 1e-9, "{b:?}");
        assert_eq!(b.turns, [40.0, 150.0]);
    }

    #[test]
    fn bursts_are_paired_by_number_and_those_without_a_partner_are_left_out() {
        let ours = [burst(0, &[], 1.0), burst(1, &[], 5.0), burst(2, &[], 5.0)];
        let other = [burst(1, &[], 9.0), burst(0, &[], 0.5), burst(7, &[], 0.0)];
        assert_eq!(pairs(&ours, &other), (2, 1));
    }
}
