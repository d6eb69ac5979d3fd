//! Events: which ones leave, and what they say.
//!
//! Invariant: the reader is woken for an onset of the watched scope and for
//! what it must act on, and else only before the ring buffer fills up. A
//! wake-up is an interrupt to ourselves and costs the stalled task some 10 us:
//! during a burst the reader looks by itself.

use crate::{
    here::{Facts, Here, bump, cgroup_id},
    maps::{self, EVENTS, TRACE},
};
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_comm, bpf_get_smp_processor_id},
    maps::RingBuf,
};
use aya_log_ebpf::warn;
use kvpsi_common::{
    Decision, Event, Kind, Phase, Slot,
    coalesce::Pending,
    shared::{CGROUP, SYSTEM, stream},
};

/// An outermost stall has begun: an event, or part of a later one.
#[inline(always)]
pub fn announce<C: EbpfContext>(
    ctx: &C,
    here: &Here,
    kind: Kind,
    facts: Facts,
    watched: bool,
    busy: bool,
) {
    let slot = &here.shared.streams[stream(kind, watched)];
    let (phase, wake) = match slot.arrive(here.now, busy, maps::rule()) {
        Decision::Coalesce => {
            bump!(here.counters, kinds[kind.index()].coalesced);
            return;
        }
        Decision::Onset => (Phase::Onset, true),
        Decision::Resume => (Phase::Summary, true),
        Decision::Summary => (Phase::Summary, false),
    };
    let clock = &here.shared.scopes[if watched { CGROUP } else { SYSTEM }];
    let urgent = wake && (watched || maps::scope().is_none());
    let some = clock.some_ns(here.now);
    send(ctx, here, kind, phase, facts, urgent, slot, some);
}

/// Puts an event into the ring buffer. `some_ns` is the scope's total.
#[expect(
    clippy::too_many_arguments,
    reason = "inlined into each program; a struct would cross the BPF stack of 512 bytes"
)]
#[inline(always)]
pub fn send<C: EbpfContext>(
    ctx: &C,
    here: &Here,
    kind: Kind,
    phase: Phase,
    facts: Facts,
    urgent: bool,
    slot: &Slot,
    some_ns: u64,
) {
    let pending: Pending = slot.pending(some_ns);
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        bump!(here.counters, kinds[kind.index()].dropped);
        warn!(ctx, "ring buffer full, kind {} dropped", kind as u16);
        return;
    };
    let facts = Facts {
        pages: pending.pages,
        ..facts
    };
    entry.write(event(
        here,
        kind,
        phase,
        pending.some_ns,
        pending.count,
        facts,
    ));
    slot.told(&pending);
    bump!(here.counters, kinds[kind.index()].delivered);
    let wake = urgent || EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) >= maps::events_full();
    if wake {
        bump!(here.counters, wakeups);
    }
    entry.submit(wakeup_flag(wake));
}

/// Puts an event into trace mode's ring buffer, if that is on.
#[inline(always)]
pub fn trace(here: &Here, kind: Kind, phase: Phase, stall_ns: u64, count: u64, facts: Facts) {
    if !maps::tracing() {
        return;
    }
    let ring: &RingBuf = &TRACE;
    let Some(mut entry) = ring.reserve::<Event>(0) else {
        bump!(here.counters, trace_dropped);
        return;
    };
    entry.write(event(here, kind, phase, stall_ns, count, facts));
    bump!(here.counters, trace_delivered);
    let full = ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= maps::trace_full();
    entry.submit(wakeup_flag(full));
}

#[inline(always)]
fn event(here: &Here, kind: Kind, phase: Phase, stall_ns: u64, count: u64, facts: Facts) -> Event {
    Event {
        ts_ns: here.now,
        stall_ns,
        count,
        pages: facts.pages,
        cgroup_id: cgroup_id(),
        tgid: (here.ids >> 32) as u32,
        tid: here.tid(),
        // SAFETY: a helper without arguments.
        cpu: unsafe { bpf_get_smp_processor_id() },
        stalled_now: (here.shared.scopes[SYSTEM].stalled() & 0xffff_ffff) as u32,
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
const fn wakeup_flag(wake: bool) -> u64 {
    if wake {
        BPF_RB_FORCE_WAKEUP as u64
    } else {
        BPF_RB_NO_WAKEUP as u64
    }
}
