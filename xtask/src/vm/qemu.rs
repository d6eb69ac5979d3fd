//! One boot of an emulated machine, from its start to its last line.
//!
//! Owns the emulator's process, which never outlives this one's interest, and
//! the reading of the report (tests/src/bin/vm-init writes it). Invariants: a
//! machine that gives no sign of life for too long is ended and called a hang;
//! one that ends without saying so is called a crash, with the kernel's last
//! words; one that is alive when its time is up is ended, and the tests it did
//! not come to are named.

use super::kernel::{Arch, Machine};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Begins a line of the report.
const MARK: &str = "@kvpsi ";
/// From power on to the report's first line; seconds on an idle host.
const BOOT: Duration = Duration::from_secs(120);
/// Between two lines. vm-init gives a sign of life every 5 s; a machine that
/// is short of memory, on a host that is busy, may be late.
const SILENCE: Duration = Duration::from_secs(90);
/// Altogether, without a limit set.
const WHOLE: Duration = Duration::from_secs(1800);

/// One test's end.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// `BINARY::TEST`.
    pub test: String,
    /// How long it took, in ms.
    pub ms: u64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// What it, or a part of it, could not do there: `NAME: REASON`.
    pub skipped: Vec<String>,
    /// What it printed.
    pub output: Vec<String>,
}

/// What came of a boot.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The kernel's release and architecture, once it was up.
    pub kernel: Option<String>,
    /// In their order.
    pub verdicts: Vec<Verdict>,
    /// Figures that tests handed out, one JSON object each.
    pub figures: Vec<String>,
    /// Tests that the machine did not come to, or did not end, in its time.
    pub left_out: Vec<String>,
    /// Why the run as a whole failed, if it did.
    pub broken: Option<String>,
}

/// Ends the emulator when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What to boot.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The kind of machine.
    pub machine: Machine,
    /// Bootable kernel.
    pub kernel: &'a Path,
    /// Archive of the first root.
    pub initrd: &'a Path,
    /// Image of the disk.
    pub disk: &'a Path,
    /// Added to the kernel's command line.
    pub append: &'a str,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Print the kernel's console as it comes.
    pub console: bool,
    /// When its time is up.
    pub until: Option<Instant>,
}

impl Boot<'_> {
    fn command(&self) -> Command {
        let (kind, cpu, console) = match self.machine.arch() {
            Arch::X86_64 => ("q35", "max", "ttyS0"),
            Arch::Aarch64 => ("virt", "cortex-a72", "ttyAMA0"),
        };
        // Should this process be killed, the emulator goes with it; by Ctrl-C it
        // goes anyway.
        let mut c = Command::new("setpriv");
        c.args(["--pdeathsig", "KILL", "--", self.machine.qemu()]);
        c.args(["-M", kind, "-cpu", cpu, "-accel", "tcg", "-smp", "2"])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-nographic", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .arg("-drive")
            .arg(format!(
                "file={},if=none,id=disk,format=raw,cache=unsafe",
                self.disk.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .arg("-append")
            .arg(format!(
                // A fault of the kernel's ends the machine; its words get
                // through, other messages do not mix with the report. tmpfs, which
                // the root is otherwise, holds half of the memory at most.
                "console={console} rootfstype=ramfs quiet loglevel=1 panic=-1 oops=panic psi=1 {}",
                self.append
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        c
    }

    /// Boots, and calls `each` with every verdict as it comes.
    ///
    /// # Errors
    /// The emulator cannot be started. Whatever goes wrong in the machine is
    /// in the outcome.
    pub fn run(&self, each: &mut dyn FnMut(&Verdict)) -> Result<Outcome> {
        let mut child = self
            .command()
            .spawn()
            .with_context(|| format!("cannot start {}", self.machine.qemu()))?;
        let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("the emulator has no output");
        };
        let mut running = Running(child);
        let (send, lines) = channel();
        std::thread::spawn(move || {
            let mut from = BufReader::new(stdout);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
        let mut reading = Reading::default();
        let began = Instant::now();
        let until = self.until.unwrap_or(began + WHOLE);
        loop {
            let wait = if reading.outcome.kernel.is_none() {
                BOOT
            } else {
                SILENCE
            };
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    if self.console {
                        eprintln!("{line}");
                    }
                    reading.line(&line, each);
                    // Checked when it shows that it is alive: one that hangs
                    // is called so, also at the end of its time.
                    if Instant::now() > until && !reading.ended {
                        reading.outcome.left_out = std::mem::take(&mut reading.listed);
                        return Ok(reading.outcome);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let doing = reading.doing();
                    reading.outcome.broken = Some(format!(
                        "the machine hangs {doing} ({} s in all){}",
                        began.elapsed().as_secs(),
                        reading.last_words()
                    ));
                    return Ok(reading.outcome);
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !reading.ended && reading.outcome.broken.is_none() {
            let mut words = String::new();
            let _ = std::io::Read::read_to_string(&mut stderr, &mut words);
            let status = running.0.wait().context("the emulator vanished")?;
            let doing = reading.doing();
            reading.outcome.broken = Some(format!(
                "the machine ended {doing} ({status}) {words}{}",
                reading.last_words()
            ));
        }
        Ok(reading.outcome)
    }
}

/// The report, read line by line.
#[derive(Default)]
struct Reading {
    outcome: Outcome,
    /// Tests that have no verdict yet.
    listed: Vec<String>,
    now: Option<String>,
    skipped: Vec<String>,
    output: Vec<String>,
    /// The console beside the report.
    kernel: VecDeque<String>,
    ended: bool,
}

impl Reading {
    fn line(&mut self, line: &str, each: &mut dyn FnMut(&Verdict)) {
        // The firmware leaves control characters before the first line.
        let Some((_, rest)) = line.split_once(MARK) else {
            if self.kernel.len() == 30 {
                self.kernel.pop_front();
            }
            self.kernel.push_back(line.to_owned());
            return;
        };
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "boot" => self.outcome.kernel = Some(rest.to_owned()),
            "alive" => {}
            "list" => self.listed.push(rest.to_owned()),
            "run" => self.now = Some(rest.to_owned()),
            "|" => self.output.push(rest.to_owned()),
            "skipped" => self.skipped.push(rest.to_owned()),
            "figure" => self.outcome.figures.push(rest.to_owned()),
            "ok" | "failed" => {
                let (ms, rest) = rest.split_once(' ').unwrap_or(("", rest));
                let (test, why) = rest.split_once(": ").unwrap_or((rest, ""));
                let verdict = Verdict {
                    test: test.to_owned(),
                    ms: ms.parse().unwrap_or(0),
                    failure: (word == "failed").then(|| why.to_owned()),
                    skipped: std::mem::take(&mut self.skipped),
                    output: std::mem::take(&mut self.output),
                };
                each(&verdict);
                self.listed.retain(|t| *t != verdict.test);
                self.outcome.verdicts.push(verdict);
                self.now = None;
            }
            "broken" => self.outcome.broken = Some(rest.to_owned()),
            "end" => self.ended = true,
            _ => self.outcome.broken = Some(format!("the machine said `{line}`")),
        }
    }

    fn doing(&self) -> String {
        match (&self.outcome.kernel, &self.now) {
            (None, _) => "before it reported anything".into(),
            (_, Some(test)) => format!("in {test}"),
            (_, None) => "between two tests".into(),
        }
    }

    fn last_words(&self) -> String {
        let mut text = String::from("\nits last words:");
        for line in self.output.iter().chain(&self.kernel) {
            text.push_str("\n  ");
            text.push_str(line);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reading {
        let mut reading = Reading::default();
        for line in text.lines() {
            reading.line(line, &mut |_| {});
        }
        reading
    }

    #[test]
    fn each_verdict_has_what_its_test_said_and_skipped() {
        let r = read(
            "SeaBIOS \x1b[2J@kvpsi boot 6.1.0 x86_64\n@kvpsi list kernel::a\n@kvpsi list kernel::b\n\
             @kvpsi list kernel::c\n@kvpsi run kernel::a\n@kvpsi alive\n@kvpsi | hello\n\
             @kvpsi skipped a: no PSI\n@kvpsi ok 12 kernel::a\n[ 1.0] noise\n@kvpsi run kernel::b\n\
             @kvpsi failed 7 kernel::b: exit status: 101\n@kvpsi end\n",
        );
        assert!(r.ended && r.outcome.broken.is_none());
        let [a, b] = &r.outcome.verdicts[..] else {
            panic!("{:?}", r.outcome)
        };
        assert_eq!(
            (a.test.as_str(), a.ms, &a.failure),
            ("kernel::a", 12, &None)
        );
        assert_eq!((a.output.len(), a.skipped.len()), (1, 1));
        assert_eq!(b.failure.as_deref(), Some("exit status: 101"));
        assert!(b.skipped.is_empty());
        assert_eq!(r.listed, ["kernel::c"]);
    }

    #[test]
    fn a_machine_that_dies_is_reported_with_what_it_was_doing() {
        let r = read("@kvpsi boot 6.1.0 x86_64\n@kvpsi run kernel::a\nKernel panic - not syncing");
        assert!(!r.ended);
        assert_eq!(r.doing(), "in kernel::a");
        assert!(r.last_words().contains("Kernel panic"));
        assert_eq!(read("").doing(), "before it reported anything");
    }
}
