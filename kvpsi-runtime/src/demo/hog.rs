//! The neighbour that takes memory, in bursts and on order.
//!
//! Orders come on stdin, one a line: `file BYTES MS` reads a mapped file of
//! that size for that long (reclaim and refaults), `anon BYTES MS` reads a
//! little, then grows anonymous memory to that size and holds it; a fourth word
//! is the most MiB a second that it grows by; `bare` is `anon` that reads nothing
//! before. Each is answered on stdout with `done US`. Ends with its input.

use anyhow::{Context, Result, bail};
use memmap2::{Mmap, MmapMut};
use std::{
    hint::black_box,
    io::{BufRead, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

const PAGE: usize = 4096;

pub(super) fn run(procs: &[PathBuf]) -> Result<()> {
    super::join(procs)?;
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let (Some(what), Some(bytes), Some(ms)) = (words.next(), words.next(), words.next()) else {
            bail!("hog: `{line}` is no order");
        };
        let bytes: usize = bytes.parse().with_context(|| format!("hog: `{line}`"))?;
        let time = Duration::from_millis(ms.parse().with_context(|| format!("hog: `{line}`"))?);
        let rate = words.next().map(str::parse::<u64>).transpose();
        let rate = rate.with_context(|| format!("hog: `{line}`"))?;
        let start = Instant::now();
        let rate = rate.map_or(u64::MAX, |mib| mib << 20);
        match what {
            "file" => read_file(bytes, time)?,
            "bare" => grow(bytes, time, rate)?,
            "anon" => {
                let _cached = read_before()?;
                grow(bytes, time, rate)?;
            }
            _ => bail!("hog: `{line}` is no order"),
        }
        writeln!(out, "done {}", start.elapsed().as_micros())?;
        out.flush()?;
    }
    Ok(())
}

/// Reads a mapped file again and again. On disk, not on tmpfs: only pages
/// that have a file behind them can be reclaimed without swap.
fn read_file(bytes: usize, time: Duration) -> Result<()> {
    let dir = PathBuf::from("/var/tmp");
    let file = tempfile_in(&dir, bytes)?;
    // SAFETY: the file is unlinked and private to this process; no code
    // truncates it under the mapping.
    let map = unsafe { Mmap::map(&file)? };
    let end = Instant::now() + time;
    let mut sum = 0u64;
    loop {
        for page in map.chunks(PAGE) {
            sum = sum.wrapping_add(u64::from(page[0]));
            if Instant::now() > end {
                black_box(sum);
                return Ok(());
            }
        }
    }
}

/// An unlinked file of `bytes`, its blocks written, so that reads need disk.
fn tempfile_in(dir: &std::path::Path, bytes: usize) -> Result<std::fs::File> {
    let path = dir.join(format!("kvpsi-hog-{}", std::process::id()));
    let context = || format!("{}: cannot make a file of {bytes} bytes", path.display());
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(context)?;
    std::fs::remove_file(&path).with_context(context)?;
    let chunk = vec![0x5a_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(chunk.len());
        file.write_all(&chunk[..n]).with_context(context)?;
        left -= n;
    }
    file.sync_data().with_context(context)?;
    Ok(file)
}

/// Page cache that a growing program has read before it grows, as programs
/// do. It is what the kernel reclaims first; in a cgroup without any, the OOM
/// killer comes some 100 us after the first stall.
fn read_before() -> Result<Mmap> {
    let file = tempfile_in(&PathBuf::from("/var/tmp"), 16 << 20)?;
    // SAFETY: as in `read_file`.
    let cached = unsafe { Mmap::map(&file)? };
    black_box(cached.chunks(PAGE).map(|p| u64::from(p[0])).sum::<u64>());
    Ok(cached)
}

/// Pages that are touched between two looks at the clock.
const BETWEEN: usize = 16;

/// Touches `bytes` of anonymous memory page by page, no more than `rate` of them a
/// second, holds them, lets go.
fn grow(bytes: usize, hold: Duration, rate: u64) -> Result<()> {
    let mut map = MmapMut::map_anon(bytes).context("hog: cannot map memory")?;
    let start = Instant::now();
    for (i, page) in map.chunks_mut(PAGE).enumerate() {
        page[0] = 1;
        if i % BETWEEN == 0 {
            let due = Duration::from_secs_f64((i * PAGE) as f64 / rate as f64);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    std::thread::sleep(hold);
    black_box(map[0]);
    Ok(())
}
