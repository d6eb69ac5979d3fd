//! `kvpsi perplexity`: how well the model predicts a text.

use super::reading;
use crate::{
    eval::{self, Score},
    kv::KvType,
    model::{default_model, gguf::Gguf, tokenizer::Tokenizer},
};
use anyhow::Context;
use serde_json::json;
use std::{
    fs,
    io::Write,
    ops::ControlFlow,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Arguments of `kvpsi perplexity`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Method: llama.cpp's default. The text is cut into chunks of --ctx tokens, each \
from an empty cache; the second half of each is predicted.

Examples:
  kvpsi perplexity -f wiki.test.raw
  kvpsi perplexity -f book.txt --ctx 2048 --json -")]
pub struct Args {
    /// GGUF file [default: $KVPSI_MODEL, else the one `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Text to predict, in UTF-8
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    ctx: usize,
    /// How keys and values are written
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    kv_type: KvType,
    /// Stop after so many chunks [default: the whole text]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Write the figures to this file as well; `-`: to stdout, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command. Ctrl-C ends the process: nothing is left behind.
///
/// # Errors
/// The model or the text cannot be used.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = match &args.model {
        Some(path) => path.clone(),
        None => default_model::find()?,
    };
    let text = fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let gguf = Gguf::open(&model)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    // What the tokenizer puts in front of nothing is the start token.
    let start = tokenizer.encode("", true)?.first().copied();
    let tokens = tokenizer.encode(&text, false)?;
    let decoder = reading::decoder(&gguf)?;

    let all = tokens.len() / args.ctx.max(1);
    let all = args.chunks.map_or(all, |most| most.min(all));
    let bar = reading::bar(
        all as u64,
        "perplexity {msg} {bar:30} chunk {pos}/{len}, {eta} left",
    );
    bar.enable_steady_tick(Duration::from_millis(500));
    let started = Instant::now();
    let score = eval::perplexity(
        &decoder,
        &tokens,
        args.ctx,
        args.kv_type,
        start,
        &mut |score| {
            bar.set_message(format!("{:.4}", score.perplexity()));
            bar.set_position(score.chunks as u64);
            if score.chunks >= all {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    bar.finish_and_clear();
    let score = score.with_context(|| args.file.display().to_string())?;
    report(args, &model, tokens.len(), &score, started.elapsed())
}

fn report(
    args: &Args,
    model: &std::path::Path,
    tokens: usize,
    score: &Score,
    took: Duration,
) -> anyhow::Result<()> {
    let rate = (score.chunks * args.ctx) as f64 / took.as_secs_f64();
    let figures = json!({
        "model": model.file_name().map(|n| n.to_string_lossy()),
        "file": args.file.file_name().map(|n| n.to_string_lossy()),
        "method": "llama.cpp chunks, second half scored",
        "ctx": args.ctx,
        "kv": args.kv_type.name(),
        "text_tokens": tokens,
        "chunks": score.chunks,
        "scored_tokens": score.tokens,
        "perplexity": score.perplexity(),
        "error": score.error(),
        "seconds": took.as_secs_f64(),
        "tok_s": rate,
    });
    let pretty = serde_json::to_string_pretty(&figures)?;
    let mut out = std::io::stdout().lock();
    match &args.json {
        Some(path) if path.as_os_str() == "-" => return Ok(writeln!(out, "{pretty}")?),
        Some(path) => {
            fs::write(path, pretty).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => {}
    }
    writeln!(
        out,
        "perplexity {:.4} +/- {:.4} ({} chunks of {} tokens, {} tokens scored, {rate:.0} tokens/s)",
        score.perplexity(),
        score.error(),
        score.chunks,
        args.ctx,
        score.tokens,
    )?;
    Ok(())
}
