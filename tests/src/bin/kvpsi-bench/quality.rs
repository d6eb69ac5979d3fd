//! Perplexity of a text and greedy answers, kvpsi and candle-transformers.

use anyhow::Result;
use kvpsi_tests::quality::{Both, PROMPTS};
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// GGUF file with the tokenizer [default: the model]
    #[arg(long)]
    tokens_of: Option<PathBuf>,
    /// Chunks of the text
    #[arg(long, default_value_t = 40)]
    chunks: usize,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 512)]
    context: usize,
    /// Tokens of each of ten greedy answers
    #[arg(long, default_value_t = 200)]
    tokens: usize,
}

pub fn run(a: &Args) -> Result<()> {
    let tokens_of = a.tokens_of.as_ref().unwrap_or(&a.model);
    let mut both = Both::load(&a.model, tokens_of)?;
    for prompt in PROMPTS {
        let parting = both.greedy(prompt, a.tokens)?;
        eprintln!("  {prompt:?}: {parting:?}");
        let row = json!({
            "what": "greedy", "prompt": prompt, "tokens": a.tokens,
            "same": parting.map_or(a.tokens, |p| p.after),
            "margin": parting.map(|p| p.margin),
        });
        println!("{row}");
    }
    let all = both.likelihood(a.context, a.chunks, &mut |now| {
        let (done, mean) = (now.candle.chunks, now.candle.perplexity());
        eprintln!("  chunk {done}/{}: candle's perplexity {mean:.4}", a.chunks);
    })?;
    let (ours, candle) = (all.ours.perplexity(), all.candle.perplexity());
    let row = json!({
        "what": "perplexity", "text": "holmes.txt", "context": a.context,
        "text_tokens": a.context * a.chunks, "scored_tokens": all.ours.tokens,
        "perplexity": ours, "candle_perplexity": candle, "error": all.ours.error(),
        "ratio": ours / candle,
    });
    println!("{row}");
    Ok(())
}
