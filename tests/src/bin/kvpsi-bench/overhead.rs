//! What listening costs: a job that does nothing but reclaim, with and without
//! the programs attached, in turn; and the time of each program.
//!
//! The job reads a mapped file three times as large as its cgroup's limit, page
//! after page: every page that comes in sends another one out. What counts is
//! the job's processor time for a page, in which its reclaim is: how fast the
//! disk is today is not the programs' doing. It runs on while programs are
//! attached and detached every half second, so that what is compared lies side
//! by side. Invariant: the kernel's own clock of programs is on in the last
//! stretch alone, which is not compared.

use crate::piped::{self, Piped, file_of, join, listen, orders};
use anyhow::{Context, Result, ensure};
use kvpsi::{
    clock::monotonic_ns,
    control::cgroup::OwnedCgroup,
    pressure::{PressureSource, SourceConfig, ebpf::EbpfSource, programs},
    units::Bytes,
};
use kvpsi_tests::storm::{Awake, FILE_BYTES, LIMIT_BYTES};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::{
    fs::File,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    sync::mpsc::TryRecvError,
    time::Duration,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pairs of stretches, alone and listened to
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Seconds of a stretch
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
}

/// How the job is to work.
#[derive(Debug, clap::Args)]
pub struct Job {
    /// File to read
    #[arg(long)]
    file: PathBuf,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

/// Pages between two looks for orders.
const LOOK_EVERY: u64 = 16;

/// The job: answers every order with pages read, ns of processor time, and when.
pub fn job(a: &Job) -> Result<()> {
    join(&a.procs)?;
    let file = File::open(&a.file)?;
    // SAFETY: nothing truncates the file while it is read.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let orders = orders();
    let (mut pages, mut sum) = (0u64, 0u64);
    println!("ready");
    loop {
        for page in map.chunks(4096) {
            sum = sum.wrapping_add(u64::from(page[0]));
            pages += 1;
            if !pages.is_multiple_of(LOOK_EVERY) {
                continue;
            }
            match orders.try_recv() {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => {
                    std::hint::black_box(sum);
                    return Ok(());
                }
                Ok(_) => {
                    let cpu = clock_gettime(ClockId::ProcessCPUTime);
                    let cpu = i128::from(cpu.tv_sec) * 1_000_000_000 + i128::from(cpu.tv_nsec);
                    println!("{}", json!([pages, i64::try_from(cpu)?, monotonic_ns()]));
                }
            }
        }
    }
}

/// The job, at work in a cgroup of its own.
struct Bench {
    job: Piped,
    stretch: Duration,
    _cgroup: OwnedCgroup,
    _file: tempfile::NamedTempFile,
}

/// What the job did in a stretch.
#[derive(Clone, Copy)]
struct Did {
    page_ns: f64,
    pages_s: f64,
    seconds: f64,
}

impl Bench {
    fn start(a: &Args) -> Result<Self> {
        let file = file_of(FILE_BYTES)?;
        let cgroup = piped::cgroup("overhead")?;
        cgroup.set_limit(Bytes(LIMIT_BYTES))?;
        let mut job = Command::new(std::env::current_exe()?);
        job.args(["overhead-job", "--file"]).arg(file.path());
        let mut job = Piped::start(job.args(cgroup.procs()))?;
        ensure!(job.next_line().is_some(), "the job ended");
        Ok(Self {
            job,
            stretch: Duration::from_secs_f64(a.seconds),
            _cgroup: cgroup,
            _file: file,
        })
    }

    fn mark(&mut self) -> Result<[f64; 3]> {
        self.job.say("mark")?;
        let line = self.job.next_line().context("the job ended")?;
        Ok(serde_json::from_str(&line)?)
    }

    fn stretch(&mut self) -> Result<Did> {
        let [pages, cpu, at] = self.mark()?;
        std::thread::sleep(self.stretch);
        let after = self.mark()?;
        let (pages, seconds) = (after[0] - pages, (after[2] - at) / 1e9);
        Ok(Did {
            page_ns: (after[1] - cpu) / pages,
            pages_s: pages / seconds,
            seconds,
        })
    }

    /// The same while the programs are attached; also events a second: seen, delivered,
    /// dropped.
    fn listened(&mut self, source: &mut EbpfSource) -> Result<(Did, [f64; 3])> {
        let over = AtomicBool::new(false);
        let stats = source.stats();
        let before = stats.totals();
        let did = std::thread::scope(|threads| {
            let listener = threads.spawn(|| listen(source, &over, &mut |_| ()));
            let did = self.stretch();
            over.store(true, Relaxed);
            listener
                .join()
                .map_err(|_| anyhow::anyhow!("the listener panicked"))??;
            did
        })?;
        let after = stats.totals();
        #[expect(clippy::cast_precision_loss, reason = "rates")]
        let rate = |a: u64, b: u64| (b - a) as f64 / did.seconds;
        Ok((
            did,
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
    // A listener keeps a core from sleeping, and the disk answers sooner
    // then: the job would seem faster for being listened to.
    let _awake = Awake::start();
    let mut bench = Bench::start(a)?;
    // Until it goes round in the file.
    bench.stretch()?;
    let mut worst: f64 = 0.0;
    for round in 0..a.rounds {
        // Each is the first in every second round.
        let (alone, (with, events)) = if round % 2 == 0 {
            let alone = bench.stretch()?;
            (alone, bench.listened(&mut open()?)?)
        } else {
            let with = bench.listened(&mut open()?)?;
            (bench.stretch()?, with)
        };
        let ratio = with.page_ns / alone.page_ns;
        worst = worst.max(ratio);
        if (round + 1) % 20 == 0 || round + 1 == a.rounds {
            eprintln!(
                "  {} of {} pairs, {:.0} stalls/s, worst {:+.1} %",
                round + 1,
                a.rounds,
                events[0],
                (worst - 1.0) * 100.0
            );
        }
        let row = json!({
            "what": "overhead", "round": round, "pages_s": alone.pages_s, "attached_pages_s": with.pages_s,
            "page_ns": alone.page_ns, "attached_page_ns": with.page_ns, "ratio": ratio,
            "seen_s": events[0], "delivered_s": events[1], "dropped_s": events[2],
        });
        println!("{row}");
    }
    let _stats = programs::enable_statistics().context("the kernel has no clock of programs")?;
    let mut source = open()?;
    bench.stretch *= 6;
    let (did, _) = bench.listened(&mut source)?;
    for p in source.programs() {
        if let Some(cost) = source.cost(p.name).filter(|c| c.runs > 0) {
            let mean = cost.mean_ns().and_then(|n| u64::try_from(n).ok());
            let share = cost.time.as_secs_f64() / did.seconds;
            let row: Value = json!({
                "what": "program", "program": p.name, "ns": mean, "runs": cost.runs, "share": share,
            });
            println!("{row}");
        }
    }
    Ok(())
}
