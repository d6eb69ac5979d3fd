//! `cargo xtask bench candle-quality`: the same text and answers by
//! candle-transformers.

use crate::{
    bench::{self, build},
    model, places,
    report::{Args, cpu_name, put},
    say,
};
use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use xshell::{Shell, cmd};

/// Perplexity and greedy answers of the model as it is, and with its matrices
/// widened, so that activations are not rounded on either side.
///
/// # Errors
/// Something could not be built, fetched or measured.
pub fn run(sh: &Shell, args: &Args) -> Result<()> {
    bench::setup(sh)?;
    let model = model::get(sh, args.model.as_deref())?;
    let program = build(sh, &places::target().join("native"), "-C target-cpu=native")?;
    let wide = places::target().join("bench-f16.gguf");
    let (m, w) = (&model, &wide);
    cmd!(sh, "{program} requantize --model {m} --to f16 --out {w}")
        .quiet()
        .run()?;
    let mut rows = Vec::new();
    // Widened, candle needs 10 s for a chunk.
    for (matrices, file, chunks) in [("as shipped", m, 40), ("f32", w, 8)] {
        say(format!("{matrices} matrices"));
        let (chunks, tokens) = match args.quick {
            true => (chunks / 8, "50"),
            false => (chunks, "200"),
        };
        let chunks = chunks.to_string();
        let measured = bench::rows(cmd!(
            sh,
            "{program} quality --model {file} --tokens-of {m} --chunks {chunks} --tokens {tokens}"
        ));
        for mut row in measured? {
            row["matrices"] = json!(matrices);
            rows.push(row);
        }
    }
    fs::remove_file(&wide).with_context(|| wide.display().to_string())?;
    for r in &rows {
        let matrices = r["matrices"].as_str().unwrap_or_default();
        match r["what"].as_str() {
            Some("greedy") => println!(
                "{matrices:<10} {} of {} tokens the same, margin {}: {}",
                r["same"], r["tokens"], r["margin"], r["prompt"]
            ),
            _ => println!(
                "{matrices:<10} perplexity {:.4}, candle {:.4}, ratio {:.5}, over {} tokens ({} scored)",
                r["perplexity"].as_f64().unwrap_or(f64::NAN),
                r["candle_perplexity"].as_f64().unwrap_or(f64::NAN),
                r["ratio"].as_f64().unwrap_or(f64::NAN),
                r["text_tokens"],
                r["scored_tokens"],
            ),
        }
    }
    if let Some(file) = &args.json {
        let report = json!({
            "bench": "candle-quality", "machine": cpu_name(), "rows": rows,
            "model": model.file_name().map(|n| n.to_string_lossy()),
        });
        put(file, &serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
