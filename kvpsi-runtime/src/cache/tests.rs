//! Attention on tensors: against plain tensors, and what is refused.

use super::*;
use candle_core::{DType, Device, IndexOp};

const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

fn config() -> CacheConfig {
    CacheConfig {
        context: 512,
        ..CacheConfig::new(LAYERS, HEADS, KV_HEADS, HEAD_DIM)
    }
}

/// Numbers that differ by place, `[1, heads, rows, head_dim]` as a view of
/// `[1, rows, heads, head_dim]`.
fn tensor(heads: usize, rows: usize, seed: f32) -> Tensor {
    let n = u16::try_from(heads * rows * HEAD_DIM).unwrap();
    let values: Vec<f32> = (0..n).map(|i| (f32::from(i) * 0.37 + seed).sin()).collect();
    let t = Tensor::from_vec(values, (1, rows, heads, HEAD_DIM), &Device::Cpu).unwrap();
    t.transpose(1, 2).unwrap()
}

/// What the last row of `q` sees of all keys and values.
fn last_row(q: &Tensor, k: &Tensor, v: &Tensor) -> Vec<f32> {
    let q = q.i((0, .., q.dim(2).unwrap() - 1, ..)).unwrap();
    let mut out = vec![];
    for head in 0..HEADS {
        let of = |x: &Tensor| x.i((0, head / (HEADS / KV_HEADS))).unwrap();
        let q = q.i(head).unwrap().unsqueeze(0).unwrap();
        let scores = (q.matmul(&of(k).t().unwrap()).unwrap() / f64::sqrt(HEAD_DIM as f64)).unwrap();
        let weights = candle_nn::ops::softmax_last_dim(&scores).unwrap();
        let seen = weights.matmul(&of(v).contiguous().unwrap()).unwrap();
        out.extend(seen.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    out
}

#[test]
fn rows_see_all_before_them_in_every_layer_as_plain_tensors_do() {
    let cache = KvCache::new(config()).unwrap();
    let mut sequence = cache.sequence().unwrap();
    let mut all: Vec<Option<(Tensor, Tensor)>> = vec![None; LAYERS];
    for (at, rows) in [40, 1, 1, 7, 33].into_iter().enumerate() {
        let step = sequence.step(rows).unwrap();
        for (layer, all) in all.iter_mut().enumerate() {
            let seed = (at * 10 + layer) as f32;
            let (q, k, v) = (
                tensor(HEADS, rows, seed),
                tensor(KV_HEADS, rows, seed + 3.0),
                tensor(KV_HEADS, rows, seed + 5.0),
            );
            let got = step.attend(layer, &q, &k, &v).unwrap();
            assert_eq!(got.dims(), q.dims());
            let (k, v) = match all.take() {
                Some((ks, vs)) => (
                    Tensor::cat(&[&ks, &k], 2).unwrap(),
                    Tensor::cat(&[&vs, &v], 2).unwrap(),
                ),
                None => (k, v),
            };
            let want = last_row(&q, &k, &v);
            let got = got.i((0, .., rows - 1, ..)).unwrap();
            let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let apart = want.iter().zip(&got).map(|(a, b)| (a - b).abs());
            let most = apart.fold(0.0, f32::max);
            assert!(most < 2e-3, "step {at} layer {layer}: {most}");
            *all = Some((k, v));
        }
    }
    assert_eq!((sequence.len(), sequence.lost_tokens()), (82, 0));
    drop(sequence);
    assert_eq!(cache.account().in_use, Bytes::ZERO);
}

#[test]
fn a_step_that_ended_early_leaves_no_row() {
    let cache = KvCache::new(config()).unwrap();
    let mut sequence = cache.sequence().unwrap();
    let mut layers = |rows: usize, layers: usize| {
        let step = sequence.step(rows).unwrap();
        let (q, k) = (tensor(HEADS, rows, 0.0), tensor(KV_HEADS, rows, 1.0));
        for layer in 0..layers {
            step.attend(layer, &q, &k, &k).unwrap();
        }
        drop(step);
        sequence.len()
    };
    assert_eq!(layers(40, LAYERS), 40);
    assert_eq!(layers(40, LAYERS - 1), 40);
    assert_eq!(layers(1, 0), 40);
    assert_eq!(layers(2, LAYERS), 42);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    assert!(KvCache::new(CacheConfig::new(0, 4, 2, 32)).is_err());
    let wrong: [fn(&mut CacheConfig); 5] = [
        |c| c.heads = 0,
        |c| c.heads = 3,
        |c| c.window = Some(0),
        |c| c.scale = f32::NAN,
        |c| c.softcap = Some(0.0),
    ];
    for change in wrong {
        let mut c = config();
        change(&mut c);
        assert!(
            matches!(KvCache::new(c), Err(KvError::Attention { .. })),
            "{c:?}"
        );
    }
    let cache = KvCache::new(config()).unwrap();
    let mut sequence = cache.sequence().unwrap();
    assert!(matches!(sequence.step(513), Err(KvError::Context { .. })));
    let step = sequence.step(2).unwrap();
    let (q, k) = (tensor(HEADS, 2, 0.0), tensor(KV_HEADS, 2, 1.0));
    let said = |layer, q: &Tensor, k: &Tensor, v: &Tensor| {
        let e = step.attend(layer, q, k, v).unwrap_err();
        e.to_string()
    };
    assert!(said(0, &k, &k, &k).contains("q is [1, 2, 2, 32], expected [1, 4, 2, 32]"));
    assert!(said(0, &q, &k, &tensor(KV_HEADS, 3, 0.0)).contains("v is"));
    let half = k.to_dtype(DType::F16).unwrap();
    assert!(said(0, &q, &half, &k).contains("k must be f32"));
    assert!(said(LAYERS, &q, &k, &k).contains("layer 2"));
    drop(step);
    assert!(matches!(cache.sequence(), Err(KvError::NoSequence(1))));
}

#[test]
#[cfg(feature = "trim")]
fn a_trimmed_sequence_goes_on_and_one_that_lost_all_begins_anew() {
    let cache = KvCache::new(CacheConfig {
        recent_tokens: 32,
        ..config()
    })
    .unwrap();
    let mut sequence = cache.sequence().unwrap();
    let rows = |sequence: &mut Sequence<'_>, rows: usize| -> Result<()> {
        let step = sequence.step(rows).map_err(candle_core::Error::wrap)?;
        for layer in 0..LAYERS {
            let (q, k) = (tensor(HEADS, rows, 0.0), tensor(KV_HEADS, rows, 1.0));
            let seen = step.attend(layer, &q, &k, &k)?;
            assert!(
                seen.flatten_all()?
                    .to_vec1::<f32>()?
                    .iter()
                    .all(|x| x.is_finite())
            );
        }
        Ok(())
    };
    rows(&mut sequence, 300).unwrap();
    let before = cache.account();
    let trimmed = cache.pool().trim(Bytes(u64::MAX), crate::kv::Steps::WINDOW);
    assert_eq!(
        before.resident.0 - cache.account().resident.0,
        trimmed.bytes.0
    );
    assert!(sequence.lost_tokens() > 100 && !sequence.preempted());
    rows(&mut sequence, 1).unwrap();
    assert_eq!(sequence.len(), 301);
    let all = crate::kv::Steps::ALL.to_the_last();
    assert_eq!(cache.pool().trim(Bytes(u64::MAX), all).preempted, 1);
    assert!(sequence.preempted());
    assert!(rows(&mut sequence, 1).is_err());
    sequence.restart().unwrap();
    rows(&mut sequence, 5).unwrap();
    assert_eq!((sequence.len(), sequence.lost_tokens()), (5, 0));
}
