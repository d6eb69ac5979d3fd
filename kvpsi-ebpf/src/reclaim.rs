//! Reclaim by the task that wants memory: direct, memcg, soft limit, node.
//!
//! Hooks `trace_mm_vmscan_*_reclaim_begin/end` in `mm/vmscan.c`. Arguments of
//! a begin: direct, memcg and soft limit `(int order, gfp_t)`, node `(int
//! nid, int order, gfp_t)`; of an end `(unsigned long nr_reclaimed)`.
//!
//! Some kernels put the gfp flags before the order. An order is at most 63
//! and the flags of an allocation that reclaims hold `__GFP_IO`, `__GFP_FS`
//! or `__GFP_DIRECT_RECLAIM`, all of 64 and more: the smaller is the order.

use crate::{
    here::Facts,
    plausible,
    stall::{begin, end},
};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use kvpsi_common::Kind;

#[inline(always)]
fn order(ctx: &RawTracePointContext) -> Facts {
    let (a, b): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    plausible::order(if a < b { a } else { b })
}

/// The system is out of free pages: the task frees some itself
/// (`try_to_free_pages`).
#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_begin")]
pub fn direct_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Kind::DirectReclaim, order(&ctx));
    0
}

/// The task got its pages, or its reclaim failed.
#[raw_tracepoint(tracepoint = "mm_vmscan_direct_reclaim_end")]
pub fn direct_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Kind::DirectReclaim, plausible::pages(ctx.arg(0)));
    0
}

/// A memory cgroup is at its limit: the task that charges it frees pages of
/// it (`try_to_free_mem_cgroup_pages`).
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_begin")]
pub fn memcg_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Kind::MemcgReclaim, order(&ctx));
    0
}

/// The cgroup got room or not.
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_reclaim_end")]
pub fn memcg_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Kind::MemcgReclaim, plausible::pages(ctx.arg(0)));
    0
}

/// A cgroup over its soft limit gives first (`mem_cgroup_shrink_node`, cgroup
/// v1).
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_softlimit_reclaim_begin")]
pub fn soft_begin(ctx: RawTracePointContext) -> i32 {
    begin(&ctx, Kind::SoftlimitReclaim, order(&ctx));
    0
}

/// The soft limit's turn is over.
#[raw_tracepoint(tracepoint = "mm_vmscan_memcg_softlimit_reclaim_end")]
pub fn soft_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Kind::SoftlimitReclaim, plausible::pages(ctx.arg(0)));
    0
}

/// A NUMA node is full and `vm.zone_reclaim_mode` prefers reclaim to another
/// node (`node_reclaim`).
#[raw_tracepoint(tracepoint = "mm_vmscan_node_reclaim_begin")]
pub fn node_begin(ctx: RawTracePointContext) -> i32 {
    let facts = Facts {
        node: plausible::node(ctx.arg(0)),
        ..plausible::order(ctx.arg(1))
    };
    begin(&ctx, Kind::NodeReclaim, facts);
    0
}

/// The node's turn is over.
#[raw_tracepoint(tracepoint = "mm_vmscan_node_reclaim_end")]
pub fn node_end(ctx: RawTracePointContext) -> i32 {
    end(&ctx, Kind::NodeReclaim, plausible::pages(ctx.arg(0)));
    0
}
