//! What a smaller cache costs: perplexity of one text by budget, policy and
//! encoding.

use crate::settings::{Which, name, row};
use anyhow::{Context, Result};
use kvpsi::{
    eval,
    kv::KvType,
    model::{decoder::Decoder, gguf::Gguf, tokenizer::Tokenizer},
};
use serde_json::json;
use std::{fs, ops::ControlFlow, path::PathBuf, time::Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Text in UTF-8
    #[arg(long)]
    text: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// Chunks of the text
    #[arg(long, default_value_t = 1)]
    chunks: usize,
    #[command(flatten)]
    which: Which,
}

pub fn run(a: &Args) -> Result<()> {
    let gguf = Gguf::open(&a.model)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let text =
        fs::read_to_string(&a.text).with_context(|| format!("cannot read {}", a.text.display()))?;
    let tokens = tokenizer.encode(&text, false)?;
    let start = tokenizer.encode("", true)?.first().copied();
    let decoder = Decoder::load(&gguf)?;
    let mut full = None;
    for setting in a.which.settings() {
        let began = Instant::now();
        let score = eval::perplexity(&decoder, &tokens, a.context, setting, start, &mut |score| {
            if score.chunks >= a.chunks {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let ppl = score.perplexity();
        let full = *full.get_or_insert(ppl);
        let measured = json!({
            "what": "ppl", "context": a.context, "chunks": score.chunks,
            "tokens": score.chunks * a.context, "scored_tokens": score.tokens,
            "bytes": bytes(&decoder, a.context, score.share), "share": score.share,
            "dropped_tokens": score.dropped,
            "ppl": ppl, "ppl_error": score.error(), "ppl_full": full,
            "seconds": began.elapsed().as_secs_f64(),
        });
        println!("{}", row(&setting, measured));
        eprintln!(
            "  {:<26} perplexity {ppl:>8.4} ({:+.2} %), {:.1} % of the bytes",
            name(&setting),
            (ppl / full - 1.0) * 100.0,
            score.share * 100.0,
        );
    }
    Ok(())
}

/// Bytes that a chunk's cache has at its end.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share"
)]
#[expect(clippy::cast_precision_loss, reason = "bytes of a cache")]
fn bytes(decoder: &Decoder, context: usize, share: f64) -> u64 {
    let token = decoder.kv_shape(KvType::F16).token_bytes().0;
    ((token * context as u64) as f64 * share) as u64
}
