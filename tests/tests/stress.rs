//! The isolation stress test: many sequences of different content in one pool,
//! and everything that changes who has a block at once.
//!
//! Every row carries the tag of its content. Readers look under a guard and
//! check that no row is of another content, and none of a returned page (which
//! is unreadable in debug builds, and zero otherwise). Budgets are low enough
//! that sequences evict their own blocks. At the end no block may be missing.
//! `KVPSI_STRESS_SECONDS` sets how long it runs; 60 s unless it is set.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    kv::{
        Account, BlockHash, KvError, KvPool, KvShape, KvType, Ladder, LadderConfig, PoolConfig,
        Profile, SeqId, Step, Steps,
        evict::{Evict, QueryStats},
    },
    units::Bytes,
};
use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

const SHAPE: KvShape = KvShape {
    layers: 2,
    kv_heads: 2,
    head_dim: 64,
    block_tokens: 32,
    kind: KvType::F16,
    row_mass: false,
};
const N: usize = SHAPE.block_tokens;
/// Contents that sequences have; each by several sequences, which share.
const TAGS: usize = 24;
/// Tokens of the longest sequence.
const LONGEST: usize = 640;
const WORKERS: usize = 3;

/// The first value of every row of a content: apart from the next ones by more
/// than 8 bits lose. In the basis that is stored, so nothing is rotated.
fn value(tag: usize) -> f32 {
    1000.0 * 1.15f32.powi(i32::try_from(tag).unwrap())
}

fn tokens(tag: usize) -> Vec<u32> {
    (0..LONGEST)
        .map(|i| u32::try_from(tag << 16 | i).unwrap())
        .collect()
}

#[derive(Default)]
struct Seen {
    rows: AtomicU64,
    sequences: AtomicU64,
    preempted: AtomicU64,
    adopted: AtomicU64,
    recomputed: AtomicU64,
    refused: AtomicU64,
    trims: AtomicU64,
    deferred: AtomicU64,
    contended: AtomicU64,
    requantized: AtomicU64,
    evicted: AtomicU64,
}

fn add(n: &AtomicU64, more: u64) {
    n.fetch_add(more, Relaxed);
}

/// Writes the rows of all layers.
fn write(pool: &KvPool, tag: usize, seq: SeqId, range: Range<usize>) {
    let row = vec![value(tag); SHAPE.kv_heads * SHAPE.head_dim];
    for layer in 0..SHAPE.layers {
        let guard = pool.layer();
        let mut writer = guard.writer();
        writer.claim(seq).unwrap();
        for pos in range.clone() {
            writer.write(seq, layer, pos, &row, &row);
        }
    }
    pool.written(seq);
}

/// Reads every row of a sequence; how many those were.
fn read(pool: &KvPool, tag: usize, seq: SeqId, layer: usize) -> u64 {
    let (guard, mut views) = (pool.layer(), Vec::new());
    guard.blocks(seq, layer, &mut views);
    let want = value(tag);
    let mut rows = 0;
    for b in &views {
        for (head, t) in (0..SHAPE.kv_heads).flat_map(|h| (0..b.tokens).map(move |t| (h, t))) {
            let at = (head * N + t) * SHAPE.head_dim;
            for (name, plane) in [("key", b.k), ("value", b.v)] {
                // SAFETY: a row of one plane of the block, by the layout of
                // `BlockView`; the guard keeps it, and it was written before
                // this thread or the one before it published the block.
                let got = unsafe { first_of_row(b.kind, plane, at) };
                assert!(
                    (got - want).abs() < want * 0.03,
                    "foreign row: {name} {got} where {tag} has {want}; entry {} of {seq:?}, row {t} \
                     of head {head}, {}, layer {layer}",
                    b.index,
                    b.kind
                );
            }
            rows += 1;
        }
    }
    rows
}

/// The first value of the row at `at`, counted in values.
///
/// # Safety
/// `plane` is one of a readable block in that encoding, and has the row.
unsafe fn first_of_row(kind: KvType, plane: *const u8, at: usize) -> f32 {
    let values = SHAPE.kv_heads * N * SHAPE.head_dim;
    // SAFETY: within the plane: values, then a scale for each group.
    unsafe {
        match kind {
            KvType::F16 => half(plane.cast::<u16>().add(at).read()),
            _ => {
                let code = f32::from(plane.cast::<i8>().add(at).read());
                let scale = plane.add(values).cast::<u16>().add(at / kvpsi::kv::GROUP);
                code * half(scale.read())
            }
        }
    }
}

fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

/// One sequence of a content, from the first token to the last: adopts what is
/// known, prefills, decodes, shares, is preempted and begins again, is forked
/// and recomputed.
fn live(pool: &KvPool, tag: usize, hashes: &[BlockHash], rng: &mut fastrand::Rng, seen: &Seen) {
    let Ok(mut seq) = pool.open() else { return };
    add(&seen.sequences, 1);
    pool.set_priority(seq, rng.i32(0..3));
    let len = rng.usize(N..LONGEST);
    let mut at = pool.adopt(seq, &hashes[..len / N], rng.bool());
    add(&seen.adopted, at as u64);
    let mut refused = 0;
    while at < len {
        let rows = (len - at).min(if rng.bool() { 1 } else { rng.usize(1..100) });
        match pool.append(seq, rows) {
            Ok(range) => {
                write(pool, tag, seq, range.clone());
                at = range.end;
            }
            Err(KvError::Preempted) => {}
            Err(KvError::Exhausted(_)) => {
                add(&seen.refused, 1);
                refused += 1;
                if refused > 3 {
                    break;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(e) => panic!("{e}"),
        }
        add(&seen.rows, read(pool, tag, seq, rng.usize(0..SHAPE.layers)));
        if rng.u8(..) < 20 {
            pool.publish(seq, hashes);
        }
        if pool.preempted(seq) {
            add(&seen.preempted, 1);
            match pool.reopen(seq) {
                Ok(new) => {
                    let old = std::mem::replace(&mut seq, new);
                    assert_eq!(pool.append(old, 1), Err(KvError::Closed));
                    at = pool.adopt(seq, &hashes[..len / N], true);
                }
                Err(_) => return,
            }
        }
    }
    if pool.lost_from(seq).is_some() && rng.bool() {
        recompute(pool, tag, &mut seq, at, seen);
    }
    pool.publish(seq, hashes);
    if let Ok(other) = pool.open() {
        pool.fork(seq, other, at / 2, rng.bool());
        add(&seen.rows, read(pool, tag, other, 0));
        pool.close(seq);
        add(&seen.rows, read(pool, tag, other, 1));
        pool.close(other);
    }
    pool.close(seq);
}

/// As `engine::recompute` does: a fork up to the loss, the rest anew.
fn recompute(pool: &KvPool, tag: usize, seq: &mut SeqId, len: usize, seen: &Seen) {
    let Ok(new) = pool.open() else { return };
    pool.set_priority(new, i32::MIN);
    let from = pool.fork(*seq, new, pool.untouched(*seq), true);
    match pool.append(new, len - from) {
        Ok(range) => {
            write(pool, tag, new, range);
            add(&seen.rows, read(pool, tag, new, 0));
            pool.close(*seq);
            *seq = new;
            add(&seen.recomputed, 1);
        }
        Err(_) => pool.close(new),
    }
}

#[test]
fn no_sequence_ever_reads_a_row_of_another_or_of_a_returned_page() {
    let seconds = std::env::var("KVPSI_STRESS_SECONDS").ok();
    let seconds = seconds.map_or(60, |s| s.parse().expect("KVPSI_STRESS_SECONDS is a number"));
    let pool = KvPool::new(PoolConfig {
        shape: SHAPE,
        capacity_tokens: 4 * LONGEST,
        max_sequences: 8,
        sink_tokens: 4,
        recent_tokens: 64,
        floor_tokens: 0,
        may_drop: true,
    })
    .unwrap();
    let config = LadderConfig {
        profile: Profile::Balanced,
        evict: Evict::Keydiff,
        pack_to: KvType::Q8_0,
        group: 8,
        window: 0,
    };
    let ladder = Ladder::new(
        pool.clone(),
        config,
        &Arc::new(QueryStats::new(2, 2, 64, Vec::new())),
    );
    let hashes: Vec<Vec<BlockHash>> = (0..TAGS)
        .map(|tag| {
            let mut known = Vec::new();
            pool.hash_blocks(&tokens(tag), &mut known);
            known
        })
        .collect();
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let end = Instant::now() + Duration::from_secs(seconds);
    let least = Bytes(SHAPE.block_bytes().0 * 12);
    std::thread::scope(|s| {
        let (pool, seen, stop, hashes, ladder) = (&pool, &seen, &stop, &hashes, &ladder);
        let workers: Vec<_> = (0..WORKERS)
            .map(|w| {
                s.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(w as u64);
                    while Instant::now() < end && !stop.load(SeqCst) {
                        let tag = rng.usize(0..TAGS);
                        live(pool, tag, &hashes[tag], &mut rng, seen);
                    }
                })
            })
            .collect();
        // The reactor, and trims by hand beside it.
        for hand in [false, true] {
            s.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(90 + u64::from(hand));
                while !stop.load(SeqCst) {
                    let steps = match rng.u8(0..10) {
                        0 if !hand => Steps::ALL,
                        0..3 => Steps::FREE,
                        _ => Steps::WINDOW,
                    };
                    let want = Bytes(SHAPE.block_bytes().0 * rng.u64(1..8));
                    let t = pool.trim(want, steps);
                    add(&seen.trims, u64::from(t.given() > Bytes::ZERO));
                    add(&seen.deferred, t.deferred.0);
                    add(&seen.contended, u64::from(t.contended));
                    if !hand {
                        pool.set_budget(Bytes(rng.u64(least.0..4 * least.0)));
                        pool.set_limit(Bytes(rng.u64(least.0..12 * least.0)));
                    }
                    std::thread::sleep(Duration::from_micros(rng.u64(50..2000)));
                }
            });
        }
        // The worker.
        s.spawn(move || {
            let mut rng = fastrand::Rng::with_seed(99);
            while !stop.load(SeqCst) {
                let allowed = match rng.u8(0..3) {
                    0 => Steps::NONE.with(Step::Pack),
                    1 => Steps::NONE.with(Step::Thin),
                    _ => Steps::ALL,
                };
                match ladder.step(Bytes(1), allowed).map(|d| d.step) {
                    Some(Step::Pack) => add(&seen.requantized, 1),
                    Some(_) => add(&seen.evicted, 1),
                    None => std::thread::sleep(Duration::from_micros(300)),
                }
            }
        });
        let panicked = workers.into_iter().any(|w| w.join().is_err());
        stop.store(true, SeqCst);
        assert!(!panicked, "a worker saw what it must not");
    });
    settled(&pool, &seen, seconds);
}

/// No block is missing: all are free once everything is returned.
fn settled(pool: &KvPool, seen: &Seen, seconds: u64) {
    let last = pool.trim(Bytes(u64::MAX), Steps::FREE);
    let a = pool.account();
    let n = |c: &AtomicU64| c.load(Relaxed);
    eprintln!(
        "stress: {seconds} s, {} rows read, {} sequences, {} tokens adopted, {} preempted, {} recomputed, \
         {} refused; {} trims, {} MiB deferred, {} contended; {} blocks requantized, {} groups evicted, \
         {} own blocks evicted, {} cached evicted; {} MiB returned late",
        n(&seen.rows),
        n(&seen.sequences),
        n(&seen.adopted),
        n(&seen.preempted),
        n(&seen.recomputed),
        n(&seen.refused),
        n(&seen.trims),
        n(&seen.deferred) >> 20,
        n(&seen.contended),
        n(&seen.requantized),
        n(&seen.evicted),
        a.self_evicted,
        a.cache_evicted,
        a.deferred_returned.0 >> 20,
    );
    assert_eq!(last.deferred, Bytes::ZERO, "no guard is open");
    assert_eq!(
        Account {
            reserved: a.reserved,
            returned: a.reserved,
            self_evicted: a.self_evicted,
            cache_evicted: a.cache_evicted,
            preempted: a.preempted,
            cache_hit_tokens: a.cache_hit_tokens,
            deferred_returned: a.deferred_returned,
            ..Account::default()
        },
        a,
        "a block is lost"
    );
    // As many blocks as there were can be taken again.
    let seq = pool.open().unwrap();
    pool.set_limit(pool.capacity());
    pool.set_budget(pool.capacity());
    pool.append(seq, pool.config().capacity_tokens).unwrap();
    for (what, count) in [
        ("preempted", &seen.preempted),
        ("adopted", &seen.adopted),
        ("recomputed", &seen.recomputed),
        ("refused", &seen.refused),
        ("trims", &seen.trims),
        ("requantized", &seen.requantized),
        ("evicted", &seen.evicted),
    ] {
        assert!(n(count) > 0, "nothing was {what}: the stress is none");
    }
    assert!(
        a.self_evicted > 0,
        "no sequence evicted its own: the stress is none"
    );
}
