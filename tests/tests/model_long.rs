//! Past 4096 tokens, and with the factors of Llama 3: against candle's float
//! llama on a tiny file with random weights.
//!
//! candle computes angles in f32, which at these positions are off by some
//! ten-thousandths; kvpsi keeps keys and values in f16. A hundredth of the
//! logits' size covers both, and leaving the factors out moves them by far more.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, gguf_file::Value},
};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, Llama3RopeConfig, Llama3RopeType};
use kvpsi_tests::{
    ours::{Ours, apart},
    tiny::{Shape, Tiny},
};
use std::collections::HashMap;

const TIGHT: f32 = 0.01;
const TOKENS: usize = 4600;
const CHUNK: usize = 460;
const BASE: f32 = 50_000.0;
const HEAD: usize = 32;
const HEADS: usize = 2;

/// As in the configuration of Llama 3.1, for a model of a shorter context.
const SCALING: Llama3RopeConfig = Llama3RopeConfig {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 1024,
    rope_type: Llama3RopeType::Llama3,
};

/// What frequencies are divided by, as converters write it to files: 1 for
/// short waves, `factor` for long ones, and in between (Llama 3.1's
/// `apply_scaling`) the inverse of a line through both.
fn factors() -> Vec<f32> {
    let context = SCALING.original_max_position_embeddings as f64;
    let (low, high) = (
        f64::from(SCALING.low_freq_factor),
        f64::from(SCALING.high_freq_factor),
    );
    let factor = f64::from(SCALING.factor);
    let of = |pair: usize| {
        let wave = std::f64::consts::TAU * f64::from(BASE).powf(2.0 * pair as f64 / HEAD as f64);
        let turns = context / wave;
        if turns > high {
            1.0
        } else if turns < low {
            factor
        } else {
            let smooth = (turns - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "files hold f32")]
    let factors = (0..HEAD / 2)
        .map(|pair| of(pair) as f32)
        .collect::<Vec<_>>();
    assert!(factors.contains(&1.0) && factors.contains(&8.0));
    assert!(factors.iter().any(|by| (1.1..7.9).contains(by)));
    factors
}

fn tiny() -> Tiny {
    let mut tiny = Tiny::new(&Shape {
        arch: "llama",
        layers: 2,
        hidden: HEADS * HEAD,
        feed_forward: 96,
        heads: HEADS,
        kv_heads: 1,
        head_dim: HEAD,
        vocab: 101,
        tied: true,
        types: &[GgmlDType::F32],
        seed: 31,
    })
    .unwrap();
    tiny.set("context_length", Value::U32(8192));
    tiny.set("rope.freq_base", Value::F32(BASE));
    tiny
}

/// candle's float llama on the weights of `tiny`: its heads hold the pairs as
/// halves, where files of llama have them side by side.
fn theirs(tiny: &Tiny) -> (Llama, Cache) {
    let halves = |t: &Tensor| {
        let (rows, k) = t.dims2().unwrap();
        t.reshape((rows / HEAD, HEAD / 2, 2, k))
            .and_then(|t| t.transpose(1, 2)?.reshape((rows, k)))
            .unwrap()
    };
    let mut weights = HashMap::new();
    for (name, t) in &tiny.tensors {
        let mut t = t.dequantize(&Device::Cpu).unwrap();
        if name.contains("attn_q") || name.contains("attn_k") {
            t = halves(&t);
        }
        let mut long = name.replace("blk.", "model.layers.");
        for (from, to) in [
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            ("attn_output", "self_attn.o_proj"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ] {
            long = long.replace(from, to);
        }
        weights.insert(long, t);
    }
    let config = Config {
        hidden_size: HEADS * HEAD,
        intermediate_size: 96,
        vocab_size: 101,
        num_hidden_layers: 2,
        num_attention_heads: HEADS,
        num_key_value_heads: 1,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: BASE,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: Some(SCALING),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
    };
    let vars = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    (Llama::load(vars, &config).unwrap(), cache)
}

#[test]
fn past_4096_tokens_the_factors_of_llama_3_are_candles_rope_scaling() {
    let mut scaled = tiny();
    scaled
        .insert("rope_freqs.weight", &factors(), &[HEAD / 2], GgmlDType::F32)
        .unwrap();
    let (mut ours, mut plain) = (Ours::of(&scaled, 8192), Ours::of(&tiny(), 8192));
    let (model, mut cache) = theirs(&tiny());
    let (seq, plain_seq) = (ours.open(), plain.open());
    let tokens: Vec<_> = (0..TOKENS)
        .map(|i| u32::try_from((i * i * 31 + i / 7) % 101).unwrap())
        .collect();
    let mut at = 0;
    // The last ones take the decode step.
    let chunks = tokens.chunks(CHUNK).chain(tokens[..4].chunks(1));
    let (mut most, mut without) = (0f32, 0f32);
    for chunk in chunks {
        let x = Tensor::new(chunk, &Device::Cpu)
            .unwrap()
            .unsqueeze(0)
            .unwrap();
        let want = model.forward(&x, at, &mut cache).unwrap();
        let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
        at += chunk.len();
        most = most.max(apart(&ours.run(seq, chunk), &want).0);
        without = apart(&plain.run(plain_seq, chunk), &want).0;
    }
    eprintln!("{at} tokens: {most}; without the factors {without}");
    assert!(at > 4096 && most < TIGHT, "{most}");
    assert!(without > 10.0 * TIGHT, "{without}");
}
