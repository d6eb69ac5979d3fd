//! Resident memory, and how fast memory can be read.

use crate::models::Ours;
use anyhow::Result;
use kvpsi::kv::KvType;
use serde_json::json;
use std::{fs, hint::black_box, path::Path, time::Instant};

/// A field of /proc/self/status in bytes.
fn status(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field))?;
    let kib: u64 = line
        .trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    Some(kib << 10)
}

/// kvpsi alone: a prompt of 512 and an answer of 128 tokens.
pub fn resident(model: &Path) -> Result<()> {
    let before = status("VmRSS");
    let mut ours = Ours::load(model, KvType::F16, 4096)?;
    let loaded = status("VmRSS");
    let seq = ours.pool.open()?;
    ours.step(&[seq], 512)?;
    for _ in 0..128 {
        ours.step(&[seq], 1)?;
    }
    let row = json!({
        "file": fs::metadata(model)?.len(),
        "weights": ours.decoder.weights().0,
        "rss_before": before, "rss_loaded": loaded,
        "rss": status("VmRSS"), "rss_anon": status("RssAnon"), "rss_file": status("RssFile"),
        "rss_peak": status("VmHWM"),
        "kv_resident": ours.pool.account().resident.0,
    });
    println!("{row}");
    Ok(())
}

/// Bytes a second that `threads` read together: 256 MiB each, far beyond the
/// caches, summed so that nothing is left out; the best of five.
pub fn bandwidth(threads: usize) {
    const WORDS: usize = (256 << 20) / 8;
    let data: Vec<Vec<u64>> = (0..threads)
        .map(|t| (0..WORDS as u64).map(|i| i ^ t as u64).collect())
        .collect();
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|s| {
            for part in &data {
                s.spawn(|| {
                    // Independent sums: one would wait for its own additions.
                    let mut sums = [0u64; 16];
                    for chunk in part.chunks_exact(16) {
                        for (s, v) in sums.iter_mut().zip(chunk) {
                            *s = s.wrapping_add(*v);
                        }
                    }
                    black_box(sums);
                });
            }
        });
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = (threads * WORDS * 8) as f64 / start.elapsed().as_secs_f64();
        best = best.max(rate);
    }
    println!("{}", json!({ "threads": threads, "bytes_s": best }));
}
