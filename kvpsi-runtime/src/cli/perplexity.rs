//! `kvpsi perplexity`: how well the model predicts a text, and what a smaller
//! cache costs.

use super::{output, reading};
use crate::{
    eval::{self, KvSetting, Score},
    kv::{KvType, evict::Evict},
    model::{decoder::Decoder, default_model, gguf::Gguf, tokenizer::Tokenizer},
};
use anyhow::Context;
use serde_json::{Value, json};
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
from an empty cache; the second half of each is predicted. With a --kv-budget \
below 100 % the cache is held, every 128 tokens, to that share of what the \
tokens so far take in f16: cold blocks are packed down to --kv-pack first, then \
tokens are dropped by --evict. One line for each budget, policy and encoding.

Examples:
  kvpsi perplexity -f wiki.test.raw
  kvpsi perplexity -f book.txt --ctx 2048 --json -
  kvpsi perplexity -f book.txt --ctx 2048 --kv-budget 100%,50%,25%,12.5%
  kvpsi perplexity -f book.txt --kv-budget 25% --kv-pack f16 --evict window,expected")]
pub struct Args {
    /// GGUF file, or ollama:NAME [default: $KVPSI_MODEL, else the one `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Text to predict, in UTF-8
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a chunk
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    ctx: usize,
    /// Shares of the cache that may be kept, of its bytes in f16
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "100%", value_parser = share)]
    kv_budget: Vec<f64>,
    /// Which tokens are dropped where a budget is short
    #[arg(long, value_enum, value_name = "POLICY", value_delimiter = ',', default_value = Evict::default().name())]
    evict: Vec<Evict>,
    /// How keys and values are written at first
    #[arg(
        long,
        value_enum,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "f16"
    )]
    kv_type: Vec<KvType>,
    /// What they are packed down to before tokens are dropped [default: the narrowest there is]
    #[arg(long, value_enum, value_name = "TYPE")]
    kv_pack: Option<KvType>,
    /// Stop after so many chunks [default: the whole text]
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Write the figures to this file as well; `-`: to stdout, instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `50%`, or `0.5`.
fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match text.trim().strip_suffix('%') {
        Some(percent) => number(percent).map(|p| p / 100.0),
        None => number(text).filter(|s| *s <= 1.0),
    };
    share
        .filter(|s| *s >= 0.01 && *s <= 1.0)
        .ok_or_else(|| format!("{text}: give a share from 1% to 100%, as in 25%"))
}

impl Args {
    /// What is to be measured: a whole cache has no policy.
    fn settings(&self) -> Vec<KvSetting> {
        let narrowest = KvType::ALL[KvType::ALL.len() - 1];
        let mut all = Vec::new();
        for &kv_type in &self.kv_type {
            for &budget in &self.kv_budget {
                for &evict in &self.evict {
                    let pack_to = self.kv_pack.unwrap_or(narrowest);
                    let setting = KvSetting {
                        kv_type,
                        pack_to: if pack_to as u8 > kv_type as u8 {
                            pack_to
                        } else {
                            kv_type
                        },
                        evict,
                        budget,
                    };
                    all.push(if budget < 1.0 {
                        setting
                    } else {
                        KvSetting::whole(kv_type)
                    });
                }
            }
        }
        let mut each: Vec<KvSetting> = Vec::new();
        for setting in all {
            if !each.contains(&setting) {
                each.push(setting);
            }
        }
        each
    }
}

/// The text, as the model reads it.
struct Text {
    decoder: Decoder,
    tokens: Vec<u32>,
    start: Option<u32>,
}

/// Runs the command. Ctrl-C ends the process: nothing is left behind.
///
/// # Errors
/// The model or the text cannot be used.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(path) = args.json.as_deref().filter(|_| !printed_as_json(args)) {
        output::writable(path).context("--json")?;
    }
    let model = default_model::named(args.model.as_deref())?;
    let text = fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let gguf = Gguf::open(&model)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let text = Text {
        // What the tokenizer puts in front of nothing is the start token.
        start: tokenizer.encode("", true)?.first().copied(),
        tokens: tokenizer.encode(&text, false)?,
        decoder: reading::decoder(&gguf, None)?,
    };
    let mut rows = Vec::new();
    let mut full = None;
    for setting in args.settings() {
        let (score, took) = measure(args, &text, setting)?;
        if setting.budget >= 1.0 && setting.kv_type == KvType::F16 {
            full = Some(score.perplexity());
        }
        let row = row(args, setting, &score, took, full);
        if !printed_as_json(args) {
            print_row(args, &row)?;
        }
        rows.push(row);
    }
    let figures = json!({
        "model": model.file_name().map(|n| n.to_string_lossy()),
        "file": args.file.file_name().map(|n| n.to_string_lossy()),
        "method": "llama.cpp chunks, second half scored",
        "ctx": args.ctx,
        "text_tokens": text.tokens.len(),
        "rows": rows,
    });
    if let Some(path) = &args.json {
        let pretty = serde_json::to_string_pretty(&figures)?;
        if printed_as_json(args) {
            writeln!(std::io::stdout().lock(), "{pretty}")?;
        } else {
            fs::write(path, pretty).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

fn printed_as_json(args: &Args) -> bool {
    args.json.as_ref().is_some_and(|p| p.as_os_str() == "-")
}

fn measure(args: &Args, text: &Text, setting: KvSetting) -> anyhow::Result<(Score, Duration)> {
    let all = text.tokens.len() / args.ctx.max(1);
    let all = args.chunks.map_or(all, |most| most.min(all));
    let bar = reading::bar(
        all as u64,
        "perplexity {msg} {bar:30} chunk {pos}/{len}, {eta} left",
    );
    bar.enable_steady_tick(Duration::from_millis(500));
    let started = Instant::now();
    let score = eval::perplexity(
        &text.decoder,
        &text.tokens,
        args.ctx,
        setting,
        text.start,
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
    Ok((score, started.elapsed()))
}

fn row(args: &Args, setting: KvSetting, score: &Score, took: Duration, full: Option<f64>) -> Value {
    let held = setting.budget < 1.0;
    json!({
        "kv": setting.kv_type.name(),
        "pack": setting.pack_to.name(),
        "policy": held.then(|| setting.evict.name()),
        "budget": setting.budget,
        "bytes": score.share,
        "dropped_tokens": score.dropped,
        "chunks": score.chunks,
        "scored_tokens": score.tokens,
        "perplexity": score.perplexity(),
        "error": score.error(),
        "perplexity_full": full,
        "seconds": took.as_secs_f64(),
        "tok_s": (score.chunks * args.ctx) as f64 / took.as_secs_f64(),
    })
}

fn print_row(args: &Args, row: &Value) -> anyhow::Result<()> {
    let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
    let mut how = text("kv");
    if row["policy"].is_string() {
        how = format!(
            "{how} packed to {}, {} by {}",
            text("pack"),
            format_args!("{:.1} %", number("budget") * 100.0),
            text("policy")
        );
    }
    let beside = row["perplexity_full"]
        .as_f64()
        .filter(|full| *full != number("perplexity"))
        .map_or(String::new(), |full| {
            format!(", {:+.2} %", (number("perplexity") / full - 1.0) * 100.0)
        });
    writeln!(
        std::io::stdout().lock(),
        "perplexity {:.4} +/- {:.4}{beside} (kv {how}: {:.1} % of f16; {} chunks of {} tokens, {} tokens scored, {:.0} tokens/s)",
        number("perplexity"),
        number("error"),
        number("bytes") * 100.0,
        row["chunks"],
        args.ctx,
        row["scored_tokens"],
        number("tok_s"),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_with_or_without_a_percent_sign() {
        assert_eq!(share("12.5%"), Ok(0.125));
        assert_eq!(share("0.5"), Ok(0.5));
        for bad in ["0", "101%", "50", "-1%", "", "x%", "nan"] {
            assert!(share(bad).unwrap_err().contains("1% to 100%"), "{bad}");
        }
    }
}
