//! What listening costs: a job that does nothing but reclaim, with and without
//! the programs attached, in turn; and the time of each program.
//!
//! The job reads a mapped file three times as large as its cgroup's limit, page
//! after page: every page that comes in sends another one out. What counts is
//! the job's processor time for a page, in which its reclaim is: how fast the
//! disk is today is not the programs' doing. Invariant: the
//! kernel's own clock of programs is on in the last run alone, which is not
//! compared.

use anyhow::{Context, Result, ensure};
use kvpsi::{
    control::cgroup::OwnedCgroup,
    signal::{PressureSource, SourceConfig, ebpf::EbpfSource, programs},
    units::Bytes,
};
use kvpsi_tests::storm::{FILE_BYTES, LIMIT_BYTES};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of a run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

/// How the job is to work.
#[derive(Debug, clap::Args)]
pub struct Job {
    /// Seconds
    #[arg(long)]
    seconds: f64,
    /// File to read
    #[arg(long)]
    file: PathBuf,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

/// The job: prints pages a second, and ns of processor time for a page.
pub fn job(a: &Job) -> Result<()> {
    for procs in &a.procs {
        fs::write(procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    let file = File::open(&a.file)?;
    // SAFETY: nobody truncates the file while it is read.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let (began, mut pages, mut sum) = (Instant::now(), 0u64, 0u64);
    let length = Duration::from_secs_f64(a.seconds);
    'all: loop {
        for page in map.chunks(4096) {
            sum += u64::from(page[0]);
            pages += 1;
            if pages.is_multiple_of(64) && began.elapsed() >= length {
                break 'all;
            }
        }
    }
    std::hint::black_box(sum);
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let (rate, pages) = (pages as f64 / began.elapsed().as_secs_f64(), pages as f64);
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds of a short life")]
    let ns = cpu.tv_sec as f64 * 1e9 + cpu.tv_nsec as f64;
    println!("{rate} {}", ns / pages);
    Ok(())
}

struct Bench<'a> {
    args: &'a Args,
    file: tempfile::NamedTempFile,
}

impl Bench<'_> {
    /// Pages a second of a job in a cgroup of its own, and ns for a page.
    fn job(&self) -> Result<[f64; 2]> {
        let cgroup = OwnedCgroup::create(&format!("kvpsi-overhead-{}", std::process::id()))?;
        cgroup.set_limit(Bytes(LIMIT_BYTES))?;
        rustix::fs::fadvise(self.file.as_file(), 0, None, rustix::fs::Advice::DontNeed)?;
        let seconds = self.args.seconds.to_string();
        let mut job = Command::new(std::env::current_exe()?);
        job.args(["overhead-job", "--seconds", &seconds, "--file"]);
        job.arg(self.file.path()).args(cgroup.procs());
        let out = job.stderr(Stdio::inherit()).output()?;
        ensure!(out.status.success(), "the job failed");
        let text = String::from_utf8(out.stdout)?;
        let (rate, ns) = text.trim().split_once(' ').context("two numbers")?;
        Ok([rate.parse()?, ns.parse()?])
    }

    /// The same while somebody listens; also events a second, seen and
    /// delivered.
    fn listened(&self, source: &mut EbpfSource) -> Result<([f64; 2], [f64; 3])> {
        let over = AtomicBool::new(false);
        let stats = source.stats();
        let before = stats.totals();
        let pages = std::thread::scope(|threads| {
            let listener = threads.spawn(|| {
                // As the reactor waits: woken by onsets and summaries.
                let most = Timespec {
                    tv_sec: 0,
                    tv_nsec: 50_000_000,
                };
                while !over.load(Relaxed) {
                    if let Some((fd, flags)) = source.readiness().fd {
                        poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&most))?;
                    }
                    source.drain(&mut |_| ())?;
                }
                std::io::Result::Ok(())
            });
            let pages = self.job();
            over.store(true, Relaxed);
            listener
                .join()
                .map_err(|_| anyhow::anyhow!("the listener panicked"))??;
            pages
        })?;
        let after = stats.totals();
        #[expect(clippy::cast_precision_loss, reason = "rates")]
        let rate = |a: u64, b: u64| (b - a) as f64 / self.args.seconds;
        Ok((
            pages,
            [
                rate(before.seen, after.seen),
                rate(before.delivered, after.delivered),
                rate(before.dropped, after.dropped),
            ],
        ))
    }
}

fn open() -> Result<EbpfSource> {
    Ok(EbpfSource::open(&SourceConfig::default())?)
}

pub fn run(a: &Args) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp")?;
    let block = vec![7u8; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&block)?;
    }
    file.as_file().sync_all()?;
    let bench = Bench { args: a, file };
    // The host's cache has the file after it.
    bench.job()?;
    for round in 0..a.rounds {
        let attached = || bench.listened(&mut open()?);
        // Each is the first in every second round.
        let (alone, (with, events)) = if round % 2 == 0 {
            let alone = bench.job()?;
            (alone, attached()?)
        } else {
            let with = attached()?;
            (bench.job()?, with)
        };
        eprintln!(
            "  round {}: {:.0} ns a page alone, {:.0} listened to ({:+.2} %), {:.0} stalls/s",
            round + 1,
            alone[1],
            with[1],
            (with[1] / alone[1] - 1.0) * 100.0,
            events[0],
        );
        let row = json!({
            "what": "overhead", "round": round, "pages_s": alone[0], "attached_pages_s": with[0],
            "page_ns": alone[1], "attached_page_ns": with[1], "ratio": with[1] / alone[1], "seen_s": events[0], "delivered_s": events[1], "dropped_s": events[2],
        });
        println!("{row}");
    }
    let _stats = programs::enable_statistics().context("the kernel has no clock of programs")?;
    let mut source = open()?;
    bench.listened(&mut source)?;
    for p in source.programs() {
        if let Some(cost) = source.cost(p.name).filter(|c| c.runs > 0) {
            let mean = cost.mean_ns().and_then(|n| u64::try_from(n).ok());
            let share = cost.time.as_secs_f64() / a.seconds;
            let row: Value = json!({
                "what": "program", "program": p.name, "ns": mean, "runs": cost.runs, "share": share,
            });
            println!("{row}");
        }
    }
    Ok(())
}
