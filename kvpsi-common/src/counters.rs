//! Counts that every CPU keeps for itself.
//!
//! Invariant, per kind: `seen = delivered + coalesced + dropped`. A program
//! run adds to `seen` and to exactly one of the three, on the same CPU, so the
//! sums are equal whenever no program is running.

use crate::Kind;
use bytemuck::{Pod, Zeroable};
use core::mem::{offset_of, size_of};

/// One kind's counts on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct KindCounters {
    /// Stalls (outermost of their task) and marks that happened.
    pub seen: u64,
    /// Events that reached the ring buffer.
    pub delivered: u64,
    /// Stalls and marks that a later event counts.
    pub coalesced: u64,
    /// Events that found no room in the ring buffer.
    pub dropped: u64,
    /// Stalls inside another stall of the same task; not in `seen`.
    pub nested: u64,
    /// Pages reclaimed, nested stalls included.
    pub pages: u64,
    /// Time tasks spent in outermost stalls that settled as this kind, summed
    /// over tasks.
    pub stall_ns: u64,
    /// Outermost stalls that turned out to be of this kind when they ended. A
    /// stall is `seen` as what was known when it began: a
    /// [`Kind::Memstall`] may settle as direct reclaim or as a refault.
    pub settled: u64,
}

/// Everything one CPU counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// By [`Kind::index`]; slot 0 stays 0.
    pub kinds: [KindCounters; Kind::SLOTS],
    /// Ends without a known begin: a stall that was under way at attach.
    pub orphan_ends: u64,
    /// Stalls whose task found no room in the task table: counted and sent,
    /// but absent from `some` time and from `stalled_now`.
    pub untracked: u64,
    /// Reclaim and compaction by the kernel's own threads: no task waits.
    pub background: u64,
    /// Wake-ups of the reader.
    pub wakeups: u64,
    /// Trace-mode events that reached the trace ring buffer.
    pub trace_delivered: u64,
    /// Trace-mode events that found no room there.
    pub trace_dropped: u64,
    /// Arguments that cannot be what the hook is known to pass: the kernel
    /// passes something else there. Counted instead of believed.
    pub implausible: u64,
    /// Stalls that never ended as far as the programs saw: found out when the
    /// task stalled again or exited.
    pub lost_ends: u64,
}

impl Counters {
    /// Adds another CPU's counts.
    pub fn add(&mut self, other: &Self) {
        let theirs: &[u64] = bytemuck::cast_slice(core::slice::from_ref(other));
        let ours: &mut [u64] = bytemuck::cast_slice_mut(core::slice::from_mut(self));
        for (a, b) in ours.iter_mut().zip(theirs) {
            *a = a.wrapping_add(*b);
        }
    }

    /// The counts of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &KindCounters {
        &self.kinds[kind.index()]
    }

    /// The sum over kinds.
    #[must_use]
    pub fn total(&self) -> KindCounters {
        self.kinds.iter().fold(KindCounters::zeroed(), |mut t, k| {
            t.seen += k.seen;
            t.delivered += k.delivered;
            t.coalesced += k.coalesced;
            t.dropped += k.dropped;
            t.nested += k.nested;
            t.pages += k.pages;
            t.stall_ns += k.stall_ns;
            t.settled += k.settled;
            t
        })
    }

    /// `seen = delivered + coalesced + dropped` for every kind.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.kinds
            .iter()
            .all(|k| k.seen == k.delivered + k.coalesced + k.dropped)
    }
}

const _: () = {
    assert!(size_of::<KindCounters>() == 64);
    assert!(size_of::<Counters>() == 1024);
    assert!(offset_of!(Counters, orphan_ends) == 960);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_cpus_adds_every_field() {
        let mut a = Counters::zeroed();
        for (i, w) in bytemuck::cast_slice_mut::<_, u64>(core::slice::from_mut(&mut a))
            .iter_mut()
            .enumerate()
        {
            *w = i as u64;
        }
        let b = a;
        a.add(&b);
        for (i, w) in bytemuck::cast_slice::<_, u64>(core::slice::from_ref(&a))
            .iter()
            .enumerate()
        {
            assert_eq!(*w, 2 * i as u64);
        }
    }

    #[test]
    fn one_lost_stall_unbalances_the_books() {
        let mut c = Counters::zeroed();
        assert!(c.balanced());
        c.kinds[2].seen = 3;
        c.kinds[2].coalesced = 2;
        assert!(!c.balanced());
        c.kinds[2].dropped = 1;
        assert!(c.balanced());
    }
}
