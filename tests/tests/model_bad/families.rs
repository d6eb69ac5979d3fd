//! The same of each family, by the reference's models (tests/data/families).

use super::{absurd, refused};
use candle_core::quantized::{GgmlDType, gguf_file::Value};
use kvpsi_tests::{families, tiny::Tiny};

/// The reference's models, each of its family; candle cannot read MXFP4.
const FAMILIES: &[&str] = &[
    "llama",
    "mixtral",
    "qwen2",
    "gemma3",
    "smollm3",
    "ministral3",
    "phi3-short",
    "phi3-long",
    "gemma2",
    "gemma4",
    "granite",
    "olmo2",
    "olmo3",
    "qwen3moe",
    "olmoe",
    "granitemoe",
    "granitemoeshared",
    "gpt-oss",
];

fn family(name: &str) -> Tiny {
    Tiny::open(&families::folder().join(format!("{name}.gguf"))).unwrap()
}

#[test]
fn each_absurd_number_of_a_family_is_named() {
    // What nobody reads: the embedding's rows say it, and what a converter
    // wrote of files.
    let unread = ["vocab_size", "rope.scaling.finetuned"];
    // 0 is none.
    let or_none = [
        "attention.sliding_window",
        "expert_shared_feed_forward_length",
        "expert_count",
        "embedding_length_per_layer_input",
        "attention.shared_kv_layers",
    ];
    for &name in FAMILIES {
        let prefix = format!("{}.", family(name).prefix());
        for key in family(name).metadata.into_keys() {
            let Some(own) = key.strip_prefix(&prefix) else {
                continue;
            };
            if unread.contains(&own) {
                continue;
            }
            for value in absurd() {
                if matches!(value, Value::U32(0)) && or_none.contains(&own) {
                    continue;
                }
                let mut tiny = family(name);
                tiny.metadata.insert(key.clone(), value);
                refused(&tiny, &key);
            }
        }
    }
}

#[test]
fn layers_that_share_what_nobody_stores_are_named() {
    for (key, n) in [
        ("attention.shared_kv_layers", 7),
        // Of the first two none sees everything.
        ("attention.shared_kv_layers", 5),
        ("attention.key_length_swa", 40),
        ("attention.key_length_swa", 12),
        ("attention.value_length_swa", 8),
        ("rope.dimension_count_swa", 8),
    ] {
        let mut tiny = family("gemma4");
        tiny.set(key, Value::U32(n));
        refused(&tiny, key);
    }
    // One tensor of queries, keys and values stores.
    for name in ["phi3-short", "phi3-long"] {
        let mut tiny = family(name);
        tiny.set("attention.shared_kv_layers", Value::U32(1));
        refused(&tiny, "blk.1.attn_qkv.weight");
    }
}

/// RoPE's factors are as many as the pairs of the longer heads, and memory is
/// taken for heads that a layer has.
#[test]
fn heads_of_windows_that_fit_nothing_are_named() {
    for (rotary, factors) in [(8, Some(4)), (16, Some(8)), (16, None)] {
        let mut tiny = family("llama");
        for (key, n) in [
            ("attention.sliding_window", 16),
            ("attention.key_length", 1024),
            ("attention.value_length", 1024),
            ("attention.key_length_swa", 16),
            ("attention.value_length_swa", 16),
            ("rope.dimension_count", rotary),
        ] {
            tiny.set(key, Value::U32(n));
        }
        let name = "rope_freqs.weight";
        tiny.tensors.remove(name);
        if let Some(n) = factors {
            tiny.insert(name, &vec![2.0; n], &[n], GgmlDType::F32)
                .unwrap();
        }
        refused(&tiny, "attention.key_length_swa");
    }
    // Gemma with windows in all layers.
    let mut tiny = family("gemma4");
    let all = Value::Array(vec![Value::Bool(true); 7]);
    tiny.set("attention.sliding_window_pattern", all);
    refused(&tiny, "attention.key_length_swa");
}

#[test]
fn experts_that_cannot_be_are_named() {
    for name in ["mixtral", "qwen3moe", "olmoe", "granitemoe", "gpt-oss"] {
        for (key, value, culprit) in [
            ("expert_count", Value::U32(1 << 31), "expert_count"),
            ("expert_count", Value::I32(i32::MIN), "expert_count"),
            (
                "expert_used_count",
                Value::U32(1 << 31),
                "expert_used_count",
            ),
            ("expert_used_count", Value::U32(7), "expert_used_count"),
            // Within the limits: then a tensor is not as large.
            ("expert_count", Value::U32(4096), "blk.0.ffn_"),
            ("expert_count", Value::U32(5), "blk.0.ffn_"),
            ("expert_feed_forward_length", Value::U32(1 << 20), "_exps"),
            ("expert_gating_func", Value::U32(2), "expert_gating_func"),
            ("expert_group_count", Value::U32(2), "expert_group_count"),
            ("leading_dense_block_count", Value::U32(2), "leading_dense"),
            (
                "expert_weights_scale",
                Value::F32(f32::NAN),
                "weights_scale",
            ),
        ] {
            let mut tiny = family(name);
            tiny.set(key, value);
            refused(&tiny, culprit);
        }
    }
    for key in ["expert_count", "expert_used_count"] {
        let mut tiny = family("qwen3moe");
        tiny.metadata.remove(&format!("qwen3moe.{key}"));
        refused(&tiny, key);
    }
}

#[test]
fn each_tensor_of_a_family_that_is_missing_or_of_another_shape_is_named() {
    for &name in FAMILIES {
        for (tensor, data) in &family(name).tensors {
            let dims = data.shape().dims().to_vec();
            let mut wrong = match dims[..] {
                [n] => vec![vec![n + 32], vec![1, n]],
                [n, k] => vec![vec![n, k + 32], vec![n * k], vec![n, 1, k]],
                [e, n, k] => vec![vec![e, n, k + 32], vec![e + 1, n, k], vec![e * n, k]],
                _ => unreachable!("at most one matrix for each expert"),
            };
            // Models without have another output, other positions, or no scale.
            let optional = ["output.weight", "rope_freqs.weight", "output_scale.weight"];
            if !optional.iter().any(|end| tensor.ends_with(end)) {
                wrong.push(vec![]);
            }
            for shape in wrong {
                let mut tiny = family(name);
                if shape.is_empty() {
                    tiny.tensors.remove(tensor);
                } else {
                    let values = vec![0.5; shape.iter().product()];
                    tiny.insert(tensor, &values, &shape, GgmlDType::F32)
                        .unwrap();
                }
                refused(&tiny, tensor);
            }
        }
    }
}
