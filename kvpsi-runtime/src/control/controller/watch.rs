//! When a cgroup's wall is looked at without an event.
//!
//! Where no page cache is left the OOM killer comes 100 us after a charge fails,
//! and a reactor that waits for the stall may come too late. So a wall that was
//! hit is watched while there is little room at it: the longer nothing is missing,
//! the less often. What is missing is then returned before the next charge fails.
//! Out of scope: what is returned ([`super::burst`]).

use super::ns;
use crate::control::wall::CgroupLevel;
use std::time::Duration;

/// Least and most time between two looks.
const LEAST: Duration = Duration::from_millis(2);
const MOST: Duration = Duration::from_millis(250);
/// Looks come after a 32nd of the time that nothing was missing for: what grows
/// by the headroom in the time between two looks would have been seen earlier.
const SHARE: u64 = 32;
/// The watch ends when nothing was missing for so long.
const END: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// The wall was hit, or something was missing.
    pressed_ns: Option<u64>,
    looked_ns: u64,
    /// Less than twice the headroom is left.
    near: bool,
}

impl Watch {
    /// Takes in a reading.
    pub fn looked(&mut self, now_ns: u64, wall: Option<&CgroupLevel>) {
        self.looked_ns = now_ns;
        self.near = wall.is_some_and(|c| c.room() < c.headroom());
        if wall.is_some_and(CgroupLevel::was_hit) {
            self.pressed(now_ns);
        }
    }

    /// Something is missing.
    pub fn pressed(&mut self, now_ns: u64) {
        self.pressed_ns = Some(now_ns);
    }

    /// When the next look is due, ns; `None`: not watched.
    pub fn next(&self) -> Option<u64> {
        let calm = self.looked_ns.saturating_sub(self.pressed_ns?);
        let wait = (calm / SHARE).clamp(ns(LEAST), ns(MOST));
        (self.near && calm < ns(END)).then(|| self.looked_ns.saturating_add(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn wall(left: Bytes, hits: u64) -> CgroupLevel {
        let limit = Bytes::mib(256);
        CgroupLevel {
            usage: Bytes(limit.0 - left.0),
            limit,
            hits: Some(hits),
            ..CgroupLevel::default()
        }
    }

    #[test]
    fn a_wall_that_was_hit_is_watched_less_and_less_while_it_is_near() {
        let ms = 1_000_000;
        let mut w = Watch::default();
        w.looked(ms, Some(&wall(Bytes::mib(1), 0)));
        assert_eq!(w.next(), None);
        w.looked(2 * ms, Some(&wall(Bytes::mib(1), 1)));
        assert_eq!(w.next(), Some(4 * ms));
        w.looked(642 * ms, Some(&wall(Bytes::mib(5), 0)));
        assert_eq!(w.next(), Some(662 * ms));
        w.looked(40_000 * ms, Some(&wall(Bytes::mib(5), 0)));
        assert_eq!(w.next(), Some(40_250 * ms));
        w.looked(40_250 * ms, Some(&wall(Bytes::mib(9), 0)));
        assert_eq!(w.next(), None);
        w.looked(63_000 * ms, Some(&wall(Bytes::mib(5), 0)));
        assert_eq!(w.next(), None);
        w.pressed(63_000 * ms);
        assert_eq!(w.next(), Some(63_002 * ms));
        w.looked(63_002 * ms, None);
        assert_eq!(w.next(), None);
    }
}
