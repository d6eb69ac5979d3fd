//! The question itself: how a neighbour fares that shares a memory limit with
//! the model, while a third program demands memory in bursts; and how one that
//! reads a file from end to end does.
//!
//! Owns the walls and the order of the runs; the model is `worker`, with the
//! signal of the variant, the other programs are `others`. Two walls: a cgroup
//! that all are in; or the machine's own memory, of which a balloon takes all but
//! a little. Invariants: every variant has the same room, the same bursts, and
//! reads on in the same text; before a burst the model has a whole conversation
//! again, so that bursts are alike; variants are run in turn, each round in
//! another order.

use crate::{
    balloon::{self, Balloon},
    hits::{self, Burst, Counts, Turn, sum_of},
    piped::{self, Piped},
    worker::Ear,
};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use kvpsi::{
    clock::monotonic_ns,
    control::{
        cgroup::{MemoryCgroup, OwnedCgroup},
        system::SystemGauge,
        wall::Depth,
    },
    units::Bytes,
};
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// What the neighbour reads pieces of; more of it where the machine is the wall:
/// without, programs would be all that can be reclaimed.
const READ: usize = 32 << 20;
const READ_OF_MACHINE: usize = 96 << 20;
/// Room above what all take between bursts.
const SLACK: u64 = 4 << 20;
/// What a burst takes beyond all room: less than the neighbour's file has.
const BEYOND: u64 = 14 << 20;
/// What the machine has before a run.
const AT_FIRST: u64 = 1 << 30;
/// How long the model goes on before a burst.
const PAUSE: Duration = Duration::from_millis(400);
/// How long after its end turns belong to a burst.
const AFTER: Duration = Duration::from_millis(50);
/// How often free memory is read during a burst.
const SAMPLE: Duration = Duration::from_millis(5);
/// Tokens of the conversation, and of one that ended and is cached.
const FILLED: usize = 700;
const CACHED: usize = 350;
/// The file that is read from end to end, and how often in a run.
const STREAMED: usize = 256 << 20;
const PASSES: u32 = 3;

/// The limit that all run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wall {
    /// The limit of a cgroup
    Cgroup,
    /// The machine's memory, all but a little of which is taken first
    Machine,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bursts of a run, each into a conversation of its own
    #[arg(long, default_value_t = 8)]
    bursts: usize,
    /// Tokens that the model reads on for in a run, in equal parts
    #[arg(long, default_value_t = 1600)]
    tokens: usize,
    /// The limits that all run into, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cgroup")]
    wall: Vec<Wall>,
    /// Instead of bursts and a neighbour: one that reads a file
    #[arg(long)]
    stream: bool,
    /// MiB that a burst takes beyond what all zones keep, where the machine is
    /// the wall: so much that kswapd, which wakes on the way, does not keep up
    #[arg(long, default_value_t = 180)]
    beyond: u64,
    /// Variants
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Ear>,
}

pub fn run(a: &Args) -> Result<()> {
    ensure!(
        a.bursts > 0 && a.tokens >= a.bursts,
        "a burst takes a token"
    );
    // Out here: page cache is charged to who reads it first.
    fs::read(&a.model)?;
    let file = a.stream.then(|| piped::file_of(STREAMED)).transpose()?;
    for &wall in &a.wall {
        // The greater part once: it takes half a minute.
        let _balloon = match wall {
            Wall::Machine => {
                balloon::drop_cache()?;
                Some(Balloon::start(&std::env::current_exe()?, AT_FIRST)?)
            }
            Wall::Cgroup => None,
        };
        // Of the first run, for all.
        let mut taken = None;
        for round in 0..a.rounds {
            let mut order = a.variants.clone();
            // Another order each round, and the same ones in every run.
            let turn = round % order.len().max(1);
            order.rotate_left(turn);
            if round % 2 == 1 {
                order.reverse();
            }
            for ear in order {
                let mut setting = Setting::new(a, wall, ear, &mut taken)?;
                let mut row = match &file {
                    Some(file) => setting.stream(file.path())?,
                    None => setting.bursts(a)?,
                };
                row["round"] = json!(round);
                row["variant"] = json!(ear.name());
                row["wall"] = json!(wall.to_possible_value().map(|v| v.get_name().to_owned()));
                eprintln!("  round {} {:<13} {}", round + 1, ear.name(), brief(&row));
                println!("{row}");
            }
        }
    }
    Ok(())
}

/// What people see of a run while the next one begins.
fn brief(row: &Value) -> String {
    let n = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
    if row["what"] == "stream" {
        return format!(
            "{:.0} MiB/s, {} tokens lost",
            n("mib_s"),
            row["lost_tokens"]
        );
    }
    let bursts = row["bursts"].as_array().map_or(&[][..], Vec::as_slice);
    let mut turns: Vec<u64> = bursts
        .iter()
        .flat_map(|b| b["turns_us"].as_array().into_iter().flatten())
        .filter_map(Value::as_u64)
        .collect();
    turns.sort_unstable();
    let p99 = turns.get(turns.len() * 99 / 100).copied().unwrap_or(0);
    let pressed = bursts.iter().filter(|b| b["pressed"] == true).count();
    format!(
        "p99 within bursts {p99} us, room {:.1} MiB, {} hits before them, some {:.0} ms, {:.1} tokens/s, {} OOM kills, {pressed} of {} bursts pressed{}",
        n("room") / f64::from(1 << 20),
        row["calm_hits"],
        n("psi_some_us") / 1e3,
        n("tok_s"),
        row["oom_kills"],
        bursts.len(),
        if pressed == 0 {
            ": WITHOUT PRESSURE"
        } else {
            ""
        },
    )
}

/// The model with a conversation, and a wall around it.
struct Setting {
    // Dropped in this order: the cgroup goes when no process is in it.
    model: Piped,
    neighbour: Option<Piped>,
    _balloon: Option<Balloon>,
    cgroup: Option<OwnedCgroup>,
    me: PathBuf,
    procs: Vec<PathBuf>,
    /// Tokens after each beginning of a conversation.
    tokens: usize,
    /// A conversation that ended is cached beside it.
    cached: bool,
    /// What a burst takes.
    taken: u64,
    trims: Trims,
}

/// All trims of a run.
#[derive(Default)]
struct Trims {
    count: u64,
    early: u64,
    tokens: u64,
    mass: f64,
}

impl Trims {
    fn hear(&mut self, line: &Value) {
        if let Some(trim) = line.get("trim") {
            self.count += 1;
            self.early += u64::from(trim["trigger"] == "early_warning");
            self.tokens += trim["tokens"].as_u64().unwrap_or(0);
            self.mass += trim["mass_dropped"].as_f64().unwrap_or(0.0);
        }
    }
}

impl Setting {
    fn new(a: &Args, wall: Wall, ear: Ear, taken: &mut Option<u64>) -> Result<Self> {
        let cgroup = match wall {
            Wall::Machine => None,
            Wall::Cgroup => {
                let cgroup = piped::cgroup("cotenant")?;
                cgroup.set_limit(Bytes(4 << 30))?;
                Some(cgroup)
            }
        };
        let procs: Vec<PathBuf> = cgroup.iter().flat_map(|c| c.procs()).collect();
        let me = std::env::current_exe()?;
        let read = match wall {
            Wall::Cgroup => READ,
            Wall::Machine => READ_OF_MACHINE,
        };
        let mut neighbour = None;
        if !a.stream {
            let mut command = Command::new(&me);
            command.args(["cotenant-other", "--read", &read.to_string()]);
            let mut n = Piped::start(command.args(&procs))?;
            n.answer()?;
            neighbour = Some(n);
        }
        let mut model = Command::new(&me);
        model.arg("worker").arg("--model").arg(&a.model);
        model.args(["--ear", &ear.name()]).args(&procs);
        let mut model = Piped::start(&mut model)?;
        let ready = model.wait_for("ready", &mut |_| ())?;
        let tokens = if a.stream {
            a.tokens
        } else {
            a.tokens / a.bursts
        };
        let growth = ready["token_bytes"].as_u64().unwrap_or(0) * tokens as u64;
        let mut setting = Self {
            model,
            neighbour,
            _balloon: None,
            taken: 0,
            cached: wall == Wall::Machine && ear != Ear::None && !a.stream,
            cgroup,
            me,
            procs,
            tokens,
            trims: Trims::default(),
        };
        setting.begin(0)?;
        match &setting.cgroup {
            Some(cgroup) => {
                let usage = cgroup.memory().usage().context("no usage")?;
                cgroup.set_limit(Bytes(usage.0 + growth + SLACK))?;
            }
            None => {
                // With the reserves of lower zones: without, kswapd would be awake
                // before anything began.
                let keep = SystemGauge::open()?.level(Depth::Near).tight.0;
                let balloon = Balloon::start(&setting.me, keep + growth + SLACK)?;
                setting._balloon = Some(balloon);
            }
        }
        // The first token returns what the prompt was computed in.
        setting.model.say("follow 1")?;
        setting.model.wait_for("done", &mut |_| ())?;
        setting.taken = *taken.get_or_insert_with(|| match setting.memory() {
            Some(_) => hits::free(setting.memory()) + BEYOND,
            None => growth + SLACK + (a.beyond << 20),
        });
        if ear == Ear::None {
            // Now: it has the room that the others have.
            setting.model.say("floor")?;
            setting.model.wait_for("at_floor", &mut |_| ())?;
        }
        Ok(setting)
    }

    /// A conversation of its own for burst `number`.
    fn begin(&mut self, number: usize) -> Result<()> {
        let trims = &mut self.trims;
        if self.cached {
            // An ended conversation: what an early warning may release.
            self.model.say(&format!("cached {CACHED}"))?;
            self.model.wait_for("cached", &mut |l| trims.hear(l))?;
        }
        let at = number * (FILLED + self.tokens + 2);
        self.model.say(&format!("fill {FILLED} {at}"))?;
        self.model.wait_for("filled", &mut |l| trims.hear(l))?;
        Ok(())
    }

    fn memory(&self) -> Option<&MemoryCgroup> {
        self.cgroup.as_ref().map(OwnedCgroup::memory)
    }

    fn oom_kills(&self) -> u64 {
        let all = || {
            sum_of(
                &fs::read_to_string("/proc/vmstat").unwrap_or_default(),
                "oom_kill",
            )
        };
        self.memory().map_or_else(all, MemoryCgroup::oom_kills)
    }

    /// The run: a conversation and a burst, over and over.
    fn bursts(&mut self, a: &Args) -> Result<Value> {
        let before = (psi()?, self.oom_kills());
        let mut neighbour = self.neighbour.take().context("no neighbour")?;
        let at_first = (Counts::now(self.memory()), hits::free(self.memory()));
        neighbour.say("go")?;
        let (mut bursts, mut score) = (Vec::new(), Score::default());
        let mut calm_hits = Value::Null;
        for number in 0..a.bursts {
            // One that was killed does not go on.
            if (number > 0 && self.begin(number).is_err())
                || self.model.say(&format!("follow {}", self.tokens)).is_err()
            {
                break;
            }
            std::thread::sleep(PAUSE);
            if number == 0 {
                let now = Counts::now(self.memory());
                calm_hits = now.since(at_first.0, self.cgroup.is_some())["hits"].take();
            }
            bursts.push(self.burst()?);
            let trims = &mut self.trims;
            match self.model.wait_for("done", &mut |l| trims.hear(l)) {
                Ok(done) => score.add(&done),
                Err(_) => break,
            }
        }
        ensure!(piped::interrupted().is_none(), "interrupted");
        let after = (psi()?, self.oom_kills());
        neighbour.say("end")?;
        let told: Value = serde_json::from_str(&neighbour.answer()?)?;
        let turns: Vec<Turn> = serde_json::from_value(told["turns"].clone())?;
        let mut row = json!({
            "what": "cotenant", "neighbour_turns": turns.len(),
            "psi_some_us": after.0.0 - before.0.0, "psi_full_us": after.0.1 - before.0.1,
            "oom_kills": after.1.saturating_sub(before.1),
            "room": at_first.1, "calm_hits": calm_hits,
        });
        let rest = row.as_object_mut().context("an object")?;
        self.tell(&score, rest);
        let ends: Vec<_> = bursts.iter().map(|b| (b.begins, b.ends)).collect();
        let (calm, met) = hits::sort(&turns, &ends, u64::try_from(AFTER.as_nanos())?);
        rest.insert("calm_us".into(), lengths(&calm));
        let met = bursts.iter().zip(&met);
        let met = met.enumerate().map(|(i, (burst, met))| {
            let mut b = burst.counted.clone();
            let sum = |of: fn(&Turn) -> u64| met.within.iter().map(of).sum::<u64>() / 1000;
            b["number"] = json!(i);
            b["taking_us"] = json!(burst.has_all.map(|t| (t - burst.begins) / 1000));
            b["room"] = json!(burst.room);
            b["low"] = json!(burst.low);
            b["turns_us"] = lengths(&met.within);
            b["later_us"] = lengths(&met.later);
            b["cpu_us"] = json!(sum(|t| t.2));
            b["queued_us"] = json!(sum(|t| t.3));
            b["blocked_us"] = json!(sum(|t| t.1.saturating_sub(t.2 + t.3)));
            b
        });
        rest.insert("bursts".into(), met.collect());
        Ok(row)
    }

    /// One burst, to its end.
    fn burst(&self) -> Result<Burst> {
        let mut command = Command::new(&self.me);
        command.args(["cotenant-other", "--burst", &self.taken.to_string()]);
        command.args(&self.procs).stderr(Stdio::null());
        let before = Counts::now(self.memory());
        let mut burst = Burst::new(hits::free(self.memory()));
        let mut program = Piped::start(&mut command)?;
        // It ends by itself, or the OOM killer ends it.
        while let Ok(line) = program.line_within(SAMPLE) {
            match line {
                Some(line) => burst.told(&line),
                None => burst.low = burst.low.min(hits::free(self.memory())),
            }
        }
        if burst.ends == 0 {
            burst.ends = monotonic_ns();
        }
        let counted = Counts::now(self.memory());
        burst.counted = counted.since(before, self.cgroup.is_some());
        Ok(burst)
    }

    /// The run: a file is read from end to end while the model goes on.
    fn stream(&mut self, file: &Path) -> Result<Value> {
        let mut command = Command::new(&self.me);
        command.args(["cotenant-other", "--passes", &PASSES.to_string()]);
        command.arg("--stream").arg(file).args(&self.procs);
        let mut program = Piped::start(&mut command)?;
        program.answer()?;
        let before = Counts::now(self.memory());
        self.model.say(&format!("follow {}", self.tokens))?;
        program.say("go")?;
        let streamed = program.wait_for("streamed", &mut |_| ())?;
        let counted = Counts::now(self.memory());
        let trims = &mut self.trims;
        let done = self.model.wait_for("done", &mut |l| trims.hear(l))?;
        let mut score = Score::default();
        score.add(&done);
        let of = |key: &str| streamed[key].as_u64().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = of("bytes") as f64 / (1 << 20) as f64 / (of("ns").max(1) as f64 / 1e9);
        let mut row = counted.since(before, self.cgroup.is_some());
        row["what"] = json!("stream");
        row["mib_s"] = json!(rate);
        let rest = row.as_object_mut().context("an object")?;
        self.tell(&score, rest);
        Ok(row)
    }

    /// What the model has to say of the run.
    fn tell(&self, score: &Score, row: &mut Map<String, Value>) {
        let trims = &self.trims;
        let all = json!({
            "tok_s": score.rate(), "nll": score.nll, "scored": score.scored,
            "kv_tokens": score.kv_tokens, "lost_tokens": score.lost, "trims": trims.count,
            "early": trims.early, "mass_dropped": trims.mass, "trimmed_tokens": trims.tokens,
        });
        if let Value::Object(all) = all {
            row.extend(all);
        }
    }
}

/// What the model's reports of a run sum up to.
#[derive(Default)]
struct Score {
    nll: f64,
    scored: f64,
    seconds: f64,
    /// Of all conversations at their ends, on average; and in all.
    kv_tokens: f64,
    lost: u64,
    reports: f64,
}

impl Score {
    fn add(&mut self, done: &Value) {
        let of = |key: &str| done[key].as_f64().unwrap_or(0.0);
        self.nll += of("nll");
        self.scored += of("scored");
        self.seconds += of("taken") / of("tok_s").max(f64::MIN_POSITIVE);
        self.reports += 1.0;
        self.kv_tokens += (of("kv_tokens") - self.kv_tokens) / self.reports;
        self.lost += done["lost_tokens"].as_u64().unwrap_or(0);
    }

    /// Tokens a second; 0 of a model that was killed before.
    fn rate(&self) -> f64 {
        if self.seconds > 0.0 {
            self.scored / self.seconds
        } else {
            0.0
        }
    }
}

fn lengths(turns: &[Turn]) -> Value {
    turns.iter().map(|t| t.1 / 1000).collect()
}

/// `some` and `full` totals of the whole system, us; v1 has none of a cgroup.
fn psi() -> Result<(u64, u64)> {
    let sample = kvpsi::trace::Sample::now().context("this kernel keeps no PSI")?;
    Ok((sample.some_us, sample.full_us))
}
