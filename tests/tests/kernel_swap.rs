//! Blocks that the kernel swapped out: what the account says of them, what
//! returning them gives, and that attention does not wait for them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    control::cgroup::OwnedCgroup,
    kv::{BlockHash, KvPool, KvShape, KvType, PoolConfig, SeqId, Steps},
    units::Bytes,
};
use kvpsi_tests::{storm::limited, swap::Swap, talking::within};
use std::{fs, sync::Arc};

/// 128 KiB a block.
const SHAPE: KvShape = KvShape {
    layers: 4,
    kv_heads: 4,
    head_dim: 64,
    block_tokens: 32,
    kind: KvType::F16,
    row_mass: false,
};
const WIDTH: usize = SHAPE.kv_heads * SHAPE.head_dim;
/// 32 MiB.
const TOKENS: usize = 8192;
/// What the kernel may swap of the test itself, and pages that it counts late.
const BESIDE: u64 = 4 << 20;

/// Faults of the test's own pages; the cache's are thousands.
const OWN_FAULTS: u64 = 32;

/// Two conversations, the first of which ended and is cached, and most of both in
/// swap. No limit is left.
struct Swapped {
    pool: Arc<KvPool>,
    /// Hashes of the first one.
    known: Vec<BlockHash>,
    open: SeqId,
    _swap: Option<Swap>,
}

fn row(seq: usize, pos: usize) -> Vec<f32> {
    vec![(1 + seq * 500 + pos % 97) as f32; WIDTH]
}

fn grow(pool: &KvPool, tag: usize, seq: SeqId, tokens: usize) {
    let range = pool.append(seq, tokens).unwrap();
    let guard = pool.layer();
    let mut writer = guard.writer();
    writer.claim(seq).unwrap();
    for pos in range {
        for layer in 0..SHAPE.layers {
            let row = row(tag, pos);
            writer.write(seq, layer, pos, &row, &row);
        }
    }
}

/// Fields of /proc/self/smaps_rollup.
fn rollup(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.split_whitespace()
        .next()
        .unwrap()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// Faults of this thread that waited for swap.
fn major_faults() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after = &text[text.rfind(')').unwrap() + 2..];
    // The 12th field (proc_pid_stat(5)); these begin with the third.
    after.split(' ').nth(9).unwrap().parse().unwrap()
}

impl Swapped {
    fn make(test: &str) -> Option<(Self, OwnedCgroup)> {
        let swap = Swap::there_or_made(test, 192 << 20)?;
        let cgroup = limited(test, 1 << 30)?;
        let pool = KvPool::new(PoolConfig {
            shape: SHAPE,
            capacity_tokens: 4 * TOKENS,
            max_sequences: 4,
            sink_tokens: 4,
            recent_tokens: 40,
            floor_tokens: 0,
            may_drop: true,
        })
        .unwrap();
        let tokens: Vec<u32> = (0u32..).take(TOKENS).collect();
        let mut known = Vec::new();
        pool.hash_blocks(&tokens, &mut known);
        let open = within(&cgroup, || {
            let first = pool.open().unwrap();
            grow(&pool, 0, first, TOKENS);
            pool.written(first);
            pool.publish(first, &known);
            pool.close(first);
            let open = pool.open().unwrap();
            grow(&pool, 1, open, TOKENS);
            pool.written(open);
            open
        });
        let usage = cgroup.memory().usage().unwrap();
        cgroup.set_limit(Bytes(usage.0 - (40 << 20))).unwrap();
        // What is done now is to make no more of it.
        cgroup.set_limit(Bytes(1 << 30)).unwrap();
        pool.count_swapped();
        let new = Self {
            pool,
            known,
            open,
            _swap: swap,
        };
        Some((new, cgroup))
    }

    /// Reads all rows of a sequence as attention does, under a guard for each layer.
    fn check(&self, tag: usize, seq: SeqId) -> usize {
        let mut rows = 0;
        for layer in 0..SHAPE.layers {
            let (guard, mut views) = (self.pool.layer(), vec![]);
            guard.blocks(seq, layer, &mut views);
            for view in &views {
                for t in 0..view.tokens {
                    // SAFETY: a row of the first head, which the guard keeps; f16 has two
                    // bytes.
                    let bits = unsafe { view.k.add(t * SHAPE.head_dim * 2).cast::<u16>().read() };
                    let want = row(tag, view.first_pos + t)[0];
                    assert_eq!(f32::from(half::f16::from_bits(bits)), want);
                    rows += 1;
                }
            }
        }
        rows / SHAPE.layers
    }
}

#[test]
fn a_block_in_swap_is_not_resident_and_returning_it_is_told_apart() {
    let Some((s, _cgroup)) = Swapped::make("swap-account") else {
        return;
    };
    let a = s.pool.account();
    assert!(a.swapped.0 >= 24 << 20, "{a:?}");
    assert!(a.swapped.0.abs_diff(rollup("Swap:")) < BESIDE, "{a:?}");
    assert_eq!(a.resident.0 + a.swapped.0 + a.returned.0, a.reserved.0);

    // No slow step reads what is in swap.
    let faults = major_faults();
    while s.pool.pack_one(KvType::Q8_0).is_some() {}
    assert!(major_faults() - faults < OWN_FAULTS);
    s.pool.count_swapped();
    assert_eq!(s.pool.account().swapped, a.swapped);

    // 4 MiB of RAM are asked for, and come of it, whatever was in swap.
    let (rss, swap) = (rollup("Rss:"), rollup("Swap:"));
    let t = s.pool.trim(Bytes::mib(4), Steps::WINDOW);
    let (rss, swap) = (rss - rollup("Rss:"), swap - rollup("Swap:"));
    assert!(t.bytes.0 >= 4 << 20, "{t:?}");
    assert!(rss.abs_diff(t.bytes.0) < 1 << 20, "{rss} of {t:?}");
    assert!(swap.abs_diff(t.swapped.0) < BESIDE, "{swap} of {t:?}");
    // The conversation that is all in swap would bring none.
    let after = s.pool.account();
    assert!(after.cached == a.cached && after.swapped.0 + BESIDE > a.swapped.0);

    // A budget of nothing takes it all, and its slots are told apart.
    let swap = rollup("Swap:");
    s.pool.set_budget(Bytes::ZERO);
    s.pool.close(s.open);
    let end = s.pool.account();
    assert_eq!((end.resident, end.swapped), (Bytes::ZERO, Bytes::ZERO));
    assert_eq!(end.returned, end.reserved);
    let freed = end.swap_freed.0 - after.swap_freed.0;
    assert_eq!(freed, after.swapped.0);
    assert!(freed.abs_diff(swap - rollup("Swap:")) < BESIDE, "{end:?}");
}

#[test]
fn a_conversation_in_swap_is_read_before_attention_opens_a_guard() {
    let Some((s, _cgroup)) = Swapped::make("swap-attention") else {
        return;
    };
    assert!(s.pool.account().swapped.0 >= 24 << 20);
    let again = s.pool.open().unwrap();
    let had = s.pool.adopt(again, &s.known, true);
    assert_eq!(had, TOKENS);
    for seq in [again, s.open] {
        s.pool.append(seq, 0).unwrap();
    }
    let faults = major_faults();
    assert_eq!(s.check(0, again) + s.check(1, s.open), 2 * TOKENS);
    assert!(major_faults() - faults < OWN_FAULTS);
    s.pool.count_swapped();
    assert!(s.pool.account().swapped.0 < BESIDE);
}
