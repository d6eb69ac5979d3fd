//! Times the matrix kernels beside candle's `QMatMul` on the shapes of
//! SmolLM2-135M, alternating in one run, and prints medians and ratios.
//!
//! `cargo run --example linear_speed [RUNS]`; `KVPSI_ISA` chooses the kernels,
//! `CANDLE_NUM_THREADS` the threads of both.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::utils::barrier_pool;
use candle_core::{Device, Module, Result, Tensor};
use kvpsi::model::linear::{Isa, Linear, QuantizedRows, products_into};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

struct Pair {
    ours: Linear,
    candle: QMatMul,
    bytes: usize,
}

impl Pair {
    fn new(dtype: GgmlDType, n: usize, k: usize) -> Result<Pair> {
        let w = Tensor::randn(0f32, 0.05, (n, k), &Device::Cpu)?;
        let w = Arc::new(QTensor::quantize(&w, dtype)?);
        Ok(Pair {
            bytes: w.storage_size_in_bytes(),
            ours: Linear::new(w.clone())?,
            candle: QMatMul::from_arc(w)?,
        })
    }
}

/// Seconds: of this thread's CPU time where it works alone, which other load on
/// the machine does not disturb; else of the clock on the wall.
fn now() -> f64 {
    let clock = if barrier_pool().n_workers() == 0 {
        rustix::time::ClockId::ThreadCPUTime
    } else {
        rustix::time::ClockId::Monotonic
    };
    let t = rustix::time::clock_gettime(clock);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Medians in seconds of two closures that take turns.
fn race(
    runs: usize,
    mut a: impl FnMut() -> Result<()>,
    mut b: impl FnMut() -> Result<()>,
) -> Result<(f64, f64)> {
    let (mut ta, mut tb) = (Vec::new(), Vec::new());
    for i in 0..runs + 2 {
        let start = now();
        a()?;
        let middle = now();
        b()?;
        let end = now();
        if i >= 2 {
            ta.push(middle - start);
            tb.push(end - middle);
        }
    }
    ta.sort_by(f64::total_cmp);
    tb.sort_by(f64::total_cmp);
    Ok((ta[ta.len() / 2], tb[tb.len() / 2]))
}

/// Bytes per second of reading `bytes` once with the same threads.
fn read_bandwidth(bytes: usize) -> f64 {
    let data = vec![1u64; bytes / 8];
    let sum = AtomicU64::new(0);
    let mut times = Vec::new();
    for _ in 0..9 {
        let start = now();
        barrier_pool().execute_chunked(data.len() / 8192, |r| {
            let part = &data[r.start * 8192..r.end * 8192];
            let mut lanes = [0u64; 16];
            for chunk in part.as_chunks::<16>().0 {
                lanes
                    .iter_mut()
                    .zip(chunk)
                    .for_each(|(l, c)| *l = l.wrapping_add(*c));
            }
            sum.fetch_add(lanes.iter().sum(), Ordering::Relaxed);
        });
        times.push(now() - start);
    }
    black_box(sum.into_inner());
    times.sort_by(f64::total_cmp);
    bytes as f64 / times[times.len() / 2]
}

fn main() -> Result<()> {
    let runs: usize = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(7);
    let isa = Isa::active().map_err(candle_core::Error::wrap)?;
    println!(
        "kernels {}, {} threads",
        isa.name(),
        barrier_pool().n_workers() + 1
    );
    println!(
        "read loop over 96 MiB: {:.1} GB/s",
        read_bandwidth(96 << 20) / 1e9
    );
    println!(
        "{:>6} {:>6}x{:<5} {:>4} {:>10} {:>10} {:>6} {:>8} {:>8}",
        "type", "n", "k", "m", "candle us", "ours us", "ratio", "GB/s", "GMAC/s"
    );
    let shapes = [(576, 576), (192, 576), (1536, 576), (576, 1536)].map(|s| (GgmlDType::Q4_1, s));
    let mut cases = shapes.to_vec();
    for dtype in [GgmlDType::Q4_0, GgmlDType::Q8_0] {
        cases.push((dtype, (1536, 576)));
    }
    for dtype in [GgmlDType::Q4K, GgmlDType::Q6K] {
        cases.push((dtype, (1536, 768)));
    }
    cases.push((GgmlDType::Q8_0, (49152, 576)));
    for (dtype, (n, k)) in cases {
        let pair = Pair::new(dtype, n, k)?;
        for m in [1, 512] {
            if n > 10_000 && m > 1 {
                continue;
            }
            let x = Tensor::randn(0f32, 1.0, (m, k), &Device::Cpu)?;
            let runs = if m == 1 { runs * 40 } else { runs };
            let (values, mut out) = (x.flatten_all()?.to_vec1::<f32>()?, vec![0.0; m * n]);
            let mut acts = QuantizedRows::with_room(m * k);
            let (ours, candle) = race(
                runs,
                || products_into([&pair.ours], &values, m, &mut acts, [&mut out]),
                || pair.candle.forward(&x).map(drop),
            )?;
            println!(
                "{:>6} {n:>6}x{k:<5} {m:>4} {:>10.1} {:>10.1} {:>6.2} {:>8.1} {:>8.1}",
                format!("{dtype:?}"),
                candle * 1e6,
                ours * 1e6,
                candle / ours,
                pair.bytes as f64 / ours / 1e9,
                (m * n * k) as f64 / ours / 1e9
            );
        }
    }
    whole_model(runs)
}

/// Every product of one step of SmolLM2-135M and nothing else.
fn whole_model(runs: usize) -> Result<()> {
    let mut layers = Vec::new();
    for _ in 0..30 {
        let p = |n, k| Pair::new(GgmlDType::Q4_1, n, k);
        layers.push([
            p(576, 576)?,
            p(192, 576)?,
            p(192, 576)?,
            p(576, 576)?,
            p(1536, 576)?,
            p(1536, 576)?,
            p(576, 1536)?,
        ]);
    }
    let head = Pair::new(GgmlDType::Q8_0, 49152, 576)?;
    let bytes: usize = layers.iter().flatten().map(|p| p.bytes).sum::<usize>() + head.bytes;
    for m in [1, 512] {
        let x = Tensor::randn(0f32, 1.0, (m, 576), &Device::Cpu)?;
        let wide = Tensor::randn(0f32, 1.0, (m, 1536), &Device::Cpu)?;
        let last = x.narrow(0, m - 1, 1)?;
        let [of_x, of_wide, of_last] =
            [&x, &wide, &last].map(|t| t.flatten_all()?.to_vec1::<f32>());
        let (of_x, of_wide, of_last) = (of_x?, of_wide?, of_last?);
        let mut acts = QuantizedRows::with_room(m * 1536);
        let out = |n: usize| vec![0f32; m * n];
        let (mut a, mut b, mut c) = (out(1536), out(1536), out(192));
        let mut logits = vec![0.0; 49152];
        let (ours, candle) = race(
            if m == 1 { runs * 4 } else { runs },
            || {
                for [q, k, v, o, gate, up, down] in &layers {
                    let (a_, b_) = (&mut a[..m * 576], &mut b[..m * 192]);
                    let qkv = [&q.ours, &k.ours, &v.ours];
                    products_into(qkv, &of_x, m, &mut acts, [&mut *a_, b_, &mut c])?;
                    products_into([&o.ours], &of_x, m, &mut acts, [&mut *a_])?;
                    let both = [&gate.ours, &up.ours];
                    products_into(both, &of_x, m, &mut acts, [&mut a, &mut b])?;
                    products_into([&down.ours], &of_wide, m, &mut acts, [&mut a[..m * 576]])?;
                }
                products_into([&head.ours], &of_last, 1, &mut acts, [&mut logits])
            },
            || {
                for [q, k, v, o, gate, up, down] in &layers {
                    for p in [q, k, v, o, gate, up] {
                        p.candle.forward(&x)?;
                    }
                    down.candle.forward(&wide)?;
                }
                head.candle.forward(&last).map(drop)
            },
        )?;
        println!(
            "all products of a step, m = {m}: candle {:.2} ms, ours {:.2} ms, ratio {:.2}, {:.0} tokens/s, {:.1} GB/s",
            candle * 1e3,
            ours * 1e3,
            candle / ours,
            m as f64 / ours,
            bytes as f64 / ours / 1e9
        );
    }
    Ok(())
}
