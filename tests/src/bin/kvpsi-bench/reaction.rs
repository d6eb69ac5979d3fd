//! From a stall's onset to a decision, and to returned pages, by each signal.
//!
//! Owns the cgroup, the order of the runs and the witness: eBPF in this
//! process says when a burst's first stall began, whichever signal the model
//! listens to. The model is `worker`; the hog reads a mapped file larger than
//! the room that is left, until the model has given something back or the time
//! of a burst is over. Invariants: every burst finds the same cache and the
//! same room, less than the headroom, so that the first stall does harm; bursts
//! begin at another moment of a poller's second each time; signals take turns.

use crate::{
    piped::{self, Piped, file_of, forget, join, listen, orders},
    worker::Ear,
};
use anyhow::{Context, Result, ensure};
use kvpsi::{
    clock::monotonic_ns,
    control::{
        cgroup::OwnedCgroup,
        wall::{CgroupLevel, Walls},
    },
    pressure::{SourceConfig, ebpf::EbpfSource},
    units::Bytes,
};
use kvpsi_common::{Kind, Phase};
use memmap2::Mmap;
use serde_json::json;
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::TryRecvError,
    },
    thread::JoinHandle,
    time::Duration,
};

/// Tokens of the cache when a burst begins: some 8 MiB of the default model's
/// may go.
const FILLED: usize = 640;
/// Anonymous memory of the hog: with it the limit is large enough for a headroom
/// of 8 MiB.
const BALLAST: usize = 512 << 20;
/// Room when a burst begins: so much less than the headroom that the first stall does
/// harm, also where some page cache of the burst before is left.
const ROOM: Bytes = Bytes::mib(2);
/// What a cache grows by in a storm in which nothing is given back: without it the
/// OOM killer would end the model.
const STORM_ROOM: Bytes = Bytes::mib(24);
/// What the hog reads.
const FILE: usize = 128 << 20;
/// A burst that was not answered ends.
const MOST: Duration = Duration::from_secs(5);
/// The limit without pressure.
const WIDE: Bytes = Bytes(4 << 30);
/// How long a storm lasts in which nothing is given back.
const STORM: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Bursts of a signal in a round
    #[arg(long, default_value_t = 4)]
    bursts: usize,
    /// And of eBPF: p99 takes a hundred
    #[arg(long, default_value_t = 25)]
    ebpf_bursts: usize,
    /// What is listened to, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [
        Ear::Ebpf, Ear::PsiTrigger, Ear::PsiPoll, Ear::PsiPoll10ms, Ear::PsiAvg10, Ear::Vmstat,
    ])]
    ears: Vec<Ear>,
    /// What the model does meanwhile: decoding, idle
    #[arg(long, value_delimiter = ',', default_values_t = ["decoding", "idle"].map(String::from))]
    loads: Vec<String>,
    /// Seconds without pressure over which a signal's processor time is taken
    #[arg(long, default_value_t = 10.0)]
    calm: f64,
}

/// Where the hog joins.
#[derive(Debug, clap::Args)]
pub struct Hog {
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

/// Says when the first stall after a moment began.
struct Witness {
    state: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    /// Stalls before do not count; 0: none does.
    armed_ns: AtomicU64,
    onset_ns: AtomicU64,
    over: AtomicBool,
}

impl Witness {
    fn start() -> Result<Self> {
        let mut source = EbpfSource::open(&SourceConfig::default())
            .context("onsets are told by eBPF, also those that other signals are measured by")?;
        let state = Arc::new(Seen::default());
        let seen = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let _ = listen(&mut source, &seen.over, &mut |e| {
                let armed = seen.armed_ns.load(Relaxed);
                let first = e.phase == Phase::Onset as u16
                    && Kind::from_raw(e.kind).is_some_and(Kind::is_stall);
                if first && armed != 0 && e.ts_ns >= armed {
                    let _ = seen.onset_ns.compare_exchange(0, e.ts_ns, Relaxed, Relaxed);
                }
            });
        });
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    fn arm(&self) {
        self.state.onset_ns.store(0, Relaxed);
        self.state.armed_ns.store(monotonic_ns(), Relaxed);
    }

    fn onset_ns(&self) -> Option<u64> {
        Some(self.state.onset_ns.load(Relaxed)).filter(|t| *t != 0)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.state.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn run(a: &Args) -> Result<()> {
    // Out here: page cache is charged to who reads it first.
    fs::read(&a.model)?;
    let witness = Witness::start()?;
    let mut all = 0;
    for round in 0..a.rounds {
        for load in &a.loads {
            for turn in 0..a.ears.len() {
                let ear = a.ears[(round + turn) % a.ears.len()];
                let one = One::start(a, ear, load, &witness)?;
                one.measure(a, round, &mut all)?;
            }
        }
    }
    Ok(())
}

/// A signal at a load: both processes and their cgroup.
struct One<'a> {
    ear: Ear,
    load: &'a str,
    witness: &'a Witness,
    model: Piped,
    hog: Piped,
    cgroup: OwnedCgroup,
    walls: Walls,
}

/// What became of a burst.
struct Burst {
    onset_ns: u64,
    /// When the first trim was decided, and its pages were back.
    answer: Option<(u64, u64)>,
    /// The wall as it was when none had come.
    unanswered: Option<CgroupLevel>,
}

impl<'a> One<'a> {
    fn start(a: &Args, ear: Ear, load: &'a str, witness: &'a Witness) -> Result<Self> {
        let cgroup = piped::cgroup("reaction")?;
        cgroup.set_limit(WIDE)?;
        let me = std::env::current_exe()?;
        let mut model = Command::new(&me);
        model.arg("worker").arg("--model").arg(&a.model);
        // Quick steps alone: what is compared is the latency of detection.
        model.args(["--profile", "latency", "--ear", &ear.name()]);
        let mut model = Piped::start(model.args(cgroup.procs()))?;
        model.wait_for("ready", &mut |_| ())?;
        let mut hog = Piped::start(Command::new(&me).arg("reaction-hog").args(cgroup.procs()))?;
        ensure!(hog.next_line().is_some(), "the hog ended");
        Ok(Self {
            ear,
            load,
            witness,
            model,
            hog,
            walls: Walls::open(cgroup.memory()),
            cgroup,
        })
    }

    fn measure(mut self, a: &Args, round: usize, all: &mut usize) -> Result<()> {
        let bursts = if self.ear == Ear::Ebpf {
            a.ebpf_bursts
        } else {
            a.bursts
        };
        let (source, load) = (self.ear.name(), self.load);
        let mut answered = Vec::new();
        for _ in 0..bursts {
            *all += 1;
            let Some(burst) = self.burst(*all)? else {
                println!(
                    "{}",
                    json!({"what": "silent", "source": source, "load": load})
                );
                continue;
            };
            if burst.answer.is_some_and(|a| a.0 < burst.onset_ns) {
                println!(
                    "{}",
                    json!({"what": "early", "source": source, "load": load})
                );
                continue;
            }
            let late = |ns: u64| us(ns.saturating_sub(burst.onset_ns));
            let row = json!({
                "what": "burst", "round": round, "source": source, "load": load,
                "decided_us": burst.answer.map(|a| late(a.0)),
                "returned_us": burst.answer.map(|a| late(a.1)),
                "unanswered": burst.unanswered,
            });
            answered.extend(row["returned_us"].as_f64());
            println!("{row}");
        }
        answered.sort_by(f64::total_cmp);
        let cpu = self.calm_cpu(Duration::from_secs_f64(a.calm))?;
        let storm = self.storm_cpu()?;
        eprintln!(
            "  round {}: {source:<14} {load:<9} {} of {} bursts answered, p50 {:.0} us; CPU calm {cpu:.4} %, in a storm {storm:.3} %",
            round + 1,
            answered.len(),
            bursts,
            answered.get(answered.len() / 2).unwrap_or(&f64::NAN),
        );
        println!(
            "{}",
            json!({"what": "cpu", "round": round, "source": source, "load": load, "calm": cpu, "storm": storm})
        );
        Ok(())
    }

    /// The cache as every burst finds it, and the model at its work.
    fn fill(&mut self) -> Result<()> {
        self.model.say(&format!("fill {FILLED}"))?;
        self.model.wait_for("filled", &mut |_| ())?;
        self.decode()
    }

    /// One burst; `None` if no task stalled in it.
    fn burst(&mut self, number: usize) -> Result<Option<Burst>> {
        self.cgroup.set_limit(WIDE)?;
        self.fill()?;
        // The golden ratio's multiples fall all over a second.
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let phase = (number as f64 * 0.618_034).fract();
        std::thread::sleep(Duration::from_secs_f64(0.2 + 0.8 * phase));
        self.witness.arm();
        let began = monotonic_ns();
        self.limit(ROOM)?;
        self.hog.say("press")?;
        let left = || MOST.saturating_sub(Duration::from_nanos(monotonic_ns() - began));
        let mut answer = None;
        while answer.is_none() {
            let Some(line) = self.model.line_within(left())? else {
                break;
            };
            let ns = |key: &str| line["trim"][key].as_u64();
            answer = ns("noticed_ns").zip(ns("returned_ns"));
            answer = answer.filter(|a| a.0 >= began);
        }
        // The model may have looked and given before anybody stalled.
        let soon = monotonic_ns() + 100_000_000;
        while self.witness.onset_ns().is_none() && monotonic_ns() < soon {
            std::thread::sleep(Duration::from_millis(1));
        }
        let wall = self.walls.each().into_iter().next();
        let unanswered = wall.filter(|_| answer.is_none());
        self.hog.say("stop")?;
        ensure!(self.hog.next_line().is_some(), "the hog ended");
        self.cgroup.set_limit(WIDE)?;
        Ok(self.witness.onset_ns().map(|onset_ns| Burst {
            onset_ns,
            answer,
            unanswered,
        }))
    }

    fn limit(&self, room: Bytes) -> Result<()> {
        let usage = self.cgroup.memory().usage().context("no usage")?;
        Ok(self.cgroup.set_limit(Bytes(usage.0 + room.0))?)
    }

    /// Percent of a core that the reactor's thread takes without pressure.
    fn calm_cpu(&mut self, time: Duration) -> Result<f64> {
        self.fill()?;
        self.cpu(time)
    }

    /// And while the hog does and nothing is given back.
    fn storm_cpu(&mut self) -> Result<f64> {
        self.fill()?;
        self.trim("off")?;
        self.limit(Bytes(ROOM.0 + STORM_ROOM.0))?;
        self.hog.say("press")?;
        let cpu = self.cpu(STORM)?;
        self.hog.say("stop")?;
        ensure!(self.hog.next_line().is_some(), "the hog ended");
        self.cgroup.set_limit(WIDE)?;
        self.trim("on")?;
        Ok(cpu)
    }

    fn trim(&mut self, on: &str) -> Result<()> {
        self.model.say(&format!("trim {on}"))?;
        self.model.wait_for("trims", &mut |_| ())?;
        self.decode()
    }

    fn decode(&mut self) -> Result<()> {
        if self.load == "decoding" {
            self.model.say("decode")?;
        }
        Ok(())
    }

    fn cpu(&mut self, time: Duration) -> Result<f64> {
        let before = self.used()?;
        std::thread::sleep(time);
        let after = self.used()?;
        Ok((after.0 - before.0) / (after.1 - before.1) * 100.0)
    }

    /// The reactor's ns, and when.
    fn used(&mut self) -> Result<(f64, f64)> {
        self.model.say("cpu")?;
        let cpu = self.model.wait_for("cpu", &mut |_| ())?;
        self.decode()?;
        let ns = |key: &str| cpu[key].as_f64().context("cpu");
        Ok((ns("used_ns")?, ns("at_ns")?))
    }
}

#[expect(clippy::cast_precision_loss, reason = "some seconds")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Reads a mapped file from `press` to `stop`, and then answers. Its anonymous
/// memory stays.
pub fn hog(a: &Hog) -> Result<()> {
    join(&a.procs)?;
    let orders = orders();
    let file = file_of(FILE)?.into_file();
    let ballast = vec![7u8; BALLAST];
    println!("ready");
    while let Ok(order) = orders.recv() {
        ensure!(order == "press", "`{order}` is no order");
        // SAFETY: the file has no name, and nothing here truncates it.
        let map = unsafe { Mmap::map(&file)? };
        let mut sum = 0u64;
        'pressing: loop {
            for page in map.chunks(4096) {
                sum = sum.wrapping_add(u64::from(page[0]));
                if orders.try_recv() != Err(TryRecvError::Empty) {
                    break 'pressing;
                }
            }
        }
        std::hint::black_box(sum);
        drop(map);
        forget(&file)?;
        println!("done");
    }
    std::hint::black_box(ballast);
    Ok(())
}
