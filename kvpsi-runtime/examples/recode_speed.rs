//! Times how fast a block's keys or values are written in another encoding, on
//! one core, and prints source bytes per second: what a trim under pressure
//! has to wait for.
//!
//! `cargo run --release --example recode_speed [RUNS]`

use kvpsi::kv::{KvType, Plane, recode};
use std::hint::black_box;

/// Planes that a run goes through: more than the L2 cache holds.
const PLANES: usize = 512;

fn main() {
    let runs: usize = std::env::args()
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(15);
    // SmolLM2-135M's.
    let plane = Plane {
        heads: 3,
        tokens: 32,
        head_dim: 64,
    };
    let mut seed = 1u32;
    let halves = plane.values() * PLANES;
    let f16s: Vec<half::f16> = (0..halves)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            half::f16::from_f32((seed >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect();
    let bits: Vec<u16> = f16s.iter().map(|v| v.to_bits()).collect();
    let bytes = |kind: KvType| kind.bytes(plane.values());
    let mut eights = vec![0u16; PLANES * bytes(KvType::Q8_0) / 2];
    let mut fours = vec![0u16; PLANES * bytes(KvType::Q4_0) / 2];
    let mut halves = vec![0u16; PLANES * bytes(KvType::F16) / 2];
    time(runs, plane, KvType::F16, &bits, KvType::Q8_0, &mut eights);
    time(runs, plane, KvType::F16, &bits, KvType::Q4_0, &mut fours);
    time(runs, plane, KvType::Q8_0, &eights, KvType::Q4_0, &mut fours);
    time(runs, plane, KvType::Q4_0, &fours, KvType::F16, &mut halves);
}

/// Seconds of this thread's CPU time, which other load does not disturb.
fn now() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

fn time(runs: usize, plane: Plane, kind: KvType, from: &[u16], to_kind: KvType, to: &mut [u16]) {
    let [each, to_each] = [kind, to_kind].map(|k| k.bytes(plane.values()));
    let from: &[u8] = bytemuck::cast_slice(from);
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = now();
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            for (from, to) in from.chunks_exact(each).zip(to.chunks_exact_mut(to_each)) {
                recode(kind, from, to_kind, to, plane, plane.tokens);
            }
            black_box(to);
            now() - start
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let bytes_per_second = from.len() as f64 / times[runs / 2];
    println!("{kind:>5} to {to_kind}: {:.2} GB/s", bytes_per_second / 1e9);
}
