//! The model's process, as `reaction`, `cotenant` and `enough` order it about: engine and
//! reactor as every command has them, over a text that is given, so that what
//! trims cost is seen in how well it is predicted.
//!
//! Orders on stdin, one a line:
//! - `cached N`: read N tokens and end that conversation, which stays cached
//! - `fill N [AT]`: begin a conversation and read N tokens of the text, from
//!   token AT on
//! - `floor`: from now on keep no cache beyond the floor
//! - `decode`: go on token by token, until the next order
//! - `follow N`: go on for N tokens, and report
//! - `account`: only report
//! - `trim on`, `trim off`: give back, or only watch and decide
//! - `cpu`: what the reactor's thread has used so far
//!
//! Each but `decode` is answered by a line of JSON, and every trim has one of its
//! own. Ends with its input.

use crate::piped::{join, orders};
use anyhow::{Context, Result, bail, ensure};
use bytemuck::Zeroable;
use clap::ValueEnum;
use kvpsi::{
    clock::monotonic_ns,
    control::{Governor, GovernorConfig, Tuning},
    engine::{Engine, EngineConfig, Session},
    eval::Score,
    kv::{Profile, Steps},
    pressure::{
        self, Choice, EventTotals, PressureSource, Readiness, SignalError, SourceConfig,
        SourceStats, privilege, psi_poll::PsiPoll,
    },
    units::Bytes,
};
use kvpsi_common::{Event, Kind, Phase};
use kvpsi_tests::quality::TEXT;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, Write},
    ops::ControlFlow,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

/// What the model listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ear {
    /// Trims nothing
    Fixed,
    /// Without kvpsi: no signal, no program in the kernel, no reactor
    Off,
    /// As `off`; `cotenant` orders `floor`
    None,
    Ebpf,
    /// eBPF, but kswapd's wake does not count
    EbpfLate,
    /// As `--signal psi-trigger`
    PsiTrigger,
    /// As `--signal psi-poll`: every 100 ms, every 10 while it moves
    PsiPoll,
    /// PSI's `total`, every 10 ms
    #[value(name = "psi-poll-10ms")]
    PsiPoll10ms,
    /// PSI's `avg10`, once a second, above nothing
    #[value(name = "psi-avg10-1s")]
    PsiAvg10,
    Vmstat,
}

impl Ear {
    /// As the command line and tables have it.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// The source; `None` of those that listen to nothing.
    fn open(self) -> Result<Option<Box<dyn PressureSource>>, SignalError> {
        let mut config = SourceConfig::default();
        let choice = match self {
            Self::Off | Self::None => return Ok(None),
            Self::Fixed | Self::Ebpf | Self::EbpfLate => Choice::Ebpf,
            Self::PsiTrigger => Choice::PsiTrigger,
            Self::PsiPoll => Choice::PsiPoll,
            Self::PsiPoll10ms => {
                config.poll_calm = config.poll_interval;
                return Ok(Some(Box::new(PsiPoll::open(&config)?)));
            }
            Self::PsiAvg10 => return Ok(Some(Box::new(Avg10::open()?))),
            Self::Vmstat => Choice::Vmstat,
        };
        let opened = pressure::open(choice, &config)?;
        // Such as a trigger that was granted only with a longer window.
        for note in opened.notes {
            eprintln!("{}: {note}", self.name());
        }
        Ok(Some(opened.source))
    }
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file
    #[arg(long)]
    model: PathBuf,
    /// What to listen to
    #[arg(long, value_enum)]
    ear: Ear,
    /// What may be lost to return memory
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// cgroup.procs files to join by
    procs: Vec<PathBuf>,
}

/// How often trims are told of while nothing is decoded.
const TELL_EVERY: Duration = Duration::from_millis(2);
/// First token of the text for conversations that are ended.
const ELSEWHERE: usize = 12_000;

struct Worker {
    engine: Engine,
    governor: Option<Governor>,
    orders: Receiver<String>,
    text: Vec<u32>,
    session: Option<Session>,
    /// Where in the text the conversation began.
    at: usize,
    /// No cache beyond the floor.
    at_floor: bool,
    /// An order that came while decoding.
    next: Option<String>,
}

pub fn run(a: &Args) -> Result<()> {
    join(&a.procs)?;
    let config = GovernorConfig {
        observe_only: a.ear == Ear::Fixed,
        tuning: Tuning {
            early_warning: a.ear != Ear::EbpfLate,
            ..Tuning::default()
        },
        ..GovernorConfig::default()
    };
    let source = a.ear.open()?;
    let prepared = source.map(|s| Governor::prepare(s, None, &config));
    let prepared = prepared.transpose()?;
    privilege::drop_all()?;
    let engine = Engine::load(&EngineConfig {
        profile: a.profile,
        ..EngineConfig::new(&a.model)
    })?;
    let text = engine.tokenizer().encode(TEXT, false)?;
    let mut worker = Worker {
        governor: prepared.map(|p| p.start(engine.ladder())).transpose()?,
        engine,
        orders: orders(),
        text,
        session: None,
        at: 0,
        at_floor: false,
        next: None,
    };
    let token = worker.engine.pool().shape().token_bytes().0;
    say(&json!({"ready": {"token_bytes": token}}))?;
    while let Some(order) = worker.order()? {
        worker.obey(&order)?;
    }
    Ok(())
}

fn say(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

impl Worker {
    /// Waits for the next order; `None` when there will be none.
    fn order(&mut self) -> Result<Option<String>> {
        if let Some(order) = self.next.take() {
            return Ok(Some(order));
        }
        loop {
            tell_trims(self.governor.as_ref())?;
            match self.orders.recv_timeout(TELL_EVERY) {
                Ok(order) => return Ok(Some(order)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    fn obey(&mut self, order: &str) -> Result<()> {
        let (word, rest) = order.split_once(' ').unwrap_or((order, ""));
        let count = || rest.parse::<usize>().with_context(|| order.to_owned());
        match word {
            "cached" => {
                let until = ELSEWHERE + count()?;
                let mut session = self.engine.open()?;
                let tokens = &self.text[ELSEWHERE..until];
                self.engine.read_in(&mut session, tokens, &mut |_, _| ())?;
                drop(session);
                Ok(say(&self.told("cached"))?)
            }
            "fill" => {
                let pool = self.engine.pool();
                if self.session.take().is_some() {
                    // What is left of the one before would be adopted.
                    let _ = pool.trim(Bytes(u64::MAX), Steps::FREE);
                }
                pool.set_budget(if self.at_floor {
                    pool.floor_of(usize::MAX / 2)
                } else {
                    pool.capacity()
                });
                let (count, at) = rest.split_once(' ').unwrap_or((rest, "0"));
                let count: usize = count.parse().with_context(|| order.to_owned())?;
                self.at = at.parse().with_context(|| order.to_owned())?;
                let mut session = self.engine.open()?;
                let tokens = self.text.get(self.at..self.at + count);
                let tokens = tokens.context("the text is over")?;
                let taken = self
                    .engine
                    .follow_in(&mut session, tokens, &[], &mut |_, _| {
                        ControlFlow::Continue(())
                    });
                taken?;
                self.session = Some(session);
                tell_trims(self.governor.as_ref())?;
                Ok(say(&self.told("filled"))?)
            }
            "floor" => {
                self.at_floor = true;
                let pool = self.engine.pool();
                pool.set_budget(pool.floor_of(usize::MAX / 2));
                let _ = pool.trim(Bytes(u64::MAX), Steps::WINDOW);
                Ok(say(&self.told("at_floor"))?)
            }
            "account" => Ok(say(&self.told("account"))?),
            "decode" => self.go_on(None),
            "follow" => self.go_on(Some(count()?)),
            "trim" => {
                let governor = self.governor.as_ref().context("it listens to nothing")?;
                governor.set_trimming(rest == "on");
                Ok(say(&json!({"trims": rest}))?)
            }
            "cpu" => {
                let used = reactor_cpu().context("the reactor's thread is not there")?;
                Ok(say(
                    &json!({"cpu": {"used_ns": used, "at_ns": monotonic_ns()}}),
                )?)
            }
            _ => bail!("`{order}` is no order"),
        }
    }

    fn told(&self, what: &str) -> Value {
        let a = self.engine.pool().account();
        json!({what: {"resident": a.resident.0, "tokens": a.live_tokens, "floor": a.floor.0}})
    }

    /// Token by token: so many and a report, or until an order comes.
    fn go_on(&mut self, most: Option<usize>) -> Result<()> {
        let mut session = self.session.take().context("fill first")?;
        let at = self.at + session.tokens().len();
        let until = most.map_or(self.text.len(), |n| at + 1 + n);
        let until = until.min(self.text.len());
        ensure!(at < until, "the text is over");
        let text = &self.text[at + 1..until];
        let (mut score, mut began, mut broken) = (Score::default(), None, Ok(()));
        let taken =
            self.engine
                .follow_in(&mut session, &self.text[at..=at], text, &mut |i, logits| {
                    began.get_or_insert_with(Instant::now);
                    broken = tell_trims(self.governor.as_ref());
                    if most.is_some() {
                        score.add(logits, text[i]);
                    } else {
                        match self.orders.try_recv() {
                            Ok(order) => self.next = Some(order),
                            Err(TryRecvError::Empty) => {}
                            Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
                        }
                    }
                    if broken.is_err() || self.next.is_some() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })?;
        broken?;
        if most.is_some() {
            let seconds = began.map_or(f64::NAN, |b| b.elapsed().as_secs_f64());
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let rate = taken as f64 / seconds;
            let kv = self.engine.pool().account().live_tokens;
            tell_trims(self.governor.as_ref())?;
            say(&json!({"done": {
                "taken": taken, "tok_s": rate, "nll": score.nll, "scored": score.tokens,
                "kv_tokens": kv, "lost_tokens": session.lost_tokens(),
            }}))?;
        }
        self.session = Some(session);
        Ok(())
    }
}

fn tell_trims(governor: Option<&Governor>) -> io::Result<()> {
    while let Some(t) = governor.and_then(Governor::next_trim) {
        say(&json!({"trim": {
            "noticed_ns": t.noticed_ns, "returned_ns": t.trimmed.returned_ns,
            "bytes": t.trimmed.bytes.0, "tokens": t.trimmed.tokens,
            "mass_dropped": t.trimmed.mass_dropped, "trigger": t.trigger.name(),
        }}))?;
    }
    Ok(())
}

/// Processor time of the reactor's thread so far, in ns: the first number of
/// its schedstat (Documentation/scheduler/sched-stats.rst).
fn reactor_cpu() -> Option<u64> {
    let tasks = fs::read_dir("/proc/self/task").ok()?;
    let ours = tasks.flatten().map(|t| t.path()).find(|t| {
        fs::read(t.join("comm")).is_ok_and(|name| name.trim_ascii() == b"kvpsi-reactor")
    })?;
    let text = fs::read_to_string(ours.join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// How often [`Avg10`] looks.
const AVG10_EVERY: Duration = Duration::from_secs(1);

/// `avg10` of the system's PSI, once a second: what a program does that reads
/// the file as people do. Anything above nothing is pressure to it.
struct Avg10 {
    file: File,
    /// When it was read last: a reactor looks again after every slice.
    read: Option<Instant>,
    stats: Arc<Nothing>,
}

/// It keeps no account.
struct Nothing;

impl SourceStats for Nothing {
    fn totals(&self) -> EventTotals {
        EventTotals::default()
    }

    fn some_ns(&self) -> Option<u64> {
        None
    }
}

impl Avg10 {
    fn open() -> Result<Self, SignalError> {
        let path = PathBuf::from("/proc/pressure/memory");
        match File::open(&path) {
            Ok(file) => Ok(Self {
                file,
                read: None,
                stats: Arc::new(Nothing),
            }),
            Err(why) => Err(SignalError::File {
                name: "psi-avg10",
                path,
                why: why.to_string(),
            }),
        }
    }
}

impl PressureSource for Avg10 {
    fn name(&self) -> &'static str {
        "psi-avg10"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: None,
            interval: Some(AVG10_EVERY),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        if self.read.is_some_and(|at| at.elapsed() < AVG10_EVERY / 2) {
            return Ok(());
        }
        self.read = Some(Instant::now());
        let mut text = [0u8; 256];
        let n = self.file.read_at(&mut text, 0)?;
        let calm = b"some avg10=0.00 ";
        if !text[..n].starts_with(calm) {
            sink(&Event {
                ts_ns: monotonic_ns(),
                count: 1,
                kind: Kind::Memstall as u16,
                phase: Phase::Onset as u16,
                ..Event::zeroed()
            });
        }
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.stats.clone()
    }
}
