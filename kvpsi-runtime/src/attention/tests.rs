//! Against a naive softmax over the full matrix, in f64 over the same values.

#![expect(
    clippy::cast_possible_truncation,
    reason = "references are computed in f64 and compared in f32"
)]

use super::dispatch::{self, Isa};
use super::split::{Batch, Memory, SpanBlocks, attend};
use super::tile::Rows;
use super::*;
use crate::kv::{BlockView, GROUP, KvType};
use half::f16;
use proptest::prelude::*;
use std::sync::Mutex;

const KINDS: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];

/// A sequence in blocks of its own memory, some of them dropped.
struct Case {
    cfg: AttnConfig,
    block_tokens: usize,
    seqs: Vec<Seq>,
    q: Vec<f32>,
    /// By head, at least.
    sinks: Option<Vec<f32>>,
}

struct Seq {
    /// How each block is written.
    kinds: Vec<KvType>,
    k: Blocks,
    v: Blocks,
    len: usize,
    rows: usize,
    live: Vec<bool>,
}

/// Values `[blocks][kv_heads][block_tokens][head_dim]`, and as they are
/// written.
struct Blocks {
    values: Vec<f32>,
    /// Half words, by block.
    coded: Vec<Vec<u16>>,
}

impl Blocks {
    fn random(kinds: &[KvType], shape: [usize; 3], seed: &mut u64) -> Self {
        let (mut values, mut coded) = (Vec::new(), Vec::new());
        for kind in kinds {
            let (of_block, bytes) = random_block(*kind, shape, seed);
            assert_eq!(of_block.len(), shape.iter().product::<usize>());
            assert_eq!(bytes.len(), kind.bytes(of_block.len()));
            values.extend(of_block);
            let pairs = bytes.as_chunks::<2>().0.iter();
            coded.push(pairs.map(|pair| u16::from_le_bytes(*pair)).collect());
        }
        Self { values, coded }
    }

    /// Makes a row that begins at value `at` of a block what no number is.
    fn spoil(&mut self, kind: KvType, block: usize, values: usize, at: usize, len: usize) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.coded[block]);
        match kind {
            KvType::F16 => bytes[2 * at..2 * (at + len)].fill(0xff),
            KvType::Q8_0 => bytes[values + 2 * at / GROUP..][..2 * len / GROUP].fill(0xff),
            KvType::Q4_0 => bytes[values / 2 + at / GROUP..][..len / GROUP].fill(0xff),
        }
    }

    fn block(&self, block: usize) -> *const u8 {
        self.coded[block].as_ptr().cast()
    }
}

/// Codes, scales and offsets of no meaning, and the values that they stand
/// for, of a block of `[heads, tokens, head_dim]`.
fn random_block(
    kind: KvType,
    [heads, tokens, head_dim]: [usize; 3],
    seed: &mut u64,
) -> (Vec<f32>, Vec<u8>) {
    let block = heads * tokens * head_dim;
    match kind {
        KvType::F16 => {
            let values: Vec<f16> = (0..block).map(|_| f16::from_f32(noise(seed))).collect();
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (values.iter().map(|v| v.to_f32()).collect(), bytes)
        }
        KvType::Q8_0 => {
            let codes: Vec<i8> = (0..block).map(|_| (noise(seed) * 127.0) as i8).collect();
            let scale = |_| f16::from_f32(noise(seed) / 100.0);
            let scales: Vec<f16> = (0..block / GROUP).map(scale).collect();
            let value = |(i, c): (usize, &i8)| f32::from(*c) * scales[i / GROUP].to_f32();
            let values = codes.iter().enumerate().map(value).collect();
            let mut bytes: Vec<u8> = codes.iter().map(|c| c.cast_unsigned()).collect();
            bytes.extend(scales.iter().flat_map(|s| s.to_le_bytes()));
            (values, bytes)
        }
        KvType::Q4_0 => {
            let mut bytes: Vec<u8> = (0..block / 2).map(|_| random_byte(seed)).collect();
            // About a tenth.
            let scales: Vec<u8> = (0..block / GROUP)
                .map(|_| 80 + random_byte(seed) % 16)
                .collect();
            // Up to 1.9, of either sign.
            let mut offsets: Vec<u8> = (0..block / GROUP)
                .map(|_| random_byte(seed) & 0xbf)
                .collect();
            let value = |i: usize| {
                let code = bytes[i / 2] >> (4 * (i % 2)) & 15;
                let scale = f16::from_bits(u16::from(scales[i / GROUP]) << 7).to_f32();
                let byte = offsets[i / (tokens * head_dim) * head_dim + i % head_dim];
                let size = f16::from_bits(u16::from(byte & 0x7f) << 7).to_f32() * 256.0;
                let offset = if byte < 0x80 { size } else { -size };
                (f32::from(code) - 7.5) * scale + offset
            };
            let values = (0..block).map(value).collect();
            bytes.extend(&scales);
            bytes.append(&mut offsets);
            (values, bytes)
        }
    }
}

fn random_byte(seed: &mut u64) -> u8 {
    ((noise(seed) * 128.0).floor() as i8).cast_unsigned()
}

fn noise(seed: &mut u64) -> f32 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Case {
    fn new(
        cfg: AttnConfig,
        kinds: &[KvType],
        block_tokens: usize,
        seqs: &[(usize, usize)],
        hole: u64,
        seed: u64,
    ) -> Case {
        let mut seed = seed | 1;
        let block = cfg.kv_heads * block_tokens * cfg.head_dim;
        let mut total = 0;
        let seqs = seqs
            .iter()
            .map(|&(len, rows)| {
                total += rows;
                let blocks = len.div_ceil(block_tokens);
                let own = (len - rows) / block_tokens;
                let mut kind = || kinds[usize::from(random_byte(&mut seed)) % kinds.len()];
                let kinds: Vec<KvType> = (0..blocks).map(|_| kind()).collect();
                let shape = [cfg.kv_heads, block_tokens, cfg.head_dim];
                let mut fill = || Blocks::random(&kinds, shape, &mut seed);
                let mut seq = Seq {
                    k: fill(),
                    v: fill(),
                    kinds,
                    len,
                    rows,
                    live: (0..blocks)
                        .map(|b| b >= own || hole >> (b % 64) & 1 == 0)
                        .collect(),
                };
                // What was never written may be anything.
                for head in 0..cfg.kv_heads {
                    for token in len..blocks * block_tokens {
                        let at = (head * block_tokens + token % block_tokens) * cfg.head_dim;
                        let index = token / block_tokens;
                        for side in [&mut seq.k, &mut seq.v] {
                            side.spoil(seq.kinds[index], index, block, at, cfg.head_dim);
                        }
                    }
                }
                seq
            })
            .collect();
        let q = (0..total * cfg.heads * cfg.head_dim)
            .map(|_| 3.0 * noise(&mut seed))
            .collect();
        Case {
            cfg,
            block_tokens,
            seqs,
            q,
            sinks: None,
        }
    }

    /// Output, and mass by span and view.
    fn run(&self, isa: Isa) -> (Vec<f32>, Vec<f32>) {
        let mut views = Vec::new();
        let mut spans = Vec::new();
        for seq in &self.seqs {
            let from = views.len();
            for (b, _) in seq.live.iter().enumerate().filter(|(_, live)| **live) {
                views.push(BlockView {
                    k: seq.k.block(b),
                    v: seq.v.block(b),
                    kind: seq.kinds[b],
                    first_pos: b * self.block_tokens,
                    tokens: self.block_tokens.min(seq.len - b * self.block_tokens),
                    index: u32::try_from(b).unwrap(),
                    row_mass: std::ptr::null(),
                    guard: std::marker::PhantomData,
                });
            }
            spans.push(SpanBlocks {
                first_pos: seq.len - seq.rows,
                rows: seq.rows,
                blocks: from..views.len(),
            });
        }
        let mut out = vec![f32::NAN; self.q.len()];
        let mass = Mutex::new(vec![0.0; views.len()]);
        let batch = Batch {
            isa,
            cfg: self.cfg,
            block_tokens: self.block_tokens,
            q: &self.q,
            sinks: self.sinks.as_deref(),
            spans: &spans,
            views: &views,
        };
        attend(&batch, &mut Memory::default(), &mut out, &|_, view, m| {
            mass.lock().unwrap()[view] += m;
        });
        (out, mass.into_inner().unwrap())
    }

    /// The full score matrix, head by head.
    fn naive(&self) -> (Vec<f32>, Vec<f32>) {
        let AttnConfig {
            heads, head_dim: d, ..
        } = self.cfg;
        let (mut out, mut masses) = (Vec::new(), Vec::new());
        let mut q = self.q.chunks_exact(d);
        for seq in &self.seqs {
            let mut mass = vec![0.0; seq.live.len()];
            for row in 0..seq.rows {
                let pos = seq.len - seq.rows + row;
                for head in 0..heads {
                    let q = q.next().unwrap();
                    let at = |t: usize| {
                        let block = t / self.block_tokens * self.cfg.kv_heads;
                        let head = head / (heads / self.cfg.kv_heads);
                        ((block + head) * self.block_tokens + t % self.block_tokens) * d
                    };
                    let seen: Vec<usize> = (0..=pos)
                        .filter(|t| seq.live[t / self.block_tokens])
                        .filter(|t| self.cfg.window.is_none_or(|w| t + w > pos))
                        .collect();
                    let scores: Vec<f64> = seen
                        .iter()
                        .map(|&t| {
                            let k = &seq.k.values[at(t)..][..d];
                            let dot: f64 = q
                                .iter()
                                .zip(k)
                                .map(|(q, k)| f64::from(*q) * f64::from(*k))
                                .sum();
                            let score = dot * f64::from(self.cfg.scale);
                            let cap = self.cfg.softcap.map(f64::from);
                            cap.map_or(score, |cap| cap * (score / cap).tanh())
                        })
                        .collect();
                    let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
                    let max = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                    let sum: f64 = scores
                        .iter()
                        .copied()
                        .chain(sink)
                        .map(|s| (s - max).exp())
                        .sum();
                    let mut acc = vec![0.0; d];
                    for (&t, s) in seen.iter().zip(&scores) {
                        let p = (s - max).exp() / sum;
                        mass[t / self.block_tokens] += p;
                        for (acc, v) in acc.iter_mut().zip(&seq.v.values[at(t)..][..d]) {
                            *acc += p * f64::from(*v);
                        }
                    }
                    out.extend(acc.iter().map(|a| *a as f32));
                }
            }
            let live = mass.iter().zip(&seq.live).filter(|(_, live)| **live);
            masses.extend(live.map(|(m, _)| *m as f32));
        }
        (out, masses)
    }
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * (1.0 + w.abs()),
            "{i}: {g} is not {w}"
        );
    }
}

fn config(kv_heads: usize, group: usize, head_dim: usize, window: Option<usize>) -> AttnConfig {
    AttnConfig {
        heads: kv_heads * group,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
        softcap: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn attention_equals_a_softmax_over_the_whole_matrix(
        kv_heads in 1usize..4,
        group in 1usize..9,
        head_dim in prop::sample::select(vec![8usize, 12, 16, 24, 40, 64, 80, 96, 128]),
        block_tokens in prop::sample::select(vec![5usize, 8, 16, 32]),
        seqs in prop::collection::vec((0usize..300, prop::sample::select(vec![1usize, 2, 3, 17, 70])), 1..4),
        hole in any::<u64>(),
        window in prop::option::of(1usize..200),
        seed in any::<u64>(),
        kinds in prop::sample::subsequence(KINDS.to_vec(), 1..=3),
        softcap in prop::option::of(0.5f32..8.0),
        sinks in prop::option::of(prop::collection::vec(-3f32..5.0, 32)),
    ) {
        let fits = |k: &KvType| head_dim % k.group() == 0 && block_tokens >= k.least_tokens();
        let mut kinds: Vec<_> = kinds.into_iter().filter(fits).collect();
        if kinds.is_empty() {
            kinds.push(KvType::F16);
        }
        let seqs: Vec<_> = seqs.iter().map(|(before, rows)| (before + rows, *rows)).collect();
        let cfg = AttnConfig { softcap, ..config(kv_heads, group, head_dim, window) };
        let mut case = Case::new(cfg, &kinds, block_tokens, &seqs, hole, seed);
        case.sinks = sinks;
        let (want, want_mass) = case.naive();
        for isa in [Isa::Scalar, Isa::detect(head_dim)] {
            let (got, mass) = case.run(isa);
            assert_close(&got, &want, 1e-5);
            assert_close(&mass, &want_mass, 1e-4);
        }
    }
}

#[test]
fn a_long_sequence_split_over_jobs_equals_the_whole_matrix() {
    let kinds = KINDS.chunks(1).chain([&KINDS[..]]);
    for (kinds, rows) in kinds.flat_map(|k| [1, 2, 9, 40].map(|r| (k, r))) {
        let case = Case::new(
            config(3, 3, 64, None),
            kinds,
            32,
            &[(3001, rows)],
            0x5a5a,
            7,
        );
        let (want, want_mass) = case.naive();
        let (got, mass) = case.run(Isa::detect(64));
        assert_close(&got, &want, 1e-5);
        assert_close(&mass, &want_mass, 1e-4);
    }
}

#[test]
fn rows_one_by_one_equal_the_rows_together() {
    let cfg = config(2, 3, 64, Some(150));
    let together = Case::new(cfg, &[KvType::F16], 32, &[(333, 70)], 0, 11);
    let (all, _) = together.run(Isa::detect(64));
    let width = cfg.heads * cfg.head_dim;
    for row in 0..70 {
        let mut alone = Case::new(cfg, &[KvType::F16], 32, &[(333, 70)], 0, 11);
        alone.seqs[0].len = 333 - 69 + row;
        alone.seqs[0].rows = 1;
        alone.seqs[0]
            .live
            .truncate((333usize - 69 + row).div_ceil(32));
        alone.q = together.q[row * width..][..width].to_vec();
        let (one, _) = alone.run(Isa::detect(64));
        assert_close(&one, &all[row * width..][..width], 1e-5);
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_lose_the_greatest() {
    let mut case = Case::new(
        config(1, 1, 64, None),
        &[KvType::F16],
        32,
        &[(100, 1)],
        0,
        3,
    );
    case.q.iter_mut().for_each(|q| *q *= 1000.0);
    let (want, _) = case.naive();
    assert_close(&case.run(Isa::detect(64)).0, &want, 1e-3);
    assert_close(&case.run(Isa::Scalar).0, &want, 1e-3);
}

#[test]
fn not_a_number_in_a_query_is_not_hidden() {
    for rows in [1, 40] {
        let mut case = Case::new(
            config(1, 2, 64, None),
            &[KvType::F16],
            32,
            &[(100, rows)],
            0,
            3,
        );
        case.q[..64].fill(f32::NAN);
        let (out, _) = case.run(Isa::detect(64));
        assert!(out[..64].iter().all(|x| x.is_nan()));
        assert!(out[64..].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn not_a_number_in_a_value_of_any_encoding_is_not_hidden() {
    for (kind, rows) in KINDS.into_iter().flat_map(|k| [1, 40].map(|r| (k, r))) {
        let cfg = config(2, 2, 64, None);
        let mut case = Case::new(cfg, &[kind], 32, &[(100, rows)], 0, 3);
        let (head, token) = (1, 7);
        let at = (head * 32 + token) * 64;
        case.seqs[0].v.spoil(kind, 1, 2 * 32 * 64, at, 64);
        for isa in [Isa::Scalar, Isa::detect(64)] {
            let (out, _) = case.run(isa);
            let last = &out[(rows - 1) * 4 * 64..];
            assert!(last[..128].iter().all(|x| x.is_finite()));
            assert!(last[128..].iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn the_vector_exponential_is_accurate_to_a_millionth() {
    let isa = Isa::detect(8);
    for i in 0..20_000u16 {
        let x = -f32::from(i) / 160.0;
        let mut scores = [x, 0.0, x];
        dispatch::softmax_step(isa, &mut scores, 0.0);
        let want = f64::from(x).exp2();
        let error = (f64::from(scores[0]) - want).abs() / want;
        assert!(error < 1e-6, "2^{x}: off by {error}");
        assert_eq!(scores[0], scores[2]);
    }
}

#[test]
fn matrix_products_agree_between_kernels_at_every_edge() {
    let mut seed = 5;
    for m in 1..8 {
        for n in [8, 16, 24, 32, 56, 64] {
            for k in [0, 1, 7, 33] {
                let a: Vec<f32> = (0..m * 40).map(|_| noise(&mut seed)).collect();
                let b: Vec<f32> = (0..40 * n).map(|_| noise(&mut seed)).collect();
                let keep: Vec<f32> = (0..m).map(|_| noise(&mut seed)).collect();
                let (a, b) = (
                    Rows {
                        data: &a,
                        stride: 40,
                    },
                    Rows {
                        data: &b,
                        stride: n,
                    },
                );
                for keep in [None, Some(&keep[..])] {
                    let (mut x, mut y) = (vec![0.5; m * n], vec![0.5; m * n]);
                    dispatch::matmul(Isa::Scalar, a, b, k, n, keep, &mut x);
                    dispatch::matmul(Isa::detect(8), a, b, k, n, keep, &mut y);
                    assert_close(&x, &y, 1e-5);
                }
            }
        }
    }
}
