//! The programs beside the model in `cotenant`: the neighbour, a burst, and one
//! that reads a file from end to end.
//!
//! Owns what each does and the times that it tells, all of `CLOCK_MONOTONIC`.
//! Invariants: the neighbour's turn is timed without its pause; nothing is told
//! before its end. Out of scope: when each runs.

use crate::{
    balloon::choose_me_first,
    piped::{forget, join, orders},
};
use anyhow::{Context, Result};
use kvpsi::clock::monotonic_ns;
use memmap2::MmapMut;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::mpsc::TryRecvError,
    time::Duration,
};

const PAGE: usize = 4096;
/// What the neighbour touches.
const TOUCHED: usize = 8 << 20;
/// Pieces of a page read in one turn of the loop.
const PIECES: usize = 16;
/// Pause between turns.
const TURN: Duration = Duration::from_millis(5);
/// How long a burst holds its memory.
const HOLD: Duration = Duration::from_millis(200);
/// Turns that there is room for from the start.
const TURNS: usize = 1 << 15;

/// Which program, and how it is to work.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Be a burst that takes so many bytes
    #[arg(long)]
    burst: Option<usize>,
    /// Read this file so many times
    #[arg(long, requires = "passes")]
    stream: Option<PathBuf>,
    /// How many times
    #[arg(long)]
    passes: Option<u32>,
    /// Bytes of the neighbour's file
    #[arg(long, default_value_t = 32 << 20)]
    read: usize,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

pub fn run(a: &Args) -> Result<()> {
    join(&a.procs)?;
    match (a.burst, &a.stream, a.passes) {
        (Some(bytes), ..) => {
            // In a cgroup it is the model that may be chosen: that is what is looked at.
            if a.procs.is_empty() {
                choose_me_first()?;
            }
            burst(bytes)
        }
        (None, Some(file), Some(passes)) => stream(file, passes),
        _ => neighbour(a.read),
    }
}

/// Takes memory, holds it, gives it back.
fn burst(bytes: usize) -> Result<()> {
    let mut map = MmapMut::map_anon(bytes)?;
    println!("{}", json!({"begins": monotonic_ns()}));
    map.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    println!("{}", json!({"has_all": monotonic_ns()}));
    std::thread::sleep(HOLD);
    drop(map);
    println!("{}", json!({"ends": monotonic_ns()}));
    Ok(())
}

/// Reads a file from its beginning to its end, and again.
fn stream(path: &Path, passes: u32) -> Result<()> {
    let mut piece = vec![0u8; 1 << 20];
    println!("ready");
    orders().recv().context("the parent is gone")?;
    let (began, mut bytes) = (monotonic_ns(), 0u64);
    for _ in 0..passes {
        let mut file = File::open(path)?;
        loop {
            let n = file.read(&mut piece)?;
            if n == 0 {
                break;
            }
            bytes += n as u64;
        }
        // The next pass finds none of it.
        forget(&file)?;
    }
    println!(
        "{}",
        json!({"streamed": {"bytes": bytes, "ns": monotonic_ns() - began}})
    );
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
    let waits = Waits::open()?;
    let mut turns = Vec::with_capacity(TURNS);
    once(&file, read, &mut set, &mut state)?;
    println!("ready");
    let orders = orders();
    orders.recv().context("the parent is gone")?;
    while orders.try_recv() == Err(TryRecvError::Empty) {
        let (before, began) = (waits.now()?, monotonic_ns());
        once(&file, read, &mut set, &mut state)?;
        let (ended, after) = (monotonic_ns(), waits.now()?);
        // Two clocks: the processor's may be ahead by what reading it took.
        turns.push((began, ended - began, after.0 - before.0, after.1 - before.1));
        std::thread::sleep(TURN);
    }
    println!("{}", json!({ "turns": turns }));
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

/// What this thread has waited for.
struct Waits(File);

impl Waits {
    fn open() -> Result<Self> {
        let path = "/proc/thread-self/schedstat";
        Ok(Self(File::open(path).context(path)?))
    }

    /// Processor time used, and time ready without a processor
    /// (Documentation/scheduler/sched-stats.rst), in ns.
    fn now(&self) -> Result<(u64, u64)> {
        let t = clock_gettime(ClockId::ThreadCPUTime);
        let used = t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs();
        let mut text = [0u8; 96];
        let n = self.0.read_at(&mut text, 0)?;
        let queued = std::str::from_utf8(&text[..n])?.split_whitespace().nth(1);
        Ok((used, queued.context("no second number")?.parse()?))
    }
}
