//! An amount per second: what is added drains within about a second.

/// A leaky bucket over one second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    level: u64,
    at_ns: u64,
}

const SECOND: u64 = 1_000_000_000;

impl Bucket {
    /// What is in it at that moment.
    pub fn level(&self, now_ns: u64) -> u64 {
        let age = now_ns.saturating_sub(self.at_ns).min(SECOND);
        let left = u128::from(self.level) * u128::from(SECOND - age) / u128::from(SECOND);
        u64::try_from(left).unwrap_or(u64::MAX)
    }

    /// Adds what came within `over_ns`: of a longer time than a second its share.
    pub fn add_over(&mut self, now_ns: u64, more: u64, over_ns: u64) {
        let within = u128::from(over_ns.min(SECOND)).max(1);
        let part = u128::from(more) * within / u128::from(over_ns.max(1));
        self.add(now_ns, u64::try_from(part).unwrap_or(u64::MAX));
    }

    pub fn add(&mut self, now_ns: u64, more: u64) {
        self.level = self.level(now_ns).saturating_add(more);
        self.at_ns = self.at_ns.max(now_ns);
    }

    pub fn less(&mut self, now_ns: u64, less: u64) {
        self.level = self.level(now_ns).saturating_sub(less);
        self.at_ns = self.at_ns.max(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_gone_after_a_second_and_numbers_do_not_wrap() {
        let mut b = Bucket::default();
        b.add(0, 100);
        assert_eq!(b.level(SECOND / 2), 50);
        b.add(SECOND / 2, 50);
        assert_eq!(b.level(SECOND / 2), 100);
        b.less(SECOND / 2, 30);
        assert_eq!(b.level(SECOND / 2), 70);
        assert_eq!(b.level(2 * SECOND), 0);
        b.add(2 * SECOND, u64::MAX);
        b.add(2 * SECOND, u64::MAX);
        assert_eq!(b.level(0), u64::MAX);
        let mut b = Bucket::default();
        b.add_over(60 * SECOND, 600, 60 * SECOND);
        assert_eq!(b.level(60 * SECOND), 10);
        b.add_over(60 * SECOND, 5, 0);
        b.add_over(60 * SECOND, 5, SECOND / 2);
        assert_eq!(b.level(60 * SECOND), 20);
    }
}
