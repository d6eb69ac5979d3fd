//! The cache of a replay: only counted.
//!
//! Owns what each step takes of it and how long that takes. Out of scope:
//! why a step is taken.

use super::Setup;
use crate::{
    control::Decision,
    kv::{Step, Steps, evict::Evict},
    units::Bytes,
};

/// Whole bytes of `share` thousandths.
const fn thousandths(bytes: u64, share: u64) -> u64 {
    bytes / 1000 * share + bytes % 1000 * share / 1000
}

/// A block in q8_0 of one in f16, and one in q4_0 of that (`kv/encoding`), in
/// thousandths.
const PACKED: [u64; 2] = [531, 529];

/// A cache that is counted.
#[derive(Debug)]
pub(super) struct Counted {
    pub setup: Setup,
    pub slack: u64,
    pub cached: u64,
    /// Of live blocks, by encoding, the widest first.
    pub live: [u64; 3],
    pub budget: u64,
    pub capacity: u64,
    pub floor: u64,
    pub dropped_tokens: u64,
    /// Bytes of f16 that dropping has not made a token yet.
    pub rest: u64,
    /// What is ordered of the slow steps, and when the next of them is done.
    pub order: Option<(u64, Decision)>,
    pub busy_until_ns: u64,
}

/// Bytes that a slow step takes at a time: a block's worth.
const SLICE: u64 = 1 << 20;

impl Counted {
    pub fn resident(&self) -> u64 {
        self.slack + self.cached + self.live.iter().sum::<u64>()
    }

    /// Takes up to `want` off `from`, but not below `keep` of it.
    fn take(from: &mut u64, want: u64, keep: u64) -> u64 {
        let n = want.min(from.saturating_sub(keep));
        *from -= n;
        n
    }

    /// Live bytes go, the narrowest (the coldest) first; above the floor.
    fn drop_live(&mut self, want: u64, floor: u64) -> u64 {
        let mut gone = 0;
        for i in (0..self.live.len()).rev() {
            let free = self.live.iter().sum::<u64>().saturating_sub(floor);
            let n = Self::take(&mut self.live[i], (want - gone).min(free), 0);
            gone += n;
            // As many bytes in f16.
            let wide = PACKED[..i].iter().fold(n, |n, share| n * 1000 / share);
            self.rest += wide;
        }
        let token = self.setup.token.0.max(1);
        self.dropped_tokens += self.rest / token;
        self.rest %= token;
        gone
    }

    /// The quick steps, in their order.
    pub fn trim(&mut self, want: u64, steps: Steps) -> [Bytes; Step::ALL.len()] {
        let mut by_step = [Bytes::ZERO; Step::ALL.len()];
        let mut left = want;
        for (step, by_step) in Step::ALL.iter().zip(&mut by_step) {
            if !steps.has(*step) || left == 0 {
                continue;
            }
            let got = match step {
                Step::Slack => Self::take(&mut self.slack, left, 0),
                Step::Cached => Self::take(&mut self.cached, left, 0),
                Step::Window => self.drop_live(left, self.floor),
                // The only conversation is not preempted.
                Step::Preempt => 0,
                // Behind the reactor.
                Step::Pack | Step::Thin => 0,
            };
            left = left.saturating_sub(got);
            *by_step = Bytes(got);
        }
        by_step
    }

    /// Microseconds that a MiB takes, as measured on SmolLM2-135M
    /// (docs/QUALITY.md).
    const fn us_per_mib(&self, step: Step, from: usize) -> u64 {
        match (step, from) {
            (Step::Pack, 0) => 1700,
            (Step::Pack, _) => 3400,
            (Step::Thin, _) => match self.setup.evict {
                Evict::Window => 2000,
                Evict::Heavy => 2200,
                Evict::Keydiff => 3300,
                Evict::Expected => 9300,
            },
            _ => 130,
        }
    }

    /// One slow step: which one, what it gave, what it took in ns.
    pub fn slow(&mut self, want: u64, steps: Steps) -> Option<(Step, u64, u64)> {
        for (from, share) in PACKED.into_iter().enumerate() {
            let live = self.live[from].min(SLICE);
            if steps.has(Step::Pack) && live > 0 {
                let packed = thousandths(live, share);
                self.live[from] -= live;
                self.live[from + 1] += packed;
                return Some((
                    Step::Pack,
                    live - packed,
                    self.ns(Step::Pack, from, live - packed),
                ));
            }
        }
        let got = if steps.has(Step::Thin) {
            self.drop_live(want.min(SLICE), self.floor)
        } else {
            0
        };
        (got > 0).then(|| (Step::Thin, got, self.ns(Step::Thin, 0, got)))
    }

    pub const fn ns(&self, step: Step, from: usize, bytes: u64) -> u64 {
        self.us_per_mib(step, from) * bytes / 1049
    }

    /// New tokens, as far as the budget lets them in.
    pub fn append(&mut self, bytes: u64) {
        let room = self.budget.saturating_sub(self.resident());
        self.live[0] += bytes.min(room);
    }

    /// The same for a time, at the rate that is assumed.
    pub fn append_for(&mut self, ns: u64) {
        let rate = u64::from(self.setup.tokens_per_s) * self.setup.token.0;
        let bytes = u128::from(rate) * u128::from(ns) / 1_000_000_000;
        self.append(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}
