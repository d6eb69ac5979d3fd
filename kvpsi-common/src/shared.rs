//! The state that all CPUs share: one value of one array map.

use crate::{Kind, ScopeClock, Slot, scope::ScopeReading};
use bytemuck::{Pod, Zeroable};

/// Index of the whole system in [`Shared::scopes`].
pub const SYSTEM: usize = 0;
/// Index of the watched cgroup in [`Shared::scopes`].
pub const CGROUP: usize = 1;
/// Index in [`Shared::scopes`] of what PSI counts as stalled: everything
/// between `psi_memstall_enter` and `psi_memstall_leave` in the whole system,
/// the kernel's own threads included. Stands still without the memstall rung.
pub const MEMSTALL: usize = 2;
/// Scopes.
pub const SCOPES: usize = 3;
/// Streams of events that are coalesced apart from each other.
pub const STREAMS: usize = 6;

/// Clocks and streams.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Shared {
    /// [`SYSTEM`], [`CGROUP`] and [`MEMSTALL`].
    pub scopes: [ScopeClock; SCOPES],
    /// By [`stream`].
    pub streams: [Slot; STREAMS],
}

/// [`Shared`] as user space reads it.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct SharedReading {
    /// [`SYSTEM`], [`CGROUP`] and [`MEMSTALL`].
    pub scopes: [ScopeReading; SCOPES],
    /// The streams' state, of no use outside the kernel.
    pub streams: [[u64; 8]; STREAMS],
}

const _: () = assert!(core::mem::size_of::<Shared>() == core::mem::size_of::<SharedReading>());

/// The stream an event belongs to. Stalls of the watched cgroup have their
/// own, so that a busy neighbour cannot delay their onset.
#[inline(always)]
#[must_use]
pub const fn stream(kind: Kind, watched: bool) -> usize {
    match kind {
        Kind::KswapdWake => 2,
        Kind::KswapdSleep => 3,
        Kind::WakeupKswapd => 4,
        Kind::OomVictim => 5,
        _ if watched => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_stream_and_only_stalls_depend_on_the_cgroup() {
        for k in Kind::ALL {
            assert!(stream(k, false) < STREAMS && stream(k, true) < STREAMS);
            assert_eq!(stream(k, false) != stream(k, true), k.is_stall());
        }
    }
}
