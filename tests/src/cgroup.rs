//! A memory cgroup for the time of a test.
//!
//! Where v1 has the memory controller, a v2 cgroup goes with it: the programs
//! know cgroups by their v2 id. Both are removed on drop, also on a panic.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// The cgroup. Processes in it are to be gone before it is dropped.
#[derive(Debug)]
pub struct MemCgroup {
    dirs: Vec<PathBuf>,
    id: u64,
}

impl MemCgroup {
    /// Makes a cgroup with a limit in bytes.
    ///
    /// # Errors
    /// The reason why not: what a skipped test prints.
    pub fn new(limit: u64) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
        let mount = |kind: &str, option: &str| {
            mounts.lines().find_map(|l| {
                let f: Vec<&str> = l.split(' ').collect();
                (f[2] == kind && (option.is_empty() || f[3].split(',').any(|o| o == option)))
                    .then(|| PathBuf::from(f[1]))
            })
        };
        let name = format!(
            "kvpsi-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let v2 = mount("cgroup2", "").ok_or("no cgroup v2 is mounted")?;
        let mut this = Self {
            dirs: Vec::new(),
            id: 0,
        };
        let (dir, file) = match mount("cgroup", "memory") {
            Some(v1) => (this.make(v1.join(&name))?, "memory.limit_in_bytes"),
            None => {
                let has = fs::read_to_string(v2.join("cgroup.subtree_control"));
                if !has.is_ok_and(|c| c.split_whitespace().any(|c| c == "memory")) {
                    return Err("the memory controller is not delegated".into());
                }
                (this.make(v2.join(&name))?, "memory.max")
            }
        };
        let v2_dir = if dir.starts_with(&v2) {
            dir.clone()
        } else {
            this.make(v2.join(&name))?
        };
        this.id = fs::metadata(v2_dir).map_err(|e| e.to_string())?.ino();
        fs::write(dir.join(file), limit.to_string()).map_err(|e| format!("{file}: {e}"))?;
        Ok(this)
    }

    fn make(&mut self, dir: PathBuf) -> Result<PathBuf, String> {
        fs::create_dir(&dir).map_err(|e| format!("mkdir {}: {e}", dir.display()))?;
        self.dirs.push(dir.clone());
        Ok(dir)
    }

    /// The cgroup's v2 id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The files a process writes itself into.
    pub fn procs(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs.iter().map(|d| d.join("cgroup.procs"))
    }
}

impl Drop for MemCgroup {
    fn drop(&mut self) {
        for dir in self.dirs.drain(..).rev() {
            if let Err(e) = remove(&dir) {
                eprintln!("left behind: {}: {e}", dir.display());
            }
        }
    }
}

/// A cgroup can stay busy for a moment after its last process.
fn remove(dir: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(16) && tries < 200 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}
