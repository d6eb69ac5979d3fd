//! A task moves pages together itself, for an allocation of a higher order.
//!
//! Hooks `trace_mm_compaction_begin/end` in `mm/compaction.c`. Their arguments
//! differ between kernels and none is read.

use crate::{
    here::Facts,
    stall::{begin, end},
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use kvpsi_common::Kind;

/// `compact_zone` begins.
#[raw_tracepoint(tracepoint = "mm_compaction_begin")]
pub fn compact_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Kind::Compaction, Facts::NONE);
    0
}

/// `compact_zone` ends.
#[raw_tracepoint(tracepoint = "mm_compaction_end")]
pub fn compact_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Kind::Compaction, Facts::NONE);
    0
}
