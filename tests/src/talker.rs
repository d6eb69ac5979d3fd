//! A tiny model that talks: random weights, a vocabulary of single
//! characters, and a KV cache that is worth trimming.
//!
//! What it says means nothing, and it never ends by itself: there is no token
//! for the end of a text.

use crate::tiny::{Shape, Tiny};
use candle_core::{
    Result,
    quantized::{GgmlDType, gguf_file::Value},
};
use std::path::Path;

/// Tokens that prompt and answer may have together.
pub const CONTEXT: usize = 2048;

const LAYERS: usize = 8;
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;

/// Keys and values of a token in 16 bits: bytes.
pub const TOKEN_BYTES: u64 = (2 * 2 * LAYERS * HEADS * HEAD_DIM) as u64;

/// `tokenizer.ggml.token_type`, as llama.cpp numbers it.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const BYTE: i32 = 6;

/// Writes the model.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path) -> Result<()> {
    let mut pieces = vec![("<unk>".to_owned(), UNKNOWN)];
    pieces.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), BYTE)));
    pieces.push(("\u{2581}".to_owned(), NORMAL));
    pieces.extend(('a'..='z').map(|c| (c.to_string(), NORMAL)));
    let mut tiny = Tiny::new(&Shape {
        arch: "llama",
        layers: LAYERS,
        hidden: 64,
        feed_forward: 64,
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
        vocab: pieces.len(),
        tied: true,
        types: &[GgmlDType::Q8_0],
        seed: 11,
    })?;
    tiny.set(
        "context_length",
        Value::U32(u32::try_from(CONTEXT).map_err(candle_core::Error::wrap)?),
    );
    let texts = pieces.iter().map(|(t, _)| Value::String(t.clone()));
    let kinds = pieces.iter().map(|(_, k)| Value::I32(*k));
    let scores = (0u16..)
        .zip(&pieces)
        .map(|(i, _)| Value::F32(-f32::from(i)));
    for (key, value) in [
        ("model", Value::String("llama".into())),
        ("tokens", Value::Array(texts.collect())),
        ("scores", Value::Array(scores.collect())),
        ("token_type", Value::Array(kinds.collect())),
        ("unknown_token_id", Value::U32(0)),
        ("add_bos_token", Value::Bool(false)),
    ] {
        tiny.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    }
    tiny.write(path)
}
