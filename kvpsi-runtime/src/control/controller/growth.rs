//! How fast memory that cannot be reclaimed grows below a wall.

use crate::units::Bytes;

/// Shorter times say nothing: the kernel charges and counts in batches of 64
/// pages per CPU.
const LEAST_NS: u64 = 1_000_000;
/// Older looks say nothing about now.
const MOST_NS: u64 = 100_000_000;

/// Bytes a look apart, what was given back in between added.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    last: Option<(u64, u32, Bytes)>,
    returned: Bytes,
    /// Bytes a millisecond.
    rate: u64,
}

impl Growth {
    /// So much was in use then, of the cgroup so many levels up.
    pub fn look(&mut self, now_ns: u64, up: u32, used: Bytes) {
        let Some((then_ns, _, before)) = self.last.filter(|l| l.1 == up) else {
            self.last = Some((now_ns, up, used));
            self.returned = Bytes::ZERO;
            return;
        };
        let passed = now_ns.saturating_sub(then_ns);
        if passed < LEAST_NS {
            return;
        }
        let more = Bytes(used.0.saturating_add(self.returned.0)).saturating_sub(before);
        let rate = more.0.saturating_mul(1_000_000) / passed;
        self.rate = if passed > MOST_NS {
            0
        } else {
            rate.max(self.rate / 2)
        };
        self.last = Some((now_ns, up, used));
        self.returned = Bytes::ZERO;
    }

    /// So much was given back.
    pub fn returned(&mut self, bytes: Bytes) {
        self.returned = Bytes(self.returned.0.saturating_add(bytes.0));
    }

    /// What comes within so many ns at this rate.
    pub fn within(&self, ns: u64) -> Bytes {
        Bytes(self.rate.saturating_mul(ns / 1000) / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_came_beside_what_was_given_back() {
        let ms = 1_000_000;
        let mut g = Growth::default();
        g.look(0, 0, Bytes::mib(100));
        g.returned(Bytes::mib(3));
        g.look(2 * ms, 0, Bytes::mib(101));
        assert_eq!(g.within(2 * ms), Bytes::mib(4));
        // Too soon to say anything.
        g.look(2 * ms + 10, 0, Bytes::mib(150));
        assert_eq!(g.within(2 * ms), Bytes::mib(4));
        // It slows down.
        g.look(4 * ms, 0, Bytes::mib(101));
        assert_eq!(g.within(2 * ms), Bytes::mib(2));
        g.look(500 * ms, 0, Bytes::mib(300));
        assert_eq!(g.within(2 * ms), Bytes::ZERO);
    }
}
