//! Which walls there are, looked up anew off the reactor's path.
//!
//! Owns the thread that notices within a second that the process was moved to
//! another cgroup, or that a level came, went or got the memory controller. It
//! opens a new set of walls and leaves it in a lock-free cell; the reactor takes
//! it before its next reading and leaves the old set, which this thread closes.
//! What the zones keep free is looked up anew each [`MARKS_EVERY`] looks.
//! Out of scope: limits, which every reading looks up itself.

use super::{
    cgroup::MemoryCgroup,
    system::Marks,
    wall::{MOST_LEVELS, Walls},
};
use crossbeam_queue::ArrayQueue;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
};
use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc};

/// Between two looks.
const EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Looks in which not all files of a set open before it is taken as it is.
const TRIES: u32 = 4;

/// Looks between two readings of /proc/zoneinfo: five seconds. It takes 100 us.
const MARKS_EVERY: u32 = 10;

/// Where both threads meet.
#[derive(Debug)]
pub(super) struct Handover {
    new: ArrayQueue<Walls>,
    old: ArrayQueue<Walls>,
}

impl Handover {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            new: ArrayQueue::new(1),
            old: ArrayQueue::new(2),
        })
    }

    /// The reactor's side: puts a new set in place, if there is one. Neither
    /// waits nor allocates, and closes nothing.
    pub fn take(&self, walls: &mut Option<Walls>) {
        if self.old.is_full() {
            return;
        }
        if let Some(new) = self.new.pop()
            && let Some(old) = walls.replace(new)
        {
            // There is room: only this thread puts anything in.
            let _ = self.old.push(old);
        }
    }

    /// A new set is there to be taken.
    pub fn waits(&self) -> bool {
        !self.new.is_empty() && !self.old.is_full()
    }

    fn put(&self, walls: Walls) {
        while self.old.pop().is_some() {}
        drop(self.new.force_push(walls));
    }
}

/// What tells one set of walls from another: of each level its directory, and which
/// file of its limit's name there is (a controller that goes and comes makes it anew).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Signature(Vec<(PathBuf, Option<u64>)>);

impl Signature {
    pub fn of(cgroup: &MemoryCgroup) -> Self {
        let one = |c: MemoryCgroup| {
            let limit = fs::metadata(c.path.join(c.version.limit_file()));
            (c.path, limit.ok().map(|m| m.ino()))
        };
        Self(cgroup.levels().map(one).collect())
    }

    /// Levels that have a limit file.
    fn limited(&self) -> usize {
        let watched = self.0.iter().take(MOST_LEVELS);
        watched.filter(|(_, limit)| limit.is_some()).count()
    }
}

/// What is looked up.
#[derive(Debug)]
pub(super) struct Survey {
    /// Where a new set of walls goes, where cgroups count.
    pub walls: Option<Arc<Handover>>,
    /// What zones keep free, where the system counts.
    pub marks: Option<Arc<Marks>>,
    /// Of the walls that the reactor begins with.
    pub signature: Signature,
}

impl Survey {
    /// Looks until told to stop.
    pub fn run(mut self, stop: &OwnedFd) {
        self.watch(stop, &|| MemoryCgroup::of_self().ok());
    }

    fn watch(&mut self, stop: &OwnedFd, find: &dyn Fn() -> Option<MemoryCgroup>) {
        let mut tries = 0;
        for look in 1u32.. {
            let mut fds = [PollFd::new(stop, PollFlags::IN)];
            match poll(&mut fds, Some(&EVERY)) {
                Ok(0) | Err(Errno::INTR) => {}
                _ => return,
            }
            if let Some(marks) = self.marks.as_ref().filter(|_| look % MARKS_EVERY == 0)
                && let Err(e) = marks.refresh()
            {
                tracing::debug!("the marks stay as they were: {e}");
            }
            let Some(handover) = &self.walls else {
                continue;
            };
            let Some(cgroup) = find() else { continue };
            let now = Signature::of(&cgroup);
            if now == self.signature {
                continue;
            }
            let walls = Walls::open(&cgroup);
            let path = cgroup.path.display();
            if walls.len() < now.limited() {
                tries += 1;
                if tries < TRIES {
                    continue;
                }
                tracing::warn!("not all memory limits of {path} can be read");
            }
            tries = 0;
            tracing::info!("memory limits are now those of {path}");
            handover.put(walls);
            self.signature = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{cgroup::Version, wall::Depth};
    use std::{
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        time::{Duration, Instant},
    };

    #[test]
    fn a_process_that_is_moved_has_other_walls_within_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, limit: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            for (file, text) in [
                ("cgroup.procs", ""),
                ("memory.current", "100\n"),
                ("memory.max", limit),
            ] {
                fs::write(path.join(file), text).unwrap();
            }
            let version = Version::V2;
            MemoryCgroup { path, version }
        };
        let (a, b) = (make("a", "1000\n"), make("b", "2000\n"));
        let moved = AtomicBool::new(false);
        let find = || {
            Some(if moved.load(SeqCst) {
                b.clone()
            } else {
                a.clone()
            })
        };
        let handover = Handover::new();
        // The process was moved between the opening of its walls and the first look.
        moved.store(true, SeqCst);
        let mut survey = Survey {
            walls: Some(Arc::clone(&handover)),
            marks: None,
            signature: Signature::of(&a),
        };
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let mut walls = Some(Walls::open(&a));
        let wait_for = |walls: &mut Option<Walls>, path: &std::path::Path| {
            let since = Instant::now();
            // What is taken takes the place of none.
            *walls = Some(Walls::default());
            while walls.as_ref().unwrap().path() != path {
                let waited = since.elapsed();
                assert!(waited < Duration::from_secs(1), "{}", path.display());
                std::thread::sleep(Duration::from_millis(5));
                handover.take(walls);
            }
        };
        std::thread::scope(|s| {
            s.spawn(|| survey.watch(&stop, &find));
            wait_for(&mut walls, &b.path);
            moved.store(false, SeqCst);
            wait_for(&mut walls, &a.path);
            // The controller went and came back between two looks.
            let limit = a.path.join("memory.max");
            fs::rename(&limit, dir.path().join("old")).unwrap();
            fs::write(&limit, "2000\n").unwrap();
            wait_for(&mut walls, &a.path);
            rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        });
        let binding = walls.unwrap().read(Depth::All).binding.unwrap();
        assert_eq!(binding.limit.0, 2000);
    }
}
