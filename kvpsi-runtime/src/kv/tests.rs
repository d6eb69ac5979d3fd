//! The pool's invariants: under any order of calls, under real threads, and
//! as the kernel sees them.

use super::{encoding::rows::decode_row, model_tests, types::MAX_SEQUENCES, *};
use crate::units::Bytes;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

pub(super) const SHAPE: KvShape = KvShape {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    block_tokens: 16,
    kind: KvType::F16,
    row_mass: false,
};

fn config(shape: KvShape, capacity_tokens: usize, max_sequences: usize) -> PoolConfig {
    PoolConfig {
        shape,
        capacity_tokens,
        max_sequences,
        sink_tokens: 4,
        recent_tokens: 40,
        floor_tokens: 0,
        may_drop: true,
    }
}

pub(super) fn pool(capacity_tokens: usize, max_sequences: usize) -> Arc<KvPool> {
    KvPool::new(config(SHAPE, capacity_tokens, max_sequences)).unwrap()
}

/// The keys of a position: recognisable, never zero, exact in f16.
pub(super) fn key(seq: usize, pos: usize, layer: usize) -> f32 {
    (1 + seq * 400 + layer * 200 + pos % 97) as f32
}

/// Appends and fills in steps, as an engine does: what one call handed out
/// stays protected until the next.
#[cfg(feature = "trim")]
pub(super) fn grow(p: &KvPool, tag: usize, seq: SeqId, tokens: usize) {
    for _ in 0..tokens / SHAPE.block_tokens {
        let r = p.append(seq, SHAPE.block_tokens).unwrap();
        fill(p, tag, seq, r);
    }
    let r = p.append(seq, tokens % SHAPE.block_tokens).unwrap();
    fill(p, tag, seq, r);
}

pub(super) fn fill(p: &KvPool, tag: usize, seq: SeqId, range: std::ops::Range<usize>) {
    let guard = p.layer();
    let mut writer = guard.writer();
    writer.claim(seq).unwrap();
    for pos in range {
        for layer in 0..SHAPE.layers {
            let row = vec![key(tag, pos, layer); SHAPE.kv_heads * SHAPE.head_dim];
            writer.write(seq, layer, pos, &row, &row);
        }
    }
}

/// Reads every live position under one guard per layer and checks it.
pub(super) fn check(p: &KvPool, tag: usize, seq: SeqId) -> usize {
    let mut live = 0;
    for layer in 0..SHAPE.layers {
        let (guard, mut views) = (p.layer(), vec![]);
        guard.blocks(seq, layer, &mut views);
        live = 0;
        for b in &views {
            for h in 0..SHAPE.kv_heads {
                for t in 0..b.tokens {
                    let at = (h * SHAPE.block_tokens + t) * SHAPE.head_dim;
                    // SAFETY: inside the block, and the guard keeps it.
                    let (k, v) = unsafe {
                        let (k, v) = (b.k.cast::<half::f16>(), b.v.cast::<half::f16>());
                        ((*k.add(at)).to_f32(), (*v.add(at + 15)).to_f32())
                    };
                    let want = key(tag, b.first_pos + t, layer);
                    assert!(
                        k == want && v == want,
                        "pos {} layer {layer}: {k} {v}",
                        b.first_pos + t
                    );
                }
            }
            live += b.tokens;
        }
    }
    live
}

#[test]
fn a_trim_during_reading_and_writing_never_takes_a_block_from_under_a_guard() {
    let p = pool(1600, 4);
    let stop = AtomicBool::new(false);
    let trims = std::thread::scope(|s| {
        let trimmer = s.spawn(|| {
            let mut n = 0u64;
            while !stop.load(SeqCst) {
                n += u64::from(p.trim(Bytes(20_000), Steps::ALL).blocks > 0);
                std::thread::yield_now();
            }
            n
        });
        let readers: Vec<_> = (0..2)
            .map(|tag| {
                let p = &p;
                s.spawn(move || {
                    let end = Instant::now() + Duration::from_secs(2);
                    while Instant::now() < end {
                        let seq = p.open().unwrap();
                        for n in [33, 1, 1, 64, 7].into_iter().cycle().take(40) {
                            match p.append(seq, n) {
                                Ok(r) => fill(p, tag, seq, r),
                                Err(_) => break,
                            }
                            check(p, tag, seq);
                        }
                        p.close(seq);
                    }
                })
            })
            .collect();
        let panicked = readers.into_iter().any(|r| r.join().is_err());
        stop.store(true, SeqCst);
        assert!(!panicked);
        trimmer.join().unwrap()
    });
    assert!(cfg!(not(feature = "trim")) || trims > 10, "{trims} trims");
    model_tests::exact(&p);
}

#[test]
fn sequences_opened_and_ended_by_several_threads_never_share_a_slot() {
    let p = pool(1600, 2);
    std::thread::scope(|s| {
        for tag in 0..3 {
            let p = &p;
            s.spawn(move || {
                for _ in 0..3000 {
                    let Ok(seq) = p.open() else { continue };
                    assert_eq!(p.append(seq, 70).unwrap(), 0..70);
                    fill(p, tag, seq, 0..70);
                    check(p, tag, seq);
                    p.close(seq);
                }
            });
        }
    });
    model_tests::exact(&p);
    assert_eq!(p.account().in_use, Bytes(0));
}

/// Resident bytes of an address range, by smaps (proc(5)).
pub(super) fn smaps_rss(range: &std::ops::Range<usize>) -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut kib) = (false, 0);
    for line in text.lines() {
        let head = line.split(' ').next().unwrap_or("");
        if let Some((a, b)) = head.split_once('-')
            && let (Ok(a), Ok(b)) = (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))
        {
            inside = a >= range.start && b <= range.end;
        } else if inside && let Some(n) = line.strip_prefix("Rss:") {
            kib += n.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kib << 10
}

#[test]
fn the_kernel_sees_the_same_account() {
    // Blocks of exactly whole pages, every page written.
    let p = pool(3200, 1);
    let range = p.alloc.range();
    assert_eq!(smaps_rss(&range), 0);
    let seq = p.open().unwrap();
    // Before anything is written, so that no write waits for memory.
    p.append(seq, 3200).unwrap();
    assert!(p.account().resident.0 > 0);
    assert_eq!(smaps_rss(&range), p.account().resident.0);
    fill(&p, 0, seq, 0..3200);
    p.written(seq);
    assert_eq!(smaps_rss(&range), p.account().resident.0);
    for want in [1, 100_000, 300_000] {
        let before = smaps_rss(&range);
        let t = p.trim(Bytes(want), Steps::ALL);
        assert_eq!(before - smaps_rss(&range), t.bytes.0);
        assert_eq!(smaps_rss(&range), p.account().resident.0);
        assert!(cfg!(not(feature = "trim")) || t.bytes.0 >= want);
    }
    assert_eq!(check(&p, 0, seq), p.live_tokens(seq));
    p.close(seq);
    p.trim(Bytes(u64::MAX), Steps::SLACK);
    assert!(cfg!(not(feature = "trim")) || smaps_rss(&range) == 0);
}

#[test]
#[cfg(feature = "trim")]
fn adjacent_victims_go_in_one_call() {
    let p = pool(1600, 1);
    let seq = p.open().unwrap();
    grow(&p, 0, seq, 1600);
    let t = p.trim(Bytes(20 * SHAPE.block_bytes().0), Steps::ALL);
    assert_eq!(
        (t.blocks, t.madvise_calls, t.deepest),
        (20, 1, Some(Step::Window))
    );
}

#[test]
#[cfg(feature = "trim")]
fn sinks_and_the_recent_window_are_never_trimmed() {
    let p = pool(1600, 1);
    let seq = p.open().unwrap();
    grow(&p, 0, seq, 500);
    p.trim(Bytes(u64::MAX), Steps::ALL);
    let (guard, mut views) = (p.layer(), vec![]);
    guard.blocks(seq, 0, &mut views);
    assert_eq!(views[0].first_pos, 0);
    assert!(views[1].first_pos <= 500 - 40 && views.last().unwrap().first_pos == 496);
    assert_eq!(p.account().resident, p.account().floor);
}

#[test]
#[cfg(feature = "trim")]
fn below_its_budget_a_sequence_gives_up_its_own_oldest_blocks_and_goes_on() {
    let p = pool(1600, 1);
    let seq = p.open().unwrap();
    let ten = Bytes(10 * SHAPE.block_bytes().0);
    p.set_budget(ten);
    for _ in 0..100 {
        let r = p.append(seq, 16).unwrap();
        fill(&p, 0, seq, r);
        assert!(p.account().resident <= ten);
    }
    assert_eq!(p.account().self_evicted, 90);
    check(&p, 0, seq);
}

#[test]
fn impossible_settings_are_refused_with_what_to_do() {
    let config = |shape, capacity_tokens, max_sequences| PoolConfig {
        recent_tokens: 8,
        ..config(shape, capacity_tokens, max_sequences)
    };
    let refused = |c| KvPool::new(c).map(|_| ()).unwrap_err();
    assert!(matches!(
        refused(config(KvShape { layers: 0, ..SHAPE }, 10, 1)),
        KvError::Shape(_)
    ));
    assert!(matches!(
        refused(config(SHAPE, 1 << 50, 1)),
        KvError::TooLarge { .. }
    ));
    assert!(matches!(
        refused(config(SHAPE, 16, MAX_SEQUENCES + 1)),
        KvError::Sequences(_)
    ));
    let p = pool(64, 1);
    let seq = p.open().unwrap();
    assert_eq!(p.open(), Err(KvError::NoSequence(1)));
    assert_eq!(
        p.append(seq, 65),
        Err(KvError::Context {
            wanted: 65,
            context: 64
        })
    );
}

#[test]
fn rows_of_every_encoding_are_read_back_where_they_were_written() {
    // Of 4 bits half a step of the greatest is 8.4, and a little clipped.
    for (kind, off) in [
        (KvType::F16, 0.6),
        (KvType::Q8_0, 0.6),
        (KvType::Q4_0, 24.0),
    ] {
        let plane = Plane {
            heads: 2,
            tokens: 32,
            head_dim: 64,
        };
        let shape = KvShape {
            head_dim: 64,
            block_tokens: 32,
            kind,
            ..SHAPE
        };
        let p = KvPool::new(config(shape, 100, 1)).unwrap();
        let seq = p.open().unwrap();
        let range = p.append(seq, 50).unwrap();
        let guard = p.layer();
        let mut writer = guard.writer();
        writer.claim(seq).unwrap();
        let value = |layer: usize, pos: usize, i: usize| {
            ((layer * 50 + pos) * 128 + i) as f32 % 251.0 - 125.0
        };
        for (layer, pos) in (0..2).flat_map(|l| range.clone().map(move |p| (l, p))) {
            let row: Vec<f32> = (0..128).map(|i| value(layer, pos, i)).collect();
            let other: Vec<f32> = row.iter().map(|v| -v).collect();
            writer.write(seq, layer, pos, &row, &other);
        }
        for layer in 0..2 {
            let mut views = vec![];
            guard.blocks(seq, layer, &mut views);
            for (b, t) in views
                .iter()
                .flat_map(|b| (0..b.tokens).map(move |t| (b, t)))
            {
                let read = |from: *const u8| {
                    let mut rows = [0.0; 128];
                    for (h, row) in rows.chunks_exact_mut(64).enumerate() {
                        // SAFETY: a plane of the block, by the layout of `BlockView`.
                        unsafe { decode_row(kind, from, plane, plane.at(h, t), row) };
                    }
                    rows
                };
                let (k, v) = (read(b.k), read(b.v));
                for i in 0..128 {
                    let (k, v) = (k[i], v[i]);
                    let want = value(layer, b.first_pos + t, i);
                    assert!(
                        (k - want).abs() < off && (v + want).abs() < off,
                        "{kind}: {k}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn free_blocks_of_few_pages_give_way_to_blocks_of_more() {
    let p = pool(640, 1);
    let most = 8 * p.alloc.pages(KvType::F16);
    let fill = |kind| -> Vec<_> { std::iter::from_fn(|| p.alloc.take(kind, most)).collect() };
    let filled = |kind| {
        let blocks = fill(kind);
        let (count, resident) = (blocks.len(), p.alloc.resident());
        for block in blocks {
            p.alloc.abandon(block);
        }
        (count, resident)
    };
    assert!(filled(KvType::Q8_0).0 > 8);
    // A server refused every prompt here, with its whole budget free.
    assert_eq!(filled(KvType::F16), (8, most));
    assert!(filled(KvType::Q8_0).0 > 8);
}

#[test]
fn an_encoding_that_a_head_is_no_multiple_of_is_refused() {
    for kind in [KvType::Q8_0, KvType::Q4_0] {
        let shape = KvShape {
            head_dim: 48,
            kind,
            ..SHAPE
        };
        let config = config(shape, 100, 1);
        let error = KvPool::new(config).unwrap_err().to_string();
        assert!(
            error.contains("48") && error.contains(kind.name()) && error.contains("--kv-type"),
            "{error}"
        );
    }
}
