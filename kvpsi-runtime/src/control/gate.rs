//! When the system is looked at without an event: while kswapd works.
//!
//! kswapd takes pages of a working set without stalling a task itself; who reads
//! them again waits, and raw tracepoints do not tell. So kswapd's wake opens the
//! gate, and while it works, and a moment after, PSI's total is looked at each
//! [`LOOK`]. Where it moved, or where there is no PSI, /proc/vmstat says whether
//! a working set came back. Closed, nothing is read.
//! Out of scope: what a working set that came back is worth
//! ([`super::controller`]).

use kvpsi_common::{Event, Kind};
use std::time::Duration;

/// Between two looks. /proc/vmstat takes 25 us, PSI's total 2.
pub(super) const LOOK: Duration = Duration::from_millis(2);
/// How long it stays open without a sign of kswapd.
const HOLD_NS: u64 = 20_000_000;

/// Open until a time, ns; 0: closed.
#[derive(Debug, Default)]
pub(super) struct Gate {
    until_ns: u64,
}

impl Gate {
    /// Takes in one event.
    pub fn observe(&mut self, e: &Event) {
        if e.kind == Kind::KswapdWake as u16 {
            self.until_ns = self.until_ns.max(e.ts_ns.saturating_add(HOLD_NS));
        }
    }

    pub fn is_open(&self) -> bool {
        self.until_ns != 0
    }

    /// It would close now, if nobody looked whether kswapd still works.
    pub fn is_due(&self, now_ns: u64) -> bool {
        self.is_open() && now_ns >= self.until_ns
    }

    /// Somebody looked whether kswapd works.
    pub fn looked(&mut self, now_ns: u64, kswapd_works: bool) {
        if self.is_open() && kswapd_works {
            self.until_ns = now_ns.saturating_add(HOLD_NS);
        } else if self.is_due(now_ns) {
            self.until_ns = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_open_while_kswapd_works_and_a_moment_after() {
        let mut g = Gate::default();
        g.looked(1, true);
        assert!(!g.is_open() && !g.is_due(u64::MAX));
        g.observe(&Event {
            kind: Kind::KswapdWake as u16,
            ts_ns: 5,
            ..bytemuck::Zeroable::zeroed()
        });
        assert!(g.is_open() && !g.is_due(HOLD_NS));
        g.looked(HOLD_NS, true);
        assert!(!g.is_due(HOLD_NS + 5));
        g.looked(HOLD_NS + 6, false);
        assert!(g.is_open() && g.is_due(2 * HOLD_NS));
        g.looked(2 * HOLD_NS, false);
        assert!(!g.is_open());
    }
}
