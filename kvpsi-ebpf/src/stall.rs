//! From a hook to counters, clocks and events.
//!
//! [`begin`], [`end`], [`mark`] and [`lump`] are all that the hooks call.
//! Invariants: a run that adds to `seen` adds to exactly one of `delivered`,
//! `coalesced` and `dropped`; a task enters a scope once and leaves it once,
//! whatever it nests; the reader is woken for an onset of the watched scope and
//! for what it must act on, and else only before the ring buffer fills up. A
//! wake-up is an interrupt to ourselves and costs the stalled task some 10 us:
//! during a burst the reader looks by itself.

use crate::maps::{self, EVENTS, TASKS, TRACE, Task};
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_ktime_get_ns,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id},
    },
    maps::RingBuf,
};
use aya_log_ebpf::{debug, warn};
use kvpsi_common::{
    Decision, Event, Kind, Phase, Shared, Slot,
    cell::Cell,
    coalesce::Pending,
    event::ORDER_UNKNOWN,
    shared::{CGROUP, SYSTEM, stream},
};

/// What a hook knows beyond the kind.
#[derive(Clone, Copy)]
pub struct Facts {
    pub order: i32,
    pub node: u32,
    pub pages: u64,
    pub detail: u64,
}

impl Facts {
    pub const NONE: Self = Self {
        order: ORDER_UNKNOWN,
        node: 0,
        pages: 0,
        detail: 0,
    };

    #[inline(always)]
    pub fn order(order: i32) -> Self {
        Self {
            order,
            ..Self::NONE
        }
    }

    #[inline(always)]
    pub fn pages(pages: u64) -> Self {
        Self {
            pages,
            ..Self::NONE
        }
    }
}

/// Adds to a counter of this CPU. An addition without a result is one `lock
/// add`; a plain one could lose counts where programs can be preempted.
macro_rules! bump {
    ($counters:expr, $($field:tt)+) => { bump!(@by $counters, 1, $($field)+) };
    (@by $counters:expr, $n:expr, $($field:tt)+) => {
        // SAFETY: the pointer comes from the map lookup, the field is an
        // aligned u64, and every access to it in the kernel goes through a cell.
        unsafe { Cell::at(&raw mut (*$counters).$($field)+) }.add($n)
    };
}

/// A task begins to stall.
#[inline(always)]
pub fn begin<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts) {
    let (Some(counters), Some(shared)) = (maps::counters(), maps::shared()) else {
        return;
    };
    let now = now_ns();
    let ids = bpf_get_current_pid_tgid();
    let tid = tid_of(ids);
    let bit = 1u32 << (kind as u32);
    if let Some(task) = TASKS.get_ptr_mut(tid) {
        // SAFETY: the entry belongs to the current task, which is here.
        unsafe {
            (*task).open |= bit;
            (*task).nested_ns = now;
        }
        bump!(counters, kinds[kind.index()].nested);
        trace(kind, Phase::Begin, now, 0, 0, ids, facts, shared);
        return;
    }
    let watched = is_watched();
    let task = Task {
        begin_ns: now,
        nested_ns: 0,
        open: bit,
        outer: kind as u16,
        watched: u16::from(watched),
    };
    let busy = if TASKS.insert(tid, task, u64::from(BPF_NOEXIST)).is_ok() {
        let others = shared.scopes[SYSTEM].enter(now);
        if watched {
            shared.scopes[CGROUP].enter(now)
        } else {
            others
        }
    } else {
        bump!(counters, untracked);
        warn!(ctx, "no room to follow task {}", tid);
        shared.scopes[SYSTEM].stalled() > 0
    };
    bump!(counters, kinds[kind.index()].seen);
    announce(ctx, kind, now, ids, facts, watched, busy, shared);
    trace(kind, Phase::Begin, now, 0, 1, ids, facts, shared);
}

/// A task stalls no more, or leaves a stall inside another.
#[inline(always)]
pub fn end<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts) {
    let (Some(counters), Some(shared)) = (maps::counters(), maps::shared()) else {
        return;
    };
    let now = now_ns();
    let ids = bpf_get_current_pid_tgid();
    let tid = tid_of(ids);
    let bit = 1u32 << (kind as u32);
    let Some(task) = TASKS.get_ptr_mut(tid) else {
        bump!(counters, orphan_ends);
        debug!(
            ctx,
            "end of kind {} without a begin, task {}", kind as u16, tid
        );
        return;
    };
    // SAFETY: the entry belongs to the current task, which is here.
    let Task {
        begin_ns,
        nested_ns,
        open,
        outer,
        watched,
    } = unsafe { *task };
    if open & bit == 0 {
        bump!(counters, orphan_ends);
        return;
    }
    if facts.pages > 0 {
        bump!(@by counters, facts.pages, kinds[kind.index()].pages);
    }
    let watched = watched != 0;
    shared.streams[stream(kind, watched)].touch(now, facts.pages);
    let left = open & !bit;
    if left != 0 {
        // SAFETY: as above.
        unsafe { (*task).open = left };
        let since = if outer == kind as u16 {
            begin_ns
        } else {
            nested_ns
        };
        let stall = now.saturating_sub(since);
        trace(kind, Phase::End, now, stall, 0, ids, facts, shared);
        return;
    }
    let stall = now.saturating_sub(begin_ns);
    // Nearly always the kind that ends; the mask and the bound are for the
    // verifier.
    let outer = usize::from(outer) & 15;
    if outer < Kind::SLOTS {
        bump!(@by counters, stall, kinds[outer].stall_ns);
    }
    // The entry goes first: from here on nothing refers to it.
    let _gone = TASKS.remove(tid);
    shared.scopes[SYSTEM].leave(now);
    if watched {
        shared.scopes[CGROUP].leave(now);
    }
    trace(kind, Phase::End, now, stall, 1, ids, facts, shared);
}

/// A stall that the kernel reports when it is over.
#[inline(always)]
pub fn lump<C: EbpfContext>(ctx: &C, kind: Kind, stall_ns: u64, facts: Facts) {
    let (Some(counters), Some(shared)) = (maps::counters(), maps::shared()) else {
        return;
    };
    let now = now_ns();
    let ids = bpf_get_current_pid_tgid();
    if TASKS.get_ptr(tid_of(ids)).is_some() {
        bump!(counters, kinds[kind.index()].nested);
        trace(kind, Phase::End, now, stall_ns, 0, ids, facts, shared);
        return;
    }
    let watched = is_watched();
    bump!(counters, kinds[kind.index()].seen);
    bump!(@by counters, stall_ns, kinds[kind.index()].stall_ns);
    let busy = shared.scopes[SYSTEM].stalled() > 0;
    announce(ctx, kind, now, ids, facts, watched, busy, shared);
    trace(kind, Phase::End, now, stall_ns, 1, ids, facts, shared);
}

/// Something without a duration. `urgent` wakes the reader.
#[inline(always)]
pub fn mark<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts, urgent: bool) {
    let (Some(counters), Some(shared)) = (maps::counters(), maps::shared()) else {
        return;
    };
    let now = now_ns();
    let ids = bpf_get_current_pid_tgid();
    bump!(counters, kinds[kind.index()].seen);
    let slot = &shared.streams[stream(kind, false)];
    let decision = slot.arrive(now, false, maps::rule());
    if matches!(decision, Decision::Coalesce) && !matches!(kind, Kind::OomVictim) {
        bump!(counters, kinds[kind.index()].coalesced);
    } else {
        send(
            ctx,
            kind,
            Phase::Mark,
            now,
            ids,
            facts,
            urgent,
            slot,
            0,
            shared,
        );
    }
    trace(kind, Phase::Mark, now, 0, 1, ids, facts, shared);
}

/// Work of the kernel's own threads: nobody waits for it.
#[inline(always)]
pub fn background() {
    if let Some(counters) = maps::counters() {
        bump!(counters, background);
    }
}

/// The current task is kswapd or kcompactd, by its name: kernel structs are
/// not read. A task that takes such a name hides its own rare stalls of these
/// two kinds, and nobody else's.
#[inline(always)]
pub fn is_background() -> bool {
    let comm = bpf_get_current_comm().unwrap_or_default();
    &comm[..6] == b"kswapd" || &comm[..8] == b"kcompact"
}

#[expect(
    clippy::too_many_arguments,
    reason = "inlined into each program; a struct would cross the BPF stack of 512 bytes"
)]
#[inline(always)]
fn announce<C: EbpfContext>(
    ctx: &C,
    kind: Kind,
    now: u64,
    ids: u64,
    facts: Facts,
    watched: bool,
    busy: bool,
    shared: &'static Shared,
) {
    let slot = &shared.streams[stream(kind, watched)];
    let (phase, wake) = match slot.arrive(now, busy, maps::rule()) {
        Decision::Onset => (Phase::Onset, true),
        Decision::Resume => (Phase::Summary, true),
        Decision::Summary => (Phase::Summary, false),
        Decision::Coalesce => {
            if let Some(counters) = maps::counters() {
                bump!(counters, kinds[kind.index()].coalesced);
            }
            return;
        }
    };
    let clock = &shared.scopes[if watched { CGROUP } else { SYSTEM }];
    let urgent = wake && (watched || maps::scope().is_none());
    let some = clock.some_ns(now);
    send(
        ctx, kind, phase, now, ids, facts, urgent, slot, some, shared,
    );
}

#[expect(
    clippy::too_many_arguments,
    reason = "inlined into each program; a struct would cross the BPF stack of 512 bytes"
)]
#[inline(always)]
fn send<C: EbpfContext>(
    ctx: &C,
    kind: Kind,
    phase: Phase,
    now: u64,
    ids: u64,
    facts: Facts,
    urgent: bool,
    slot: &Slot,
    some_ns: u64,
    shared: &'static Shared,
) {
    let Some(counters) = maps::counters() else {
        return;
    };
    let pending: Pending = slot.pending(some_ns);
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        bump!(counters, kinds[kind.index()].dropped);
        warn!(ctx, "ring buffer full, kind {} dropped", kind as u16);
        return;
    };
    let event = event(
        kind,
        phase,
        now,
        pending.some_ns,
        pending.count,
        ids,
        Facts {
            pages: pending.pages,
            ..facts
        },
        shared,
    );
    entry.write(event);
    slot.told(&pending);
    bump!(counters, kinds[kind.index()].delivered);
    let wake = urgent || EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= maps::events_full();
    if wake {
        bump!(counters, wakeups);
    }
    entry.submit(wakeup_flag(wake));
}

#[expect(
    clippy::too_many_arguments,
    reason = "inlined into each program; a struct would cross the BPF stack of 512 bytes"
)]
#[inline(always)]
fn trace(
    kind: Kind,
    phase: Phase,
    now: u64,
    stall_ns: u64,
    count: u64,
    ids: u64,
    facts: Facts,
    shared: &'static Shared,
) {
    if !maps::tracing() {
        return;
    }
    let Some(counters) = maps::counters() else {
        return;
    };
    let ring: &RingBuf = &TRACE;
    let Some(mut entry) = ring.reserve::<Event>(0) else {
        bump!(counters, trace_dropped);
        return;
    };
    entry.write(event(kind, phase, now, stall_ns, count, ids, facts, shared));
    bump!(counters, trace_delivered);
    let full = ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= maps::trace_full();
    entry.submit(wakeup_flag(full));
}

#[expect(
    clippy::too_many_arguments,
    reason = "inlined into each program; a struct would cross the BPF stack of 512 bytes"
)]
#[inline(always)]
fn event(
    kind: Kind,
    phase: Phase,
    now: u64,
    stall_ns: u64,
    count: u64,
    ids: u64,
    facts: Facts,
    shared: &'static Shared,
) -> Event {
    Event {
        ts_ns: now,
        stall_ns,
        count,
        pages: facts.pages,
        cgroup_id: cgroup_id(),
        tgid: (ids >> 32) as u32,
        tid: tid_of(ids),
        // SAFETY: a helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        stalled_now: (shared.scopes[SYSTEM].stalled() & 0xffff_ffff) as u32,
        order: facts.order,
        node: facts.node,
        kind: kind as u16,
        phase: phase as u16,
        _pad: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
        detail: facts.detail,
    }
}

#[inline(always)]
fn is_watched() -> bool {
    match maps::scope() {
        None => false,
        Some((id, level)) if level < 0 => cgroup_id() == id,
        // SAFETY: a helper that takes a plain number.
        Some((id, level)) => id == unsafe { bpf_get_current_ancestor_cgroup_id(level) },
    }
}

#[inline(always)]
fn cgroup_id() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
const fn tid_of(pid_tgid: u64) -> u32 {
    (pid_tgid & 0xffff_ffff) as u32
}

#[inline(always)]
const fn wakeup_flag(wake: bool) -> u64 {
    if wake {
        BPF_RB_FORCE_WAKEUP as u64
    } else {
        BPF_RB_NO_WAKEUP as u64
    }
}
