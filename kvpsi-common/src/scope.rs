//! `some` time: how long at least one task of a scope was stalled; and `full`
//! time: how long so many were that no CPU was left for another.
//!
//! The clocks that PSI keeps, for kernels built without it; which scopes there
//! are is in [`crate::shared`]. Where they differ from PSI's, by design:
//! - PSI keeps `some` per CPU and averages over the CPUs that are not idle; a
//!   task that stalls on one of n busy CPUs is 1/n to PSI, and all to us.
//! - PSI's `full` asks whether a task runs that is not stalled. Scheduling is
//!   not reported here: `full` counts while as many tasks stall as there are
//!   CPUs. On one CPU both are `some`; with idle CPUs ours is the smaller.
//!
//! Kept by every CPU at once without fetching atomics (see
//! [`crate::coalesce`]). What that costs: two tasks whose stalls end within
//! nanoseconds of each other may both see the scope empty and both add the
//! interval, so `some` may count that one interval twice. A stall that begins
//! in the nanoseconds in which the last one ends is joined to it. Tasks are
//! counted exactly.

use crate::cell::Cell;
use bytemuck::{Pod, Zeroable};

/// The clock of one scope, shared by all CPUs. All zero at first.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ScopeClock {
    stalled: Cell,
    since_ns: Cell,
    some_ns: Cell,
    /// 0 while not all are stalled.
    full_since_ns: Cell,
    full_ns: Cell,
    _pad: [u64; 3],
}

impl ScopeClock {
    /// A task begins to stall; with `cpus` of them it is full. True if others
    /// are stalled already.
    #[inline(always)]
    pub fn enter(&self, now_ns: u64, cpus: u64) -> bool {
        let others = self.stalled.load() > 0;
        if !others {
            self.since_ns.store(now_ns);
        }
        self.stalled.add(1);
        if self.stalled.load() >= cpus && self.full_since_ns.load() == 0 {
            self.full_since_ns.store(now_ns);
        }
        others
    }

    /// A task that entered stalls no more. `cpus` as in [`Self::enter`].
    #[inline(always)]
    pub fn leave(&self, now_ns: u64, cpus: u64) {
        self.stalled.add(1u64.wrapping_neg());
        let left = self.stalled.load();
        let full_since = self.full_since_ns.load();
        if full_since != 0 && left < cpus {
            self.full_since_ns.store(0);
            self.full_ns.add(now_ns.saturating_sub(full_since));
        }
        if left == 0 {
            let since = self.since_ns.load();
            // A task that enters just now and still saw us must not count
            // from before this moment.
            self.since_ns.store(now_ns);
            self.some_ns.add(now_ns.saturating_sub(since));
        }
    }

    /// Tasks stalled at this moment.
    #[inline(always)]
    pub fn stalled(&self) -> u64 {
        self.stalled.load()
    }

    /// `some` time up to now, a stall under way included. In ns.
    #[inline(always)]
    pub fn some_ns(&self, now_ns: u64) -> u64 {
        let open = if self.stalled.load() > 0 {
            now_ns.saturating_sub(self.since_ns.load())
        } else {
            0
        };
        self.some_ns.load() + open
    }
}

/// A [`ScopeClock`] as user space reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ScopeReading {
    /// Tasks stalled.
    pub stalled: u64,
    /// Since when, `CLOCK_MONOTONIC` in ns; meaningless if none is.
    pub since_ns: u64,
    /// `some` time of the stalls that are over, in ns.
    pub closed_ns: u64,
    /// Since when all are stalled, as `since_ns`; 0 if not all are.
    pub full_since_ns: u64,
    /// `full` time of the spells that are over, in ns.
    pub full_closed_ns: u64,
    /// Padding.
    pub _pad: [u64; 3],
}

impl ScopeReading {
    /// `some` time up to now, a stall under way included. In ns.
    #[must_use]
    pub const fn some_ns(&self, now_ns: u64) -> u64 {
        let open = if self.stalled > 0 {
            now_ns.saturating_sub(self.since_ns)
        } else {
            0
        };
        self.closed_ns + open
    }

    /// `full` time up to now, a spell under way included. In ns.
    #[must_use]
    pub const fn full_ns(&self, now_ns: u64) -> u64 {
        let open = if self.full_since_ns > 0 {
            now_ns.saturating_sub(self.full_since_ns)
        } else {
            0
        };
        self.full_closed_ns + open
    }
}

const _: () = {
    assert!(core::mem::size_of::<ScopeClock>() == 64);
    assert!(core::mem::size_of::<ScopeReading>() == 64);
    assert!(
        core::mem::offset_of!(ScopeClock, some_ns)
            == core::mem::offset_of!(ScopeReading, closed_ns)
    );
    assert!(
        core::mem::offset_of!(ScopeClock, full_ns)
            == core::mem::offset_of!(ScopeReading, full_closed_ns)
    );
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn overlapping_stalls_count_once() {
        let c = ScopeClock::default();
        assert!(!c.enter(100, 2));
        assert!(c.enter(150, 2));
        assert_eq!(c.some_ns(160), 60);
        c.leave(200, 2);
        c.leave(300, 2);
        assert_eq!(c.some_ns(1000), 200);
        assert_eq!(c.full_ns.load(), 50);
        assert!(!c.enter(1000, 2));
        c.leave(1010, 2);
        assert_eq!(c.some_ns(2000), 210);
        assert_eq!(c.full_ns.load(), 50);
    }

    proptest! {
        #[test]
        fn some_and_full_time_are_when_one_and_when_all_cpus_worth_of_tasks_stall(
            stalls in prop::collection::vec((1u64..10_000, 0u64..500), 1..60),
            cpus in 1u64..5,
        ) {
            // (time, is_leave): enters sort before leaves of the same moment.
            let mut edges: Vec<(u64, bool)> = stalls
                .iter()
                .flat_map(|(at, len)| [(*at, false), (at + len, true)])
                .collect();
            edges.sort_unstable();
            let clock = ScopeClock::default();
            for (at, leave) in edges {
                if leave { clock.leave(at, cpus) } else { clock.enter(at, cpus); }
            }
            let with = |n: u64| (0u64..11_000)
                .filter(|t| {
                    let then = stalls.iter().filter(|(at, len)| at <= t && *t < at + len);
                    then.count() as u64 >= n
                })
                .count() as u64;
            prop_assert_eq!(clock.some_ns(1 << 40), with(1));
            prop_assert_eq!(clock.full_ns.load(), with(cpus));
            prop_assert_eq!(clock.full_since_ns.load(), 0);
            prop_assert_eq!(clock.stalled(), 0);
        }
    }
}
