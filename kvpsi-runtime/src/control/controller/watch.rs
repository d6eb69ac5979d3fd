//! When a cgroup's wall is looked at without an event.
//!
//! Where no page cache is left the OOM killer comes 100 us after a charge fails,
//! and a reactor that waits for the stall may come too late. So a wall is watched:
//! the less room is left, the more often, and for a while after something was missing
//! more often still. A look is a glance at the usage alone (a system call for each
//! level); all files are read where the usage rose into the headroom, and now and
//! then, since a limit may be set at any time. What is missing is then returned before
//! the next charge fails.
//! Out of scope: what is returned ([`super::burst`]).

use super::ns;
use crate::control::wall::CgroupLevel;
use std::time::Duration;

/// Least time between two looks, and most, also where there is no wall. Then all files
/// are read: a limit that is set is known within a second.
const LEAST: Duration = Duration::from_millis(2);
const MOST: Duration = Duration::from_millis(900);
/// Growth that a look is to come before, bytes a second: about what one thread
/// touches, for [`RECENT`] after something was missing; else what cameras and logs
/// take.
const FAST: u64 = 2 << 30;
const SLOW: u64 = 128 << 20;
const RECENT: Duration = Duration::from_secs(60);
/// Between two readings of all files while something was missing lately and page cache
/// may have become anonymous memory, which no glance sees: of two that share a wall the
/// one with the older reading would leave all giving to the other.
const AGAIN: Duration = Duration::from_millis(250);
/// Below the headroom, less that is given back is taken for noise: the kernel charges
/// in batches.
const BACK: i64 = 512 << 10;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// The wall was hit, or something was missing.
    pressed_ns: Option<u64>,
    /// A glance found less than the headroom, and less than before.
    fell_ns: Option<u64>,
    /// The last reading of all files, and the last glance.
    looked_ns: u64,
    glanced_ns: u64,
    /// What was left above the headroom then, bytes; `None`: no wall.
    looked: Option<i64>,
    glanced: i64,
    headroom: u64,
    /// Clean page cache at the last reading of all files, bytes.
    file: i64,
}

impl Watch {
    /// Takes in a reading.
    pub fn looked(&mut self, now_ns: u64, wall: Option<&CgroupLevel>) {
        (self.looked_ns, self.glanced_ns) = (now_ns, now_ns);
        self.looked = wall.map(CgroupLevel::above_headroom);
        self.glanced = self.looked.unwrap_or_default();
        self.headroom = wall.map_or(0, |c| c.headroom().0);
        let file = wall.and_then(|c| c.file).unwrap_or_default();
        self.file = i64::try_from(file.0).unwrap_or(i64::MAX);
        if wall.is_some_and(CgroupLevel::was_hit) {
            self.pressed(now_ns);
        }
    }

    /// Something is missing.
    pub fn pressed(&mut self, now_ns: u64) {
        self.pressed_ns = Some(now_ns);
    }

    /// Something was missing a while ago.
    pub fn is_recent(&self) -> bool {
        let since = |t: u64| self.glanced_ns.saturating_sub(t);
        self.pressed_ns.is_some_and(|t| since(t) < ns(RECENT))
    }

    /// When the next look is due, ns.
    pub fn next(&self) -> u64 {
        if self.looked.is_none() {
            return self.looked_ns.saturating_add(ns(MOST));
        }
        let speed = if self.is_recent() { FAST } else { SLOW };
        // Half of the headroom is the time until pages are back.
        let left = u64::try_from(self.glanced).unwrap_or(0) + self.headroom / 2;
        let wait = left.saturating_mul(1_000_000) / (speed / 1000);
        self.glanced_ns
            .saturating_add(wait.clamp(ns(LEAST), ns(MOST)))
    }

    /// The next look from now on, where so much is left at the nearest wall.
    pub fn next_at(&self, now_ns: u64, nearest: Option<i64>) -> u64 {
        let left = nearest.map_or(u64::MAX, |left| u64::try_from(left).unwrap_or(0));
        // Two that share a wall see what is missing there at the same time, and both give:
        // one that waits would have the other give all of it.
        if left < self.headroom {
            return now_ns;
        }
        let wait = (left / (FAST / 1_000_000_000)).max(ns(LEAST));
        self.next().clamp(now_ns, now_ns.saturating_add(wait))
    }

    /// A look is due and all files are to be read: what is left above the headroom,
    /// asked of `left`, is less than nothing and less than it was, or cannot be told.
    pub fn is_due(&mut self, now_ns: u64, left: impl FnOnce() -> Option<i64>) -> bool {
        if now_ns < self.next() {
            return false;
        }
        let Some(left) = left() else { return true };
        (self.glanced_ns, self.glanced) = (now_ns, left);
        let fell = self.looked.is_some_and(|before| left < before.min(0));
        if fell {
            // Again: usage moves in the headroom. Where another gives what is missing each
            // time, no wall is hit, and this one would never begin to.
            let since = |t: u64| now_ns.saturating_sub(t) < ns(RECENT);
            if self.fell_ns.replace(now_ns).is_some_and(since) {
                self.pressed(now_ns);
            }
        }
        // What came back counts when it is gone again.
        if let Some(before) = &mut self.looked
            && (left >= 0 || left.saturating_sub(*before) >= BACK)
        {
            *before = left;
        }
        // Files other than the usage change too.
        let again = match self.is_recent() && left < self.file {
            true => AGAIN,
            false => MOST,
        };
        fell || now_ns.saturating_sub(self.looked_ns) >= ns(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    const MS: u64 = 1_000_000;

    /// So much is left below a limit of 256 MiB, of which 4 are headroom.
    fn wall(left: u64, hits: u64) -> CgroupLevel {
        let limit = Bytes::mib(256);
        CgroupLevel {
            usage: limit.saturating_sub(Bytes::mib(left)),
            limit,
            hits: Some(hits),
            ..CgroupLevel::default()
        }
    }

    #[test]
    fn a_wall_that_was_hit_is_watched_the_more_the_less_is_left() {
        let mut w = Watch::default();
        w.looked(MS, Some(&wall(1, 0)));
        assert_eq!(w.next() / MS, 16);
        w.looked(2 * MS, Some(&wall(1, 1)));
        assert_eq!(w.next(), 4 * MS);
        let wait = |w: &mut Watch, at: u64, left: u64| {
            w.looked(at * MS, Some(&wall(left, 0)));
            w.next().div_ceil(MS) - at
        };
        assert_eq!(wait(&mut w, 100, 4), 2);
        assert_eq!(wait(&mut w, 50_000, 66), 32);
        assert_eq!(wait(&mut w, 50_000, 256), 125);
        assert_eq!(wait(&mut w, 70_000, 6), 32);
        assert_eq!(wait(&mut w, 70_000, 66), 501);
        assert_eq!(wait(&mut w, 70_000, 256), 900);
        w.pressed(601_000 * MS);
        assert_eq!(wait(&mut w, 601_001, 6), 2);
        // A limit may be set: no glance tells, all files are read.
        w.looked(601_002 * MS, None);
        assert!(!w.is_due(601_901 * MS, || panic!("too early")));
        assert!(w.is_due(601_902 * MS, || None));
    }

    #[test]
    fn all_files_are_read_where_usage_rose_into_the_headroom() {
        let mut w = Watch::default();
        w.looked(MS, Some(&wall(8, 1)));
        assert!(!w.is_due(2 * MS, || panic!("too early")));
        assert!(!w.is_due(5 * MS, || Some(1)));
        // Less was left: the next comes sooner.
        assert_eq!(w.next(), 7 * MS);
        assert!(w.is_due(7 * MS, || Some(-1)));
        // What was seen already is nothing new, for a while.
        w.looked(7 * MS, Some(&wall(2, 0)));
        assert!(!w.is_due(9 * MS, || Some(-(2 << 20))));
        assert!(w.is_due(11 * MS, || Some(-(2 << 20) - 1)));
        // But what another gave back, and is used again, is.
        assert!(!w.is_due(13 * MS, || Some(-(1 << 20))));
        assert!(w.is_due(15 * MS, || Some(-(3 << 19))));
        assert!(!w.is_due(17 * MS, || Some(1)));
        assert!(w.is_due(19 * MS, || Some(-1)));
        assert!(!w.is_due(257 * MS, || Some(0)));
        assert!(w.is_due(300 * MS, || None));
        // Page cache may be anonymous memory by now, where that would matter.
        let file = Some(Bytes::mib(3));
        w.looked(400 * MS, Some(&CgroupLevel { file, ..wall(8, 0) }));
        assert!(!w.is_due(649 * MS, || Some(2 << 20)));
        assert!(!w.is_due(660 * MS, || Some(4 << 20)));
        assert!(w.is_due(680 * MS, || Some(2 << 20)));
        w.looked(7 * MS, Some(&wall(2, 0)));
        // The limit may be lower now.
        assert!(w.is_due(907 * MS, || Some(0)));
        w.looked(70_000 * MS, Some(&wall(66, 0)));
        assert!(!w.is_due(70_500 * MS, || Some(62 << 20)));
        assert!(w.is_due(70_972 * MS, || Some(62 << 20)));
    }

    #[test]
    fn a_wall_that_another_keeps_from_being_hit_is_pressed_too() {
        let mut w = Watch::default();
        w.looked(MS, Some(&wall(5, 0)));
        assert!(w.is_due(101 * MS, || Some(-1)));
        w.looked(101 * MS, Some(&wall(3, 0)));
        assert!(!w.is_recent());
        // The other gave, and usage is back.
        assert!(!w.is_due(201 * MS, || Some(1)));
        assert!(w.is_due(301 * MS, || Some(-1)) && w.is_recent());
    }

    /// Growth at any phase of the watch is seen before the limit is reached, and where
    /// nothing was missing for a while if it is slow.
    #[test]
    fn growth_after_a_calm_time_is_seen_before_the_wall() {
        for (calm, kib_a_ms) in [(3_000, 100), (3_000, 1000), (59_000, 1000), (90_000, 100)] {
            for phase in 0..40 {
                let mut w = Watch::default();
                let limit = 256 << 20;
                // 5 MiB are left, one above the headroom.
                let mut used: u64 = limit - (5 << 20);
                let level = |used: u64, hits| CgroupLevel {
                    usage: Bytes(used),
                    limit: Bytes(limit),
                    hits: Some(hits),
                    ..CgroupLevel::default()
                };
                w.looked(MS, Some(&level(used, 1)));
                let mut now = MS;
                let begins = (calm + phase) * MS;
                let read = level(used, 0);
                loop {
                    now += MS / 4;
                    if now > begins {
                        used += kib_a_ms << 8;
                    }
                    assert!(
                        used < limit,
                        "{calm} ms, {kib_a_ms} KiB a ms, phase {phase}"
                    );
                    let left = read.above_headroom() - i64::try_from(used - read.usage.0).unwrap();
                    if w.is_due(now, || Some(left)) {
                        w.looked(now, Some(&level(used, 0)));
                        if level(used, 0).missing() > Bytes::ZERO {
                            break;
                        }
                    }
                }
            }
        }
    }
}
