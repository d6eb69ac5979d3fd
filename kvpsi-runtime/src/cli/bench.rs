//! `kvpsi bench`: how fast a model runs on this machine.

use super::{governor::HeldModel, reading, signals, weights};
use crate::{
    control::gauge::ResidentGauge,
    kv::KvType,
    model::{default_model, gguf::Gguf, linear::choose},
    speed::{Plan, Speed, read_bandwidth},
    thread_pool::thread_pool,
};
use anyhow::Context;
use serde_json::json;
use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

/// Arguments of `kvpsi bench`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Method: random tokens. Prefill is a prompt of --pp tokens in steps of 512; \
decode is --tg steps of --batch sequences, one token each. Both start --depth \
tokens deep. The median of --repetitions is printed, with the least and the most. \
GB/s are the weights and the cache that a decode step reads, beside a loop that \
reads as many bytes and does nothing else.

RAYON_NUM_THREADS sets the threads, KVPSI_ISA the kernels.

Examples:
  kvpsi bench
  kvpsi bench -m model.gguf --pp 512 --tg 128
  kvpsi bench -m model.gguf --pp 0 --tg 64 --depth 6144 --kv-type q8_0
  kvpsi bench -m model.gguf --batch 4 --json")]
pub struct Args {
    /// GGUF file, or ollama:NAME [default: $KVPSI_MODEL, else the one `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Tokens of the prompt; 0: no prefill
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pp: usize,
    /// Tokens to decode for each sequence; 0: no decode
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    tg: usize,
    /// Tokens in the cache before either
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    depth: usize,
    /// Sequences that decode together
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    batch: u16,
    /// How keys and values are written
    #[arg(long, value_enum, value_name = "TYPE", default_value = "f16")]
    kv_type: KvType,
    /// How often each is measured
    #[arg(short, long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    repetitions: u16,
    #[command(flatten)]
    weights: weights::Args,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command. A signal ends the process, and leaves nothing behind.
///
/// # Errors
/// The model cannot be used, or does not take so many tokens.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = default_model::named(args.model.as_deref())?;
    let isa = choose::active()?;
    let gguf = Gguf::open(&path)?;
    let mut formats = BTreeMap::new();
    for (_, format, shape) in gguf.tensors().filter(|(_, _, shape)| shape.len() > 1) {
        let weights: u64 = shape.iter().product();
        *formats.entry(format.name).or_insert(0) +=
            weights / format.block as u64 * format.file_bytes as u64;
    }
    let gauge = ResidentGauge::open()?;
    let before = gauge.read().unwrap_or_default();
    let weights = args.weights.hold(&path, &HeldModel::open(&path), None);
    let unfinished = weights.clone();
    signals::on_each(move |number| signals::end(number, unfinished.as_ref()))?;
    let decoder = reading::decoder(&gguf, weights.as_ref())?;
    let resident = gauge.read().unwrap_or_default();
    let plan = Plan {
        prompt: args.pp,
        decode: args.tg,
        depth: args.depth,
        batch: usize::from(args.batch),
        kv_type: args.kv_type,
    };
    let mut speed = Speed::new(&decoder, plan).context("kvpsi bench")?;
    // Memory and caches warm up.
    speed.run()?;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..args.repetitions {
        let took = speed.run()?;
        prefill.push(rate(plan.prompt, took.prompt));
        decode.push(rate(plan.decode * plan.batch, took.decode));
    }
    let (prefill, decode) = (Rates::of(prefill), Rates::of(decode));
    let bytes = speed.step_bytes();
    let reads = decode.median / plan.batch as f64 * bytes.0 as f64 / 1e9;
    let limit = read_bandwidth(bytes) / 1e9;
    let mut out = std::io::stdout().lock();
    if args.json {
        let figures = json!({
            "model": path.file_name().map(|n| n.to_string_lossy()),
            "formats": formats,
            "threads": thread_pool().threads(),
            "kernels": isa.name(),
            "kernels_why": choose::reason(isa),
            "weights_bytes": decoder.weights().0,
            "weights_are": decoder.place().to_string(),
            "resident_before_bytes": before.0,
            "resident_bytes": resident.0,
            "pp": plan.prompt,
            "tg": plan.decode,
            "depth": plan.depth,
            "batch": plan.batch,
            "kv_type": plan.kv_type.name(),
            "prefill_tok_s": prefill.json(),
            "decode_tok_s": decode.json(),
            "decode_step_bytes": bytes.0,
            "decode_gb_s": reads,
            "read_gb_s": limit,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&figures)?)?;
        return Ok(());
    }
    let formats: Vec<String> = formats
        .iter()
        .map(|(name, bytes)| format!("{name} {}", crate::units::Bytes(*bytes)))
        .collect();
    writeln!(out, "model     {}: {}", path.display(), formats.join(", "))?;
    writeln!(
        out,
        "kernels   {} ({}), {} threads",
        isa.name(),
        choose::reason(isa),
        thread_pool().threads()
    )?;
    writeln!(
        out,
        "memory    {} resident once loaded, {} before; the file's weights are {}, {}",
        resident,
        before,
        decoder.weights(),
        decoder.place()
    )?;
    let at = format!("depth {}, kv {}", plan.depth, plan.kv_type.name());
    if plan.prompt > 0 {
        writeln!(out, "prefill   {prefill} ({} tokens, {at})", plan.prompt)?;
    }
    if plan.decode > 0 {
        let (tg, batch) = (plan.decode, plan.batch);
        writeln!(
            out,
            "decode    {decode} ({tg} tokens of {batch} sequences, {at})"
        )?;
        writeln!(
            out,
            "bandwidth decode reads {bytes} a step: {reads:.1} GB/s, {:.0} % of the {limit:.1} GB/s of a loop that only reads",
            100.0 * reads / limit
        )?;
    }
    Ok(())
}

fn rate(tokens: usize, took: Duration) -> f64 {
    if took.is_zero() {
        return 0.0;
    }
    tokens as f64 / took.as_secs_f64()
}

/// Tokens per second over the repetitions.
#[derive(Debug)]
struct Rates {
    least: f64,
    median: f64,
    most: f64,
}

impl Rates {
    fn of(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        let at = |i: usize| rates.get(i).copied().unwrap_or(0.0);
        Self {
            least: at(0),
            median: at(rates.len() / 2),
            most: at(rates.len().saturating_sub(1)),
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            least,
            median,
            most,
        } = self;
        write!(f, "{median:.1} tokens/s ({least:.1} to {most:.1})")
    }
}
