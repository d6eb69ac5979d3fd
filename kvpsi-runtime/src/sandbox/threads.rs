//! What every thread of this process has, as /proc says (proc_pid_status(5)).

use super::{ConfineError, Holds, Part};
use crate::pressure::{plain, privilege::Ids};
use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

/// For a thread that was started a moment ago and is about to leave.
const PATIENCE: Duration = Duration::from_millis(500);

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Thread {
    name: String,
    tid: u32,
    /// Real, effective, saved, of the file system.
    uids: Vec<u32>,
    gids: Vec<u32>,
    groups: Vec<u32>,
    /// Inheritable, permitted, effective, ambient.
    capabilities: u64,
    bounding: u64,
    no_new_privs: bool,
    /// A filter is installed.
    filtered: bool,
}

impl Thread {
    pub(crate) fn parse(tid: u32, text: &str) -> Self {
        let mut t = Self {
            tid,
            ..Self::default()
        };
        let list = |v: &str| {
            v.split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect()
        };
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            // What cannot be read counts as held.
            let set = || u64::from_str_radix(value, 16).unwrap_or(u64::MAX);
            match key {
                "Name" => t.name = value.to_owned(),
                "Uid" => t.uids = list(value),
                "Gid" => t.gids = list(value),
                "Groups" => t.groups = list(value),
                "CapInh" | "CapPrm" | "CapEff" | "CapAmb" => t.capabilities |= set(),
                "CapBnd" => t.bounding = set(),
                "NoNewPrivs" => t.no_new_privs = value == "1",
                // SECCOMP_MODE_FILTER.
                "Seccomp" => t.filtered = value == "2",
                _ => {}
            }
        }
        t
    }

    /// What it has and should not.
    pub(crate) fn excess(&self, ids: Option<&Ids>) -> Option<String> {
        if self.capabilities != 0 {
            return Some(format!(
                "still holds capabilities ({:#x})",
                self.capabilities
            ));
        }
        let ids = ids?;
        let all = |mine: &[u32], want: u32| !mine.is_empty() && mine.iter().all(|id| *id == want);
        if !all(&self.uids, ids.uid) || !all(&self.gids, ids.gid) {
            return Some(format!(
                "works for {:?}:{:?} and not for {}:{}",
                self.uids, self.gids, ids.uid, ids.gid
            ));
        }
        let more = self
            .groups
            .iter()
            .find(|g| **g != ids.gid && !ids.groups.contains(g));
        more.map(|g| format!("is still of the group {g}"))
    }
}

/// Every thread, none with more than it should have; or nothing, and why.
pub(super) struct Seen(Result<Vec<Thread>, String>);

/// Looks at every thread.
///
/// # Errors
/// One has what it should not.
pub(super) fn look(ids: Option<&Ids>) -> Result<Seen, ConfineError> {
    let start = Instant::now();
    loop {
        let threads = match all() {
            Ok(threads) => threads,
            Err(e) => return Ok(Seen(Err(format!("/proc/self/task: {}", plain(&e))))),
        };
        let excess = threads.iter().find_map(|t| Some((t, t.excess(ids)?)));
        match excess {
            None => return Ok(Seen(Ok(threads))),
            Some((t, what)) if start.elapsed() > PATIENCE => {
                return Err(ConfineError::Thread {
                    name: t.name.clone(),
                    tid: t.tid,
                    what,
                });
            }
            Some(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// How many threads there are.
pub(super) fn count() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

fn all() -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(Path::new("/proc/self/task"))? {
        let entry = entry?;
        let tid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        // One that has ended since has nothing.
        if let (Some(tid), Ok(text)) = (tid, fs::read_to_string(entry.path().join("status"))) {
            threads.push(Thread::parse(tid, &text));
        }
    }
    if threads.is_empty() {
        return Err(io::Error::other("it names no thread"));
    }
    Ok(threads)
}

impl Seen {
    fn part(&self, holds: impl Fn(&Thread) -> bool, note: &str, lacks: &str) -> Part {
        let threads = match &self.0 {
            Ok(threads) => threads,
            Err(e) => {
                return Part::new(
                    Holds::Partly,
                    format!("{note}, as asked for; cannot be looked at: {e}"),
                );
            }
        };
        let without: Vec<&str> = threads
            .iter()
            .filter(|t| !holds(t))
            .map(|t| t.name.as_str())
            .collect();
        let of = match threads.len() {
            1 => "the only thread".to_owned(),
            n => format!("all {n} threads"),
        };
        if without.is_empty() {
            Part::new(Holds::Full, format!("{note}, {of}"))
        } else {
            Part::new(Holds::Partly, format!("{lacks}: {}", without.join(", ")))
        }
    }

    pub fn capabilities(&self) -> Part {
        let mut part = self.part(|_| true, "none", "");
        let bounding = self.0.iter().flatten().any(|t| t.bounding != 0);
        if part.holds == Holds::Full && bounding {
            part.note += "; the bounding set stays (no CAP_SETPCAP), which no_new_privs makes moot";
        }
        part
    }

    pub fn no_new_privs(&self) -> Part {
        self.part(|t| t.no_new_privs, "set", "not set in threads")
    }

    pub fn seccomp(&self, calls: usize) -> Part {
        let note = format!("{calls} system calls are refused");
        self.part(|t| t.filtered, &note, "no filter in threads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\tkvpsi-reactor\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 44 \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    fn ids() -> Ids {
        Ids {
            uid: 7,
            gid: 8,
            groups: vec![8, 44],
        }
    }

    fn with(from: &str, to: &str) -> Thread {
        Thread::parse(3, &TEXT.replace(from, to))
    }

    #[test]
    fn a_thread_that_has_left_has_nothing_too_much() {
        let t = with("", "");
        assert_eq!(t.excess(Some(&ids())), None);
        assert!(t.no_new_privs && t.filtered && t.bounding != 0);
    }

    #[test]
    fn each_thing_that_is_kept_is_named() {
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let t = with(&format!("{set}:\t0"), &format!("{set}:\t8"));
            assert!(t.excess(None).unwrap().contains("capabilities"), "{set}");
        }
        for (from, to) in [
            ("Uid:\t7\t7\t7", "Uid:\t7\t7\t0"),
            ("Gid:\t8\t8", "Gid:\t8\t0"),
            ("Uid:\t7\t7\t7\t7", "Uid:\tx"),
        ] {
            let excess = with(from, to).excess(Some(&ids())).unwrap();
            assert!(excess.contains("not for 7:8"), "{excess}");
        }
        let excess = with("8 44 ", "8 44 0").excess(Some(&ids())).unwrap();
        assert!(excess.contains("group 0"), "{excess}");
        assert!(
            with("CapEff:\t0000000000000000", "CapEff:\t?")
                .excess(None)
                .is_some()
        );
    }

    #[test]
    fn a_thread_without_a_filter_is_named() {
        let seen = Seen(Ok(vec![with("", ""), with("Seccomp:\t2", "Seccomp:\t0")]));
        let part = seen.seccomp(3);
        assert_eq!(part.holds, Holds::Partly);
        assert!(part.note.ends_with("kvpsi-reactor"), "{part}");
        let part = Seen(Ok(vec![with("", "")])).seccomp(3);
        assert_eq!(
            part.to_string(),
            "3 system calls are refused, the only thread"
        );
    }
}
