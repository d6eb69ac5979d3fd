//! `some` time: how long at least one task of a scope was stalled.
//!
//! The clock that PSI keeps, for kernels built without it. Two scopes: the
//! whole system, and the one memory cgroup that kvpsi watches.
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
    _pad: [u64; 5],
}

impl ScopeClock {
    /// A task begins to stall. True if others are stalled already.
    #[inline(always)]
    pub fn enter(&self, now_ns: u64) -> bool {
        let others = self.stalled.load() > 0;
        if !others {
            self.since_ns.store(now_ns);
        }
        self.stalled.add(1);
        others
    }

    /// A task that entered stalls no more.
    #[inline(always)]
    pub fn leave(&self, now_ns: u64) {
        self.stalled.add(1u64.wrapping_neg());
        if self.stalled.load() == 0 {
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
    /// Padding.
    pub _pad: [u64; 5],
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
}

const _: () = {
    assert!(core::mem::size_of::<ScopeClock>() == 64);
    assert!(core::mem::size_of::<ScopeReading>() == 64);
    assert!(
        core::mem::offset_of!(ScopeClock, some_ns)
            == core::mem::offset_of!(ScopeReading, closed_ns)
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
        assert!(!c.enter(100));
        assert!(c.enter(150));
        assert_eq!(c.some_ns(160), 60);
        c.leave(200);
        c.leave(300);
        assert_eq!(c.some_ns(1000), 200);
        assert!(!c.enter(1000));
        c.leave(1010);
        assert_eq!(c.some_ns(2000), 210);
    }

    proptest! {
        #[test]
        fn some_time_is_the_length_of_the_union_of_the_stalls(
            stalls in prop::collection::vec((0u64..10_000, 0u64..500), 1..60),
        ) {
            // (time, is_leave): enters sort before leaves of the same moment.
            let mut edges: Vec<(u64, bool)> = stalls
                .iter()
                .flat_map(|(at, len)| [(*at, false), (at + len, true)])
                .collect();
            edges.sort_unstable();
            let clock = ScopeClock::default();
            for (at, leave) in edges {
                if leave { clock.leave(at) } else { clock.enter(at); }
            }
            let union = (0u64..11_000)
                .filter(|t| stalls.iter().any(|(at, len)| at <= t && *t < at + len))
                .count() as u64;
            prop_assert_eq!(clock.some_ns(1 << 40), union);
            prop_assert_eq!(clock.stalled(), 0);
        }
    }
}
