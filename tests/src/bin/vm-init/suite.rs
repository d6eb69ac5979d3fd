//! Running test binaries, one process a test.
//!
//! Invariant: what a test says (its output, what it skipped, its figures) is
//! reported before its verdict.

use crate::{machine, report};
use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

const OUTPUT: &str = "/run/output";
const SKIPS: &str = "/run/skips";
const FIGURES: &str = "/run/figures";

/// What tests are run with.
pub struct Suite {
    env: Vec<(String, String)>,
    only: Vec<String>,
    time: Duration,
    cgroup: Option<PathBuf>,
    tests: Vec<Test>,
}

struct Test {
    program: PathBuf,
    /// As the program knows it.
    name: String,
    /// `BINARY::NAME`.
    full: String,
}

impl Default for Suite {
    fn default() -> Self {
        let pairs = [
            ("PATH", "/bin".to_owned()),
            ("HOME", format!("{}/tmp", machine::DISK)),
            ("TMPDIR", format!("{}/tmp", machine::DISK)),
            ("KVPSI_SKIP_LOG", SKIPS.to_owned()),
            ("KVPSI_FIGURES", FIGURES.to_owned()),
        ];
        Self {
            env: pairs.map(|(k, v)| (k.to_owned(), v)).to_vec(),
            only: Vec::new(),
            time: Duration::from_secs(240),
            cgroup: None,
            tests: Vec::new(),
        }
    }
}

impl Suite {
    pub fn env(&mut self, key: &str, value: &str) {
        self.env.push((key.to_owned(), value.to_owned()));
    }

    pub fn only(&mut self, name: &str) {
        self.only.push(name.to_owned());
    }

    pub fn time(&mut self, seconds: u64) {
        self.time = Duration::from_secs(seconds);
    }

    /// Makes the cgroup that tests are put into.
    pub fn limit(&mut self, bytes: u64) -> Result<()> {
        let dir = PathBuf::from("/sys/fs/cgroup/limited");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("memory.max"), bytes.to_string())?;
        self.cgroup = Some(dir);
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env_clear()
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir("/run")
            .stdin(Stdio::null());
        c
    }

    /// Takes the tests of a binary into the list, and names them.
    pub fn list(&mut self, binary: &str, program: &Path) -> Result<()> {
        let listed = self
            .command(program)
            .args(["--list", "--format", "terse"])
            .output()
            .with_context(|| format!("{} does not start", program.display()))?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for name in listed.lines().filter_map(|l| l.strip_suffix(": test")) {
            let full = format!("{binary}::{name}");
            if self.only.is_empty() || self.only.iter().any(|o| full.contains(o.as_str())) {
                report(format_args!("list {full}"));
                self.tests.push(Test {
                    program: program.to_owned(),
                    name: name.to_owned(),
                    full,
                });
            }
        }
        Ok(())
    }

    /// Runs the listed tests, each in a process of its own.
    pub fn run(&self) -> Result<()> {
        self.tests.iter().try_for_each(|t| self.one(t))
    }

    fn one(
        &self,
        Test {
            program,
            name,
            full,
        }: &Test,
    ) -> Result<()> {
        report(format_args!("run {full}"));
        for file in [SKIPS, FIGURES] {
            fs::write(file, "")?;
        }
        let mut kernel = kernel_log();
        let out = File::create(OUTPUT)?;
        let began = Instant::now();
        let mut child = self
            .command(program)
            .args(["--exact", name, "--nocapture", "--test-threads", "1"])
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        if let Some(dir) = &self.cgroup {
            fs::write(dir.join("cgroup.procs"), child.id().to_string())?;
        }
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if began.elapsed() > self.time {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let ms = began.elapsed().as_millis();
        let said = fs::read(OUTPUT).unwrap_or_default();
        for line in String::from_utf8_lossy(&said).lines() {
            report(format_args!("| {line}"));
        }
        let good = status.is_some_and(|s: ExitStatus| s.success());
        if !good && let Some(log) = kernel.as_mut().map(rest) {
            for line in log.lines() {
                report(format_args!("| kernel: {line}"));
            }
        }
        for (word, file) in [("skipped", SKIPS), ("figure", FIGURES)] {
            for line in fs::read_to_string(file).unwrap_or_default().lines() {
                report(format_args!("{word} {line}"));
            }
        }
        match status {
            Some(s) if s.success() => report(format_args!("ok {ms} {full}")),
            Some(s) => report(format_args!("failed {ms} {full}: {s}")),
            None => report(format_args!(
                "failed {ms} {full}: not done after {} s",
                self.time.as_secs()
            )),
        }
        Ok(())
    }
}

/// The kernel's messages from now on.
fn kernel_log() -> Option<File> {
    use std::io::{Seek, SeekFrom};
    let mut log = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .ok()?;
    log.seek(SeekFrom::End(0)).ok()?;
    Some(log)
}

/// One record a read, until there is none.
fn rest(log: &mut File) -> String {
    let mut text = String::new();
    let mut record = [0u8; 8192];
    while let Ok(n @ 1..) = log.read(&mut record) {
        let line = String::from_utf8_lossy(&record[..n]);
        // `PRIORITY,SEQUENCE,TIME,FLAGS;MESSAGE`
        let line = line.split_once(';').map_or(&*line, |(_, m)| m);
        text.push_str(line.lines().next().unwrap_or_default());
        text.push('\n');
    }
    text
}
