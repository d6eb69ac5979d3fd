//! Steps on the real model: many rows at once and one at a time compute the
//! same, sequences of a batch do not touch each other, decoding allocates
//! nothing, and the memory of a prefill goes back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::{GgmlDType, gguf_file::Value};
use kvpsi::{
    attention::RowSpan,
    kv::{KvPool, KvType, PoolConfig, SeqId},
    model::{decoder::Decoder, gguf::Gguf, step::Step},
};
use kvpsi_tests::{
    families,
    ours::Ours,
    tiny::{Shape, Tiny},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Calls of any thread: the pool's workers may not allocate either.
static CALLS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        CALLS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Model {
    decoder: Decoder,
    pool: Arc<KvPool>,
    step: Step,
}

impl Model {
    fn load(test: &str) -> Option<Self> {
        let path = kvpsi_tests::model(test)?;
        let decoder = Decoder::load(&Gguf::open(&path).unwrap()).unwrap();
        let pool = KvPool::new(PoolConfig {
            shape: decoder.kv_shape(KvType::F16),
            capacity_tokens: 4096,
            max_sequences: 8,
            sink_tokens: 4,
            recent_tokens: 4096,
            floor_tokens: 0,
            may_drop: true,
        })
        .unwrap();
        let step = Step::new(&decoder, &pool, 4).unwrap();
        Some(Self {
            decoder,
            pool,
            step,
        })
    }

    fn append(&self, seq: SeqId, rows: usize) -> RowSpan {
        let first_pos = self.pool.append(seq, rows).unwrap().start;
        RowSpan {
            seq,
            first_pos,
            rows,
        }
    }

    fn step(&mut self, tokens: &[u32], spans: &[RowSpan]) -> &mut [f32] {
        let pool = &self.pool;
        self.decoder
            .step(tokens, spans, pool, &mut self.step)
            .unwrap()
    }
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// Tokens of no meaning, the same every time.
fn token(i: usize) -> u32 {
    u32::try_from(100 + i * i * 31 % 4001).unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> (f32, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    let most = differences.clone().fold(0f32, |m, d| m.max(d));
    assert!(most.is_finite());
    let sum: f64 = differences.map(f64::from).sum();
    (most, sum / a.len() as f64)
}

#[test]
fn many_rows_at_once_give_the_logits_of_one_at_a_time() {
    let Some(mut model) = Model::load("many_rows_at_once_give_the_logits_of_one_at_a_time") else {
        return;
    };
    let (single, whole) = (model.pool.open().unwrap(), model.pool.open().unwrap());
    let tokens: Vec<_> = (0..96).map(token).collect();
    let mut want = Vec::new();
    for token in &tokens {
        let span = model.append(single, 1);
        want.push(model.step(&[*token], &[span]).to_vec());
    }
    let (mut most, mut mean, mut rows) = (0f32, 0f64, Vec::new());
    let wanted = 5..90;
    let span = model.append(whole, tokens.len());
    let mut tell = |row: usize, logits: &[f32]| {
        let (m, a) = apart(logits, &want[row]);
        most = most.max(m);
        mean += a / 85.0;
        rows.push(row);
    };
    let (pool, step) = (&model.pool, &mut model.step);
    model
        .decoder
        .step_through(&tokens, span, pool, step, wanted.clone(), &mut tell)
        .unwrap();
    eprintln!("max abs {most:.5}, mean abs {mean:.6}");
    // Attention sums in another order, which turns the code of an activation
    // now and then.
    assert!(mean < 0.2 && most < 2.0);
    assert!(rows.into_iter().eq(wanted));
}

#[test]
fn the_memory_of_a_prefill_goes_with_the_next_token() {
    let Some(mut model) = Model::load("the_memory_of_a_prefill_goes_with_the_next_token") else {
        return;
    };
    let seq = model.pool.open().unwrap();
    let tokens: Vec<_> = (0..2048).map(token).collect();
    let span = model.append(seq, tokens.len());
    model.step(&tokens, &[span]);
    let before = resident();
    let span = model.append(seq, 1);
    model.step(&[1], &[span]);
    let after = resident();
    // 2048 rows of 5 KiB values.
    assert!(after + (30 << 20) < before, "{before} -> {after}");
}

#[test]
fn sequences_of_one_step_get_the_logits_they_get_alone_in_less_time() {
    let name = "sequences_of_one_step_get_the_logits_they_get_alone_in_less_time";
    let Some(mut model) = Model::load(name) else {
        return;
    };
    let together: Vec<_> = (0..4).map(|_| model.pool.open().unwrap()).collect();
    let alone: Vec<_> = (0..4).map(|_| model.pool.open().unwrap()).collect();
    // They stand at different positions.
    for (i, (&a, &b)) in together.iter().zip(&alone).enumerate() {
        for seq in [a, b] {
            let tokens: Vec<_> = (0..5 + 20 * i).map(token).collect();
            let span = model.append(seq, tokens.len());
            model.step(&tokens, &[span]);
        }
    }
    let (mut of_four, mut of_one) = (Vec::new(), Vec::new());
    for turn in 0..24 {
        let tokens = [0, 1, 2, 3].map(|i| token(turn * 7 + i));
        let spans: Vec<_> = together.iter().map(|&s| model.append(s, 1)).collect();
        let start = Instant::now();
        let batch = model.step(&tokens, &spans).to_vec();
        of_four.push(start.elapsed());
        for (i, want) in batch.chunks_exact(batch.len() / 4).enumerate() {
            let span = [model.append(alone[i], 1)];
            let start = Instant::now();
            let got = model.step(&tokens[i..=i], &span);
            of_one.push(start.elapsed());
            assert_eq!(got, want, "sequence {i}, turn {turn}");
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let (four, one) = (median(&mut of_four), median(&mut of_one));
    eprintln!("a step of four takes {four:?}, of one {one:?}");
    assert!(four < one * 3, "{four:?} for {one:?}");
}

#[test]
fn rows_of_one_sequence_may_share_a_step_too() {
    let Some(mut model) = Model::load("rows_of_one_sequence_may_share_a_step_too") else {
        return;
    };
    let seqs = [(); 4].map(|()| model.pool.open().unwrap());
    // As many rows as there is always memory for, then more.
    for rows in [2, 5] {
        let tokens: Vec<_> = (0..=rows).map(token).collect();
        let spans = [model.append(seqs[0], rows), model.append(seqs[1], 1)];
        let both = model.step(&tokens, &spans).to_vec();
        let (first, second) = both.split_at(both.len() / 2);
        let span = model.append(seqs[2], rows);
        assert_eq!(model.step(&tokens[..rows], &[span]), first, "{rows} rows");
        let span = model.append(seqs[3], 1);
        assert_eq!(model.step(&tokens[rows..], &[span]), second, "{rows} rows");
    }
}

#[test]
fn a_step_of_any_architecture_allocates_nothing() {
    for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
        let mut tiny = Tiny::new(&Shape {
            arch,
            layers: 3,
            hidden: 64,
            feed_forward: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
            vocab: 120,
            tied: true,
            types: &[GgmlDType::Q8_0, GgmlDType::Q4_0],
            seed: 8,
        })
        .unwrap();
        if arch == "gemma3" {
            tiny.set("attention.sliding_window", Value::U32(40));
            tiny.set("attention.sliding_window_pattern", Value::U32(2));
        }
        let mut ours = Ours::of(&tiny, 512);
        let seq = ours.open();
        for i in 0..200 {
            let span = ours.append(seq, 1);
            let before = CALLS.load(Relaxed);
            let logits = ours.step(&[u32::try_from(i % 120).unwrap()], &span);
            assert!(logits[0].is_finite());
            let calls = CALLS.load(Relaxed) - before;
            assert!(i < 4 || calls == 0, "{arch}, token {i}: {calls} calls");
        }
    }
}

#[test]
fn a_step_of_any_family_allocates_nothing() {
    for name in families::all() {
        let (path, text) = families::reference(&name);
        let mut ours = Ours::load(&path, 512);
        let seq = ours.open();
        for i in 0..200 {
            let token = text.tokens[i % text.tokens.len()];
            let span = ours.append(seq, 1);
            let before = CALLS.load(Relaxed);
            let logits = ours.step(&[token], &span);
            assert!(logits[0].is_finite());
            let calls = CALLS.load(Relaxed) - before;
            assert!(i < 4 || calls == 0, "{name}, token {i}: {calls} calls");
        }
    }
}

#[test]
fn a_step_allocates_nothing() {
    let Some(mut model) = Model::load("a_step_allocates_nothing") else {
        return;
    };
    let seqs: Vec<_> = (0..3).map(|_| model.pool.open().unwrap()).collect();
    let mut calls = 0;
    // Long enough for new blocks and for attention that is split and merged.
    for i in 0..640 {
        let before = CALLS.load(Relaxed);
        let spans = [0, 1, 2].map(|s| model.append(seqs[s], 1));
        let logits = model.step(&[token(i); 3], &spans);
        assert!(logits[0].is_finite());
        if i >= 4 {
            calls += CALLS.load(Relaxed) - before;
        }
    }
    assert_eq!(calls, 0);
    // The counter counts: this allocates.
    let before = CALLS.load(Relaxed);
    let v = std::hint::black_box(vec![0u8; 100]);
    assert!(CALLS.load(Relaxed) > before, "{}", v.len());
}
