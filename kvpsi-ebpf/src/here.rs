//! What every program reads first: where and when it runs, and its counters.
//!
//! Owns [`Here`], [`Facts`] and the one way to add to a counter. Out of scope:
//! what the counters mean, which is [`crate::stall`]'s.

use crate::maps;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_get_current_cgroup_id,
};
use kvpsi_common::{Counters, Shared, event::ORDER_UNKNOWN};

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
}

/// Where and when a program runs.
#[derive(Clone, Copy)]
pub struct Here {
    pub counters: *mut Counters,
    pub shared: &'static Shared,
    /// In ns.
    pub now: u64,
    /// `bpf_get_current_pid_tgid`.
    pub ids: u64,
    /// CPUs there are.
    pub cpus: u64,
}

impl Here {
    /// `None` never happens; the verifier wants to be asked.
    #[inline(always)]
    pub fn now() -> Option<Self> {
        Some(Self {
            counters: maps::counters()?,
            shared: maps::shared()?,
            now: now(),
            ids: bpf_get_current_pid_tgid(),
            cpus: maps::cpus(),
        })
    }

    #[inline(always)]
    pub const fn tid(&self) -> u32 {
        (self.ids & 0xffff_ffff) as u32
    }
}

/// `CLOCK_MONOTONIC`, in ns.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds to a counter of this CPU. An addition without a result is one `lock
/// add`; a plain one could lose counts where programs can be preempted.
macro_rules! bump {
    ($counters:expr, $($field:tt)+) => { $crate::here::bump!(@by $counters, 1, $($field)+) };
    (@by $counters:expr, $n:expr, $($field:tt)+) => {
        // SAFETY: the pointer comes from the map lookup, the field is an
        // aligned u64, and every access to it in the kernel goes through a cell.
        unsafe { kvpsi_common::cell::Cell::at(&raw mut (*$counters).$($field)+) }.add($n)
    };
}
pub(crate) use bump;

/// The task's cgroup, v2.
#[inline(always)]
pub fn cgroup_id() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_cgroup_id() }
}
