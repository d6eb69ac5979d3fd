//! Privilege is needed for a moment: to load and attach. Then it goes.

use caps::{CapSet, CapsHashSet};
use std::io;

/// Drops every capability of this thread and of threads it starts later; the
/// open descriptors keep working. Linux keeps capabilities per thread, so
/// this comes after the programs are attached (and cgroups are made) and
/// before other threads start.
///
/// The bounding set is emptied as far as the kernel lets (`CAP_SETPCAP`), so
/// that no program run later gains anything either.
///
/// # Errors
/// A capability could not be dropped and is still held.
pub fn drop_all() -> io::Result<()> {
    let failed = |e: caps::errors::CapsError| io::Error::other(e.to_string());
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).map_err(failed)? {
        caps::clear(None, CapSet::Bounding).map_err(failed)?;
    }
    // Kernels before 4.3 have no ambient set, and then nothing to clear.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(failed)?;
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &CapsHashSet::new()).map_err(failed)?;
    }
    Ok(())
}

/// Names of the capabilities in effect that matter to kvpsi.
#[must_use]
pub fn held() -> Vec<String> {
    use caps::Capability::{
        CAP_BPF, CAP_IPC_LOCK, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE,
    };
    [
        CAP_BPF,
        CAP_PERFMON,
        CAP_SYS_ADMIN,
        CAP_SYS_RESOURCE,
        CAP_SYS_NICE,
        CAP_IPC_LOCK,
    ]
    .into_iter()
    .filter(|c| caps::has_cap(None, CapSet::Effective, *c).unwrap_or(false))
    .map(|c| c.to_string())
    .collect()
}
