//! A task sleeps so that reclaim can catch up.
//!
//! Hooks `trace_mm_vmscan_throttled` in `mm/vmscan.c` (5.16), which fires when
//! the sleep is over and tells how long it was.

use crate::{here::Facts, plausible, stall::lump};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use kvpsi_common::Kind;

/// `(int nid, int usec_timeout, int usec_delayed, int reason)`.
#[raw_tracepoint(tracepoint = "mm_vmscan_throttled")]
pub fn throttled(ctx: RawTracePointContext) -> i32 {
    let slept_us = plausible::sleep_us(ctx.arg(2));
    let facts = Facts {
        node: plausible::node(ctx.arg(0)),
        detail: plausible::reason(ctx.arg(3)),
        ..Facts::NONE
    };
    lump(&ctx, Kind::Throttled, slept_us * 1000, facts);
    0
}
