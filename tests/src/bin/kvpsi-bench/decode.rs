//! Tokens a second in prefill and decode, kvpsi and candle-transformers in
//! turn.
//!
//! A depth is reached once by each; the measurements there go on from it, so
//! a prefill of 512 at depth 2048 begins between 2048 and some hundred tokens
//! later, for both alike. candle's cache cannot be wound back, and its rotary
//! table ends at 4096 tokens: a prefill at a greater depth stands beside
//! candle's at 3072, where candle has less to do. `candle_depth` says so.

use crate::{
    candle::Candle,
    models::{CHUNK, Ours},
};
use anyhow::{Result, ensure};
use kvpsi::{kv::KvType, profile};
use serde_json::json;
use std::{path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Threads this process was given; only told in the rows
    #[arg(long)]
    threads: usize,
    /// Depths in tokens
    #[arg(long, value_delimiter = ',', default_values_t = [0, 2048, 6144])]
    depths: Vec<usize>,
    /// Sequences in a step; candle is measured with one
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4])]
    batches: Vec<usize>,
    /// How kvpsi writes keys and values
    #[arg(long, value_enum, default_value_t)]
    kv_type: KvType,
    /// Tokens of a decode measurement
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Deepest depth that candle is measured at: it takes minutes to get there
    #[arg(long, default_value_t = usize::MAX)]
    candle_until: usize,
    /// The program to run as candle-transformers [default: leave it out]
    #[arg(long)]
    candle: Option<PathBuf>,
}

/// Tokens of all sequences at once: those of the largest batch, and the one
/// that prefill is measured with, each as deep as can be and what is measured
/// there.
fn capacity(a: &Args) -> usize {
    let deepest = a.depths.iter().max().copied().unwrap_or(0);
    let sequences = a.batches.iter().max().copied().unwrap_or(1) + 1;
    (deepest + a.rounds * a.tokens.max(CHUNK)) * sequences
}

fn median(mut v: Vec<f64>) -> Option<f64> {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied()
}

/// Where kvpsi's time went, over all rounds of a row.
#[derive(Default)]
struct Spent {
    linear: f64,
    attention: f64,
    all: f64,
}

/// Tokens a second of `f`, which makes `tokens`.
fn rate(spent: &mut Spent, tokens: usize, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    profile::take();
    let start = Instant::now();
    f()?;
    let seconds = start.elapsed().as_secs_f64();
    let parts = profile::take();
    spent.linear += parts.linear.as_secs_f64();
    spent.attention += parts.attention.as_secs_f64();
    spent.all += seconds;
    Ok(per_second(tokens, seconds))
}

#[expect(clippy::cast_precision_loss, reason = "some thousand tokens")]
fn per_second(tokens: usize, seconds: f64) -> f64 {
    tokens as f64 / seconds
}

/// candle is ten times slower at depth: as many tokens as take some seconds.
fn candle_tokens(a: &Args, depth: usize) -> usize {
    match depth {
        0..=1023 => a.tokens / 2,
        1024..=4095 => a.tokens / 6,
        _ => a.tokens / 12,
    }
    .max(4)
}

/// Where candle can still prefill a whole chunk, and then decode some tokens.
const DEEPEST_PREFILL: usize = 3072;

#[derive(Default)]
struct Pair {
    ours: Vec<f64>,
    candle: Vec<f64>,
    candle_depth: usize,
    spent: Spent,
    /// Bytes of weights, keys and values that kvpsi reads for one step; none
    /// where memory is not what decides.
    step_bytes: Option<u64>,
}

impl Pair {
    fn print(self, a: &Args, what: &str, depth: usize, batch: usize) {
        let spread = |v: &[f64]| {
            let min = v.iter().copied().fold(f64::INFINITY, f64::min);
            let max = v.iter().copied().fold(0.0, f64::max);
            (!v.is_empty()).then_some([min, max])
        };
        let (ours_spread, candle_spread) = (spread(&self.ours), spread(&self.candle));
        let (ours, candle) = (median(self.ours), median(self.candle));
        let ratio = ours.zip(candle).map(|(o, c)| o / c);
        let row = json!({
            "what": what, "depth": depth, "threads": a.threads, "kv": a.kv_type.name(), "batch": batch,
            "tok_s": ours, "tok_s_spread": ours_spread,
            "candle_depth": self.candle_depth, "candle_tok_s": candle, "candle_tok_s_spread": candle_spread,
            "ratio": ratio, "llama_tok_s": null,
            "linear_share": self.spent.linear / self.spent.all,
            "attention_share": self.spent.attention / self.spent.all,
            "rest_share": 1.0 - (self.spent.linear + self.spent.attention) / self.spent.all,
            "read_bytes_s": self.step_bytes.zip(ours).map(|(bytes, rate)| bytes_a_second(bytes, rate, batch)),
        });
        println!("{row}");
        eprintln!(
            "  {what:<8} depth {depth:>5}, batch {batch}: {:>7.1} tok/s, candle {:>6.1}",
            ours.unwrap_or(0.0),
            candle.unwrap_or(f64::NAN)
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn bytes_a_second(step: u64, tokens: f64, batch: usize) -> f64 {
    step as f64 * tokens / batch as f64
}

pub fn run(a: &Args) -> Result<()> {
    profile::enable(true);
    let mut ours = Ours::load(&a.model, a.kv_type, capacity(a))?;
    let mut candle = match &a.candle {
        Some(program) => Some(Candle::start(program, &a.model)?),
        None => None,
    };
    for &batch in &a.batches {
        for &depth in &a.depths {
            let other = candle
                .as_mut()
                .filter(|_| batch == 1 && depth <= a.candle_until);
            at_depth(a, &mut ours, other, depth, batch)?;
        }
    }
    Ok(())
}

/// A few tokens at least: the first step warms what is made on demand.
fn warm(depth: usize) -> usize {
    depth.max(4)
}

fn at_depth(
    a: &Args,
    ours: &mut Ours,
    mut candle: Option<&mut Candle>,
    depth: usize,
    batch: usize,
) -> Result<()> {
    let seqs = (0..batch)
        .map(|_| ours.pool.open())
        .collect::<Result<Vec<_>, _>>()?;
    for seq in &seqs {
        ours.fill(*seq, warm(depth))?;
    }
    if batch == 1 {
        prefill(a, ours, candle.as_deref_mut(), depth)?;
    }
    if let Some(c) = &mut candle {
        c.order("fill", warm(depth))?;
    }
    let kv = ours.pool.account().in_use.0;
    let mut pair = Pair {
        candle_depth: depth,
        step_bytes: Some(ours.decoder.weights().0 + kv),
        ..Pair::default()
    };
    for _ in 0..a.rounds {
        pair.ours.push(rate(&mut pair.spent, a.tokens * batch, || {
            (0..a.tokens).try_for_each(|_| ours.step(&seqs, 1))
        })?);
        if let Some(c) = &mut candle {
            let n = candle_tokens(a, depth);
            pair.candle.push(per_second(n, c.order("decode", n)?));
        }
    }
    pair.print(a, "decode", depth, batch);
    for seq in seqs {
        ours.pool.close(seq);
    }
    // Attention over less than the depth would flatter.
    let evicted = ours.pool.account().self_evicted;
    ensure!(
        evicted == 0,
        "{evicted} blocks were evicted at depth {depth}"
    );
    Ok(())
}

/// Each round from the same depth.
fn prefill(a: &Args, ours: &mut Ours, mut candle: Option<&mut Candle>, depth: usize) -> Result<()> {
    let candle_depth = depth.min(DEEPEST_PREFILL);
    let mut pair = Pair {
        candle_depth,
        ..Pair::default()
    };
    let seq = ours.pool.open()?;
    ours.fill(seq, depth)?;
    if let Some(c) = &mut candle {
        c.order("fill", candle_depth)?;
    }
    for round in 0..a.rounds {
        if depth == 0 {
            let fresh = ours.pool.open()?;
            pair.ours
                .push(rate(&mut pair.spent, CHUNK, || ours.step(&[fresh], CHUNK))?);
            ours.pool.close(fresh);
        } else {
            pair.ours
                .push(rate(&mut pair.spent, CHUNK, || ours.step(&[seq], CHUNK))?);
        }
        // At depth it goes half a minute: one round will do for candle.
        let again = round == 0 || depth == 0;
        if let Some(c) = candle.as_mut().filter(|_| again) {
            if depth == 0 {
                c.order("fill", 0)?;
            }
            pair.candle
                .push(per_second(CHUNK, c.order("prefill", CHUNK)?));
        }
    }
    ours.pool.close(seq);
    pair.print(a, "prefill", depth, 1);
    Ok(())
}
