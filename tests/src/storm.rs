//! Real memory pressure: a child in a small cgroup that reads a mapped file
//! larger than the cgroup's limit.

use kvpsi::control::cgroup::OwnedCgroup;
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Bytes of the file that [`Storm`] reads.
pub const FILE_BYTES: usize = 48 << 20;
/// A limit that the file does not fit in.
pub const LIMIT_BYTES: u64 = 16 << 20;

/// The child; killed and reaped on drop.
#[derive(Debug)]
pub struct Storm {
    child: Child,
    _file: tempfile::NamedTempFile,
}

impl Storm {
    /// Starts it: `program` is the tests' `pressure`, `dir` is on a disk
    /// (pages of tmpfs cannot be reclaimed without swap), `pause` separates
    /// bursts of half a file.
    ///
    /// # Errors
    /// The file or the child cannot be made.
    pub fn start(
        program: &str,
        dir: &Path,
        cgroup: &OwnedCgroup,
        length: Duration,
        pause: Duration,
    ) -> io::Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        let block = vec![7u8; 1 << 20];
        for _ in 0..FILE_BYTES >> 20 {
            file.write_all(&block)?;
        }
        file.as_file().sync_all()?;
        // The pages belong to our cgroup now; the child is to read them anew.
        rustix::fs::fadvise(file.as_file(), 0, None, rustix::fs::Advice::DontNeed)?;
        let child = Command::new(program)
            .arg("read")
            .arg(file.path())
            .arg(length.as_millis().to_string())
            .arg(pause.as_millis().to_string())
            .args(cgroup.procs())
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self { child, _file: file })
    }

    /// The child's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child has ended.
    ///
    /// # Errors
    /// It cannot be waited for, or it failed.
    pub fn over(&mut self) -> io::Result<bool> {
        match self.child.try_wait()? {
            None => Ok(false),
            Some(s) if s.success() => Ok(true),
            Some(s) => Err(io::Error::other(format!("pressure: {s}"))),
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a mapped file over and over: what the child does.
///
/// # Errors
/// The file cannot be mapped.
pub fn read_mapped(file: &Path, length: Duration, pause: Duration) -> io::Result<()> {
    let file = File::open(file)?;
    // SAFETY: nobody truncates the test's own file while it is read.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let start = std::time::Instant::now();
    let mut sum = 0u64;
    while start.elapsed() < length {
        for half in map.chunks(map.len() / 2) {
            for page in half.chunks(4096) {
                sum += u64::from(page[0]);
            }
            if start.elapsed() >= length {
                break;
            }
            std::thread::sleep(pause);
        }
    }
    std::hint::black_box(sum);
    Ok(())
}
