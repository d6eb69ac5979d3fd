//! A process that takes memory on order.

use crate::kvpsi_binary;
use kvpsi::{control::cgroup::OwnedCgroup, units::Bytes};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

/// The demo's hog; killed and reaped on drop.
#[derive(Debug)]
pub struct Hog {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Hog {
    /// In a cgroup, or where the test is.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(cgroup: Option<&OwnedCgroup>) -> Self {
        let mut c = Command::new(kvpsi_binary());
        c.args(["demo", "--role", "hog"]);
        for p in cgroup.iter().flat_map(|c| c.procs()) {
            c.arg("--join").arg(p);
        }
        let mut child = c
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        Self {
            orders: child.stdin.take().expect("piped"),
            answers: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    /// Grows to so much, holds it for a while, and lets go; false if it was
    /// killed instead.
    pub fn grow(&mut self, bytes: u64) -> bool {
        self.grow_for(bytes, 400)
    }

    /// The same, held for so many milliseconds.
    pub fn grow_for(&mut self, bytes: u64, ms: u64) -> bool {
        self.order("anon", bytes, ms)
    }

    /// Sets a cgroup's limit 40 MiB above what is used and grows three times almost
    /// up to it: it fits, but for what is to stay free below the limit. Page cache
    /// alone would be no harm, and that the race with the OOM killer is won is the
    /// demo's to show, for a machine that is emulated may lose it.
    ///
    /// # Panics
    /// The cgroup cannot be read or limited.
    pub fn press(&mut self, cgroup: &OwnedCgroup) -> bool {
        let used = || cgroup.memory().anonymous().expect("memory.stat is there").0;
        let limit = (used() + (40 << 20)).next_multiple_of(1 << 20);
        cgroup.set_limit(Bytes(limit)).expect("it takes a limit");
        (0..3).all(|_| {
            let lives = self.grow(limit.saturating_sub(used() + (4 << 20)));
            std::thread::sleep(Duration::from_millis(300));
            lives
        })
    }

    /// Grows by so many MiB a second at most.
    pub fn grow_at(&mut self, bytes: u64, mib_per_second: u64) -> bool {
        self.ordered(&format!("anon {bytes} 400 {mib_per_second}"))
    }

    /// The same without having read anything before.
    pub fn grow_bare_at(&mut self, bytes: u64, mib_per_second: u64) -> bool {
        self.ordered(&format!("bare {bytes} 400 {mib_per_second}"))
    }

    /// Reads a file of that size for a while: reclaim and refaults.
    pub fn read(&mut self, bytes: u64) -> bool {
        self.read_for(bytes, 400)
    }

    /// The same for so many milliseconds.
    pub fn read_for(&mut self, bytes: u64, ms: u64) -> bool {
        self.order("file", bytes, ms)
    }

    fn order(&mut self, what: &str, bytes: u64, ms: u64) -> bool {
        self.ordered(&format!("{what} {bytes} {ms}"))
    }

    fn ordered(&mut self, order: &str) -> bool {
        let mut answer = String::new();
        writeln!(self.orders, "{order}").is_ok()
            && self.answers.read_line(&mut answer).is_ok()
            && answer.starts_with("done ")
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
