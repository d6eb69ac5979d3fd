//! How far a level rose above its lowest of the last second.

use crate::units::Bytes;

/// Half of the time that is looked back.
const HALF_NS: u64 = 500_000_000;

/// The lowest of this half second and of the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lowest {
    halves: [Option<Bytes>; 2],
    since_ns: u64,
    now: Bytes,
}

impl Lowest {
    /// So much it was then.
    pub fn look(&mut self, now_ns: u64, level: Bytes) {
        let passed = now_ns.saturating_sub(self.since_ns);
        if passed >= HALF_NS {
            self.halves = [self.halves[1].filter(|_| passed < 2 * HALF_NS), None];
            self.since_ns = now_ns;
        }
        let low = self.halves[1].map_or(level, |l| l.min(level));
        self.halves[1] = Some(low);
        self.now = level;
    }

    /// Above the lowest, as of the last look.
    pub fn risen(&self) -> Bytes {
        let lowest = self.halves.iter().flatten().min();
        lowest.map_or(Bytes::ZERO, |l| self.now.saturating_sub(*l))
    }

    /// So much of the rise was made room for.
    pub fn answered(&mut self, bytes: Bytes) {
        for low in self.halves.iter_mut().flatten() {
            *low = Bytes(low.0.saturating_add(bytes.0)).min(self.now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_does_not_add_up_and_a_rise_is_forgotten_after_a_second() {
        let (ms, mib) = (1_000_000, Bytes::mib);
        let mut l = Lowest::default();
        for i in 0..2000u64 {
            l.look(i * ms / 2, mib(100 + i % 2));
        }
        assert!(l.risen() <= mib(1));
        l.look(1000 * ms, mib(120));
        assert_eq!(l.risen(), mib(20));
        l.answered(mib(15));
        assert_eq!(l.risen(), mib(5));
        l.answered(mib(15));
        assert_eq!(l.risen(), mib(0));
        l.look(1001 * ms, mib(130));
        l.look(1501 * ms, mib(130));
        assert_eq!(l.risen(), mib(10));
        l.look(3000 * ms, mib(130));
        assert_eq!(l.risen(), mib(0));
    }
}
