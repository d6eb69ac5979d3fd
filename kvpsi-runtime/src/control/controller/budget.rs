//! How the budget comes back after a trim: it follows the room that there is.

use super::{Controller, Levels, ns};
use crate::units::Bytes;
use std::time::Duration;

/// Growth that a stall follows within this time was too early.
const TOO_EARLY: Duration = Duration::from_secs(2);
/// Longest calm that is waited for.
const LONGEST_CALM: Duration = Duration::from_secs(8);
/// Less is not worth a new budget.
const LEAST_GROWTH: Bytes = Bytes::mib(1);

impl Controller {
    /// A harmful burst begins, or goes on.
    pub(super) fn harm(&mut self, now_ns: u64, known: bool) {
        if !known {
            let soon = |t: u64| now_ns.saturating_sub(t) < ns(TOO_EARLY);
            let quiet_for = now_ns.saturating_sub(self.last_harm_ns);
            if self.last_grow_ns.is_some_and(soon) {
                self.calm = (2 * self.calm).min(LONGEST_CALM);
            } else if quiet_for > ns(LONGEST_CALM) {
                self.calm = self.tuning.calm;
            }
            self.last_grow_ns = None;
        }
        self.last_harm_ns = now_ns;
    }

    /// It is time to think of growing.
    #[must_use]
    pub fn may_grow(&self, now_ns: u64, budget: Bytes, capacity: Bytes) -> bool {
        budget < capacity && now_ns >= self.next_growth()
    }

    /// The next budget, when it is time to grow: what is resident and half of
    /// the room that is left beside the headroom.
    pub fn grow(
        &mut self,
        now_ns: u64,
        budget: Bytes,
        resident: Bytes,
        capacity: Bytes,
        levels: Levels,
    ) -> Option<Bytes> {
        if !self.may_grow(now_ns, budget, capacity) {
            return None;
        }
        self.take_in(now_ns, &levels);
        self.next_grow_ns = now_ns.saturating_add(ns(self.tuning.grow_every));
        // As much again as is to stay free: growth is to hit no wall.
        let spare = levels.cgroup.map_or(Bytes::mib(2), |c| c.headroom());
        let half = levels.room().saturating_sub(spare).0 / 2;
        let next = Bytes(resident.0.saturating_add(half)).min(capacity);
        if next < capacity && next.saturating_sub(budget) < LEAST_GROWTH {
            return None;
        }
        if next <= budget {
            return None;
        }
        self.last_grow_ns = Some(now_ns);
        Some(next)
    }

    pub(super) fn next_growth(&self) -> u64 {
        self.last_harm_ns
            .saturating_add(ns(self.calm))
            .max(self.next_grow_ns)
    }
}
