//! What the programs keep, and what user space sets before they are loaded.
//!
//! Everything is allocated at load: a program runs inside reclaim, where
//! nothing may be allocated.

use aya_ebpf::{
    Global,
    helpers::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, RingBuf},
};
use kvpsi_common::{Counters, Rule, Shared};

/// Checked by the loader before it loads anything.
#[unsafe(no_mangle)]
static KVPSI_ABI: Global<u32> = Global::new(kvpsi_common::ABI_VERSION);
/// `Rule::interval_ns`.
#[unsafe(no_mangle)]
static INTERVAL_NS: Global<u64> = Global::new(1_000_000);
/// `Rule::quiet_ns`.
#[unsafe(no_mangle)]
static QUIET_NS: Global<u64> = Global::new(10_000_000);
/// cgroup v2 id of the watched cgroup; 0 watches the whole system.
#[unsafe(no_mangle)]
static SCOPE_ID: Global<u64> = Global::new(0);
/// Depth of the watched cgroup, so that its descendants count as it; negative
/// if unknown, then only the cgroup itself does.
#[unsafe(no_mangle)]
static SCOPE_LEVEL: Global<i32> = Global::new(-1);
/// Bytes of waiting events at which the reader is woken in any case.
#[unsafe(no_mangle)]
static EVENTS_FULL: Global<u64> = Global::new(128 << 10);
/// The same for the trace ring buffer.
#[unsafe(no_mangle)]
static TRACE_FULL: Global<u64> = Global::new(1 << 20);
/// CPUs there are: so many stalled tasks leave none for others.
#[unsafe(no_mangle)]
static CPUS: Global<u64> = Global::new(1);
/// Non-zero: x86-64; zero: arm64.
#[unsafe(no_mangle)]
static IS_X86: Global<u8> = Global::new(1);
/// Non-zero: trace mode.
#[unsafe(no_mangle)]
static TRACE_ON: Global<u8> = Global::new(0);

/// Coalesced events; the loader sets the size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 << 10, 0);

/// Every event, in trace mode; one page otherwise.
#[map]
pub static TRACE: RingBuf = RingBuf::with_byte_size(4096, 0);

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): user space reads the map as
/// memory, which takes no capability.
const MMAPABLE: u32 = 1 << 10;

/// By CPU; the loader sets the size. Not a per-CPU array: those have no
/// mapping.
#[map]
static COUNTERS: Array<Counters> = Array::with_max_entries(1, MMAPABLE);

#[map]
static SHARED: Array<Shared> = Array::with_max_entries(1, MMAPABLE);

/// This CPU's counters.
#[inline(always)]
pub fn counters() -> Option<*mut Counters> {
    // SAFETY: the helper only reads the number of the CPU we are on.
    COUNTERS.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// The state shared by all CPUs.
#[inline(always)]
pub fn shared() -> Option<&'static Shared> {
    SHARED.get(0)
}

/// The coalescing rule as set at load.
#[inline(always)]
pub fn rule() -> Rule {
    Rule {
        interval_ns: INTERVAL_NS.load(),
        quiet_ns: QUIET_NS.load(),
    }
}

/// The watched cgroup and its depth, if one is watched.
#[inline(always)]
pub fn scope() -> Option<(u64, i32)> {
    match SCOPE_ID.load() {
        0 => None,
        id => Some((id, SCOPE_LEVEL.load())),
    }
}

/// CPUs there are.
#[inline(always)]
pub fn cpus() -> u64 {
    CPUS.load()
}

/// Registers are laid out as on x86-64, else as on arm64.
#[inline(always)]
pub fn is_x86() -> bool {
    IS_X86.load() != 0
}

/// Trace mode is on.
#[inline(always)]
pub fn tracing() -> bool {
    // Keeps the version symbol in the object.
    KVPSI_ABI.load() != 0 && TRACE_ON.load() != 0
}

/// Waiting bytes at which a reader of `EVENTS` is woken in any case.
#[inline(always)]
pub fn events_full() -> u64 {
    EVENTS_FULL.load()
}

/// Waiting bytes at which a reader of `TRACE` is woken.
#[inline(always)]
pub fn trace_full() -> u64 {
    TRACE_FULL.load()
}
