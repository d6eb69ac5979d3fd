//! How several clients fare at one `kvpsi serve`: tokens a second together, and
//! how long one waits for its next token.

use anyhow::{Context, Result, bail};
use kvpsi_tests::served::{Served, Streamed};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Clients at once, each setting in turn
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    clients: Vec<usize>,
    /// Tokens of an answer
    #[arg(long, default_value_t = 200)]
    tokens: usize,
    /// Rounds through all settings
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

const PROMPT: &str = "Tell me a long story about a lamp, its keeper, and the sea.";

fn ask(served: &Served, prompt: &str, tokens: usize) -> Result<Streamed> {
    let body = json!({
        "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
        "ignore_eos": true, "stream": true,
    });
    let got = served.stream("/v1/chat/completions", &body, |_| true);
    let got = got.map_err(|e| anyhow::anyhow!(e))?;
    if !got.done {
        bail!("no whole answer: {} {}", got.status, got.body);
    }
    Ok(got)
}

/// When tokens came: the first chunk carries the role, the last the finish reason.
fn times(got: &Streamed) -> Vec<Instant> {
    let text = |v: &Value| {
        v["choices"][0]["delta"]["content"]
            .as_str()
            .is_some_and(|t| !t.is_empty())
    };
    got.pieces
        .iter()
        .filter(|(_, v)| text(v))
        .map(|(t, _)| *t)
        .collect()
}

/// Tokens a second while all are at it, and the gaps between tokens in ms.
fn together(served: &Served, clients: usize, tokens: usize) -> Result<(f64, Vec<f64>)> {
    let answers: Vec<Result<Streamed>> = std::thread::scope(|s| {
        let all: Vec<_> = (0..clients)
            .map(|i| s.spawn(move || ask(served, &format!("{PROMPT} ({i})"), tokens)))
            .collect();
        all.into_iter()
            .map(|t| t.join().unwrap_or_else(|_| bail!("a client panicked")))
            .collect()
    });
    let all: Vec<Vec<Instant>> = answers
        .into_iter()
        .map(|a| Ok(times(&a?)))
        .collect::<Result<_>>()?;
    let begin = all
        .iter()
        .filter_map(|t| t.first())
        .max()
        .context("no tokens")?;
    let end = all
        .iter()
        .filter_map(|t| t.last())
        .min()
        .context("no tokens")?;
    let within = all.iter().flatten().filter(|t| *t > begin && *t <= end);
    let time = end.duration_since(*begin).as_secs_f64();
    let rate = within.count() as f64 / time.max(1e-9);
    Ok((rate, all.iter().flat_map(|t| gaps(t)).collect()))
}

fn gaps(times: &[Instant]) -> Vec<f64> {
    let gap = |w: &[Instant]| w[1].duration_since(w[0]).as_secs_f64() * 1e3;
    times.windows(2).map(gap).collect()
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = ((values.len().saturating_sub(1)) as f64 * q).round() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// Three who generate, beside a fourth who comes with one long prompt after the
/// other.
fn beside_prompts(served: &Served, tokens: usize) -> Result<Vec<f64>> {
    let words: Vec<String> = (0..600).map(|i| format!("word{}", i * 7 % 101)).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let long = s.spawn(|| {
            let mut n = 0;
            while !over.load(Relaxed) {
                // Another beginning each time: nothing of it is in the cache.
                n += 1;
                let prompt = format!("{n} {}", words.join(" "));
                if ask(served, &prompt, 2).is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let got = together(served, 3, tokens);
        over.store(true, Relaxed);
        let _ = long.join();
        Ok(got?.1)
    })
}

pub fn run(args: &Args) -> Result<()> {
    let most = args.clients.iter().max().copied().unwrap_or(4).to_string();
    let served = Served::start(&args.model, &["--parallel", &most, "--ctx", "4096"], None);
    together(&served, 2, 20)?;
    let mut rates = vec![Vec::new(); args.clients.len()];
    let mut waits = vec![Vec::new(); args.clients.len()];
    let mut beside = Vec::new();
    for round in 0..args.rounds {
        for i in 0..args.clients.len() {
            // Each setting is first as often as any other.
            let i = (i + round) % args.clients.len();
            let (rate, gaps) = together(&served, args.clients[i], args.tokens)?;
            eprintln!(
                "round {round}: {} clients, {rate:.1} tokens/s",
                args.clients[i]
            );
            rates[i].push(rate);
            waits[i].extend(gaps);
        }
        beside.extend(beside_prompts(&served, args.tokens)?);
    }
    let mut rows = Vec::new();
    for (i, clients) in args.clients.iter().enumerate() {
        rows.push(json!({
            "clients": clients, "beside_prompts": false,
            "tok_s": quantile(&mut rates[i], 0.5),
            "tok_s_min": quantile(&mut rates[i], 0.0), "tok_s_max": quantile(&mut rates[i], 1.0),
            "gap_p50_ms": quantile(&mut waits[i], 0.5), "gap_p99_ms": quantile(&mut waits[i], 0.99),
        }));
    }
    rows.push(json!({
        "clients": 3, "beside_prompts": true,
        "gap_p50_ms": quantile(&mut beside, 0.5), "gap_p99_ms": quantile(&mut beside, 0.99),
    }));
    for row in rows {
        println!("{row}");
    }
    Ok(())
}
