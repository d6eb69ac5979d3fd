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
    v2: Option<(PathBuf, bool)>,
    /// The v1 memory controller.
    v1: Option<PathBuf>,
}

/// `mountinfo`'s escapes for space, tab, newline and backslash (proc(5)).
fn unescape(s: &str) -> String {
    s.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Mount points of (cgroup2, the v1 memory controller).
pub(crate) fn parse_mountinfo(text: &str) -> (Option<PathBuf>, Option<PathBuf>) {
    let (mut v2, mut v1) = (None, None);
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = left.split(' ').nth(4) else {
            continue;
        };
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") if v2.is_none() => v2 = Some(PathBuf::from(unescape(mount))),
            Some("cgroup")
                if v1.is_none()
                    && right
                        .nth(1)
                        .is_some_and(|o| o.split(',').any(|w| w == "memory")) =>
            {
                v1 = Some(PathBuf::from(unescape(mount)));
            }
            _ => {}
        }
    }
    (v2, v1)
}

fn hierarchies() -> Result<Hierarchies, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(io_err("read", path))?;
    let (v2, v1) = parse_mountinfo(&text);
    let v2 = v2.map(|m| {
        let has = fs::read_to_string(m.join("cgroup.controllers"))
            .is_ok_and(|s| s.split_whitespace().any(|c| c == "memory"));
        (m, has)
    });
    Ok(Hierarchies { v2, v1 })
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

/// Joins a cgroup path to its mount. In a container the path may lie outside
/// what is mounted; then the mount itself is the closest that can be read.
fn under(mount: &Path, path: &str) -> PathBuf {
    let p = mount.join(path.trim_start_matches('/'));
    if p.is_dir() { p } else { mount.to_path_buf() }
}

impl MemoryCgroup {
    /// The memory cgroup this process runs in.
    ///
    /// # Errors
    /// No memory controller, or `/proc` cannot be read.
    pub fn of_self() -> Result<Self, CgroupError> {
        let h = hierarchies()?;
        let path = Path::new("/proc/self/cgroup");
        let text = fs::read_to_string(path).map_err(io_err("read", path))?;
        match h {
            Hierarchies {
                v2: Some((mount, true)),
                ..
            } => Ok(Self {
                path: under(&mount, &own_path(&text, "").unwrap_or_default()),
                version: Version::V2,
            }),
            Hierarchies {
                v1: Some(mount), ..
            } => Ok(Self {
                path: under(&mount, &own_path(&text, "memory").unwrap_or_default()),
                version: Version::V1,
            }),
            _ => Err(CgroupError::NoController),
        }
    }

    /// The limit in bytes, `None` where there is none or it cannot be read.
    #[must_use]
    pub fn limit(&self) -> Option<Bytes> {
        let text = fs::read_to_string(self.path.join(self.version.limit_file())).ok()?;
        // v1 writes "no limit" as the largest multiple of the page size.
        text.trim().parse().ok().filter(|n| *n < 1 << 60).map(Bytes)
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
        self.path
            .ancestors()
            .map(|p| Self {
                path: p.to_path_buf(),
                version: self.version,
            })
            .take_while(|c| c.path.join("cgroup.procs").exists())
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
                let _ = fs::write(mount.join("cgroup.subtree_control"), "+memory");
                (
                    MemoryCgroup {
                        path: mount.join(name),
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
                    path: mount.join(name),
                    version: Version::V1,
                },
                v2.map(|(m, _)| m.join(name)),
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
            let Ok(dir) = fs::read_dir(mount) else {
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
mod tests {
    use super::*;

    #[test]
    fn both_hierarchies_are_found_in_mountinfo() {
        let text = "25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            26 25 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            27 25 0:24 / /sys/fs/cgroup/my\\040v2 rw - cgroup2 cgroup2 rw\n";
        let (v2, v1) = parse_mountinfo(text);
        assert_eq!(v2, Some("/sys/fs/cgroup/my v2".into()));
        assert_eq!(v1, Some("/sys/fs/cgroup/memory".into()));
    }

    #[test]
    fn garbage_in_mountinfo_is_passed_over() {
        assert_eq!(
            parse_mountinfo("\n - \na - cgroup\nx y z - cgroup2 a b\n"),
            (None, None)
        );
    }

    #[test]
    fn own_path_tells_v1_controllers_from_v2() {
        let text = "4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d\n";
        assert_eq!(own_path(text, "memory").as_deref(), Some("/a/b"));
        assert_eq!(own_path(text, "cpuacct").as_deref(), Some("/c"));
        assert_eq!(own_path(text, "").as_deref(), Some("/d"));
        assert_eq!(own_path("nonsense", ""), None);
    }
}
