//! The OOM killer has chosen.
//!
//! Hooks `trace_mark_victim` in `mm/oom_kill.c`. The event's task is the one
//! in whose context the kill was decided.

use crate::{here::Facts, stall::mark};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use kvpsi_common::Kind;

/// `(int pid)` before 6.10, `(struct task_struct *, uid_t)` since: a pointer
/// does not fit a pid, and is not followed.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn oom_victim(ctx: RawTracePointContext) -> i32 {
    let victim: u64 = ctx.arg(0);
    let facts = Facts {
        detail: if victim <= i32::MAX as u64 { victim } else { 0 },
        ..Facts::NONE
    };
    mark(&ctx, Kind::OomVictim, facts, true);
    0
}
