//! The clock that kernel events carry.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in ns: what `bpf_ktime_get_ns` reads. Never allocates;
/// served by the vDSO.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    let (s, ns) = (t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs());
    s.saturating_mul(1_000_000_000).saturating_add(ns)
}
