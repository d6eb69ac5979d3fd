//! Arguments of a hook, as far as they can be what they are taken for.
//!
//! Tracepoints are no ABI: a kernel may pass something else in an argument's
//! place, and a raw tracepoint does not say. What cannot be true is counted
//! (`implausible`) and left out of the event.

use crate::{here::Facts, stall::implausible};
use kvpsi_common::event::ORDER_UNKNOWN;

/// Above `MAX_ORDER` of every architecture (arm64 with 64 KiB pages: 13).
const ORDERS: u64 = 32;
/// Above `CONFIG_NODES_SHIFT` of 10.
const NODES: u64 = 1 << 10;
/// 16 TiB in pages of 4 KiB: no reclaim frees as much at once.
const PAGES: u64 = 1 << 32;
/// The longest sleep a program believes: a minute in us.
const SLEEP_US: u64 = 60_000_000;
/// Reasons there may ever be (`VMSCAN_THROTTLE_*` has 4).
const REASONS: u64 = 32;

/// The kernel widens an `int` without its sign (`CAST_TO_U64` in
/// include/trace/bpf_probe.h): a negative one is too large as well.
#[inline(always)]
fn below(raw: u64, limit: u64) -> Option<u64> {
    if raw < limit {
        Some(raw)
    } else {
        implausible();
        None
    }
}

/// Facts with this order.
#[inline(always)]
pub fn order(raw: u64) -> Facts {
    Facts {
        order: match below(raw, ORDERS) {
            Some(order) => (order & 0xff) as i32,
            None => ORDER_UNKNOWN,
        },
        ..Facts::NONE
    }
}

/// A NUMA node; 0 if it cannot be one.
#[inline(always)]
pub fn node(raw: u64) -> u32 {
    (below(raw, NODES).unwrap_or(0) & 0xffff) as u32
}

/// Facts with this many pages.
#[inline(always)]
pub fn pages(raw: u64) -> Facts {
    Facts {
        pages: below(raw, PAGES).unwrap_or(0),
        ..Facts::NONE
    }
}

/// A sleep in us; 0 if it cannot be one.
#[inline(always)]
pub fn sleep_us(raw: u64) -> u64 {
    below(raw, SLEEP_US).unwrap_or(0)
}

/// A reason of `mm_vmscan_throttled`; 0 if it cannot be one.
#[inline(always)]
pub fn reason(raw: u64) -> u64 {
    below(raw, REASONS).unwrap_or(0)
}
