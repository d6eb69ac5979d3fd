//! A model of candle's parts whose cache is kvpsi's: it goes on while its cache
//! is trimmed.
//!
//! `cargo run --release --example candle_model -- MODEL.gguf 'Once upon a time' 200`;
//! `candle` behind it takes candle's own cache, which is not trimmed, to compare;
//! a model of the llama family, such as that of `cargo xtask model`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "shapes of a model"
)]

mod model;

use candle_transformers::generation::LogitsProcessor;
use kvpsi::{
    cache::{CacheConfig, KvCache},
    model::{gguf::Gguf, tokenizer::Tokenizer},
    pressure::Choice,
};
use model::{Candle, Model};
use std::{io::Write, path::PathBuf, sync::Arc};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = || anyhow::anyhow!("usage: candle_model MODEL.gguf PROMPT [TOKENS] [candle]");
    let path = PathBuf::from(args.next().ok_or_else(usage)?);
    let prompt = args.next().ok_or_else(usage)?;
    let tokens: usize = args.next().map_or(Ok(100), |n| n.parse())?;

    let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::open(&path)?)?);
    let model = Model::open(&path)?;
    let c = model.config;
    let cache = KvCache::new(CacheConfig::new(c.layers, c.heads, c.kv_heads, c.head_dim))?;
    let governor = cache.govern(Choice::Auto)?;

    let own = args.next().is_some_and(|which| which == "candle");
    let mut own = own.then(|| Candle::new(c));
    let mut sequence = cache.sequence()?;
    let mut sampler = LogitsProcessor::new(0, Some(0.7), Some(0.9));
    let mut text = tokenizer.stream();
    let mut all = tokenizer.encode(&prompt, true)?;
    let mut waiting = all.len();
    for _ in 0..tokens {
        let logits = match &mut own {
            Some(own) => model.forward(&all[all.len() - waiting..], own)?,
            None => loop {
                // A preempted sequence has lost all: its tokens are computed anew.
                if sequence.preempted() {
                    sequence.restart()?;
                }
                let next = &all[sequence.len()..];
                let step = sequence.step(next.len());
                match step.map_err(anyhow::Error::from).and_then(|mut step| {
                    let logits = model.forward(next, &mut step)?;
                    Ok(logits)
                }) {
                    Err(_) if sequence.preempted() => {}
                    done => break done?,
                }
            },
        };
        waiting = 1;
        all.push(sampler.sample(&logits)?);
        let said = all[all.len() - 1];
        if tokenizer.ends(said) {
            break;
        }
        print!("{}", text.push(said)?);
        std::io::stdout().flush()?;
    }
    println!("{}", text.finish()?);
    let (a, stats) = (cache.account(), governor.stats());
    eprintln!(
        "{} tokens in {}, {} trims returned {}, {} tokens dropped",
        sequence.len(),
        a.in_use,
        stats.trims,
        stats.trimmed_bytes,
        sequence.lost_tokens()
    );
    Ok(())
}
