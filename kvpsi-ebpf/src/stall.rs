//! From a hook to counters and clocks.
//!
//! [`begin`], [`end`], [`enter`], [`leave`], [`mark`] and [`lump`] are what the
//! hooks call; events are made in [`crate::send`]. Invariants: a run that adds
//! to `seen` adds to exactly one of `delivered`, `coalesced` and `dropped`; a
//! task enters a scope once and leaves it once, whatever it nests and
//! whichever family of hooks sees it; a kernel thread enters none but PSI's: no
//! task waits for it.
//!
//! What a run costs is mostly memory that reclaim has just driven out of the
//! cache: a run looks its maps up once and touches few lines.

use crate::{
    here::{Facts, Here, bump, cgroup_id, now},
    maps,
    send::{announce, send, trace},
    task::{self, BACKGROUND, Task},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_comm, generated::bpf_get_current_ancestor_cgroup_id},
};
use aya_log_ebpf::{debug, warn};
use kvpsi_common::{
    Decision, Kind, Phase,
    shared::{CGROUP, MEMSTALL, SYSTEM, stream},
};

/// A task begins to stall.
#[inline(always)]
pub fn begin<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts) {
    let Some(here) = Here::now() else { return };
    let found = task::find(here.tid());
    if in_background(&here, found) {
        return;
    }
    if let Some(task) = found
        // SAFETY: the entry belongs to the current task, which is here.
        && unsafe { (*task).open } != 0
    {
        nested(&here, task, kind, facts);
    } else {
        outermost(ctx, &here, found, kind, 0, facts);
    }
}

/// A task stalls no more, or leaves a stall inside another.
#[inline(always)]
pub fn end<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts) {
    let Some(here) = Here::now() else { return };
    let Some(at) = task::find(here.tid()) else {
        return orphan(ctx, &here, kind);
    };
    // SAFETY: the entry belongs to the current task, which is here.
    let task = unsafe { *at };
    if task.flags & BACKGROUND != 0 {
        return;
    }
    if task.open & bit(kind) == 0 {
        return orphan(ctx, &here, kind);
    }
    if facts.pages > 0 {
        bump!(@by here.counters, facts.pages, kinds[kind.index()].pages);
    }
    let watched = task.watched != 0;
    here.shared.streams[stream(kind, watched)].touch(here.now, facts.pages);
    close(&here, at, &task, kind, facts);
}

/// A task enters `psi_memstall_enter`, whose flags are at `at`.
#[inline(always)]
pub fn enter<C: EbpfContext>(ctx: &C, at: u64) {
    let Some(here) = Here::now() else { return };
    if follow(ctx, &here, at) {
        // Last, and by a clock read anew: PSI's own starts when this is through.
        here.shared.scopes[MEMSTALL].enter(now(), here.cpus);
    }
}

/// True if the task is followed from here on and was not before.
#[inline(always)]
fn follow<C: EbpfContext>(ctx: &C, here: &Here, at: u64) -> bool {
    let found = task::find(here.tid());
    if let Some(task) = found {
        // SAFETY: the entry belongs to the current task, which is here.
        let outer = unsafe { (*task).memstall_at };
        if outer != 0 {
            if at < outer {
                bump!(here.counters, kinds[Kind::Memstall.index()].nested);
                return false;
            }
            // That frame has returned: its leave was missed. The stall under
            // way becomes this one.
            bump!(here.counters, lost_ends);
            // SAFETY: as above.
            unsafe {
                (*task).memstall_at = at;
                (*task).begin_ns = here.now;
            }
            return false;
        }
        // SAFETY: as above.
        unsafe { (*task).memstall_at = at };
        // SAFETY: as above.
        let (flags, open) = unsafe { ((*task).flags, (*task).open) };
        if flags & BACKGROUND != 0 {
            bump!(here.counters, background);
        } else if open != 0 {
            nested(here, task, Kind::Memstall, Facts::NONE);
        } else {
            outermost(ctx, here, found, Kind::Memstall, at, Facts::NONE);
        }
        return true;
    }
    if is_background() {
        let task = Task {
            memstall_at: at,
            flags: BACKGROUND,
            ..Task::default()
        };
        bump!(here.counters, background);
        return task::insert(here.tid(), &task);
    }
    outermost(ctx, here, None, Kind::Memstall, at, Facts::NONE)
}

/// A task leaves by `psi_memstall_leave`; `at` as in [`enter`].
#[inline(always)]
pub fn leave<C: EbpfContext>(ctx: &C, at: u64) {
    let Some(here) = Here::now() else { return };
    let Some(entry) = task::find(here.tid()) else {
        return orphan(ctx, &here, Kind::Memstall);
    };
    // SAFETY: the entry belongs to the current task, which is here.
    let task = unsafe { *entry };
    if task.memstall_at == 0 {
        return orphan(ctx, &here, Kind::Memstall);
    }
    if at < task.memstall_at {
        return;
    }
    if at > task.memstall_at {
        bump!(here.counters, lost_ends);
    }
    // SAFETY: as above.
    unsafe { (*entry).memstall_at = 0 };
    if task.open & bit(Kind::Memstall) != 0 {
        let watched = task.watched != 0;
        here.shared.streams[stream(Kind::Memstall, watched)].touch(here.now, 0);
        close(&here, entry, &task, Kind::Memstall, Facts::NONE);
    }
    // As in `enter`.
    here.shared.scopes[MEMSTALL].leave(now(), here.cpus);
    task::forget_exited(here.tid(), &task, task.open & !bit(Kind::Memstall), 0);
}

/// A stall that the kernel reports when it is over.
#[inline(always)]
pub fn lump<C: EbpfContext>(ctx: &C, kind: Kind, stall_ns: u64, facts: Facts) {
    let Some(here) = Here::now() else { return };
    let found = task::find(here.tid());
    if in_background(&here, found) {
        return;
    }
    if let Some(task) = found
        // SAFETY: the entry belongs to the current task, which is here.
        && unsafe { (*task).open } != 0
    {
        bump!(here.counters, kinds[kind.index()].nested);
        trace(&here, kind, Phase::End, stall_ns, 0, facts);
        return;
    }
    let watched = is_watched();
    bump!(here.counters, kinds[kind.index()].seen);
    bump!(here.counters, kinds[kind.index()].settled);
    bump!(@by here.counters, stall_ns, kinds[kind.index()].stall_ns);
    let busy = here.shared.scopes[SYSTEM].stalled() > 0;
    announce(ctx, &here, kind, facts, watched, busy);
    trace(&here, kind, Phase::End, stall_ns, 1, facts);
}

/// Something without a duration. `urgent` wakes the reader.
#[inline(always)]
pub fn mark<C: EbpfContext>(ctx: &C, kind: Kind, facts: Facts, urgent: bool) {
    let Some(here) = Here::now() else { return };
    bump!(here.counters, kinds[kind.index()].seen);
    let slot = &here.shared.streams[stream(kind, false)];
    let decision = slot.arrive(here.now, false, maps::rule());
    if matches!(decision, Decision::Coalesce) && !matches!(kind, Kind::OomVictim) {
        bump!(here.counters, kinds[kind.index()].coalesced);
    } else {
        send(ctx, &here, kind, Phase::Mark, facts, urgent, slot, 0);
    }
    trace(&here, kind, Phase::Mark, 0, 1, facts);
}

/// The current task is a kernel thread that works in the background: counted, and
/// asked by name once.
#[inline(always)]
fn in_background(here: &Here, found: Option<*mut Task>) -> bool {
    let is = if let Some(task) = found {
        // SAFETY: the entry belongs to the current task, which is here.
        unsafe { (*task).flags & BACKGROUND != 0 }
    } else {
        let is = is_background();
        if is {
            let task = Task {
                flags: BACKGROUND,
                ..Task::default()
            };
            // Without room it is asked again.
            let _ = task::insert(here.tid(), &task);
        }
        is
    };
    if is {
        bump!(here.counters, background);
    }
    is
}

/// A hook passed what it cannot pass.
#[inline(always)]
pub fn implausible() {
    if let Some(counters) = maps::counters() {
        bump!(counters, implausible);
    }
}

/// The current task is a kernel thread that reclaims or allocates in the background,
/// by its name: kernel structs are not read. A task that takes such a name hides its
/// own stalls only.
#[inline(always)]
fn is_background() -> bool {
    let comm = bpf_get_current_comm().unwrap_or_default();
    // All of them begin with it, and few others do.
    comm[0] == b'k'
        && (&comm[..6] == b"kswapd"
            || &comm[..8] == b"kcompact"
            || &comm[..8] == b"khugepag"
            || &comm[..8] == b"kworker/"
            || &comm[..5] == b"ksmd\0"
            || &comm[..8] == b"kdamond.")
}

/// The task did not stall until now. `at` is what [`Task::memstall_at`] is to
/// be. False if there was no room to follow it.
#[inline(always)]
fn outermost<C: EbpfContext>(
    ctx: &C,
    here: &Here,
    found: Option<*mut Task>,
    kind: Kind,
    at: u64,
    facts: Facts,
) -> bool {
    let watched = is_watched();
    let tracked = if let Some(task) = found {
        // SAFETY: the entry belongs to the current task, which is here.
        unsafe {
            (*task).begin_ns = here.now;
            (*task).open = bit(kind);
            (*task).outer = kind as u8;
            (*task).inner = 0;
            (*task).watched = u8::from(watched);
        }
        true
    } else {
        let task = Task {
            begin_ns: here.now,
            memstall_at: at,
            open: bit(kind),
            outer: kind as u8,
            watched: u8::from(watched),
            ..Task::default()
        };
        task::insert(here.tid(), &task)
    };
    let busy = if tracked {
        let others = here.shared.scopes[SYSTEM].enter(here.now, here.cpus);
        if watched {
            here.shared.scopes[CGROUP].enter(here.now, here.cpus)
        } else {
            others
        }
    } else {
        bump!(here.counters, untracked);
        warn!(ctx, "no room to follow task {}", here.tid());
        here.shared.scopes[SYSTEM].stalled() > 0
    };
    bump!(here.counters, kinds[kind.index()].seen);
    announce(ctx, here, kind, facts, watched, busy);
    trace(here, kind, Phase::Begin, 0, 1, facts);
    tracked
}

/// The task stalls already.
#[inline(always)]
fn nested(here: &Here, task: *mut Task, kind: Kind, facts: Facts) {
    // SAFETY: the entry belongs to the current task, which is here.
    unsafe {
        (*task).open |= bit(kind);
        (*task).nested_ns = here.now;
        if (*task).inner == 0 {
            (*task).inner = kind as u8;
        }
    }
    bump!(here.counters, kinds[kind.index()].nested);
    trace(here, kind, Phase::Begin, 0, 0, facts);
}

/// One kind of the task's stall is over, perhaps the stall itself.
#[inline(always)]
fn close(here: &Here, at: *mut Task, task: &Task, kind: Kind, facts: Facts) {
    let left = task.open & !bit(kind);
    // SAFETY: the entry belongs to the current task, which is here.
    unsafe { (*at).open = left };
    if left != 0 {
        let since = if task.outer == kind as u8 {
            task.begin_ns
        } else {
            task.nested_ns
        };
        let stall = here.now.saturating_sub(since);
        trace(here, kind, Phase::End, stall, 0, facts);
        return;
    }
    let stall = here.now.saturating_sub(task.begin_ns);
    let settled = task.settle();
    if settled < Kind::SLOTS {
        bump!(@by here.counters, stall, kinds[settled].stall_ns);
        bump!(here.counters, kinds[settled].settled);
    }
    task.leave(here);
    let detail = if task.outer == Kind::Memstall as u8 {
        settled as u64
    } else {
        facts.detail
    };
    let facts = Facts { detail, ..facts };
    trace(here, kind, Phase::End, stall, 1, facts);
    if kind as u8 != Kind::Memstall as u8 {
        task::forget_exited(here.tid(), task, 0, task.memstall_at);
    }
}

#[inline(always)]
fn orphan<C: EbpfContext>(ctx: &C, here: &Here, kind: Kind) {
    bump!(here.counters, orphan_ends);
    debug!(
        ctx,
        "end of kind {} without a begin, task {}",
        kind as u16,
        here.tid()
    );
}

#[inline(always)]
const fn bit(kind: Kind) -> u32 {
    1 << kind as u32
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
