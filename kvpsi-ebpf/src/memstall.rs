//! Stalls as PSI counts them: refault waits, swap-in and throttling, which no
//! reclaim tracepoint tells, and reclaim itself, which counts once.
//!
//! Hooks `psi_memstall_enter/leave(unsigned long *flags)` in
//! `kernel/sched/psi.c`, which are called with PSI switched off too; and, to
//! tell the kinds apart, `do_swap_page` in `mm/memory.c` and
//! `mem_cgroup_handle_over_high` in `mm/memcontrol.c` (on newer kernels
//! `__mem_cgroup_handle_over_high`). By fentry and fexit, and
//! once more by kprobe for kernels that cannot attach those. The pointer is
//! compared and never followed.

use crate::{
    here::{Here, bump},
    maps,
    stall::{enter, leave},
    task::{self, OVER_HIGH, SWAPS_IN},
};
use aya_ebpf::{
    EbpfContext,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use core::arch::asm;

/// A task begins to lose time.
#[fentry]
pub fn memstall_enter(ctx: FEntryContext) -> i32 {
    enter(&ctx, ctx.arg(0));
    0
}

/// A task goes on.
#[fentry]
pub fn memstall_leave(ctx: FEntryContext) -> i32 {
    leave(&ctx, ctx.arg(0));
    0
}

/// As [`memstall_enter`].
#[kprobe]
pub fn memstall_enter_k(ctx: ProbeContext) -> u32 {
    enter(&ctx, first_argument(&ctx));
    0
}

/// As [`memstall_leave`].
#[kprobe]
pub fn memstall_leave_k(ctx: ProbeContext) -> u32 {
    leave(&ctx, first_argument(&ctx));
    0
}

/// A fault on a page that is in swap.
#[fentry]
pub fn swap_in(_: FEntryContext) -> i32 {
    set(SWAPS_IN);
    0
}

/// The page is there.
#[fexit]
pub fn swap_in_done(_: FExitContext) -> i32 {
    clear(SWAPS_IN);
    0
}

/// As [`swap_in`].
#[kprobe]
pub fn swap_in_k(_: ProbeContext) -> u32 {
    set(SWAPS_IN);
    0
}

/// As [`swap_in_done`].
#[kretprobe]
pub fn swap_in_done_k(_: RetProbeContext) -> u32 {
    clear(SWAPS_IN);
    0
}

/// A task on its way back to user mode, which may have to wait for its cgroup.
#[fentry]
pub fn over_high(_: FEntryContext) -> i32 {
    set(OVER_HIGH);
    0
}

/// It has waited.
#[fexit]
pub fn over_high_done(_: FExitContext) -> i32 {
    clear(OVER_HIGH);
    0
}

/// As [`over_high`].
#[kprobe]
pub fn over_high_k(_: ProbeContext) -> u32 {
    set(OVER_HIGH);
    0
}

/// As [`over_high_done`].
#[kretprobe]
pub fn over_high_done_k(_: RetProbeContext) -> u32 {
    clear(OVER_HIGH);
    0
}

/// The register with a function's first argument: `di` of x86-64's `struct
/// pt_regs`, `regs[0]` of arm64's `struct user_pt_regs`. One object serves
/// both; the loader says which.
#[inline(always)]
fn first_argument(ctx: &ProbeContext) -> u64 {
    let registers = ctx.as_ptr();
    let first: u64;
    // Spelled out: the compiler would choose between two addresses and load
    // once, and the verifier takes no computed address into a context.
    // SAFETY: the context of a kprobe is the registers, longer than this on
    // both; the verifier checks the offset.
    unsafe {
        if maps::is_x86() {
            asm!("{to} = *(u64 *)({from} + 112)", to = out(reg) first, from = in(reg) registers);
        } else {
            asm!("{to} = *(u64 *)({from} + 0)", to = out(reg) first, from = in(reg) registers);
        }
    }
    first
}

/// Of a task that stalled before: every thread that swaps in, and with rseq every
/// thread on its way to user mode, comes by here, and most never stall. So a thread's
/// first such stall counts as a refault.
#[inline(always)]
fn set(flag: u8) {
    let Some(here) = Here::now() else { return };
    let Some(task) = task::find(here.tid()) else {
        return;
    };
    // SAFETY: the entry belongs to the current task, which is here.
    if unsafe { (*task).flags } & flag != 0 {
        // Its return was missed: a kernel has few kretprobes at once.
        bump!(here.counters, lost_ends);
    }
    // SAFETY: as above.
    unsafe { (*task).flags |= flag };
}

#[inline(always)]
fn clear(flag: u8) {
    let Some(here) = Here::now() else { return };
    if let Some(task) = task::find(here.tid()) {
        // SAFETY: as in `set`.
        unsafe { (*task).flags &= !flag };
    }
}
