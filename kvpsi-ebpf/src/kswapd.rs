//! Background reclaim: the early warning, before a task stalls.
//!
//! Hooks `trace_mm_vmscan_kswapd_wake/sleep` and
//! `trace_mm_vmscan_wakeup_kswapd` in `mm/vmscan.c`.

use crate::{here::Facts, plausible, stall::mark};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use kvpsi_common::Kind;

/// kswapd starts: the low watermark was crossed. `(int nid, int zid, int
/// order)`.
#[raw_tracepoint(tracepoint = "mm_vmscan_kswapd_wake")]
pub fn kswapd_wake(ctx: RawTracePointContext) -> i32 {
    let facts = Facts {
        node: plausible::node(ctx.arg(0)),
        ..plausible::order(ctx.arg(2))
    };
    mark(&ctx, Kind::KswapdWake, facts, true);
    0
}

/// kswapd has done its work. `(int nid)`.
#[raw_tracepoint(tracepoint = "mm_vmscan_kswapd_sleep")]
pub fn kswapd_sleep(ctx: RawTracePointContext) -> i32 {
    let facts = Facts {
        node: plausible::node(ctx.arg(0)),
        ..Facts::NONE
    };
    mark(&ctx, Kind::KswapdSleep, facts, false);
    0
}

/// An allocation asks for kswapd, which may be awake already. `(int nid, int
/// zid, int order, gfp_t)`.
#[raw_tracepoint(tracepoint = "mm_vmscan_wakeup_kswapd")]
pub fn kswapd_asked(ctx: RawTracePointContext) -> i32 {
    let facts = Facts {
        node: plausible::node(ctx.arg(0)),
        ..plausible::order(ctx.arg(2))
    };
    mark(&ctx, Kind::WakeupKswapd, facts, false);
    0
}
