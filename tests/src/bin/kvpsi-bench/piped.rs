//! The runner: another process of a measurement, orders to its stdin, one a
//! line, and the lines of its stdout; files to read, and eBPF to listen to.
//! Out of scope: what they say.

use anyhow::{Context, Result, bail, ensure};
use kvpsi::{
    control::cgroup::OwnedCgroup,
    pressure::{PressureSource, ebpf::EbpfSource},
};
use kvpsi_common::Event;
use rustix::{
    event::{PollFd, Timespec, poll},
    fs::{Advice, fadvise},
    process::{Pid, Signal, kill_process, set_parent_process_death_signal},
};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex, Once,
        atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};
use tokio::signal::unix::{SignalKind, signal};

/// Killed and reaped on drop.
pub struct Piped {
    child: Child,
    orders: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Piped {
    /// Starts it; what it has to say to people goes where ours goes.
    pub fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("piped")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            orders: child.stdin.take(),
            lines,
            child,
        })
    }

    pub fn say(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("closed")?;
        writeln!(orders, "{order}").context("the other process is gone")
    }

    /// The next line; `None` at its end.
    pub fn next_line(&mut self) -> Option<String> {
        self.lines.recv().ok()
    }

    /// The next line, of one that does not end before.
    pub fn answer(&mut self) -> Result<String> {
        match self.next_line() {
            Some(line) => Ok(line),
            None => bail!("{}", self.how_it_ended()),
        }
    }

    /// The next line within a time, as JSON.
    pub fn line_within(&mut self, time: Duration) -> Result<Option<Value>> {
        match self.lines.recv_timeout(time) {
            Ok(line) => Ok(Some(serde_json::from_str(&line)?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("{}", self.how_it_ended()),
        }
    }

    /// Lines until one has `key`: what is there. The others are told.
    pub fn wait_for(&mut self, key: &str, others: &mut dyn FnMut(&Value)) -> Result<Value> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.line_within(left)?;
            let line = line.with_context(|| format!("no {key} within two minutes"))?;
            match line.get(key) {
                Some(value) => return Ok(value.clone()),
                None => others(&line),
            }
        }
    }

    fn how_it_ended(&mut self) -> String {
        self.child.wait().map_or_else(
            |e| format!("the other process is gone: {e}"),
            |status| format!("the other process ended: {status}"),
        )
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup for the processes of a measurement; those that one left behind which
/// was killed go first. There is none any more once this process was interrupted.
pub fn cgroup(what: &str) -> Result<OwnedCgroup> {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| drop(std::thread::spawn(end_when_interrupted)));
    ensure!(interrupted().is_none(), "interrupted");
    let prefix = format!("kvpsi-{what}-");
    OwnedCgroup::sweep(&prefix);
    let name = format!("{prefix}{}", std::process::id());
    let cgroup = OwnedCgroup::create(&name)?;
    if let Ok(mut made) = MADE.lock() {
        made.extend(cgroup.procs());
    }
    Ok(cgroup)
}

/// `cgroup.procs` of all that were made.
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicI32 = AtomicI32::new(0);

/// The status to end with, if Ctrl-C or SIGTERM came.
pub fn interrupted() -> Option<i32> {
    Some(INTERRUPTED.load(Relaxed)).filter(|code| *code != 0)
}

/// Waits for an interrupt, and then kills the processes in our cgroups, so that the
/// measurement fails and cleans up behind itself.
fn end_when_interrupted() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let Ok(runtime) = runtime else { return };
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).ok()?;
        let mut terminate = signal(SignalKind::terminate()).ok()?;
        tokio::select! {
            _ = interrupt.recv() => Some(130),
            _ = terminate.recv() => Some(143),
        }
    });
    let Some(code) = code else { return };
    INTERRUPTED.store(code, Relaxed);
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let made = MADE.lock().map(|m| m.clone()).unwrap_or_default();
        for procs in made {
            for pid in fs::read_to_string(procs).unwrap_or_default().lines() {
                if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It waits for something else.
    std::process::exit(code);
}

/// A file of so many bytes on a disk, none of it in the page cache.
pub fn file_of(bytes: usize) -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    let block = vec![7u8; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    file.as_file().sync_all()?;
    forget(file.as_file())?;
    Ok(file)
}

/// Drops what was read of a file from the page cache.
pub fn forget(file: &File) -> Result<()> {
    Ok(fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Takes events as the reactor does, woken by onsets and summaries, until it is
/// over.
pub fn listen(
    source: &mut EbpfSource,
    over: &AtomicBool,
    sink: &mut dyn FnMut(&Event),
) -> std::io::Result<()> {
    let most = Timespec {
        tv_sec: 0,
        tv_nsec: 50_000_000,
    };
    while !over.load(Relaxed) {
        if let Some((fd, flags)) = source.readiness().fd {
            let _ = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&most));
        }
        source.drain(sink)?;
    }
    Ok(())
}

/// Joins cgroups, and ends with the parent process.
pub fn join(procs: &[PathBuf]) -> Result<()> {
    for procs in procs {
        fs::write(procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The orders of the parent process, as they come.
pub fn orders() -> Receiver<String> {
    let (tell, orders) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    orders
}
