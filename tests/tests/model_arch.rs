//! Each architecture against candle-transformers' own model of it, on tiny
//! files with random weights: token by token, in one go, and in chunks.
//!
//! With f32 matrices what may differ is the order of sums and that kvpsi keeps
//! keys and values in f16: 2^-12 of a value at most, from which a few layers
//! make logits that are off by some thousandths of their size (0.0063 is the
//! most that was seen). That `TIGHT` is tight enough is shown: what an
//! architecture adds, taken away or shifted by one, moves the logits by more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType,
        gguf_file::{Content, Value},
    },
};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, quantized_llama, quantized_qwen2, quantized_qwen3};
use kvpsi_tests::{
    ours::{Ours, apart},
    tiny::{Shape, Tiny},
};
use std::{collections::HashMap, fs::File, path::Path};

/// Largest difference of a logit, in units of the logits' root mean square.
const TIGHT: f32 = 0.01;
/// The mean where activations are rounded to 8 bits, by each side in its own
/// way: half a percent of each input of each matrix, some twenty times one
/// after the other (0.04 is the most that was seen).
const LOOSE: f64 = 0.08;

const TOKENS: usize = 80;
/// Of gemma: neither a whole block of the cache nor a multiple of anything.
const WINDOW: u32 = 21;
/// Prefixes that are prefilled in one go: around the window and the blocks.
const PREFIXES: [usize; 9] = [1, 2, 20, 21, 22, 32, 33, 64, 80];

const F32: &[GgmlDType] = &[GgmlDType::F32];
const MIXED: &[GgmlDType] = &[
    GgmlDType::Q8_0,
    GgmlDType::Q6K,
    GgmlDType::Q5_0,
    GgmlDType::Q4K,
    GgmlDType::F16,
    GgmlDType::Q4_1,
    GgmlDType::Q4_0,
    GgmlDType::Q5K,
];

fn shape(arch: &'static str, types: &'static [GgmlDType]) -> Shape {
    let mut shape = Shape {
        arch,
        layers: 3,
        hidden: 256,
        feed_forward: 352,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        vocab: 301,
        tied: true,
        types,
        seed: 20_261_123,
    };
    match arch {
        // As many KV heads as heads, and an output weight of its own.
        "qwen2" => {
            shape.kv_heads = 8;
            shape.tied = false;
            shape.layers = 2;
        }
        // Heads that together are wider than the stream.
        "qwen3" => (shape.heads, shape.kv_heads, shape.head_dim) = (6, 3, 48),
        // Two layers of seven see everything.
        "gemma3" => {
            (shape.heads, shape.kv_heads, shape.head_dim) = (4, 1, 64);
            shape.layers = 7;
        }
        _ => {}
    }
    shape
}

fn tiny(arch: &'static str, types: &'static [GgmlDType]) -> Tiny {
    let mut tiny = Tiny::new(&shape(arch, types)).unwrap();
    if arch == "gemma3" {
        tiny.set("attention.sliding_window", Value::U32(WINDOW));
        tiny.set("attention.sliding_window_pattern", Value::U32(3));
    }
    tiny
}

fn token(i: usize) -> u32 {
    u32::try_from((7 + i * i * 31) % 301).unwrap()
}

/// candle-transformers' model: the logits after tokens at a position.
type Theirs = Box<dyn FnMut(&[u32], usize) -> Vec<f32>>;

fn theirs(arch: &str, path: &Path) -> Theirs {
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let cpu = &Device::Cpu;
    let row = |tokens: &[u32]| Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0);
    let flat =
        |t: candle_core::Result<Tensor>| t.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    match arch {
        "llama" => {
            let mut m = quantized_llama::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |tokens, at| flat(m.forward(&row(tokens).unwrap(), at)))
        }
        "qwen2" => {
            let mut m = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |tokens, at| flat(m.forward(&row(tokens).unwrap(), at)))
        }
        "qwen3" => {
            let mut m = quantized_qwen3::ModelWeights::from_gguf(content, &mut file, cpu).unwrap();
            Box::new(move |tokens, at| {
                if at == 0 {
                    m.clear_kv_cache();
                }
                flat(m.forward(&row(tokens).unwrap(), at))
            })
        }
        _ => gemma3(&content, &mut file),
    }
}

/// candle's float model of gemma3 on the widened weights of the file, for
/// candle 0.11's `quantized_gemma3` bends its gate by SiLU, where Gemma 3 was
/// trained with the tangent form of GELU (`gelu_pytorch_tanh` in its
/// config.json, `LLM_FFN_GELU` in llama.cpp), and knows no window when it
/// decodes.
///
/// The float model sees a window of W tokens when it decodes (its cache holds
/// W), as transformers (`kv_idx > q_idx - W`) and llama.cpp (masked where
/// `p1 - p0 >= n_swa`) do, but one of W + 1 in prefill, for it masks `j + W <
/// i`. So prefill is compared with its model of W - 1.
fn gemma3(content: &Content, file: &mut File) -> Theirs {
    let mut weights = HashMap::new();
    for name in content.tensor_infos.keys() {
        let t = content.tensor(file, name, &Device::Cpu).unwrap();
        let t = t.dequantize(&Device::Cpu).unwrap();
        // In files gemma's norms have the one already that candle adds.
        let t = if name.ends_with("norm.weight") {
            (t - 1.0).unwrap()
        } else {
            t
        };
        let mut long = name.replace("blk.", "model.layers.");
        for (from, to) in [
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
            ("attn_norm", "input_layernorm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
            ("attn_q_norm", "self_attn.q_norm"),
            ("attn_k_norm", "self_attn.k_norm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q.", "self_attn.q_proj."),
            ("attn_k.", "self_attn.k_proj."),
            ("attn_v.", "self_attn.v_proj."),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ] {
            long = long.replace(from, to);
        }
        weights.insert(long, t);
    }
    let key = |key: &str| &content.metadata[&format!("gemma3.{key}")];
    let n = |k: &str| key(k).to_u32().unwrap() as usize;
    let config = |sliding_window| gemma3::Config {
        attention_bias: false,
        head_dim: n("attention.key_length"),
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: n("embedding_length"),
        intermediate_size: n("feed_forward_length"),
        num_attention_heads: n("attention.head_count"),
        num_hidden_layers: n("block_count"),
        num_key_value_heads: n("attention.head_count_kv"),
        rms_norm_eps: f64::from(key("attention.layer_norm_rms_epsilon").to_f32().unwrap()),
        rope_theta: f64::from(key("rope.freq_base").to_f32().unwrap()),
        rope_local_base_freq: 10_000.0,
        vocab_size: 301,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: n("attention.key_length"),
        sliding_window,
        sliding_window_pattern: n("attention.sliding_window_pattern"),
        max_position_embeddings: 512,
    };
    let window = n("attention.sliding_window");
    let vars = VarBuilder::from_tensors(weights, candle_core::DType::F32, &Device::Cpu);
    let model = |window| gemma3::Model::new(false, &config(window), vars.clone()).unwrap();
    let (mut decode, mut prefill) = (model(window), model(window - 1));
    Box::new(move |tokens, at| {
        let m = if tokens.len() == 1 {
            &mut decode
        } else {
            &mut prefill
        };
        if at == 0 {
            m.clear_kv_cache();
        }
        let x = Tensor::new(tokens, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        m.forward(&x, at)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    })
}

/// Largest difference of all, and largest mean of a position.
fn compare(arch: &'static str, types: &'static [GgmlDType]) -> (f32, f64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny(arch, types).write(&path).unwrap();
    let mut ours = Ours::load(&path, 256);
    let mut theirs = theirs(arch, &path);
    let tokens: Vec<_> = (0..TOKENS).map(token).collect();
    let (mut most, mut mean) = (0f32, 0f64);
    let mut add = |what: &str, n: usize, a: &[f32], b: &[f32]| {
        let (m, s) = apart(a, b);
        if m > most {
            eprintln!("{arch}: {what} {n}: {m}");
        }
        (most, mean) = (most.max(m), mean.max(s));
    };
    let seq = ours.open();
    for (i, token) in tokens.iter().enumerate() {
        let want = theirs(&[*token], i);
        add("token", i, &ours.run(seq, &[*token]), &want);
    }
    ours.close(seq);
    for n in PREFIXES {
        let want = theirs(&tokens[..n], 0);
        for chunk in [n, 7, 50] {
            add("a prefix of", n, &ours.after(&tokens[..n], chunk), &want);
        }
    }
    eprintln!("{arch}: max {most:.6}, mean {mean:.6} of the logits' size");
    (most, mean)
}

macro_rules! architecture {
    ($arch:literal, $tight:ident, $mixed:ident) => {
        #[test]
        fn $tight() {
            let (most, _) = compare($arch, F32);
            assert!(most < TIGHT, "{most}");
        }

        #[test]
        fn $mixed() {
            let (_, mean) = compare($arch, MIXED);
            assert!(mean < LOOSE, "{mean}");
        }
    };
}

architecture!("llama", llama_is_candles, quantized_llama_is_candles);
architecture!("qwen2", qwen2_is_candles, quantized_qwen2_is_candles);
architecture!("qwen3", qwen3_is_candles, quantized_qwen3_is_candles);
architecture!("gemma3", gemma3_is_candles, quantized_gemma3_is_candles);

/// A change to a file, by name.
type Change = (&'static str, fn(&mut Tiny));

/// `tensor` with each value replaced.
fn map(tiny: &mut Tiny, tensor: &str, f: fn(f32) -> f32) {
    let t = tiny.tensors[tensor].dequantize(&Device::Cpu).unwrap();
    let values = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let values: Vec<_> = values.into_iter().map(f).collect();
    tiny.insert(tensor, &values, t.dims(), GgmlDType::F32)
        .unwrap();
}

#[test]
fn what_a_file_says_of_its_architecture_is_seen_in_the_logits() {
    let rope: Change = ("rope base", |t| {
        t.set("rope.freq_base", Value::F32(10_000.0))
    });
    let linear: Change = ("linear scaling", |t| {
        t.set("rope.scaling.type", Value::String("linear".into()));
        t.set("rope.scaling.factor", Value::F32(2.0));
    });
    let yarn: Change = ("YaRN", |t| {
        t.set("rope.scaling.type", Value::String("yarn".into()));
        t.set("rope.scaling.factor", Value::F32(4.0));
        t.set("rope.scaling.original_context_length", Value::U32(128));
    });
    let factors: Change = ("rope factors", |t| {
        let by: Vec<_> = (0..16).map(|i| 1.0 + i as f32).collect();
        t.insert("rope_freqs.weight", &by, &[16], GgmlDType::F32)
            .unwrap();
    });
    let epsilon: Change = ("epsilon", |t| {
        t.set("attention.layer_norm_rms_epsilon", Value::F32(0.1));
    });
    let scale: Change = ("scale", |t| t.set("attention.scale", Value::F32(0.1)));
    let changes: [(&str, &[Change]); 4] = [
        (
            "llama",
            &[
                rope,
                linear,
                yarn,
                factors,
                epsilon,
                scale,
                ("a bias, which it may have", |t| {
                    t.insert("blk.1.attn_q.bias", &[0.3; 256], &[256], GgmlDType::F32)
                        .unwrap();
                    t.insert("blk.1.attn_k.bias", &[0.0; 64], &[64], GgmlDType::F32)
                        .unwrap();
                    t.insert("blk.1.attn_v.bias", &[0.0; 64], &[64], GgmlDType::F32)
                        .unwrap();
                }),
                ("a window", |t| {
                    t.set("attention.sliding_window", Value::U32(60))
                }),
            ],
        ),
        (
            "qwen2",
            &[
                rope,
                yarn,
                ("bias of q", |t| map(t, "blk.1.attn_q.bias", |x| x + 0.2)),
                ("bias of v", |t| map(t, "blk.1.attn_v.bias", |x| x + 0.2)),
                ("output", |t| drop(t.tensors.remove("output.weight"))),
            ],
        ),
        (
            "qwen3",
            &[
                rope,
                ("norm of q", |t| {
                    map(t, "blk.2.attn_q_norm.weight", |x| x * 1.2)
                }),
                ("norm of k", |t| {
                    map(t, "blk.0.attn_k_norm.weight", |x| x * 1.2)
                }),
            ],
        ),
        (
            "gemma3",
            &[
                rope,
                linear,
                ("a window longer by one", |t| {
                    t.set("attention.sliding_window", Value::U32(WINDOW + 1));
                }),
                ("a window shorter by one", |t| {
                    t.set("attention.sliding_window", Value::U32(WINDOW - 1));
                }),
                ("other global layers", |t| {
                    t.set("attention.sliding_window_pattern", Value::U32(4));
                }),
                ("local base", |t| {
                    t.set("rope.local_freq_base", Value::F32(20_000.0))
                }),
                ("norm after attention", |t| {
                    map(t, "blk.6.post_attention_norm.weight", |x| x * 1.2);
                }),
                ("norm after feed-forward", |t| {
                    map(t, "blk.3.post_ffw_norm.weight", |x| x * 1.2);
                }),
            ],
        ),
    ];
    let tokens: Vec<_> = (0..TOKENS).map(token).collect();
    for (arch, changes) in changes {
        let usual = Ours::of(&tiny(arch, F32), 256).after(&tokens, 1);
        for (what, change) in changes {
            let mut tiny = tiny(arch, F32);
            change(&mut tiny);
            let mut changed = Ours::of(&tiny, 256);
            let stepped = changed.after(&tokens, 1);
            let (most, _) = apart(&stepped, &usual);
            eprintln!("{arch}, {what}: {most}");
            assert!(most > 3.0 * TIGHT, "{arch}, {what}: {most}");
            // And alike by both ways through the decoder.
            let (most, _) = apart(&changed.after(&tokens, 27), &stepped);
            assert!(
                most < TIGHT,
                "{arch}, {what}: {most} between step and forward"
            );
        }
    }
}
