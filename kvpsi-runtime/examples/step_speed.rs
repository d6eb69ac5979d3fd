//! Times the decode step beside the same rows over candle operations, and a
//! step of four sequences, alternating in one run; prints medians.
//!
//! `cargo run --example step_speed MODEL [DEPTH]...`; `RAYON_NUM_THREADS` sets
//! the threads of both.

use anyhow::Context;
use kvpsi::{
    attention::RowSpan,
    kv::{KvPool, PoolConfig, SeqId},
    model::{decoder::Decoder, gguf::Gguf, step::Step},
};
use std::{path::Path, sync::Arc, time::Instant};

/// Tokens that are timed in each way.
const TURNS: u32 = 64;
/// Sequences of the batch.
const BATCH: usize = 4;

struct Bench {
    decoder: Decoder,
    pool: Arc<KvPool>,
}

impl Bench {
    /// The next `rows` positions of each sequence.
    fn append(&self, seqs: &[SeqId], rows: usize) -> anyhow::Result<Arc<[RowSpan]>> {
        let span = |&seq: &SeqId| {
            let first_pos = self.pool.append(seq, rows)?.start;
            anyhow::Ok(RowSpan {
                seq,
                first_pos,
                rows,
            })
        };
        seqs.iter().map(span).collect()
    }

    fn fill(&mut self, seq: SeqId, depth: usize) -> anyhow::Result<()> {
        let mut left = depth;
        while left > 0 {
            let rows = left.min(256);
            let spans = self.append(&[seq], rows)?;
            let tokens: Vec<u32> = (0..rows as u32).map(|i| 100 + i * 7 % 997).collect();
            self.decoder.forward(&tokens, spans, &self.pool)?;
            left -= rows;
        }
        Ok(())
    }
}

/// Runs `f` and notes its microseconds.
fn timed<T>(times: &mut Vec<f64>, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let t = f();
    times.push(start.elapsed().as_secs_f64() * 1e6);
    t
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args.next().context("step_speed MODEL [DEPTH]...")?;
    let mut depths = args
        .map(|d| d.parse())
        .collect::<Result<Vec<usize>, _>>()
        .context("DEPTH")?;
    if depths.is_empty() {
        depths = vec![0, 2048];
    }
    let decoder = Decoder::load(&mut Gguf::open(Path::new(&model))?)?;
    let pool = KvPool::new(PoolConfig {
        shape: decoder.kv_shape(),
        capacity_tokens: 32_768,
        max_sequences: BATCH + 2,
        sink_tokens: 4,
        recent_tokens: 32_768,
    })?;
    let mut step = Step::new(&decoder, &pool, BATCH);
    let mut bench = Bench { decoder, pool };
    for depth in depths {
        let seqs = (0..BATCH + 2)
            .map(|_| bench.pool.open())
            .collect::<Result<Vec<_>, _>>()?;
        for &seq in &seqs {
            bench.fill(seq, depth)?;
        }
        let (mut candle, mut one, mut batch) = (Vec::new(), Vec::new(), Vec::new());
        for token in 100..100 + TURNS {
            let spans = bench.append(&seqs[..1], 1)?;
            timed(&mut candle, || {
                bench.decoder.forward(&[token], spans, &bench.pool)
            })?;
            let spans = bench.append(&seqs[1..2], 1)?;
            timed(&mut one, || {
                let logits = bench.decoder.step(&[token], &spans, &bench.pool, &mut step);
                logits.map(|_| ())
            })?;
            let spans = bench.append(&seqs[2..], 1)?;
            timed(&mut batch, || {
                let tokens = [token; BATCH];
                let logits = bench.decoder.step(&tokens, &spans, &bench.pool, &mut step);
                logits.map(|_| ())
            })?;
        }
        let (candle, one, batch) = (median(candle), median(one), median(batch));
        println!(
            "depth {depth}: candle operations {candle:.0} us, step {one:.0} us ({:.2}x), step of {BATCH} sequences {batch:.0} us ({:.2} steps)",
            candle / one,
            batch / one
        );
        seqs.into_iter().for_each(|seq| bench.pool.close(seq));
    }
    Ok(())
}
