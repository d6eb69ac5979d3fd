//! How long pages under a guard take to reach the kernel.
//!
//! A layer is over in a fraction of a millisecond, unless the thread that holds its
//! guard is descheduled: beside busy neighbours that is several milliseconds, in
//! which memory goes on growing. What was seen lately is provided for.

use crate::units::Bytes;

/// More is not provided for: two slices of a busy neighbour (Linux's default is
/// 3 to 4 ms).
const MOST_NS: u64 = 8_000_000;
/// A layer is over within this, unless who holds its guard is descheduled.
const OVERDUE_NS: u64 = 1_000_000;
/// What was seen counts half after so long.
const HALVES_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deferral {
    /// On its way now.
    pub bytes: Bytes,
    since_ns: Option<u64>,
    worst_ns: u64,
    halved_ns: u64,
}

impl Deferral {
    /// So much was on its way then.
    pub fn look(&mut self, now_ns: u64, bytes: Bytes) {
        self.bytes = bytes;
        let passed = now_ns.saturating_sub(self.halved_ns);
        if passed >= HALVES_NS {
            let times = u32::try_from(passed / HALVES_NS).unwrap_or(u32::MAX);
            self.worst_ns = self.worst_ns.checked_shr(times).unwrap_or(0);
            self.halved_ns = now_ns;
        }
        if bytes == Bytes::ZERO {
            self.since_ns = None;
            return;
        }
        let took = now_ns.saturating_sub(*self.since_ns.get_or_insert(now_ns));
        self.worst_ns = self.worst_ns.max(took.min(MOST_NS));
    }

    /// What is on its way is kept by a thread that does not run.
    pub fn overdue(&self, now_ns: u64) -> bool {
        let late = |since| now_ns.saturating_sub(since) >= OVERDUE_NS;
        self.since_ns.is_some_and(late)
    }

    /// How long it took lately at worst, ns.
    pub fn latency_ns(&self) -> u64 {
        self.worst_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_deferral_counts_and_is_forgotten() {
        let ms = 1_000_000;
        let some = Bytes::mib(1);
        let mut d = Deferral::default();
        d.look(5000 * ms, some);
        assert!(!d.overdue(5000 * ms) && d.overdue(5001 * ms));
        d.look(5003 * ms, some);
        d.look(5004 * ms, Bytes::ZERO);
        assert_eq!((d.latency_ns(), d.overdue(5005 * ms)), (3 * ms, false));
        d.look(5005 * ms, some);
        d.look(5006 * ms, some);
        assert_eq!(d.latency_ns(), 3 * ms);
        d.look(6007 * ms, Bytes::ZERO);
        assert_eq!(d.latency_ns(), 3 * ms / 2);
        d.look(9000 * ms, some);
        d.look(9100 * ms, some);
        assert_eq!(d.latency_ns(), MOST_NS);
        d.look(200_000 * ms, Bytes::ZERO);
        assert_eq!(d.latency_ns(), 0);
    }
}
