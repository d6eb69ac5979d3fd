//! What the steps of the ladder cost, and what a second turn costs after the
//! first.
//!
//! Every step is taken on the keys and values of a real text, in the model's
//! own shape. Invariant: what is timed is the step alone; the cache it works
//! on is filled anew for each round.

use crate::models;
use anyhow::{Context, Result, ensure};
use kvpsi::{
    engine::{Engine, EngineConfig, SamplingConfig},
    kv::{KvPool, KvType, Ladder, LadderConfig, SeqId, Step as Rung, Steps, evict::Evict},
    model::{
        decoder::Decoder,
        gguf::Gguf,
        step::{MOST_ROWS, Step},
        tokenizer::Tokenizer,
    },
    units::Bytes,
};
use kvpsi_tests::quality::TEXT;
use serde_json::json;
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Rows of one forward pass.
const BATCH: usize = 512;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the cache that steps are taken on
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Tokens of the first turn of a conversation
    #[arg(long, default_value_t = 2000)]
    turn: usize,
}

/// What is timed: a step, and how.
#[derive(Clone, Copy, Debug)]
enum What {
    Slack,
    Cached,
    Pack(KvType, KvType),
    Thin(Evict),
    Window,
}

impl What {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Slack, Self::Cached];
        all.extend(KvType::ALL.windows(2).map(|w| Self::Pack(w[0], w[1])));
        all.extend(Evict::ALL.map(Self::Thin));
        all.push(Self::Window);
        all
    }

    fn rung(self) -> Rung {
        match self {
            Self::Slack => Rung::Slack,
            Self::Cached => Rung::Cached,
            Self::Pack(..) => Rung::Pack,
            Self::Thin(_) => Rung::Thin,
            Self::Window => Rung::Window,
        }
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    time: Duration,
    /// Given back.
    bytes: u64,
    /// Of the blocks that were worked on.
    read: u64,
}

impl Took {
    /// Microseconds for a MiB given back.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn us_per_mib(&self) -> f64 {
        self.time.as_secs_f64() * 1e6 / (self.bytes as f64 / f64::from(1 << 20))
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn read_bytes_s(&self) -> f64 {
        self.read as f64 / self.time.as_secs_f64()
    }
}

/// A cache, filled.
struct Filled<'a> {
    pool: Arc<KvPool>,
    step: Step,
    seq: SeqId,
    tokens: &'a [u32],
}

impl<'a> Filled<'a> {
    fn new(decoder: &Decoder, what: What, tokens: &'a [u32]) -> Result<Self> {
        let (kind, row_mass) = match what {
            What::Pack(from, _) => (from, false),
            What::Thin(evict) => (KvType::F16, evict.needs_row_mass()),
            _ => (KvType::F16, false),
        };
        let mut shape = decoder.kv_shape(kind);
        shape.row_mass = row_mass;
        let pool = models::pool(shape, tokens.len(), 1, 64)?;
        let mut step = Step::new(decoder, &pool, MOST_ROWS)?;
        let seq = pool.open()?;
        // What the last append wrote is not touched by any step: let it be little.
        let (most, last) = tokens.split_at(tokens.len().saturating_sub(32));
        for rows in most.chunks(BATCH).chain([last]) {
            models::read(decoder, &pool, &mut step, seq, rows)?;
        }
        Ok(Self {
            pool,
            step,
            seq,
            tokens,
        })
    }

    /// Times of trims by `window`, in microseconds, while half of the cache is
    /// there; another thread re-encodes meanwhile, if `busy`.
    fn slices(self, busy: bool) -> Vec<f64> {
        const PAUSE: Duration = Duration::from_micros(500);
        let pool = &self.pool;
        let slice = Bytes(pool.shape().block_bytes().0);
        let half = Bytes(pool.account().in_use.0 / 2);
        let config = LadderConfig {
            pack_to: KvType::Q4_0,
            ..LadderConfig::default()
        };
        let ladder = Ladder::new(pool.clone(), config, self.step.queries());
        let done = AtomicBool::new(!busy);
        let mut times = Vec::new();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let steps = Steps::NONE.with(Rung::Pack);
                while !done.load(Relaxed) {
                    if ladder.step(Bytes(u64::MAX), steps).is_none() {
                        break;
                    }
                }
                done.store(true, Relaxed);
            });
            let steps = Steps::NONE.with(Rung::Window);
            while pool.account().in_use > half && (!busy || !done.load(Relaxed)) {
                std::thread::sleep(PAUSE);
                let began = Instant::now();
                let trimmed = pool.trim(slice, steps);
                if trimmed.given() > Bytes::ZERO {
                    times.push(began.elapsed().as_secs_f64() * 1e6);
                } else if !trimmed.contended {
                    break;
                }
            }
            done.store(true, Relaxed);
        });
        times
    }

    fn take(self, what: What) -> Took {
        let pool = &self.pool;
        let before = pool.account();
        let half = Bytes(before.in_use.0 / 2);
        let steps = Steps::NONE.with(what.rung());
        if matches!(what, What::Cached) {
            let mut hashes = Vec::new();
            pool.hash_blocks(self.tokens, &mut hashes);
            pool.publish(self.seq, &hashes);
        }
        if matches!(what, What::Slack | What::Cached) {
            pool.close(self.seq);
        }
        let config = LadderConfig {
            evict: match what {
                What::Thin(evict) => evict,
                _ => Evict::default(),
            },
            pack_to: match what {
                What::Pack(_, to) => to,
                _ => KvType::F16,
            },
            ..LadderConfig::default()
        };
        let ladder = Ladder::new(pool.clone(), config, self.step.queries());
        let (mut bytes, mut count) = (0, 0);
        let began = Instant::now();
        match what {
            What::Slack | What::Cached | What::Window => {
                bytes = pool.trim(half, steps).bytes.0;
            }
            What::Pack(..) => {
                while let Some(done) = ladder.step(half, steps) {
                    bytes += done.bytes.0;
                    count += 1;
                }
            }
            What::Thin(_) => ladder.fit(half, steps, &mut |done| bytes += done.bytes.0),
        }
        let time = began.elapsed();
        let read = match what {
            What::Pack(from, _) => pool.shape().block_bytes_as(from).0 * count,
            _ => bytes,
        };
        Took { time, bytes, read }
    }
}

pub fn run(a: &Args) -> Result<()> {
    let gguf = Gguf::open(&a.model)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let decoder = Decoder::load(&gguf)?;
    let text = tokenizer.encode(TEXT, false)?;
    ensure!(text.len() >= a.tokens.max(a.turn), "{} tokens", text.len());
    for what in What::all() {
        let mut all = Vec::new();
        for _ in 0..a.rounds {
            all.push(Filled::new(&decoder, what, &text[..a.tokens])?.take(what));
        }
        all.sort_by_key(|t| t.time);
        let took = all[all.len() / 2];
        let (to, policy) = match what {
            What::Pack(from, to) => (Some(format!("{from}->{to}")), None),
            What::Thin(evict) => (None, Some(evict.name())),
            _ => (None, None),
        };
        let row = json!({
            "what": "step", "step": what.rung().name(), "kv": to, "policy": policy,
            "bytes": took.bytes, "us": took.time.as_secs_f64() * 1e6,
            "us_per_mib": took.us_per_mib(),
            "read_bytes_s": matches!(what, What::Pack(..)).then(|| took.read_bytes_s()),
        });
        println!("{row}");
        let name = to.or(policy.map(str::to_owned)).unwrap_or_default();
        eprintln!(
            "  {:<7} {name:<12} {:>9.1} us for a MiB",
            what.rung().name(),
            took.us_per_mib()
        );
    }
    beside(&decoder, &text[..a.tokens], a.rounds)?;
    second_turn(&a.model, &text[..a.turn], a.rounds)
}

/// What the reactor's quick steps take while no thread requantizes, and while
/// one does: slices of a sequence, in turn.
fn beside(decoder: &Decoder, tokens: &[u32], rounds: usize) -> Result<()> {
    let mut times: [Vec<f64>; 2] = Default::default();
    let pack = What::Pack(KvType::Q8_0, KvType::Q4_0);
    for _ in 0..rounds {
        for (busy, times) in times.iter_mut().enumerate() {
            let filled = Filled::new(decoder, pack, tokens)?;
            times.extend(filled.slices(busy == 1));
        }
    }
    let [alone, beside] = times.map(|mut t| {
        t.sort_by(f64::total_cmp);
        json!({
            "slices": t.len(), "p50_us": t[t.len() / 2], "p90_us": t[t.len() * 9 / 10],
            "max_us": t[t.len() - 1],
        })
    });
    eprintln!("  a slice by the reactor, in us: {alone}; while packing: {beside}");
    println!(
        "{}",
        json!({"what": "beside", "alone": alone, "packing": beside})
    );
    Ok(())
}

/// The time to the first token of a second turn, of a conversation that was
/// laid aside meanwhile, beside that of the first.
fn second_turn(model: &Path, first: &[u32], rounds: usize) -> Result<()> {
    let mut engine = Engine::load(&EngineConfig::new(model))?;
    let next = engine
        .tokenizer()
        .encode("\n\nWho is the woman in this story?\n\n", false)?;
    let sampling = SamplingConfig {
        max_tokens: 16,
        ..SamplingConfig::default()
    };
    let mut all = Vec::new();
    for round in 0..rounds {
        // Another beginning: the cache must not know it.
        let mut prompt = first.to_vec();
        let other = u32::try_from(round).context("rounds")?;
        prompt[0] = prompt[0].wrapping_add(other) % 1000;
        let mut session = engine.open()?;
        let ask = |engine: &mut Engine, prompt: &[u32], session: &mut _| {
            let on = &mut |_: kvpsi::engine::Piece<'_>| ControlFlow::Continue(());
            engine.generate_in(session, prompt, &sampling, on)
        };
        let one = ask(&mut engine, &prompt, &mut session)?;
        ensure!(session.park(), "the session lost tokens");
        let two = ask(&mut engine, &next, &mut session)?;
        all.push((one.ttft.as_secs_f64(), two.ttft.as_secs_f64()));
    }
    all.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
    let (one, two) = all[all.len() / 2];
    let row = json!({
        "what": "second_turn", "tokens": first.len(),
        "first_ttft_s": one, "second_ttft_s": two, "ratio": two / one,
    });
    println!("{row}");
    eprintln!("  second turn: first token after {two:.3} s, first turn {one:.3} s");
    Ok(())
}
