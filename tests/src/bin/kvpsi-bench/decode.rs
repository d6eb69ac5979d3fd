//! Tokens a second in prefill and decode, kvpsi and candle-transformers in
//! turn.
//!
//! A depth is reached once by each; the measurements there go on from it, so
//! a prefill of 512 at depth 2048 begins between 2048 and some hundred tokens
//! later, for both alike. candle's cache cannot be wound back.

use crate::models::{CHUNK, Candle, Ours};
use anyhow::Result;
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
    /// Tokens of a decode measurement
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Leave candle-transformers out
    #[arg(long)]
    no_candle: bool,
}

/// Longest context: the deepest depth and what is measured there.
fn capacity(a: &Args) -> usize {
    let deepest = a.depths.iter().max().copied().unwrap_or(0);
    let measured = a.rounds * (a.tokens + CHUNK);
    (deepest + measured) * a.batches.iter().max().copied().unwrap_or(1)
}

fn median(mut v: Vec<f64>) -> Option<f64> {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied()
}

/// Tokens a second of `f`, which makes `tokens`.
fn rate(tokens: usize, f: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    f()?;
    #[expect(clippy::cast_precision_loss, reason = "some thousand tokens")]
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
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

struct Pair {
    ours: Vec<f64>,
    candle: Vec<f64>,
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
            "what": what, "depth": depth, "threads": a.threads, "kv": "f16", "batch": batch,
            "tok_s": ours, "tok_s_spread": ours_spread,
            "candle_tok_s": candle, "candle_tok_s_spread": candle_spread,
            "ratio": ratio, "llama_tok_s": null,
        });
        println!("{row}");
        eprintln!(
            "  {what:<8} depth {depth:>5}, batch {batch}: {:>7.1} tok/s, candle {:>6.1}",
            ours.unwrap_or(0.0),
            candle.unwrap_or(f64::NAN)
        );
    }
}

pub fn run(a: &Args) -> Result<()> {
    let mut ours = Ours::load(&a.model, capacity(a))?;
    let vocab = ours.decoder.config().vocab;
    let mut candle = if a.no_candle {
        None
    } else {
        Some(Candle::load(&a.model, vocab)?)
    };
    for &batch in &a.batches {
        for &depth in &a.depths {
            let other = candle.as_mut().filter(|_| batch == 1);
            at_depth(a, &mut ours, other, depth, batch)?;
        }
    }
    Ok(())
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
    // A few tokens at least: the first step warms what is made on demand.
    for seq in &seqs {
        ours.fill(*seq, depth.max(4))?;
    }
    if let Some(c) = &mut candle {
        if c.len > depth {
            c.clear();
        }
        c.fill(depth.max(4))?;
    }
    let mut pair = Pair {
        ours: vec![],
        candle: vec![],
    };
    for _ in 0..a.rounds {
        pair.ours.push(rate(a.tokens * batch, || {
            (0..a.tokens).try_for_each(|_| ours.step(&seqs, 1))
        })?);
        if let Some(c) = &mut candle {
            let n = candle_tokens(a, depth);
            pair.candle
                .push(rate(n, || (0..n).try_for_each(|_| c.step(1)))?);
        }
    }
    pair.print(a, "decode", depth, batch);
    if batch == 1 {
        prefill(a, ours, candle, depth, seqs[0])?;
    }
    for seq in seqs {
        ours.pool.close(seq);
    }
    Ok(())
}

fn prefill(
    a: &Args,
    ours: &mut Ours,
    mut candle: Option<&mut Candle>,
    depth: usize,
    seq: kvpsi::kv::SeqId,
) -> Result<()> {
    let mut pair = Pair {
        ours: vec![],
        candle: vec![],
    };
    for round in 0..a.rounds {
        if depth == 0 {
            let fresh = ours.pool.open()?;
            pair.ours.push(rate(CHUNK, || ours.step(&[fresh], CHUNK))?);
            ours.pool.close(fresh);
        } else {
            pair.ours.push(rate(CHUNK, || ours.step(&[seq], CHUNK))?);
        }
        // Each goes half a minute at depth: one round will do for candle.
        let again = round == 0 || depth == 0;
        if let Some(c) = candle.as_mut().filter(|_| again) {
            if depth == 0 {
                c.clear();
            }
            pair.candle.push(rate(CHUNK, || c.step(CHUNK))?);
        }
    }
    pair.print(a, "prefill", depth, 1);
    Ok(())
}
