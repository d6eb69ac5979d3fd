//! One event: what the ring buffer carries and what every source produces.

use bytemuck::{Pod, Zeroable};
use core::mem::{offset_of, size_of};

/// What the kernel did. The discriminants are ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// A task reclaims pages itself (`mm_vmscan_direct_reclaim_begin/end`).
    DirectReclaim = 1,
    /// A task reclaims because its memory cgroup is at its limit
    /// (`mm_vmscan_memcg_reclaim_begin/end`).
    MemcgReclaim = 2,
    /// Reclaim from cgroups over their soft limit
    /// (`mm_vmscan_memcg_softlimit_reclaim_begin/end`).
    SoftlimitReclaim = 3,
    /// Reclaim of one NUMA node (`mm_vmscan_node_reclaim_begin/end`).
    NodeReclaim = 4,
    /// kswapd starts: the low watermark was crossed, no task has stalled yet.
    KswapdWake = 5,
    /// kswapd is done.
    KswapdSleep = 6,
    /// An allocation asks for kswapd (`mm_vmscan_wakeup_kswapd`).
    WakeupKswapd = 7,
    /// A task sleeps so that reclaim can catch up (`mm_vmscan_throttled`).
    Throttled = 8,
    /// A task compacts memory itself (`mm_compaction_begin/end`).
    Compaction = 9,
    /// The OOM killer chose a victim (`oom/mark_victim`).
    OomVictim = 10,
    /// A task stalls on memory as PSI counts it
    /// (`psi_memstall_enter/leave`, or PSI's own files). While it lasts the
    /// rung often cannot tell more; [`crate::KindCounters::settled`] can.
    Memstall = 11,
    /// A stall that PSI counts and in which nothing was reclaimed, compacted,
    /// swapped in or throttled: the task waited for a page that was evicted
    /// not long ago (or, rarely, for its block cgroup). Known at its end only.
    Refault = 12,
    /// A task waits for a page to come back from swap (`do_swap_page`).
    SwapIn = 13,
    /// A task pays for its cgroup being over `memory.high`
    /// (`mem_cgroup_handle_over_high`).
    MemcgThrottle = 14,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 14] = [
        Self::DirectReclaim,
        Self::MemcgReclaim,
        Self::SoftlimitReclaim,
        Self::NodeReclaim,
        Self::KswapdWake,
        Self::KswapdSleep,
        Self::WakeupKswapd,
        Self::Throttled,
        Self::Compaction,
        Self::OomVictim,
        Self::Memstall,
        Self::Refault,
        Self::SwapIn,
        Self::MemcgThrottle,
    ];

    /// Slots of an array indexed by [`Kind::index`].
    pub const SLOTS: usize = Self::ALL.len() + 1;

    /// Position in per-kind arrays; 0 is never used by a kind.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The kind with this number, if there is one.
    #[must_use]
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u16 == raw)
    }

    /// A task waits for memory while this goes on.
    #[must_use]
    pub const fn is_stall(self) -> bool {
        matches!(
            self,
            Self::DirectReclaim
                | Self::MemcgReclaim
                | Self::SoftlimitReclaim
                | Self::NodeReclaim
                | Self::Throttled
                | Self::Compaction
                | Self::Memstall
                | Self::Refault
                | Self::SwapIn
                | Self::MemcgThrottle
        )
    }

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DirectReclaim => "direct_reclaim",
            Self::MemcgReclaim => "memcg_reclaim",
            Self::SoftlimitReclaim => "softlimit_reclaim",
            Self::NodeReclaim => "node_reclaim",
            Self::KswapdWake => "kswapd_wake",
            Self::KswapdSleep => "kswapd_sleep",
            Self::WakeupKswapd => "wakeup_kswapd",
            Self::Throttled => "throttled",
            Self::Compaction => "compaction",
            Self::OomVictim => "oom_victim",
            Self::Memstall => "memstall",
            Self::Refault => "refault",
            Self::SwapIn => "swap_in",
            Self::MemcgThrottle => "memcg_throttle",
        }
    }
}

/// Where in a stall an event stands. The discriminants are ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Phase {
    /// First stall after a quiet spell; sent at once, the reader is woken.
    Onset = 1,
    /// Stalls went on; at most one per interval.
    Summary = 2,
    /// Something that has no duration (kswapd, OOM victim).
    Mark = 3,
    /// One task starts to stall (trace mode, unaggregated).
    Begin = 4,
    /// One task stops stalling (trace mode, unaggregated).
    End = 5,
}

impl Phase {
    /// Every phase, in the order of its number.
    pub const ALL: [Self; 5] = [
        Self::Onset,
        Self::Summary,
        Self::Mark,
        Self::Begin,
        Self::End,
    ];

    /// The phase with this number, if there is one.
    #[must_use]
    pub fn from_raw(raw: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|p| *p as u16 == raw)
    }

    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onset => "onset",
            Self::Summary => "summary",
            Self::Mark => "mark",
            Self::Begin => "begin",
            Self::End => "end",
        }
    }
}

/// `Event::order` where the kernel gave none.
pub const ORDER_UNKNOWN: i32 = -1;

/// One event. 96 bytes, no implicit padding, native endianness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in ns (`bpf_ktime_get_ns`). For an onset, the moment
    /// the stall began.
    pub ts_ns: u64,
    /// Duration of the stall for [`Phase::End`]; for a summary the time that
    /// at least one task was stalled since the last event of the scope. In ns.
    pub stall_ns: u64,
    /// Stalls seen since the last delivered event, this one included. In
    /// trace mode 1, or 0 for a stall inside another stall of the same task.
    pub count: u64,
    /// Pages reclaimed by the stall, or since the last event.
    pub pages: u64,
    /// cgroup v2 id of the task; 0 where unknown.
    pub cgroup_id: u64,
    /// Process (thread group) id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
    /// CPU the event happened on.
    pub cpu: u32,
    /// Tasks stalled in the whole system at this moment.
    pub stalled_now: u32,
    /// log2 of the pages asked for, or [`ORDER_UNKNOWN`].
    pub order: i32,
    /// NUMA node for kswapd events, else 0.
    pub node: u32,
    /// A [`Kind`] by number.
    pub kind: u16,
    /// A [`Phase`] by number.
    pub phase: u16,
    /// Padding, always 0.
    pub _pad: u32,
    /// Command name of the task, NUL-padded.
    pub comm: [u8; 16],
    /// What only this kind knows: the reason of [`Kind::Throttled`]
    /// (`VMSCAN_THROTTLE_*`), the victim's pid of [`Kind::OomVictim`] where
    /// the kernel hands it over (before 6.10), and for the end of an outermost
    /// [`Kind::Memstall`] the number of the kind it turned out to be. Else 0.
    pub detail: u64,
}

impl Event {
    /// The kind, if this build knows its number.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind)
    }

    /// The phase, if this build knows its number.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        Phase::from_raw(self.phase)
    }

    /// What a stall that PSI's hooks saw turned out to be; at its end only.
    #[must_use]
    pub fn settled(&self) -> Option<Kind> {
        let known = self.kind() == Some(Kind::Memstall) && self.phase() == Some(Phase::End);
        let number = u16::try_from(self.detail).ok().filter(|_| known)?;
        Kind::from_raw(number)
    }

    /// Command name without its padding. Bytes that are not UTF-8 end it: the
    /// kernel lets a task call itself anything.
    #[must_use]
    pub fn comm_str(&self) -> &str {
        let end = self.comm.iter().position(|b| *b == 0).unwrap_or(16);
        let name = &self.comm[..end];
        match core::str::from_utf8(name) {
            Ok(s) => s,
            Err(e) => core::str::from_utf8(&name[..e.valid_up_to()]).unwrap_or(""),
        }
    }
}

const _: () = {
    assert!(size_of::<Event>() == 96);
    assert!(offset_of!(Event, tgid) == 40);
    assert!(offset_of!(Event, order) == 56);
    assert!(offset_of!(Event, kind) == 64);
    assert!(offset_of!(Event, comm) == 72);
    assert!(offset_of!(Event, detail) == 88);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_phase_comes_back_from_its_number() {
        for k in Kind::ALL {
            assert_eq!(Kind::from_raw(k as u16), Some(k));
            assert!(k.index() > 0 && k.index() < Kind::SLOTS);
        }
        for p in Phase::ALL {
            assert_eq!(Phase::from_raw(p as u16), Some(p));
        }
        assert_eq!(Kind::from_raw(0), None);
        assert_eq!(Kind::from_raw(15), None);
        assert_eq!(Phase::from_raw(6), None);
    }

    #[test]
    fn a_command_name_ends_at_its_padding_or_where_it_stops_being_text() {
        let mut e = Event::zeroed();
        assert_eq!(e.comm_str(), "");
        e.comm[..4].copy_from_slice(b"hog\0");
        assert_eq!(e.comm_str(), "hog");
        e.comm = *b"sixteen-bytes-xx";
        assert_eq!(e.comm_str(), "sixteen-bytes-xx");
        e.comm[3] = 0xff;
        assert_eq!(e.comm_str(), "six");
    }
}
