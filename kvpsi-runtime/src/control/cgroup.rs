//! The memory cgroup a process runs in, v2 or v1.
//!
//! Owns finding it, reading its limit, and making one of our own that is
//! removed again ([`OwnedCgroup`]). Refuses to know why anybody wants one.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst and
//! cgroup-v1/memory.rst; `proc_pid_cgroup(5)`.

use crate::units::Bytes;
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use thiserror::Error;

/// Which memory controller a cgroup belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// cgroup v1, `memory.limit_in_bytes`.
    V1,
    /// cgroup v2, `memory.max`.
    V2,
}

impl Version {
    /// File that holds the bytes charged now.
    #[must_use]
    pub const fn usage_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// File that holds the limit in bytes (`max` where there is none, in v2).
    #[must_use]
    pub const fn limit_file(self) -> &'static str {
        match self {
            Self::V1 => "memory.limit_in_bytes",
            Self::V2 => "memory.max",
        }
    }
}

/// Why there is no memory cgroup to use.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No hierarchy with the memory controller is mounted.
    #[error(
        "no memory cgroup controller is mounted (looked in /proc/self/mountinfo for cgroup2 and for cgroup v1 with `memory`); boot with cgroup_enable=memory, or mount one"
    )]
    NoController,
    /// A cgroup file or directory refused.
    #[error("{}: {what}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The limit was not taken as written.
    #[error("{}: the kernel kept {kept} instead of {wanted}", path.display())]
    LimitNotTaken {
        /// The limit file.
        path: PathBuf,
        /// Asked for.
        wanted: Bytes,
        /// Found after.
        kept: String,
    },
}

fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; run as root, or delegate a cgroup to this user",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; cgroups are mounted read-only here (a container?): run on the host or with a writable cgroup mount"
        }
        _ => "",
    }
}

fn io_err(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_path_buf();
    move |source| CgroupError::Io { what, path, source }
}

/// A memory cgroup: a directory and the version of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// Mount points that matter.
struct Hierarchies {
    /// cgroup2, and whether the memory controller is in it.
    v2: Option<(Mount, bool)>,
    /// The v1 memory controller.
    v1: Option<Mount>,
}

/// Where a hierarchy is mounted, and which of its cgroups the mount shows as its
/// root: `/` on a host, a container's own cgroup where a runtime binds only that
/// (Docker on v1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    point: PathBuf,
    root: String,
}

impl Mount {
    /// The directory of the cgroup that `/proc/self/cgroup` names `path`. A path
    /// outside of the mounted part (a cgroup namespace, a mount of another
    /// container) is read at the mount's root: the closest that is visible.
    fn directory(&self, path: &str) -> PathBuf {
        let below = Path::new(path)
            .strip_prefix(&self.root)
            .map(Path::to_path_buf)
            .unwrap_or_else(|_| PathBuf::from(path.trim_start_matches('/')));
        let inside = !below
            .components()
            .any(|c| c == std::path::Component::ParentDir);
        let directory = self.point.join(below);
        if inside && directory.is_dir() {
            directory
        } else {
            self.point.clone()
        }
    }
}

/// `mountinfo`'s escapes for space, tab, newline and backslash (proc(5)).
fn unescape(s: &str) -> String {
    s.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Mounts of (cgroup2, the v1 memory controller).
pub(crate) fn parse_mountinfo(text: &str) -> (Option<Mount>, Option<Mount>) {
    let (mut v2, mut v1) = (None, None);
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (left.next(), left.next()) else {
            continue;
        };
        let mount = || Mount {
            point: PathBuf::from(unescape(point)),
            root: unescape(root),
        };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") if v2.is_none() => v2 = Some(mount()),
            Some("cgroup")
                if v1.is_none()
                    && right
                        .nth(1)
                        .is_some_and(|o| o.split(',').any(|w| w == "memory")) =>
            {
                v1 = Some(mount());
            }
            _ => {}
        }
    }
    (v2, v1)
}

fn hierarchies() -> Result<Hierarchies, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(io_err("read", path))?;
    Ok(Hierarchies::of(&text))
}

impl Hierarchies {
    fn of(mountinfo: &str) -> Self {
        let (v2, v1) = parse_mountinfo(mountinfo);
        let v2 = v2.map(|m| {
            let has = fs::read_to_string(m.point.join("cgroup.controllers"))
                .is_ok_and(|s| s.split_whitespace().any(|c| c == "memory"));
            (m, has)
        });
        Self { v2, v1 }
    }

    /// The memory cgroup of a process whose `/proc/PID/cgroup` is `text`.
    fn memory_of(&self, text: &str) -> Result<MemoryCgroup, CgroupError> {
        let (mount, controller, version) = match (&self.v2, &self.v1) {
            (Some((mount, true)), _) => (mount, "", Version::V2),
            (_, Some(mount)) => (mount, "memory", Version::V1),
            _ => return Err(CgroupError::NoController),
        };
        Ok(MemoryCgroup {
            path: mount.directory(&own_path(text, controller).unwrap_or_default()),
            version,
        })
    }
}

/// The path of this process in `/proc/self/cgroup`; `""` selects v2's line.
pub(crate) fn own_path(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|l| {
        let mut f = l.splitn(3, ':');
        let (_, controllers, path) = (f.next()?, f.next()?, f.next()?);
        let hit = if controller.is_empty() {
            controllers.is_empty()
        } else {
            controllers.split(',').any(|c| c == controller)
        };
        hit.then(|| path.to_owned())
    })
}

impl MemoryCgroup {
    /// The memory cgroup this process runs in.
    ///
    /// # Errors
    /// No memory controller, or `/proc` cannot be read.
    pub fn of_self() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/cgroup");
        let text = fs::read_to_string(path).map_err(io_err("read", path))?;
        hierarchies()?.memory_of(&text)
    }

    /// Directory of this process in the v2 hierarchy, with or without the memory
    /// controller there: PSI is in either.
    #[must_use]
    pub fn unified_of_self() -> Option<PathBuf> {
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let (mount, _) = hierarchies().ok()?.v2?;
        Some(mount.directory(&own_path(&text, "")?))
    }

    /// Where the v2 hierarchy is mounted, with or without the memory controller.
    #[must_use]
    pub fn unified_root() -> Option<PathBuf> {
        Some(hierarchies().ok()?.v2?.0.point)
    }

    /// Times that the limit was hit since the cgroup was made (`memory.failcnt`;
    /// `max` and `high` of `memory.events.local`). Slow: for people.
    #[must_use]
    pub fn hits(&self) -> Option<u64> {
        let text = |file| fs::read_to_string(self.path.join(file)).ok();
        if self.version == Version::V1 {
            return text("memory.failcnt")?.trim().parse().ok();
        }
        let all = text("memory.events.local").or_else(|| text("memory.events"))?;
        let count = |l: &str| {
            let n = l.strip_prefix("max ").or_else(|| l.strip_prefix("high "))?;
            n.trim().parse::<u64>().ok()
        };
        Some(all.lines().filter_map(count).fold(0, u64::saturating_add))
    }

    /// This cgroup and those above it, up to the root of what is visible.
    pub fn levels(&self) -> impl Iterator<Item = Self> + '_ {
        self.path
            .ancestors()
            .map(|p| Self {
                path: p.to_path_buf(),
                version: self.version,
            })
            .take_while(|c| c.path.join("cgroup.procs").exists())
    }

    /// The limit in bytes, `None` where there is none or it cannot be read.
    #[must_use]
    pub fn limit(&self) -> Option<Bytes> {
        let text = fs::read_to_string(self.path.join(self.version.limit_file())).ok()?;
        // v1 writes "no limit" as the largest multiple of the page size.
        text.trim().parse().ok().filter(|n| *n < 1 << 60).map(Bytes)
    }

    /// `memory.high` in bytes, `None` where there is none (v1 has none).
    #[must_use]
    pub fn high(&self) -> Option<Bytes> {
        let text = fs::read_to_string(self.path.join("memory.high")).ok()?;
        text.trim().parse().ok().map(Bytes)
    }

    /// Bytes charged now.
    #[must_use]
    pub fn usage(&self) -> Option<Bytes> {
        let text = fs::read_to_string(self.path.join(self.version.usage_file())).ok()?;
        text.trim().parse().ok().map(Bytes)
    }

    /// The tightest limited cgroup from this one up to the root.
    #[must_use]
    pub fn tightest(&self) -> Option<(Self, Bytes)> {
        self.levels()
            .filter_map(|c| c.limit().map(|l| (c, l)))
            .min_by_key(|(_, l)| *l)
    }

    /// How many tasks of this cgroup the OOM killer has killed.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines()
            .find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Anonymous bytes, which only their owner can give back where there is
    /// no swap (`memory.stat`: `anon`, in v1 `total_rss`).
    #[must_use]
    pub fn anonymous(&self) -> Option<Bytes> {
        let key = match self.version {
            Version::V1 => "total_rss ",
            Version::V2 => "anon ",
        };
        let text = fs::read_to_string(self.path.join("memory.stat")).ok()?;
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.trim().parse().ok())
            .map(Bytes)
    }
}

/// A memory cgroup of our own; removed on drop with every directory made for it.
#[derive(Debug)]
pub struct OwnedCgroup {
    memory: MemoryCgroup,
    /// Same name in the v2 hierarchy where memory is v1's: gives tasks the
    /// cgroup id that eBPF programs see.
    twin: Option<PathBuf>,
}

impl OwnedCgroup {
    /// Makes `name` below the root of the memory hierarchy.
    ///
    /// # Errors
    /// No controller, or no right to make a cgroup: says what to do.
    pub fn create(name: &str) -> Result<Self, CgroupError> {
        let h = hierarchies()?;
        let (memory, twin) = match h {
            Hierarchies {
                v2: Some((mount, true)),
                ..
            } => {
                // Children get the controller only if the parent hands it on;
                // refused where it is handed on already, which is checked below.
                let _ = fs::write(mount.point.join("cgroup.subtree_control"), "+memory");
                (
                    MemoryCgroup {
                        path: mount.point.join(name),
                        version: Version::V2,
                    },
                    None,
                )
            }
            Hierarchies {
                v2,
                v1: Some(mount),
            } => (
                MemoryCgroup {
                    path: mount.point.join(name),
                    version: Version::V1,
                },
                v2.map(|(m, _)| m.point.join(name)),
            ),
            _ => return Err(CgroupError::NoController),
        };
        fs::create_dir(&memory.path).map_err(io_err("make a cgroup", &memory.path))?;
        let mut own = Self { memory, twin: None };
        let limit = own.memory.path.join(own.memory.version.limit_file());
        if !limit.exists() {
            return Err(CgroupError::Io {
                what: "the memory controller is not handed to this cgroup",
                path: limit,
                source: io::ErrorKind::NotFound.into(),
            });
        }
        own.twin = twin.filter(|t| fs::create_dir(t).is_ok());
        Ok(own)
    }

    /// Removes cgroups named `prefix` + PID whose process is gone: what a
    /// supervisor that was killed could not remove itself.
    pub fn sweep(prefix: &str) {
        let Ok(h) = hierarchies() else { return };
        for mount in h.v2.map(|v| v.0).into_iter().chain(h.v1) {
            let Ok(dir) = fs::read_dir(mount.point) else {
                continue;
            };
            for e in dir.flatten() {
                let name = e.file_name();
                let pid = name
                    .to_str()
                    .and_then(|n| n.strip_prefix(prefix)?.parse::<u32>().ok());
                if pid.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists()) {
                    let _ = fs::remove_dir(e.path());
                }
            }
        }
    }

    /// The memory cgroup.
    #[must_use]
    pub fn memory(&self) -> &MemoryCgroup {
        &self.memory
    }

    /// The id that eBPF programs see for tasks in it: the inode of its v2
    /// directory. `None` where no v2 hierarchy is mounted.
    #[must_use]
    pub fn v2_id(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let dir = match self.memory.version {
            Version::V2 => Some(&self.memory.path),
            Version::V1 => self.twin.as_ref(),
        };
        Some(fs::metadata(dir?).ok()?.ino())
    }

    /// Sets the limit; the kernel may round it to pages.
    ///
    /// # Errors
    /// The write was refused (also when more is in use than can be reclaimed).
    pub fn set_limit(&self, limit: Bytes) -> Result<(), CgroupError> {
        let path = self.memory.path.join(self.memory.version.limit_file());
        fs::write(&path, limit.0.to_string()).map_err(io_err("set the limit", &path))?;
        let kept = self.memory.limit();
        if kept.is_none_or(|k| k.0.abs_diff(limit.0) > 1 << 20) {
            let kept = kept.map_or_else(|| "no limit".into(), |k| k.to_string());
            return Err(CgroupError::LimitNotTaken {
                path,
                wanted: limit,
                kept,
            });
        }
        Ok(())
    }

    /// Files to write a process id into, so that the process joins.
    pub fn procs(&self) -> impl Iterator<Item = PathBuf> + '_ {
        std::iter::once(&self.memory.path)
            .chain(&self.twin)
            .map(|p| p.join("cgroup.procs"))
    }
}

impl Drop for OwnedCgroup {
    fn drop(&mut self) {
        // A killed task leaves its cgroup a moment after it was reaped.
        let deadline = Instant::now() + Duration::from_secs(2);
        for path in std::iter::once(&self.memory.path).chain(&self.twin) {
            while let Err(e) = fs::remove_dir(path) {
                if e.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error())
                    || Instant::now() > deadline
                {
                    tracing::warn!("{}: cannot remove the cgroup: {e}", path.display());
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[cfg(test)]
mod tests;
