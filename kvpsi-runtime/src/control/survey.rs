//! Which walls there are, looked up anew off the reactor's path.
//!
//! Owns the thread that notices within a second that the process was moved to
//! another cgroup, or that a level came, went or got the memory controller. It
//! opens a new set of walls and leaves it in a lock-free cell; the reactor takes
//! it before its next reading and leaves the old set, which this thread closes.
//! What the zones keep free is looked up anew each [`MARKS_EVERY`] looks.
//! Out of scope: limits, which every reading looks up itself.

use super::{cgroup::MemoryCgroup, system::Marks, wall::Walls};
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

    fn put(&self, walls: Walls) {
        while self.old.pop().is_some() {}
        drop(self.new.force_push(walls));
    }
}

/// What tells one set of walls from another: of each level its directory, which
/// directory of that name it is, and whether it has a limit file.
type Signature = Vec<(PathBuf, u64, bool)>;

fn signature(cgroup: &MemoryCgroup) -> Signature {
    let one = |c: MemoryCgroup| {
        let inode = fs::metadata(&c.path).map_or(0, |m| m.ino());
        let limited = c.path.join(c.version.limit_file()).exists();
        (c.path, inode, limited)
    };
    cgroup.levels().map(one).collect()
}

/// What is looked up.
#[derive(Debug)]
pub(super) struct Survey {
    /// Where a new set of walls goes, where cgroups count.
    pub walls: Option<Arc<Handover>>,
    /// What zones keep free, where the system counts.
    pub marks: Option<Arc<Marks>>,
}

impl Survey {
    /// Looks until told to stop.
    pub fn run(&self, stop: &OwnedFd) {
        self.watch(stop, &|| MemoryCgroup::of_self().ok());
    }

    fn watch(&self, stop: &OwnedFd, find: &dyn Fn() -> Option<MemoryCgroup>) {
        let mut last = find().as_ref().map(signature);
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
            let now = Some(signature(&cgroup));
            if now != last {
                tracing::info!("memory limits are now those of {}", cgroup.path.display());
                handover.put(Walls::open(&cgroup));
                last = now;
            }
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
        let survey = Survey {
            walls: Some(Arc::clone(&handover)),
            marks: None,
        };
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let mut walls = Some(Walls::open(&a));
        std::thread::scope(|s| {
            s.spawn(|| survey.watch(&stop, &find));
            std::thread::sleep(Duration::from_millis(700));
            handover.take(&mut walls);
            assert_eq!(walls.as_ref().unwrap().path(), a.path);
            moved.store(true, SeqCst);
            let since = Instant::now();
            while walls.as_ref().unwrap().path() != b.path {
                assert!(since.elapsed() < Duration::from_secs(1));
                std::thread::sleep(Duration::from_millis(5));
                handover.take(&mut walls);
            }
            rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        });
        let binding = walls.unwrap().read(Depth::All).binding.unwrap();
        assert_eq!(binding.limit.0, 2000);
    }
}
