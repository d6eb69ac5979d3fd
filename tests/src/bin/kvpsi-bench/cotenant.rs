//! The question itself: how a neighbour fares that shares a memory limit with
//! the model, while a third program demands memory in bursts.
//!
//! Owns the walls and the order of the runs; the model is `worker`, with the
//! signal of the variant. The neighbour touches a working set and reads small
//! pieces of a file, some 200 times a second, and times itself. Two walls: a
//! cgroup that all are in; or the machine's own memory, of which a balloon
//! takes all but a little. Invariants: every variant has the same room above
//! what it took when it began, and the same bursts, and reads on in the same
//! text; variants are run in turn, each round in another order.

use crate::{
    balloon::{self, Balloon},
    piped::{self, Piped, join, orders},
    worker::Ear,
};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use kvpsi::{
    control::{system::SystemGauge, wall::Depth},
    units::Bytes,
};
use memmap2::MmapMut;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::TryRecvError,
    },
    time::{Duration, Instant},
};

const PAGE: usize = 4096;
/// What the neighbour touches, and what it reads pieces of; more of it where the
/// machine is the wall: without, programs would be all that can be reclaimed.
const TOUCHED: usize = 8 << 20;
const READ: usize = 32 << 20;
const READ_OF_MACHINE: usize = 96 << 20;
/// Pieces of a page read in one turn of the loop.
const PIECES: usize = 16;
/// Pause between turns.
const TURN: Duration = Duration::from_millis(5);
/// Room above what all take between bursts.
const SLACK: u64 = 4 << 20;
/// What a burst takes beyond all room: less than the neighbour's file has.
const BEYOND: u64 = 14 << 20;
/// What the machine has before a run.
const AT_FIRST: u64 = 1 << 30;
/// How long a burst holds its memory, and the pause after it.
const HOLD: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(1200);
/// Tokens of the conversation, and of one that ended and is cached.
const FILLED: usize = 700;
const CACHED: usize = 700;

/// The limit that all run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wall {
    /// The limit of a cgroup
    Cgroup,
    /// The machine's memory, all but a little of which is taken first
    Machine,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Tokens of a run
    #[arg(long, default_value_t = 1000)]
    tokens: u32,
    /// The limit that all run into
    #[arg(long, value_enum, default_value_t = Wall::Cgroup)]
    wall: Wall,
    /// MiB that a burst takes beyond what all zones keep, where the machine is
    /// the wall: so much that kswapd, which wakes on the way, does not keep up
    #[arg(long, default_value_t = 180)]
    beyond: u64,
    /// Variants
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Ear>,
}

/// How one of the other two programs is to work.
#[derive(Debug, clap::Args)]
pub struct Other {
    /// Bytes that a burst takes; 0: be the neighbour
    #[arg(long, default_value_t = 0)]
    burst: usize,
    /// Bytes of the neighbour's file
    #[arg(long, default_value_t = READ)]
    read: usize,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

pub fn run(a: &Args) -> Result<()> {
    // Out here: page cache is charged to who reads it first.
    fs::read(&a.model)?;
    // The greater part once: it takes half a minute.
    let _balloon = match a.wall {
        Wall::Machine => {
            balloon::drop_cache()?;
            Some(Balloon::start(&std::env::current_exe()?, AT_FIRST)?)
        }
        Wall::Cgroup => None,
    };
    for round in 0..a.rounds {
        let mut order = a.variants.clone();
        // Another order each round, and the same ones in every run.
        let turn = round % order.len().max(1);
        order.rotate_left(turn);
        if round % 2 == 1 {
            order.reverse();
        }
        for ear in order {
            let mut row = one(a, ear)?;
            row["round"] = json!(round);
            eprintln!(
                "  round {} {:<12} neighbour p99 {:.0} us, some {:.0} ms, {:.1} tokens/s, {} OOM kills",
                round + 1,
                ear.name(),
                row["neighbour_p99_us"].as_f64().unwrap_or(f64::NAN),
                row["psi_some_us"].as_f64().unwrap_or(f64::NAN) / 1e3,
                row["tok_s"].as_f64().unwrap_or(f64::NAN),
                row["oom_kills"],
            );
            println!("{row}");
        }
    }
    Ok(())
}

/// One run of a variant.
fn one(a: &Args, ear: Ear) -> Result<Value> {
    let cgroup = match a.wall {
        Wall::Machine => None,
        Wall::Cgroup => {
            let cgroup = piped::cgroup("cotenant")?;
            cgroup.set_limit(Bytes(4 << 30))?;
            Some(cgroup)
        }
    };
    let procs: Vec<PathBuf> = cgroup.iter().flat_map(|c| c.procs()).collect();
    let me = std::env::current_exe()?;
    let read = match a.wall {
        Wall::Cgroup => READ,
        Wall::Machine => READ_OF_MACHINE,
    };
    let mut neighbour = Command::new(&me);
    neighbour.args(["cotenant-other", "--read", &read.to_string()]);
    let mut neighbour = Piped::start(neighbour.args(&procs))?;
    ensure!(neighbour.next_line().is_some(), "the neighbour ended");
    let mut model = Command::new(&me);
    model.arg("worker").arg("--model").arg(&a.model);
    model.args(["--ear", &ear.name()]).args(&procs);
    let mut model = Piped::start(&mut model)?;
    let ready = model.wait_for("ready", &mut |_| ())?;
    let growth = ready["token_bytes"].as_u64().unwrap_or(0) * u64::from(a.tokens);
    if a.wall == Wall::Machine {
        // An ended conversation: what an early warning may release.
        model.say(&format!("cached {CACHED}"))?;
        model.wait_for("cached", &mut |_| ())?;
    }
    model.say(&format!("fill {FILLED}"))?;
    model.wait_for("filled", &mut |_| ())?;
    let (taken, _balloon) = match &cgroup {
        Some(cgroup) => {
            let usage = cgroup.memory().usage().context("no usage")?;
            cgroup.set_limit(Bytes(usage.0 + growth + SLACK))?;
            (growth + SLACK + BEYOND, None)
        }
        None => {
            // With the reserves of lower zones: without, kswapd would be awake
            // before anything began.
            let keep = SystemGauge::open()?.level(Depth::Near).tight.0;
            let balloon = Balloon::start(&me, keep + growth + SLACK)?;
            (growth + SLACK + (a.beyond << 20), Some(balloon))
        }
    };
    let kills = || {
        cgroup
            .as_ref()
            .map_or_else(all_oom_kills, |c| c.memory().oom_kills())
    };
    let before = (psi()?, vmstat("workingset_refault_file "), kills());
    neighbour.say("go")?;
    let bursts = Bursts::start(&me, procs, taken);
    let (mut trims, mut early, mut mass) = (0u64, 0u64, 0.0);
    model.say(&format!("follow {}", a.tokens))?;
    let done = model.wait_for("done", &mut |line| {
        if let Some(trim) = line.get("trim") {
            trims += 1;
            early += u64::from(trim["trigger"] == "early_warning");
            mass += trim["mass_dropped"].as_f64().unwrap_or(0.0);
        }
    });
    // One that was killed has no speed.
    let done = done.unwrap_or_default();
    let after = (psi()?, vmstat("workingset_refault_file "), kills());
    let bursts = bursts.end();
    neighbour.say("end")?;
    let told = neighbour.next_line();
    let told: Value = told.map_or(Ok(Value::Null), |t| serde_json::from_str(&t))?;
    Ok(json!({
        "what": "cotenant", "variant": ear.name(),
        "neighbour_p50_us": told["p50_us"], "neighbour_p99_us": told["p99_us"],
        "neighbour_max_us": told["max_us"], "neighbour_turns": told["turns"],
        "psi_some_us": after.0.0 - before.0.0, "psi_full_us": after.0.1 - before.0.1,
        "refaults": after.1.saturating_sub(before.1), "oom_kills": after.2.saturating_sub(before.2),
        "tok_s": done["tok_s"].as_f64().unwrap_or(0.0), "kv_tokens": done["kv_tokens"],
        "nll": done["nll"], "scored": done["scored"], "trims": trims, "early": early,
        "mass_dropped": mass, "bursts": bursts,
    }))
}

/// The third program, over and over.
struct Bursts {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Bursts {
    fn start(me: &std::path::Path, procs: Vec<PathBuf>, bytes: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (end, me) = (Arc::clone(&over), me.to_owned());
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !end.load(Relaxed) {
                std::thread::sleep(PAUSE);
                let mut burst = Command::new(&me);
                burst.args(["cotenant-other", "--burst", &bytes.to_string()]);
                burst.args(&procs).stderr(Stdio::null());
                // One that the OOM killer chose has made its point.
                if burst.status().is_ok_and(|s| s.success()) {
                    count += 1;
                }
            }
            count
        });
        Self { over, thread }
    }

    fn end(self) -> u32 {
        self.over.store(true, Relaxed);
        self.thread.join().unwrap_or(0)
    }
}

/// `some` and `full` totals of the whole system, us; v1 has none of a cgroup.
fn psi() -> Result<(u64, u64)> {
    let sample = kvpsi::trace::Sample::now().context("this kernel keeps no PSI")?;
    Ok((sample.some_us, sample.full_us))
}

/// What the kernel has counted since boot; 0 of what it does not count.
fn vmstat(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn all_oom_kills() -> u64 {
    vmstat("oom_kill ")
}

/// One of the other two programs.
pub fn other(a: &Other) -> Result<()> {
    join(&a.procs)?;
    if a.burst == 0 {
        return neighbour(a.read);
    }
    // In a cgroup it is the model that may be chosen: that is what is looked at.
    if a.procs.is_empty() {
        balloon::choose_me_first()?;
    }
    let mut map = MmapMut::map_anon(a.burst)?;
    map.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    std::thread::sleep(HOLD);
    Ok(())
}

fn neighbour(read: usize) -> Result<()> {
    let mut file = tempfile::tempfile_in("/var/tmp")?;
    let block = vec![7u8; 1 << 20];
    for _ in 0..read >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let mut set = MmapMut::map_anon(TOUCHED)?;
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut times = Vec::new();
    once(&file, read, &mut set, &mut state)?;
    println!("ready");
    let orders = orders();
    orders.recv().context("the parent is gone")?;
    while orders.try_recv() == Err(TryRecvError::Empty) {
        let began = Instant::now();
        once(&file, read, &mut set, &mut state)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        std::thread::sleep(TURN);
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len() - 1));
    println!(
        "{}",
        json!({"p50_us": at(50), "p99_us": at(99), "max_us": at(100), "turns": times.len()})
    );
    Ok(())
}

/// One turn of the neighbour's loop.
fn once(file: &File, read: usize, set: &mut MmapMut, state: &mut u64) -> Result<()> {
    for page in set.chunks_mut(PAGE) {
        page[0] = page[0].wrapping_add(1);
    }
    let mut piece = [0u8; PAGE];
    for _ in 0..PIECES {
        // xorshift64: places in no order.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let page = *state % (read / PAGE) as u64;
        file.read_exact_at(&mut piece, page * PAGE as u64)?;
        std::hint::black_box(&piece);
    }
    Ok(())
}
