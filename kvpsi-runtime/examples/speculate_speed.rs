//! What prompt-lookup speculation gains and costs: texts that repeat and texts
//! that do not, with and without in turn, medians.
//!
//! `cargo run --release --example speculate_speed -- MODEL.gguf [ROUNDS]`. The
//! texts of both sides are the same tokens, which is checked.

#![expect(clippy::cast_precision_loss, reason = "rates and some tokens")]

use anyhow::{Result, ensure};
use kvpsi::engine::{
    Engine, EngineConfig, SamplingConfig, Speculate,
    batch::{Ask, Batch, BatchConfig, Client, Progress, StreamEvent},
};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{Sender, channel},
    time::{Duration, Instant},
};

const CODE: &str = "fn parse_line(line: &str, number: usize) -> Result<Entry, ParseError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Err(ParseError::Empty { number });
    }
    let (key, value) = line.split_once('=').ok_or(ParseError::NoValue { number })?;
    let key = key.trim().to_lowercase();
    let value = value.trim().trim_matches('\"');
    if key.chars().any(|c| !c.is_alphanumeric() && c != '_') {
        return Err(ParseError::BadKey { number, key });
    }
    let kind = match value.parse::<i64>() {
        Ok(whole) => Kind::Whole(whole),
        Err(_) => Kind::Text(value.to_owned()),
    };
    Ok(Entry { key, kind, number })
}
";
const TEXT: &str = "The survey of the northern harbour began in the spring of 1911. Three boats were \
sent out with lead lines and notebooks, and each crew measured the depth at every hundred paces. \
The first boat found the channel to be eleven fathoms deep near the old lighthouse. The second \
crew reported a bank of sand that no chart had shown, and marked it with barrels. The third boat \
did not return before the storm, but its notebook was found later, dry and complete.";

/// A text, where it is drawn from, and whether it repeats.
fn texts() -> Vec<(&'static str, String, f64)> {
    let edited = CODE.replace("number", "line_number");
    let (begin, _) = edited.split_at(edited.find("let line").unwrap_or(0));
    let (quote, _) = TEXT.split_at(TEXT.find("Three").unwrap_or(0));
    vec![
        (
            "code, edited",
            format!(
                "```rust\n{CODE}```\nThe same with `number` renamed to `line_number`:\n```rust\n{begin}"
            ),
            0.0,
        ),
        (
            "summary that quotes",
            format!("{TEXT}\n\nThe report, word for word:\n\"{quote}"),
            0.0,
        ),
        ("story, sampled", "Once upon a time".into(), 0.9),
        (
            "essay, sampled",
            "The causes of the industrial revolution were".into(),
            0.8,
        ),
    ]
}

fn engine(model: &Path, speculate: Speculate) -> Result<Engine> {
    let mut config = EngineConfig::new(model);
    config.context = Some(2048);
    config.parallel = 4;
    config.speculate = speculate;
    Ok(Engine::load(&config)?)
}

fn sampling(temperature: f64, seed: u64) -> SamplingConfig {
    SamplingConfig {
        max_tokens: 160,
        temperature,
        repeat_penalty: 1.0,
        ignore_eos: true,
        seed,
        ..SamplingConfig::default()
    }
}

struct Tokens(Sender<u32>);

impl Client for Tokens {
    fn send(&mut self, event: StreamEvent) {
        if let StreamEvent::Piece { token: Some(t), .. } = event {
            let _ = self.0.send(t);
        }
    }

    fn gone(&self) -> bool {
        false
    }
}

/// Tokens a second of four requests at once, and what they said.
fn four(batch: &mut Batch, prompt: &[u32], temperature: f64, seed: u64) -> (f64, Vec<u32>) {
    let (sender, tokens) = channel();
    let now = Instant::now();
    for i in 0..4 {
        batch.submit(Ask {
            id: i.to_string(),
            tokens: prompt.to_vec(),
            look: None,
            sampling: sampling(temperature, seed * 4 + i),
            constraint: None,
            arrived: now,
            deadline: now + Duration::from_secs(600),
            client: Box::new(Tokens(sender.clone())),
        });
    }
    while batch.step() != Progress::Idle {}
    let mut all: Vec<u32> = tokens.try_iter().collect();
    let rate = all.len() as f64 / now.elapsed().as_secs_f64();
    // Who speaks first in a step depends on the drafts.
    all.sort_unstable();
    (rate, all)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn print(what: &str, off: Vec<f64>, lookup: Vec<f64>, accepted: &str) {
    let pairs = off.iter().zip(&lookup).map(|(off, lookup)| lookup / off);
    let ratio = median(pairs.collect());
    let (off, lookup) = (median(off), median(lookup));
    println!("{what:<28} {off:>8.1} {lookup:>8.1} {ratio:>7.2}  {accepted}");
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let model = args
        .next()
        .ok_or_else(|| anyhow::anyhow!("usage: speculate_speed MODEL.gguf [ROUNDS]"))?;
    let rounds: u64 = args.next().map_or(Ok(7), |n| n.parse())?;
    let both = [Speculate::Off, Speculate::Lookup];
    let mut engines = both
        .map(|how| engine(model.as_ref(), how))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    println!(
        "{:<28} {:>8} {:>8} {:>7}  drafts right",
        "tokens/s, median", "off", "lookup", "ratio"
    );
    for (what, prompt, temperature) in texts() {
        let prompt = engines[0].tokenizer().encode(&prompt, true)?;
        let (mut rates, mut drafted, mut accepted) = ([vec![], vec![]], 0, 0);
        for round in 0..rounds {
            let mut said = [vec![], vec![]];
            for side in [0, 1].map(|side| (side + usize::from(round % 2 == 1)) % 2) {
                let s = sampling(temperature, round);
                let stats = engines[side].generate(&prompt, &s, &mut |piece| {
                    said[side].extend(piece.token);
                    ControlFlow::Continue(())
                })?;
                rates[side].push(stats.decode_rate());
                drafted += stats.drafted;
                accepted += stats.accepted;
            }
            ensure!(said[0] == said[1], "{what}: the texts part");
        }
        let [off, lookup] = rates;
        print(what, off, lookup, &format!("{accepted} of {drafted}"));
    }
    let mut batches: Vec<Batch> = (engines.into_iter())
        .map(|engine| Batch::new(engine, BatchConfig::default()))
        .collect();
    for (what, prompt, temperature) in texts() {
        let prompt = batches[0].engine().tokenizer().encode(&prompt, true)?;
        let mut rates = [vec![], vec![]];
        for round in 0..rounds {
            let mut said = [vec![], vec![]];
            for side in [0, 1].map(|side| (side + usize::from(round % 2 == 1)) % 2) {
                let (rate, tokens) = four(&mut batches[side], &prompt, temperature, round);
                rates[side].push(rate);
                said[side] = tokens;
            }
            ensure!(said[0] == said[1], "{what}: the texts part");
        }
        let [off, lookup] = rates;
        print(&format!("four: {what}"), off, lookup, "");
    }
    Ok(())
}
