//! The example for programs of candle: with kvpsi's cache its logits are those
//! that it has with candle's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "shapes of a model"
)]

#[path = "../../kvpsi-runtime/examples/candle_model/model.rs"]
mod model;

use kvpsi::{
    cache::{CacheConfig, KvCache},
    kv::KvType,
};
use kvpsi_tests::tiny::{Shape, Tiny};
use model::{Attention, Candle, Model};
use std::path::Path;

/// The greatest difference of two logits over a prompt and what follows it,
/// which is the likeliest token each time; and how far the logits reach.
fn apart(path: &Path, prompt: &[u32], count: usize, kv_type: KvType) -> (f32, f32) {
    let model = Model::open(path).unwrap();
    let c = model.config;
    let cache = KvCache::new(CacheConfig {
        kv_type,
        ..CacheConfig::new(c.layers, c.heads, c.kv_heads, c.head_dim)
    })
    .unwrap();
    let mut sequence = cache.sequence().unwrap();
    let mut candle = Candle::new(c);
    let (mut most, mut reach) = (0f32, 0f32);
    let mut next = prompt.to_vec();
    for _ in 0..count {
        let logits = |cache: &mut dyn Attention| {
            let logits = model.forward(&next, cache).unwrap();
            logits.to_vec1::<f32>().unwrap()
        };
        let want = logits(&mut candle);
        let got = logits(&mut sequence.step(next.len()).unwrap());
        let differences = want.iter().zip(&got).map(|(a, b)| (a - b).abs());
        most = differences.fold(most, f32::max);
        reach = want.iter().fold(reach, |reach, l| reach.max(l.abs()));
        let (likeliest, _) = (0u32..)
            .zip(&want)
            .max_by(|a, b| a.1.total_cmp(b.1))
            .unwrap();
        next = vec![likeliest];
    }
    assert_eq!(sequence.len(), prompt.len() + count - 1);
    (most, reach)
}

#[test]
fn a_tiny_models_logits_are_those_with_candles_own_cache() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let shape = Shape {
        layers: 2,
        hidden: 64,
        feed_forward: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        // An output of its own: logits are as large as in a model that was trained.
        tied: false,
        ..Shape::SMALL
    };
    Tiny::new(&shape).unwrap().write(&path).unwrap();
    let prompt: Vec<u32> = (0..100u32).map(|i| i * 7 % 127).collect();
    let (most, reach) = apart(&path, &prompt, 60, KvType::F16);
    eprintln!("{most} of {reach}");
    assert!(most < 1e-2 && reach > 1.0, "{most} of {reach}");
    // Four bits are fewer: the comparison sees that.
    let (coarse, _) = apart(&path, &prompt, 60, KvType::Q4_0);
    assert!(coarse > 1e-2, "{coarse} with four bits");
}

#[test]
fn the_models_logits_are_those_with_candles_own_cache() {
    let Some(path) = kvpsi_tests::model("the_models_logits_are_those_with_candles_own_cache")
    else {
        return;
    };
    let prompt: Vec<u32> = (0..48u32).map(|i| 1000 + i * 37 % 500).collect();
    let (most, reach) = apart(&path, &prompt, 24, KvType::F16);
    eprintln!("{most} of {reach}");
    assert!(most < 1e-2 && reach > 1.0, "{most} of {reach}");
}
