//! Attention on a real pool, against softmax over the whole matrix in candle.

use super::*;
use crate::kv::{KvPool, KvShape, KvType, PoolConfig, Steps};
use candle_core::{DType, Device, Result, Tensor};
use std::sync::Arc;

const CFG: AttnConfig = AttnConfig {
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
    scale: 0.125,
    window: None,
    softcap: None,
};

fn pool(capacity_tokens: usize) -> Arc<KvPool> {
    KvPool::new(PoolConfig {
        shape: KvShape {
            layers: 2,
            kv_heads: CFG.kv_heads,
            head_dim: CFG.head_dim,
            block_tokens: 32,
            kind: KvType::F16,
            row_mass: false,
        },
        capacity_tokens,
        max_sequences: 4,
        sink_tokens: 4,
        recent_tokens: 64,
        floor_tokens: 0,
        may_drop: true,
    })
    .unwrap()
}

fn random(rows: usize, width: usize) -> Tensor {
    Tensor::randn(0f32, 1.0, (rows, width), &Device::Cpu).unwrap()
}

fn inputs(rows: usize) -> [Tensor; 3] {
    [CFG.heads, CFG.kv_heads, CFG.kv_heads].map(|heads| random(rows, heads * CFG.head_dim))
}

/// Softmax over the whole matrix in candle; f16 rounding in the
/// basis that is stored included. `dead`
/// positions are masked.
fn whole([q, k, v]: &[Tensor; 3], dead: &dyn Fn(usize) -> bool) -> Result<Vec<f32>> {
    let heads = |t: &Tensor| -> Result<Tensor> {
        let t = t.reshape((t.dim(0)?, (), CFG.head_dim))?.transpose(0, 1)?;
        let repeat = CFG.heads / t.dim(0)?;
        let (n, rows, d) = t.dims3()?;
        t.unsqueeze(1)?
            .expand((n, repeat, rows, d))?
            .reshape((n * repeat, rows, d))
    };
    let turned = |t: &Tensor| -> Result<Tensor> {
        let mut turned = values(t);
        crate::kv::rotate(&mut turned, CFG.head_dim);
        Tensor::from_vec(turned, t.shape(), &Device::Cpu)
    };
    let stored = |t: &Tensor| turned(&turned(t)?.to_dtype(DType::F16)?.to_dtype(DType::F32)?);
    let (q, k, v) = (heads(q)?, heads(&stored(k)?)?, heads(&stored(v)?)?);
    let (n, len) = (q.dim(1)?, k.dim(1)?);
    let mask: Vec<f32> = (0..n * len)
        .map(|i| match (i % len, len - n + i / len) {
            (key, row) if key > row || dead(key) => f32::NEG_INFINITY,
            _ => 0.0,
        })
        .collect();
    let mask = Tensor::from_vec(mask, (n, len), &Device::Cpu)?;
    let scores = (q.matmul(&k.t()?)? * f64::from(CFG.scale))?.broadcast_add(&mask)?;
    let p = candle_nn::ops::softmax_last_dim(&scores)?;
    p.matmul(&v)?.transpose(0, 1)?.flatten_all()?.to_vec1()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn attend(
    [q, k, v]: &[Tensor; 3],
    pool: &KvPool,
    layer: usize,
    rows: &[RowSpan],
    cfg: AttnConfig,
) -> Result<Vec<f32>> {
    let [mut q, mut k, mut v] = [q, k, v].map(values);
    let mut out = vec![f32::NAN; q.len()];
    let qkv = Qkv {
        q: &mut q,
        k: &mut k,
        v: &mut v,
        sinks: None,
    };
    attend_into(
        qkv,
        pool,
        layer,
        rows,
        cfg,
        &mut AttnMemory::default(),
        &mut out,
    )?;
    Ok(out)
}

/// Appends `n` of the rows from `from` on to layer 1 and attends.
fn feed(pool: &KvPool, seq: SeqId, rows: &[Tensor; 3], from: usize, n: usize) -> Vec<f32> {
    let range = pool.append(seq, n).unwrap();
    assert_eq!(range.start, from);
    let rows = rows.clone().map(|t| t.narrow(0, from, n).unwrap());
    let span = RowSpan {
        seq,
        first_pos: from,
        rows: n,
    };
    attend(&rows, pool, 1, &[span], CFG).unwrap()
}

fn assert_close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() < 1e-4, "{g} is not {w}");
    }
}

#[test]
fn a_prompt_and_the_tokens_after_it_attend_as_one_matrix() {
    let pool = pool(1024);
    let seq = pool.open().unwrap();
    let rows = inputs(400);
    let want = whole(&rows, &|_| false).unwrap();
    let width = CFG.heads * CFG.head_dim;
    let mut from = 0;
    for n in [300, 1, 1, 2, 96] {
        let got = feed(&pool, seq, &rows, from, n);
        assert_close(&got, &want[from * width..][..n * width]);
        from += n;
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let pool = pool(1024);
    let (a, b) = (pool.open().unwrap(), pool.open().unwrap());
    let (of_a, of_b) = (inputs(131), inputs(71));
    feed(&pool, a, &of_a, 0, 130);
    feed(&pool, b, &of_b, 0, 30);
    pool.append(a, 1).unwrap();
    pool.append(b, 41).unwrap();
    let batch = std::array::from_fn(|i| {
        let (a, b) = (of_a[i].narrow(0, 130, 1), of_b[i].narrow(0, 30, 41));
        Tensor::cat(&[a.unwrap(), b.unwrap()], 0).unwrap()
    });
    let rows = [
        RowSpan {
            seq: a,
            first_pos: 130,
            rows: 1,
        },
        RowSpan {
            seq: b,
            first_pos: 30,
            rows: 41,
        },
    ];
    let got = attend(&batch, &pool, 1, &rows, CFG).unwrap();
    let width = CFG.heads * CFG.head_dim;
    let mut want = whole(&of_a, &|_| false).unwrap()[130 * width..].to_vec();
    want.extend_from_slice(&whole(&of_b, &|_| false).unwrap()[30 * width..]);
    assert_close(&got, &want);
}

#[test]
fn a_token_after_a_trim_attends_over_what_is_left() {
    let pool = pool(1024);
    let seq = pool.open().unwrap();
    let rows = inputs(501);
    for from in (0..500).step_by(50) {
        feed(&pool, seq, &rows, from, 50);
    }
    let block = pool.shape().block_bytes();
    let trimmed = pool.trim(crate::units::Bytes(block.0 * 20), Steps::ALL);
    assert!(trimmed.tokens > 0, "the trim dropped no token");
    let live: Vec<bool> = {
        let (guard, mut views) = (pool.layer(), Vec::new());
        guard.blocks(seq, 1, &mut views);
        let has = |pos: usize| views.iter().any(|b| b.first_pos == pos / 32 * 32);
        (0..501).map(has).collect()
    };
    let dead = live[..500].iter().filter(|live| !**live).count();
    assert_eq!(dead as u64, trimmed.tokens);
    let got = feed(&pool, seq, &rows, 500, 1);
    let want = whole(&rows, &|key| key < 500 && !live[key]).unwrap();
    assert_close(&got, &want[500 * CFG.heads * CFG.head_dim..]);
}

#[test]
fn input_that_does_not_fit_is_refused_with_what_was_expected() {
    let pool = pool(128);
    let seq = pool.open().unwrap();
    pool.append(seq, 4).unwrap();
    let four = inputs(4);
    let span = |rows| {
        [RowSpan {
            seq,
            first_pos: 0,
            rows,
        }]
    };
    let refused = |rows: usize, layer: usize, cfg: AttnConfig| {
        let error = attend(&four, &pool, layer, &span(rows), cfg).unwrap_err();
        error.to_string()
    };
    assert!(refused(3, 0, CFG).contains("q has 1536 values, expected [3, 384]"));
    assert!(refused(4, 2, CFG).contains("does not fit a pool of 2 layers"));
    assert!(refused(4, 0, AttnConfig { heads: 5, ..CFG }).contains("cannot share"));
    let window = Some(0);
    assert!(refused(4, 0, AttnConfig { window, ..CFG }).contains("window of 0"));
    let error = attend(&inputs(5), &pool, 0, &span(5), CFG).unwrap_err();
    assert!(error.to_string().contains("position 5 was not appended"));
    attend(&four, &pool, 0, &span(4), CFG).unwrap();
}
