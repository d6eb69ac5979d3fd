//! How much is returned for how much is missing, over limits and rates of growth.
//!
//! Owns the cgroup, and what an oracle that knew the demand would have given. The
//! model is `worker`, idle, with a conversation that ended and one that goes on; the
//! other process fills up the cgroup and grows, at a rate, by more than the room.
//! Invariant: what is missing is known beforehand: growth less the room.

use crate::{
    piped::{self, Piped, join, orders},
    worker::Ear,
};
use anyhow::{Context, Result, ensure};
use kvpsi::{
    control::{cgroup::OwnedCgroup, wall::Walls},
    units::Bytes,
};
use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

/// Tokens of the conversation that ended, and of the one that goes on: some 16 and 34
/// MiB of the default model's.
const CACHED: usize = 700;
const FILLED: usize = 1500;
/// Room that is left below the limit: more than any headroom.
const ROOM: Bytes = Bytes::mib(16);
/// The limit until then.
const WIDE: Bytes = Bytes(16 << 30);
/// A limit is known within a second.
const KNOWN: Duration = Duration::from_millis(1200);
/// What is still on its way is back after that.
const BACK: Duration = Duration::from_millis(300);
const PAGE: usize = 4096;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// MiB of the cgroup's limit, in turn
    #[arg(long, value_delimiter = ',', default_values_t = [256, 512, 1024, 2048, 4096])]
    limits: Vec<u64>,
    /// MiB a second that the other process grows by, in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    rates: Vec<u64>,
    /// MiB beyond the room that it grows by, in turn
    #[arg(long, value_delimiter = ',', default_values_t = [12, 24])]
    shorts: Vec<u64>,
    /// Rounds
    #[arg(long, default_value_t = 1)]
    rounds: usize,
}

/// Where the other process joins.
#[derive(Debug, clap::Args)]
pub struct Grower {
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

pub fn run(a: &Args) -> Result<()> {
    // Out here: page cache is charged to who reads it first.
    fs::read(&a.model)?;
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    ensure!(
        swaps.lines().count() < 2,
        "swap is on, which takes what is missing: `swapoff -a` first"
    );
    for round in 0..a.rounds {
        for limit in &a.limits {
            for rate in &a.rates {
                for short in &a.shorts {
                    let row = measure(a, Bytes::mib(*limit), *rate, Bytes::mib(*short))?;
                    eprintln!(
                        "  round {}: limit {limit} MiB, {rate} MiB/s, {short} MiB short: returned {:.2} of 1 missing, {} OOM kills",
                        round + 1,
                        row["by_missing"].as_f64().unwrap_or(f64::NAN),
                        row["oom_kills"],
                    );
                    println!("{row}");
                }
            }
        }
    }
    Ok(())
}

fn measure(a: &Args, limit: Bytes, rate: u64, short: Bytes) -> Result<Value> {
    let cgroup = piped::cgroup("enough")?;
    cgroup.set_limit(WIDE)?;
    let me = std::env::current_exe()?;
    let mut model = Command::new(&me);
    model.arg("worker").arg("--model").arg(&a.model);
    model.args(["--ear", &Ear::Ebpf.name()]);
    let mut model = Piped::start(model.args(cgroup.procs()))?;
    let token_bytes = model.wait_for("ready", &mut |_| ())?["token_bytes"].clone();
    let token_bytes = token_bytes.as_u64().context("token_bytes")?;
    model.say(&format!("cached {CACHED}"))?;
    model.wait_for("cached", &mut |_| ())?;
    model.say(&format!("fill {FILLED}"))?;
    model.wait_for("filled", &mut |_| ())?;
    let mut grower = Piped::start(Command::new(&me).arg("grower").args(cgroup.procs()))?;
    ensure!(
        grower.answer()? == "ready",
        "the other process is not ready"
    );
    // Two steps: its own pages for the first are known by the second.
    for _ in 0..2 {
        let ballast = limit.saturating_sub(ROOM).saturating_sub(kept(&cgroup)?);
        grower.say(&format!("grow {} 4096", ballast.0))?;
        grower.answer()?;
    }
    cgroup.set_limit(limit)?;
    std::thread::sleep(KNOWN);
    let room = limit.saturating_sub(kept(&cgroup)?);
    ensure!(
        room > Bytes::ZERO,
        "the model alone needs more than {limit}"
    );
    let before = account(&mut model, &mut |_| ())?;
    let hits = cgroup.memory().hits();
    grower.say(&format!("grow {} {rate}", room.0 + short.0))?;
    // A line, or its end where it was the one that the kernel killed.
    let grown = grower.next_line().is_some();
    std::thread::sleep(BACK);
    let (mut returned, mut trims) = (0, 0);
    let after = account(&mut model, &mut |line| {
        let bytes = line["trim"]["bytes"].as_u64();
        returned += bytes.unwrap_or(0);
        trims += u64::from(bytes.is_some());
    });
    let tokens = |told: &Value| told["tokens"].as_u64().unwrap_or(0);
    let (had, has) = (tokens(&before), after.as_ref().map_or(0, tokens));
    // What nobody's conversation is in goes first.
    let free = before["resident"]
        .as_u64()
        .unwrap_or(0)
        .saturating_sub(had * token_bytes);
    let must_go = short.0.saturating_sub(free).div_ceil(token_bytes);
    let hits = cgroup
        .memory()
        .hits()
        .zip(hits)
        .map(|(now, then)| now - then);
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let by_missing = returned as f64 / short.0 as f64;
    Ok(json!({
        "limit": limit.0, "rate": rate, "missing": short.0, "returned": returned, "trims": trims,
        "by_missing": by_missing, "hits": hits, "oom_kills": cgroup.memory().oom_kills(),
        "grown": grown, "lived": after.is_ok(), "tokens": had, "kept": has, "oracle": had.saturating_sub(must_go),
    }))
}

fn account(model: &mut Piped, others: &mut dyn FnMut(&Value)) -> Result<Value> {
    model.say("account")?;
    model.wait_for("account", others)
}

/// What is charged to it that page cache cannot give.
fn kept(cgroup: &OwnedCgroup) -> Result<Bytes> {
    let level = Walls::open(cgroup.memory()).each().into_iter().next();
    let level = level.context("the cgroup cannot be read")?;
    Ok(level.usage.saturating_sub(level.file.unwrap_or_default()))
}

/// Grows by `grow BYTES MIB_A_SECOND`, and says so each time. It keeps what it has.
pub fn grower(a: &Grower) -> Result<()> {
    join(&a.procs)?;
    let orders = orders();
    let mut all = Vec::new();
    println!("ready");
    while let Ok(order) = orders.recv() {
        let mut words = order.split(' ').skip(1).map(str::parse::<usize>);
        let mut next = || words.next().context("a number")?.context(order.clone());
        let (bytes, rate) = (next()?, next()? << 20);
        let began = Instant::now();
        let mut map = MmapMut::map_anon(bytes.max(1))?;
        // A huge page would be more than the rate allows; where there are none it is refused.
        let _ = map.advise(Advice::NoHugePage);
        for (i, page) in map.chunks_mut(PAGE).enumerate() {
            page[0] = 1;
            if i % 16 == 0 {
                #[expect(clippy::cast_precision_loss, reason = "a time")]
                let due = Duration::from_secs_f64((i * PAGE) as f64 / rate as f64);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
        }
        all.push(map);
        println!("grown");
    }
    Ok(())
}
