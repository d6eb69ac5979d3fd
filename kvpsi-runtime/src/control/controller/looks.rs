//! When a burst is looked at again, with an event or without.
//!
//! While something is missing at a cgroup's wall, each half of a millisecond. A file
//! that is read from end to end below a limit stalls tasks each millisecond, for as
//! long as that lasts, and asks for nothing; a look at all files takes some 100 us. So
//! after a look that found nothing to do the next events wait, for no longer than
//! growth takes to use up the room that is left at the nearest wall.
//! Out of scope: looks without a burst ([`super::watch`]).

use super::{
    Controller, Pending,
    burst::{Burst, Wall},
    ns,
};
use crate::{control::wall::Depth, units::Bytes};
use kvpsi_common::Kind;
use std::time::Duration;

/// Most time that events wait.
const IDLE: Duration = Duration::from_millis(8);

impl Controller {
    /// The next look at stalls that go on comes before growth has used up the room that
    /// is left.
    pub(super) fn idles(&mut self, now_ns: u64) {
        let most = now_ns.saturating_add(ns(IDLE));
        self.idle_until_ns = match self.is_exhausted() {
            true => most,
            false => self.watch.next_at(now_ns, self.nearest).min(most),
        };
    }

    /// There is nothing to give, and nothing on order.
    pub(super) fn is_exhausted(&self) -> bool {
        let all = |b: Burst| b.exhausted && b.ordered_ns.is_none();
        self.burst.is_some_and(all)
    }

    /// Stalls that go on are looked at later: the last look found nothing to do about
    /// them. But for an OOM victim, and where none was at a wall of ours and one `was_hit`
    /// now.
    #[must_use]
    pub fn is_idle(&self, now_ns: u64, was_hit: impl FnOnce() -> bool) -> bool {
        let is_victim = |p: Pending| p.kind == Kind::OomVictim;
        now_ns < self.idle_until_ns
            && self.warned.is_none()
            && !self.pending.is_some_and(is_victim)
            && !(self.burst.is_none() && was_hit())
    }

    /// How long to sleep at most when no event comes: until the next look at a
    /// wall, or the next growth where the budget is below the capacity.
    #[must_use]
    pub fn sleep(&self, now_ns: u64, budget: Bytes, capacity: Bytes) -> Duration {
        let growth = (budget < capacity)
            .then(|| Duration::from_nanos(self.next_growth().saturating_sub(now_ns)));
        let idle = Duration::from_nanos(self.idle_until_ns.saturating_sub(now_ns));
        let look = match self.pending {
            Some(_) => Some(idle),
            None => (self.looks_again(now_ns)).then_some(self.tuning.look.max(idle)),
        };
        let watch = Duration::from_nanos(self.watch.next().saturating_sub(now_ns));
        [growth, look]
            .into_iter()
            .flatten()
            .fold(watch, Duration::min)
    }

    /// Which page cache the next look is to know: kswapd wakes for one zone, and free
    /// memory of all may be far from its mark.
    #[must_use]
    pub fn depth(&self) -> Depth {
        self.warned.map_or(Depth::Near, |_| Depth::All)
    }

    /// The walls are to be read now, event or not. `left`: bytes above the headroom
    /// of the nearest, asked where a glance is due.
    #[must_use]
    pub fn looks(&mut self, now_ns: u64, left: impl FnOnce() -> Option<i64>) -> bool {
        (now_ns >= self.idle_until_ns && (self.pending.is_some() || self.looks_again(now_ns)))
            || self.watch.is_due(now_ns, left)
    }

    /// A burst at a cgroup's wall, or a harmful one, is not over.
    pub(super) fn goes_on(&self, now_ns: u64) -> bool {
        self.burst.is_some_and(|b| {
            (b.harmful || b.wall == Wall::Cgroup)
                && now_ns.saturating_sub(b.active_ns) <= ns(self.tuning.quiet)
        })
    }

    /// The wall of a burst is to be looked at again. Page cache that covered the last
    /// stall may be gone before the kernel's next event, which comes a millisecond
    /// later at best. With nothing to give and nothing on order the watch's looks are
    /// enough.
    fn looks_again(&self, now_ns: u64) -> bool {
        let waits = |b: &Burst| !b.exhausted || b.ordered_ns.is_some();
        self.goes_on(now_ns) && self.burst.as_ref().is_some_and(waits)
    }
}
