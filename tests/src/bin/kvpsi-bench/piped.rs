//! Another process of a measurement: orders to its stdin, one a line, and the
//! lines of its stdout. Refuses to know what they say.

use anyhow::{Context, Result, bail};
use kvpsi::control::cgroup::OwnedCgroup;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

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
    pub fn hear(&mut self) -> Option<String> {
        self.lines.recv().ok()
    }

    /// The next line within a time, as JSON.
    pub fn hear_within(&mut self, time: Duration) -> Result<Option<Value>> {
        match self.lines.recv_timeout(time) {
            Ok(line) => Ok(Some(serde_json::from_str(&line)?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("{}", self.how_it_ended()),
        }
    }

    /// Lines until one has `key`: what is there. The others are told.
    pub fn hear_of(&mut self, key: &str, others: &mut dyn FnMut(&Value)) -> Result<Value> {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.hear_within(left)?;
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
/// was interrupted go first.
pub fn cgroup(what: &str) -> Result<OwnedCgroup> {
    let prefix = format!("kvpsi-{what}-");
    OwnedCgroup::sweep(&prefix);
    Ok(OwnedCgroup::create(&format!(
        "{prefix}{}",
        std::process::id()
    ))?)
}

/// Joins cgroups, and ends with whoever started this process.
pub fn join(procs: &[PathBuf]) -> Result<()> {
    for procs in procs {
        fs::write(procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// The orders of whoever started this process, as they come.
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
