//! Times the matrix kernels of every format on one shape, by rows of
//! activations, and prints medians.
//!
//! `cargo run --release --example linear_speed [N K]`; `KVPSI_ISA` chooses the
//! kernels, `RAYON_NUM_THREADS` the threads. The weights stay in the caches:
//! `kvpsi bench` measures whole models.

use kvpsi::model::linear::{Format, Linear, QuantizedRows, choose, products_into};
use std::time::Instant;

fn main() -> candle_core::Result<()> {
    let mut sizes = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let (n, k): (usize, usize) = (sizes.next().unwrap_or(1536), sizes.next().unwrap_or(768));
    let isa = choose::active().map_err(candle_core::Error::wrap)?;
    println!("kernels {}, [{n}, {k}]", isa.name());
    println!(
        "{:>8} {:>5} {:>10} {:>8} {:>8}",
        "format", "rows", "us", "GB/s", "GMAC/s"
    );
    for format in Format::all().filter(|format| k.is_multiple_of(format.block)) {
        // Scales of no meaning, but finite: every byte is the same.
        let rows = vec![0x3a; format.matrix_bytes(n, k).unwrap_or(0)];
        let linear = Linear::from_rows("weight", format, (n, k), &rows);
        let linear = linear.map_err(candle_core::Error::wrap)?;
        for m in [1, 2, 4, 8, 512] {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 97) as f32 / 50.0 - 1.0).collect();
            let (mut acts, mut out) = (QuantizedRows::with_room(m * k), vec![0.0; m * n]);
            let mut took = Vec::new();
            for _ in 0..if m > 8 { 9 } else { 199 } {
                let started = Instant::now();
                products_into([&linear], &x, m, &mut acts, [&mut out])?;
                took.push(started.elapsed().as_secs_f64());
            }
            took.sort_by(f64::total_cmp);
            let seconds = took[took.len() / 2];
            println!(
                "{:>8} {m:>5} {:>10.1} {:>8.1} {:>8.1}",
                format.name,
                seconds * 1e6,
                linear.packed().bytes() as f64 / seconds / 1e9,
                (m * n * k) as f64 / seconds / 1e9
            );
        }
    }
    Ok(())
}
