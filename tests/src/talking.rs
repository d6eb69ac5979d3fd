//! A tiny model that talks in a process of its own, and what it said of trims.
//!
//! It needs neither a model file nor a shell: emulated machines have neither.

use crate::{kvpsi_binary, talker};
use kvpsi::control::cgroup::{MemoryCgroup, OwnedCgroup};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs,
    io::Read,
    path::PathBuf,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A model at work; killed and reaped on drop.
#[derive(Debug)]
pub struct Talking {
    child: Child,
    err: Option<ChildStderr>,
    out: Option<JoinHandle<()>>,
    bytes: Arc<AtomicU64>,
    _file: tempfile::TempDir,
}

/// How it ended.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// By itself, or as it was told to.
    pub well: bool,
    /// All of stderr.
    pub said: String,
    /// Trims that gave something back.
    pub trims: u64,
    /// What they gave, as it said it.
    pub gave_back: String,
    /// Positions that lost their keys and values.
    pub dropped: u64,
}

impl Ended {
    /// Of `kvpsi: 3 trims gave back 4.0 MiB (slack 4.0 MiB), 0 tokens dropped
    /// (signal ebpf, 17 stalls seen)`.
    fn of(well: bool, said: String) -> Self {
        let line = |l: &str| {
            let (trims, rest) = l.strip_prefix("kvpsi: ")?.split_once(" trims gave back ")?;
            let (before, _) = rest.split_once(" tokens dropped")?;
            let dropped = before.rsplit(' ').next()?;
            Some((trims.parse().ok()?, dropped.parse().ok()?, rest.to_owned()))
        };
        let (trims, dropped, gave_back) = said.lines().find_map(line).unwrap_or_default();
        Self {
            well,
            said,
            trims,
            gave_back,
            dropped,
        }
    }
}

impl Talking {
    /// Starts one, in a cgroup if one is given, and waits until it has read its
    /// prompt and talks.
    ///
    /// # Panics
    /// It does not come so far; what it said is in the message.
    #[must_use]
    pub fn start(cgroup: Option<&OwnedCgroup>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let model = dir.path().join("talker.gguf");
        talker::write(&model).expect("a model");
        let prompt = "it was a dark and stormy night ".repeat(12);
        let mut command = Command::new(kvpsi_binary());
        command
            // Tests of memory count what this process alone has.
            .args(["run", "--weights-cache", "off"])
            .args(["--raw", "--temperature", "1", "--top-k", "0"])
            .args(["--ctx", &talker::CONTEXT.to_string(), "-n", "1400"])
            .args(["-p", &prompt, "-m"])
            .arg(&model)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match cgroup {
            Some(cgroup) => within(cgroup, || command.spawn()),
            None => command.spawn(),
        }
        .expect("the binary was built");
        let mut out = child.stdout.take().expect("piped");
        let err = child.stderr.take();
        // The prompt is repeated; what follows is the model's.
        let mut first = vec![0u8; prompt.len() + 1];
        let spoke = out.read_exact(&mut first);
        let mut talking = Self {
            child,
            err,
            out: None,
            bytes: Arc::default(),
            _file: dir,
        };
        if spoke.is_err() {
            let said = talking.end().said;
            panic!("the model said nothing: {said}");
        }
        let bytes = talking.bytes.clone();
        talking.out = Some(std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buf) {
                bytes.fetch_add(n as u64, Ordering::Relaxed);
            }
        }));
        talking
    }

    /// How long it takes to say so many tokens, at the rate of the next 32, ms. A
    /// token is a letter.
    ///
    /// # Panics
    /// It ended.
    #[must_use]
    pub fn ms_for(&self, tokens: u64) -> u64 {
        let said = || self.bytes.load(Ordering::Relaxed);
        let (since, before) = (Instant::now(), said());
        while said() < before + 32 {
            let ended = self.out.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!ended, "it came to its end");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (ms, new) = (since.elapsed().as_millis(), said() - before);
        u64::try_from(ms).unwrap_or(u64::MAX).saturating_mul(tokens) / new
    }

    /// Interrupts it: whether all went well, and what it reported.
    ///
    /// # Panics
    /// It was reaped before.
    pub fn end(&mut self) -> Ended {
        let pid = Pid::from_child(&self.child);
        // It may have come to its own end.
        let _ = kill_process(pid, Signal::INT);
        let mut said = String::new();
        if let Some(mut err) = self.err.take() {
            let _ = err.read_to_string(&mut said);
        }
        if let Some(out) = self.out.take() {
            let _ = out.join();
        }
        let code = self.child.wait().expect("it was not reaped").code();
        Ended::of(matches!(code, Some(0 | 130)), said)
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Does something with this process in a cgroup, as a child is born into it in a
/// container, and page cache is charged to who reads it first.
///
/// # Panics
/// The process cannot be moved there, or back.
pub fn within<T>(cgroup: &OwnedCgroup, f: impl FnOnce() -> T) -> T {
    let memory = MemoryCgroup::of_self().expect("there is a controller").path;
    let unified = MemoryCgroup::unified_of_self().unwrap_or_else(|| memory.clone());
    let before: [PathBuf; 2] = [memory, unified].map(|d| d.join("cgroup.procs"));
    for p in cgroup.procs() {
        fs::write(p, "0").expect("the cgroup takes processes");
    }
    let done = f();
    for p in &before[..cgroup.procs().count()] {
        fs::write(p, "0").expect("the cgroup before takes it back");
    }
    done
}
