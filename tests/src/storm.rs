//! Real memory pressure: a child in a small cgroup that reads a mapped file
//! larger than the cgroup's limit.

use crate::{emulated, skip};
use kvpsi::{
    control::cgroup::{OwnedCgroup, Version},
    units::Bytes,
};
use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Bytes of the file that [`Storm`] reads.
pub const FILE_BYTES: usize = 48 << 20;
/// A limit that the file does not fit in.
pub const LIMIT_BYTES: u64 = 16 << 20;

/// A cgroup with a limit, or a skip of `test`.
#[must_use]
pub fn limited(test: &str, limit_bytes: u64) -> Option<OwnedCgroup> {
    let name = format!("kvpsi-test-{test}-{}", std::process::id());
    let made = OwnedCgroup::create(&name).and_then(|c| {
        c.set_limit(Bytes(limit_bytes))?;
        Ok(c)
    });
    match made {
        Ok(c) => Some(c),
        Err(why) => {
            skip(test, why);
            None
        }
    }
}

/// Has the kernel reclaim all that it can of the cgroup.
pub fn drop_page_cache(cgroup: &OwnedCgroup) {
    let (file, bytes) = match cgroup.memory().version {
        Version::V1 => ("memory.force_empty", "0"),
        Version::V2 => ("memory.reclaim", "4G"),
    };
    // EAGAIN: there was less.
    let _ = std::fs::write(cgroup.memory().path.join(file), bytes);
}

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
        let pause = pause.as_millis().to_string();
        Self::with(program, dir, cgroup, FILE_BYTES, "read", length, &[pause])
    }

    /// Starts one that reads a file of `bytes` (whole MiB) in no order
    /// ([`read_anywhere`]).
    ///
    /// # Errors
    /// As [`Storm::start`].
    pub fn thrash(
        program: &str,
        dir: &Path,
        cgroup: &OwnedCgroup,
        bytes: usize,
        length: Duration,
    ) -> io::Result<Self> {
        Self::with(program, dir, cgroup, bytes, "thrash", length, &[])
    }

    fn with(
        program: &str,
        dir: &Path,
        cgroup: &OwnedCgroup,
        bytes: usize,
        word: &str,
        length: Duration,
        more: &[String],
    ) -> io::Result<Self> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        let block = vec![7u8; 1 << 20];
        for _ in 0..bytes >> 20 {
            file.write_all(&block)?;
        }
        file.as_file().sync_all()?;
        // The pages belong to our cgroup now; the child is to read them anew.
        rustix::fs::fadvise(file.as_file(), 0, None, rustix::fs::Advice::DontNeed)?;
        let child = Command::new(program)
            .arg(word)
            .arg(file.path())
            .arg(length.as_millis().to_string())
            .args(more)
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

/// Keeps every core awake while it lives, as a model that decodes does, and
/// has the lowest priority: a core of a virtual machine that sleeps is woken by
/// its host, which takes longer than anything that is measured here. On an
/// emulated machine it does nothing.
#[derive(Debug)]
pub struct Awake {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..if emulated() { 0 } else { cores }).map(|_| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                // Of this thread alone, on Linux. Without, it only gives way later.
                let _ = rustix::process::nice(19);
                while !over.load(Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        let threads = threads.collect();
        Self { over, threads }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// Reads a mapped file over and over: what the child does.
///
/// # Errors
/// The file cannot be mapped.
pub fn read_mapped(file: &Path, length: Duration, pause: Duration) -> io::Result<()> {
    let file = File::open(file)?;
    // SAFETY: nothing truncates the test's own file while it is read.
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

/// Writes to pages of anonymous memory in no order.
pub fn touch_anonymous(bytes: usize, length: Duration) {
    let mut memory = vec![0u8; bytes];
    let start = std::time::Instant::now();
    let mut at = Anywhere::default();
    while start.elapsed() < length {
        memory[at.page(bytes)] = 1;
    }
    std::hint::black_box(&memory);
}

/// Reads pages of a mapped file in no order, one by one: some are missed again
/// soon after they were evicted, which is what thrashing is.
///
/// # Errors
/// The file cannot be mapped.
pub fn read_anywhere(file: &Path, length: Duration) -> io::Result<()> {
    let file = File::open(file)?;
    // SAFETY: nothing truncates the test's own file while it is read.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    map.advise(memmap2::Advice::Random)?;
    let start = std::time::Instant::now();
    let mut at = Anywhere::default();
    let mut sum = 0u64;
    while start.elapsed() < length {
        sum += u64::from(map[at.page(map.len())]);
    }
    std::hint::black_box(sum);
    Ok(())
}

/// Pages in no order, the same each time (Knuth's MMIX generator).
struct Anywhere(u64);

impl Default for Anywhere {
    fn default() -> Self {
        Self(1)
    }
}

impl Anywhere {
    fn page(&mut self, bytes: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % (bytes / 4096) * 4096
    }
}

/// Bytes that a line of /proc/meminfo tells of, such as `MemAvailable:`.
///
/// # Panics
/// There is no such line.
#[must_use]
pub fn meminfo(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    kib.map_or_else(|| panic!("/proc/meminfo: no {key}"), |kib: u64| kib << 10)
}

/// Fills the page cache with `bytes` of an unlinked file in `dir`, which is on
/// a disk; they stay until memory is wanted, or the file is dropped.
///
/// # Errors
/// The file cannot be written.
pub fn fill_page_cache(dir: &Path, bytes: u64) -> io::Result<File> {
    let mut file = tempfile::tempfile_in(dir)?;
    let block = vec![3u8; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    // What is dirty cannot be dropped.
    file.sync_all()?;
    Ok(file)
}

/// So many threads exit, each of which the kernel tells by writing into a page that
/// nobody has touched (`clear_child_tid`, set_tid_address(2)): it is charged on the way out.
///
/// # Errors
/// No memory, or a thread cannot be made.
pub fn exit_into_new_pages(threads: usize) -> io::Result<()> {
    let page = rustix::param::page_size();
    let pages = memmap2::MmapMut::map_anon(threads * page)?;
    // Never unmapped: the kernel writes when a thread has gone.
    let pages = Box::leak(Box::new(pages));
    let ended = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for (at, place) in pages.chunks_mut(page).enumerate() {
        let done = ended.clone();
        let thread = std::thread::Builder::new().name("exit".into());
        thread.stack_size(64 << 10).spawn(move || {
            // SAFETY: the page is this thread's and stays mapped; libc's own word for the
            // thread is not written, and nobody joins it.
            unsafe { libc::syscall(libc::SYS_set_tid_address, place.as_mut_ptr()) };
            done.fetch_add(1, Relaxed);
        })?;
        // A few at once.
        while at + 1 - ended.load(Relaxed) > 8 {
            std::thread::yield_now();
        }
    }
    while ended.load(Relaxed) < threads {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}
