//! Privilege is needed for a moment: to load and attach. Then it goes.

use caps::{CapSet, CapsHashSet};
use rustix::{
    process::{Gid, Uid, getgid, getgroups, getuid},
    thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use serde::Serialize;
use std::{collections::BTreeSet, io};

/// Whom a thread works for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All groups, `gid` among them.
    pub groups: Vec<u32>,
}

impl Ids {
    /// Gives the calling thread these ids, and no way back. Nothing is asked
    /// of the kernel by a thread that has them already.
    fn take(&self) -> io::Result<()> {
        let gids: Vec<Gid> = self.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let set = |g: &[Gid]| g.iter().map(|g| g.as_raw()).collect::<BTreeSet<u32>>();
        let mine = [getgroups()?, vec![getgid()]].concat();
        if (getuid(), getgid()) == (uid, gid) && set(&mine) == set(&[&gids[..], &[gid]].concat()) {
            return Ok(());
        }
        let tried = |what: &'static str| {
            move |e: rustix::io::Errno| {
                let why = crate::pressure::plain(&e.into());
                io::Error::other(format!("{what}: {why}"))
            }
        };
        set_thread_groups(&gids).map_err(tried("setgroups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(tried("setresgid"))?;
        set_thread_res_uid(uid, uid, uid).map_err(tried("setresuid"))
    }
}

/// What a thread does that needs no privilege from now on: takes `ids`, where
/// given, drops every capability, and can gain none by running a program.
///
/// Of the calling thread and those that it starts later alone, by the plain
/// system calls: the C library's would change all threads, and abort where
/// one of them has dropped its capabilities before the others.
///
/// # Errors
/// The ids were refused, or a capability is still held.
pub fn leave(ids: Option<&Ids>) -> io::Result<()> {
    // Another user may not.
    empty_bounding()?;
    if let Some(ids) = ids {
        ids.take()?;
    }
    drop_all()?;
    Ok(set_no_new_privs(true)?)
}

fn failed(e: caps::errors::CapsError) -> io::Error {
    io::Error::other(e.to_string())
}

fn empty_bounding() -> io::Result<()> {
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP).map_err(failed)? {
        caps::clear(None, CapSet::Bounding).map_err(failed)?;
    }
    Ok(())
}

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
    empty_bounding()?;
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
