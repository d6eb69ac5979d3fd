//! The question itself: how a neighbour fares that shares a memory limit with
//! the model, while a third program demands memory in bursts.
//!
//! Owns the cgroup and the order of the runs; the model is `kvpsi demo`'s
//! worker, with the signal of the variant. The neighbour touches a working set
//! and reads small pieces of a file, some 200 times a second, and times
//! itself. Invariants: every variant has the same limit above what it took
//! when it began, and the same bursts; variants are run in turn, each round in
//! another order.

use anyhow::{Context, Result, bail, ensure};
use kvpsi::{control::cgroup::OwnedCgroup, units::Bytes};
use memmap2::MmapMut;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

const PAGE: usize = 4096;
/// What the neighbour touches, and what it reads pieces of.
const TOUCHED: usize = 8 << 20;
const READ: usize = 32 << 20;
/// Pieces of a page read in one turn of the loop.
const PIECES: usize = 16;
/// Pause between turns.
const TURN: Duration = Duration::from_millis(5);
/// Room above what all take while nobody bursts.
const SLACK: u64 = 4 << 20;
/// What a burst takes beyond all room: less than the neighbour's file has.
const BEYOND: u64 = 14 << 20;
/// How long a burst holds its memory, and the pause after it.
const HOLD: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(1200);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// The `kvpsi` program
    #[arg(long)]
    kvpsi: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Tokens of a run
    #[arg(long, default_value_t = 500)]
    tokens: u32,
    /// Variants: fixed, psi-poll, psi-trigger, ebpf
    #[arg(long, value_delimiter = ',', default_values_t = ["fixed", "psi-poll", "psi-trigger", "ebpf"].map(String::from))]
    variants: Vec<String>,
}

/// How one of the other two programs is to work.
#[derive(Debug, clap::Args)]
pub struct Other {
    /// Bytes that a burst takes; 0: be the neighbour
    #[arg(long, default_value_t = 0)]
    burst: usize,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

/// A child with a pipe either way; killed and reaped on drop.
struct Piped {
    child: Child,
    orders: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Piped {
    fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn()?;
        let lines = child.stdout.take().context("piped")?;
        Ok(Self {
            orders: child.stdin.take(),
            lines: BufReader::new(lines).lines(),
            child,
        })
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("closed")?;
        Ok(writeln!(orders, "{word}")?)
    }

    fn hear(&mut self) -> Option<String> {
        self.lines.next()?.ok()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(a: &Args) -> Result<()> {
    // Out here: page cache is charged to who reads it first.
    fs::read(&a.model)?;
    for round in 0..a.rounds {
        let mut order: Vec<&String> = a.variants.iter().collect();
        // Another order each round, and the same ones in every run.
        let turn = round % order.len().max(1);
        order.rotate_left(turn);
        if round % 2 == 1 {
            order.reverse();
        }
        for variant in order {
            let mut row = one(a, variant)?;
            row["round"] = json!(round);
            eprintln!(
                "  round {} {variant:<12} neighbour p99 {:.0} us, some {:.0} ms, {:.1} tokens/s, {} OOM kills",
                round + 1,
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
fn one(a: &Args, variant: &str) -> Result<Value> {
    let cgroup = OwnedCgroup::create(&format!("kvpsi-cotenant-{}", std::process::id()))?;
    cgroup.set_limit(Bytes(4 << 30))?;
    let me = std::env::current_exe()?;
    let mut neighbour = Piped::start(Command::new(&me).arg("cotenant-other").args(cgroup.procs()))?;
    ensure!(neighbour.hear().is_some(), "the neighbour ended");
    let mut model = Command::new(&a.kvpsi);
    model
        .args(["demo", "--role", "worker", "--quiet", "-m"])
        .arg(&a.model);
    model.args(["-n", &a.tokens.to_string()]);
    match variant {
        "fixed" => model.arg("--no-trim"),
        signal => model.args(["--signal", signal]),
    };
    for procs in cgroup.procs() {
        model.arg("--join").arg(procs);
    }
    let mut model = Piped::start(&mut model)?;
    let mut token_bytes = 0;
    // Until the prompt is read.
    loop {
        let line = model.hear().context("the model's process ended early")?;
        let line: Value = serde_json::from_str(&line)?;
        if let Some(bytes) = line.pointer("/ready/token_bytes") {
            token_bytes = bytes.as_u64().unwrap_or(0);
        }
        if line.get("text").is_some() {
            break;
        }
    }
    let usage = cgroup.memory().usage().context("no usage")?;
    let growth = token_bytes * u64::from(a.tokens);
    cgroup.set_limit(Bytes(usage.0 + growth + SLACK))?;
    let before = (psi()?, refaults());
    neighbour.say("go")?;
    let bursts = Bursts::start(&me, &cgroup, growth + SLACK + BEYOND);
    let (mut done, mut trims, mut mass, mut kv) = (Value::Null, 0u64, 0.0, json!(null));
    while let Some(line) = model.hear() {
        let line: Value = serde_json::from_str(&line)?;
        if let Some(trim) = line.get("trim") {
            trims += 1;
            mass += trim["mass_dropped"].as_f64().unwrap_or(0.0);
        } else if let Some(now) = line.get("kv") {
            kv = now["tokens"].clone();
        } else if let Some(d) = line.get("done") {
            done = d.clone();
        }
    }
    let after = (psi()?, refaults());
    let bursts = bursts.end();
    neighbour.say("end")?;
    let told = neighbour.hear();
    let told: Value = told.map_or(Ok(Value::Null), |t| serde_json::from_str(&t))?;
    Ok(json!({
        "what": "cotenant", "variant": variant,
        "neighbour_p50_us": told["p50_us"], "neighbour_p99_us": told["p99_us"],
        "neighbour_max_us": told["max_us"], "neighbour_turns": told["turns"],
        "psi_some_us": after.0.0 - before.0.0, "psi_full_us": after.0.1 - before.0.1,
        "refaults": after.1.saturating_sub(before.1), "oom_kills": cgroup.memory().oom_kills(),
        // A model that was killed has no speed.
        "tok_s": done["tokens_per_s"].as_f64().unwrap_or(0.0),
        "kv_tokens": kv, "trims": trims, "mass_dropped": mass, "bursts": bursts,
    }))
}

/// The third program, over and over.
struct Bursts {
    over: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Bursts {
    fn start(me: &std::path::Path, cgroup: &OwnedCgroup, bytes: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (end, me) = (Arc::clone(&over), me.to_owned());
        let procs: Vec<PathBuf> = cgroup.procs().collect();
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

fn refaults() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("workingset_refault_file "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// One of the other two programs.
pub fn other(a: &Other) -> Result<()> {
    for procs in &a.procs {
        fs::write(procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if a.burst == 0 {
        return neighbour();
    }
    let mut map = MmapMut::map_anon(a.burst)?;
    map.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    std::thread::sleep(HOLD);
    Ok(())
}

fn neighbour() -> Result<()> {
    let mut file = tempfile::tempfile_in("/var/tmp")?;
    let block = vec![7u8; 1 << 20];
    for _ in 0..READ >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let mut set = MmapMut::map_anon(TOUCHED)?;
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut times = Vec::new();
    let over = Arc::new(AtomicBool::new(false));
    once(&file, &mut set, &mut state)?;
    println!("ready");
    if std::io::stdin().lines().next().transpose()?.is_none() {
        bail!("nobody is there");
    }
    let end = Arc::clone(&over);
    std::thread::spawn(move || {
        let _ = std::io::stdin().lines().next();
        end.store(true, Relaxed);
    });
    while !over.load(Relaxed) {
        let began = Instant::now();
        once(&file, &mut set, &mut state)?;
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
fn once(file: &File, set: &mut MmapMut, state: &mut u64) -> Result<()> {
    for page in set.chunks_mut(PAGE) {
        page[0] = page[0].wrapping_add(1);
    }
    let mut piece = [0u8; PAGE];
    for _ in 0..PIECES {
        // xorshift64: places in no order.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let page = *state % (READ / PAGE) as u64;
        file.read_exact_at(&mut piece, page * PAGE as u64)?;
        std::hint::black_box(&piece);
    }
    Ok(())
}
