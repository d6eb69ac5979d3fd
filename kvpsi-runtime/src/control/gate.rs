//! When the system is looked at without an event: while kswapd works.
//!
//! kswapd takes pages of a working set without stalling a task itself; who reads
//! them again waits, and raw tracepoints do not tell. So kswapd's wake opens the
//! gate, and while it works, and a moment after, PSI's total is looked at each
//! [`LOOK`]. Where it moved, or where there is no PSI, /proc/vmstat says whether
//! a working set came back. A kswapd that is awake and finds nothing to do closes the
//! gate, and no wake comes when it goes on: until it sleeps, and at the start, it is
//! looked for each [`AWAKE_NS`]. While it sleeps, the gate has nothing read.
//! Out of scope: what a working set that came back is worth
//! ([`super::controller`]).

use kvpsi_common::{Event, Kind};
use std::time::Duration;

/// Between two looks. /proc/vmstat takes 25 us, PSI's total 2.
const LOOK: Duration = Duration::from_millis(2);
/// Between two looks for a kswapd that did nothing at the last.
const AWAKE_NS: u64 = 100_000_000;
/// How long it stays open without a sign of kswapd.
const HOLD_NS: u64 = 20_000_000;

/// What its events told.
#[derive(Debug, Default)]
enum Kswapd {
    /// No event told yet, or one of several sleeps.
    #[default]
    Unknown,
    Awake,
    Asleep,
}

/// Open while kswapd works.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Open until then, ns; 0: closed.
    until_ns: u64,
    kswapd: Kswapd,
    looked_ns: u64,
}

impl Gate {
    /// Takes in one event.
    pub fn observe(&mut self, e: &Event) {
        match Kind::from_raw(e.kind) {
            Some(Kind::KswapdWake) => self.kswapd = Kswapd::Awake,
            // It is awake, or has given up.
            Some(Kind::DirectReclaim) => {}
            // Of one node, and perhaps before a wake that was told no more.
            Some(Kind::KswapdSleep) => {
                self.kswapd = Kswapd::Unknown;
                return;
            }
            _ => return,
        }
        self.until_ns = self.until_ns.max(e.ts_ns.saturating_add(HOLD_NS));
    }

    /// No event comes any more: kswapd is looked for as long as we run.
    pub fn loses_its_events(&mut self) {
        self.kswapd = Kswapd::Awake;
    }

    pub fn is_open(&self) -> bool {
        self.until_ns != 0
    }

    /// How long until the next look; `None`: kswapd sleeps.
    pub fn sleep(&self, now_ns: u64) -> Option<Duration> {
        if self.is_open() {
            return Some(LOOK);
        }
        let next = self.next_ns()?;
        Some(Duration::from_nanos(next.saturating_sub(now_ns)))
    }

    /// When a kswapd that may be awake is looked for, while it is closed.
    fn next_ns(&self) -> Option<u64> {
        let looks = !matches!(self.kswapd, Kswapd::Asleep);
        looks.then_some(self.looked_ns.saturating_add(AWAKE_NS))
    }

    /// Somebody is to look whether kswapd works: else it would close now, or stay closed.
    pub fn is_due(&self, now_ns: u64) -> bool {
        if self.is_open() {
            now_ns >= self.until_ns
        } else {
            self.next_ns().is_some_and(|t| now_ns >= t)
        }
    }

    /// Somebody looked whether kswapd worked since the last look.
    pub fn looked(&mut self, now_ns: u64, kswapd_works: bool) {
        if kswapd_works {
            self.until_ns = now_ns.saturating_add(HOLD_NS);
        } else if self.is_open() {
            if self.is_due(now_ns) {
                self.until_ns = 0;
            }
        } else if matches!(self.kswapd, Kswapd::Unknown)
            && self.looked_ns != 0
            && self.is_due(now_ns)
        {
            self.kswapd = Kswapd::Asleep;
        }
        self.looked_ns = now_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_open_while_kswapd_works_and_a_moment_after() {
        let mut g = Gate::default();
        g.observe(&event(Kind::KswapdWake, 5));
        assert!(g.is_open() && !g.is_due(HOLD_NS));
        g.looked(HOLD_NS, true);
        assert!(!g.is_due(HOLD_NS + 5));
        g.looked(HOLD_NS + 6, false);
        assert!(g.is_open() && g.is_due(2 * HOLD_NS));
        g.looked(2 * HOLD_NS, false);
        assert!(!g.is_open());
    }

    /// Its wake came before we did, or it waits and goes on without a sleep between.
    #[test]
    fn a_kswapd_that_is_awake_already_opens_it() {
        const MS: u64 = 1_000_000;
        let mut g = Gate::default();
        g.looked(1, false);
        assert!(!g.is_open() && !g.is_due(99 * MS) && g.is_due(101 * MS));
        g.looked(101 * MS, true);
        assert!(g.is_open());
        g.looked(122 * MS, false);
        assert!(!g.is_open() && g.is_due(222 * MS));
        g.looked(222 * MS, true);
        assert!(g.is_open());
        // It sleeps: after one more look nothing is looked at. Another node's may not.
        g.observe(&event(Kind::KswapdSleep, 230 * MS));
        g.looked(250 * MS, false);
        g.looked(350 * MS, true);
        assert!(g.is_open());
        g.observe(&event(Kind::KswapdSleep, 360 * MS));
        g.looked(400 * MS, false);
        assert!(!g.is_open() && g.is_due(500 * MS));
        g.looked(500 * MS, false);
        assert!(!g.is_open() && !g.is_due(u64::MAX));
        // It slept from the start.
        let mut g = Gate::default();
        g.looked(1, false);
        g.looked(50 * MS, false);
        assert!(g.is_due(150 * MS));
        g.looked(150 * MS, false);
        assert!(!g.is_due(u64::MAX));
        // Who reclaims himself found it awake.
        g.observe(&event(Kind::DirectReclaim, 300 * MS));
        assert!(g.is_open());
    }

    fn event(kind: Kind, ts_ns: u64) -> Event {
        Event {
            kind: kind as u16,
            ts_ns,
            ..bytemuck::Zeroable::zeroed()
        }
    }
}
