//! How much of what is said to be given back the kernel really has, and what
//! that takes beside a bare `madvise`.
//!
//! Each case fills memory with the same keys and values, gives half of it back
//! as its holder can, and looks at RSS and PSS (`smaps_rollup`) before and
//! after: kvpsi's pool by block size and by pattern; candle's tensors, of which
//! the newer half is copied and the rest dropped; blocks of malloc, of which
//! every second is freed. A bare `madvise` is looped over a mapping that was
//! filled at once, and over the very blocks that kvpsi gives back. Invariant:
//! nothing else in the process takes or frees memory in between.

use crate::models;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use kvpsi::{
    kv::{KvPool, KvType, SeqId, Step as Rung, Steps},
    model::{
        decoder::Decoder,
        gguf::Gguf,
        step::{MOST_ROWS, Step},
        tokenizer::Tokenizer,
    },
    units::Bytes,
};
use kvpsi_tests::quality::TEXT;
use memmap2::MmapMut;
use rustix::mm::{Advice, madvise};
use serde_json::{Value, json};
use std::{fs, hint::black_box, path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the cache
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens of a block
    #[arg(long, value_delimiter = ',', default_values_t = [32, 64, 128])]
    blocks: Vec<usize>,
}

/// Which of the blocks go.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// The oldest half of one sequence, side by side.
    Oldest,
    /// One of two sequences that grew by turns: every second run of blocks.
    Ended,
}

/// Who gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Trim,
    Madvise,
}

/// RSS and PSS of this process, in bytes (proc(5), `smaps_rollup`).
fn held() -> Result<[i64; 2]> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let of = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<i64>().ok());
        kib.map(|k| k << 10).context("smaps_rollup")
    };
    Ok([of("Rss:")?, of("Pss:")?])
}

/// What one round came to.
struct Took {
    bytes: u64,
    lost: [i64; 2],
    us: f64,
}

/// Times `give` and looks at what became of the memory.
fn watch(give: impl FnOnce() -> u64) -> Result<Took> {
    let before = held()?;
    let began = Instant::now();
    let bytes = give();
    let us = began.elapsed().as_secs_f64() * 1e6;
    let after = held()?;
    Ok(Took {
        bytes,
        lost: [before[0] - after[0], before[1] - after[1]],
        us,
    })
}

/// A pool that is filled and then trimmed to half; or whose same half a loop of
/// `madvise` over its blocks returns.
fn pool(decoder: &Decoder, text: &[u32], block: usize, pattern: Pattern, by: By) -> Result<Took> {
    let mut shape = decoder.kv_shape(KvType::F16);
    shape.block_tokens = block;
    let pool = models::pool(shape, 2 * text.len(), 2, 64)?;
    let mut step = Step::new(decoder, &pool, MOST_ROWS)?;
    let (rows, count) = match pattern {
        Pattern::Oldest => (512, 1),
        Pattern::Ended => (2 * block, 2),
    };
    let seqs: Vec<_> = (0..count).map(|_| pool.open()).collect::<Result<_, _>>()?;
    for tokens in text[..text.len() / count].chunks(rows) {
        for seq in &seqs {
            models::read(decoder, &pool, &mut step, *seq, tokens)?;
        }
    }
    if by == By::Madvise {
        return in_place(&pool, &seqs, pattern, shape.block_bytes().0);
    }
    match pattern {
        Pattern::Oldest => {
            let half = Bytes(pool.account().in_use.0 / 2);
            watch(|| pool.trim(half, Steps::NONE.with(Rung::Window)).bytes.0)
        }
        Pattern::Ended => {
            pool.close(seqs[1]);
            watch(|| pool.trim(Bytes(u64::MAX), Steps::SLACK).bytes.0)
        }
    }
}

/// Returns the pages of the same blocks with nothing but `madvise`: what the
/// kernel itself takes for memory that was filled so.
fn in_place(pool: &KvPool, seqs: &[SeqId], pattern: Pattern, block_bytes: u64) -> Result<Took> {
    let run = usize::try_from(block_bytes)?;
    let (guard, mut views) = (pool.layer(), Vec::new());
    let seq = seqs[seqs.len() - 1];
    guard.blocks(seq, 0, &mut views);
    let blocks = match pattern {
        // As the trim chooses: all but the sinks, to half.
        Pattern::Oldest => &views[1..=views.len() / 2],
        Pattern::Ended => &views[..],
    };
    watch(|| {
        for b in blocks {
            // SAFETY: a block begins with the keys of its first layer; it is
            // whole pages of the pool's mapping, and nothing reads it after.
            let _ = unsafe { madvise(b.k.cast_mut().cast(), run, Advice::LinuxDontNeed) };
        }
        (blocks.len() * run) as u64
    })
}

/// A mapping of `bytes`, of which runs of `run` are returned until half is.
fn bare(bytes: usize, run: usize) -> Result<Took> {
    let mut map = MmapMut::map_anon(bytes)?;
    map.fill(1);
    let half = map.len() / 2 / run * run;
    watch(|| {
        for at in (0..half).step_by(run) {
            // SAFETY: whole pages of a private mapping of our own, which is
            // not read after.
            let _ = unsafe { madvise(map.as_mut_ptr().add(at).cast(), run, Advice::LinuxDontNeed) };
        }
        black_box(&map);
        half as u64
    })
}

/// Keys and values as candle holds them, in f32; the older half is dropped.
fn candle(decoder: &Decoder, tokens: usize) -> Result<Took> {
    let s = decoder.kv_shape(KvType::F16);
    let shape = (1, s.kv_heads, tokens, s.head_dim);
    let mut cache: Vec<Tensor> = (0..2 * s.layers)
        .map(|_| Tensor::ones(shape, DType::F32, &Device::Cpu))
        .collect::<Result<_, _>>()?;
    let each = (s.kv_heads * (tokens / 2) * s.head_dim * 4) as u64;
    let took = watch(|| {
        for t in &mut cache {
            // Its own memory: a view would keep the whole.
            if let Ok(half) = t
                .narrow(2, tokens / 2, tokens - tokens / 2)
                .and_then(|t| t.copy())
            {
                *t = half;
            }
        }
        each * cache.len() as u64
    });
    black_box(&cache);
    took
}

/// Blocks as malloc hands them out; every second is freed.
fn malloc(bytes: usize, block: usize) -> Result<Took> {
    let mut blocks: Vec<Option<Vec<u8>>> =
        (0..bytes / block).map(|_| Some(vec![1; block])).collect();
    let took = watch(|| {
        let freed = blocks.iter_mut().step_by(2).filter_map(Option::take);
        freed.map(|b| b.len() as u64).sum()
    });
    black_box(&blocks);
    took
}

fn row(
    holder: &str,
    block: Option<usize>,
    pattern: &str,
    mut all: Vec<Took>,
    [fresh, in_place]: [Option<f64>; 2],
) -> Value {
    all.sort_by(|a, b| a.us.total_cmp(&b.us));
    let t = &all[all.len() / 2];
    #[expect(clippy::cast_precision_loss, reason = "shares")]
    let (bytes, lost) = (t.bytes as f64, t.lost.map(|l| l as f64));
    let us_per_mib = t.us / (bytes / f64::from(1 << 20));
    let row = json!({
        "what": "giveback", "holder": holder, "block": block, "pattern": pattern, "bytes": t.bytes,
        "rss_lost": lost[0] / bytes, "pss_lost": lost[1] / bytes, "us_per_mib": us_per_mib,
        "madvise_us_per_mib": fresh, "in_place_us_per_mib": in_place,
    });
    eprintln!(
        "  {holder:<8} {pattern:<8} {:>4} tokens a block: RSS lost {:.1} %, {us_per_mib:.1} us for a MiB",
        block.map_or_else(|| "-".into(), |b| b.to_string()),
        lost[0] / bytes * 100.0,
    );
    row
}

pub fn run(a: &Args) -> Result<()> {
    let gguf = Gguf::open(&a.model)?;
    let text = Tokenizer::from_gguf(&gguf)?.encode(TEXT, false)?;
    let text = &text[..a.tokens.min(text.len())];
    let decoder = Decoder::load(&gguf)?;
    let rounds = 0..a.rounds.max(1);
    for block in &a.blocks {
        let mut shape = decoder.kv_shape(KvType::F16);
        shape.block_tokens = *block;
        let (bytes, run) = (shape.token_bytes().0, shape.block_bytes().0);
        let (bytes, run) = (usize::try_from(bytes)? * text.len(), usize::try_from(run)?);
        // In turn: what the machine does to one it does to all.
        let mut fresh = vec![];
        let (mut oldest, mut ended) = ([vec![], vec![]], [vec![], vec![]]);
        for _ in rounds.clone() {
            let of = |pattern, by| pool(&decoder, text, *block, pattern, by);
            fresh.push(bare(bytes, run)?);
            for (pattern, all) in [(Pattern::Oldest, &mut oldest), (Pattern::Ended, &mut ended)] {
                all[0].push(of(pattern, By::Madvise)?);
                all[1].push(of(pattern, By::Trim)?);
            }
        }
        let us = |r: &Value| r["us_per_mib"].as_f64();
        let fresh = row("madvise", Some(*block), "fresh", fresh, [None, None]);
        println!("{fresh}");
        for (name, [by_hand, trimmed]) in [("oldest", oldest), ("ended", ended)] {
            let beside = [us(&fresh), None];
            let in_place = row("madvise", Some(*block), name, by_hand, beside);
            let beside = [us(&fresh), us(&in_place)];
            println!("{in_place}");
            println!("{}", row("kvpsi", Some(*block), name, trimmed, beside));
        }
    }
    let shape = decoder.kv_shape(KvType::F16);
    let bytes = usize::try_from(shape.token_bytes().0)? * text.len();
    let block = usize::try_from(shape.block_bytes().0)?;
    let of = |f: &dyn Fn() -> Result<Took>| rounds.clone().map(|_| f()).collect::<Result<_>>();
    let candles = of(&|| candle(&decoder, text.len()))?;
    println!("{}", row("candle", None, "oldest", candles, [None; 2]));
    // What one layer has of a block: a cache of small pieces.
    for (size, name) in [(block, "blocks"), (block / shape.layers, "layers")] {
        let freed = of(&|| malloc(bytes, size))?;
        println!(
            "{}",
            row("malloc", Some(shape.block_tokens), name, freed, [None; 2])
        );
    }
    Ok(())
}
