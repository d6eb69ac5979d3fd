//! `kvpsi run`: text of the model on stdout, figures on stderr.
//!
//! Owns the flags and what is said at the end; `talk` holds the conversation,
//! `turns` has stdin and the signals. A signal or a closed pipe ends it cleanly.
//! Out of scope: how tokens are made.

mod command;
mod dialogue;
mod talk;
mod turns;

use super::{reading, weights};
use crate::cli::tell::tell;
use crate::{
    cli::governor::{self, HeldModel},
    control::{Governor, GovernorConfig, GovernorStats, Prepared, Tap},
    engine::{SamplingConfig, Speculate},
    kv::{KvType, Profile, evict::Evict},
    model::{chat::ChatTemplate, default_model},
    pressure::{Choice, SignalError, privilege, programs::Rung},
    units::Bytes,
};
use anyhow::{Context, bail};
use kvpsi_common::{Kind, counters::KindCounters};
use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    sync::{Arc, mpsc},
};
use talk::Talk;
use turns::{Inbox, Signals};

const EXAMPLES: &str = "Examples:
  kvpsi run -p 'Why is the sky blue?'
  kvpsi run -m model.gguf -p 'Once upon a time' --raw -n 100 --temperature 0
  kvpsi run < question.txt
  kvpsi run --chat --system 'Answer in one sentence.'
  printf 'Name a river.\\nHow long is it?\\n' | kvpsi run --chat --seed 7

In a conversation /help lists what else may be typed; Ctrl-C stops the answer.";

/// Which source of memory pressure to listen to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Signal {
    /// The best one that works here
    Auto,
    /// Kernel tracepoints
    Ebpf,
    /// A PSI trigger
    PsiTrigger,
    /// Polling PSI totals
    PsiPoll,
    /// Polling /proc/vmstat: the whole system's reclaim alone
    Vmstat,
    /// What a service manager names in MEMORY_PRESSURE_WATCH
    Systemd,
    /// Never trim
    None,
}

impl Signal {
    pub(super) fn choice(self) -> Option<Choice> {
        match self {
            Self::Auto => Some(Choice::Auto),
            Self::Ebpf => Some(Choice::Ebpf),
            Self::PsiTrigger => Some(Choice::PsiTrigger),
            Self::PsiPoll => Some(Choice::PsiPoll),
            Self::Vmstat => Some(Choice::Vmstat),
            Self::Systemd => Some(Choice::Systemd),
            Self::None => None,
        }
    }
}

/// Arguments of `kvpsi run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// GGUF file, or ollama:NAME [default: $KVPSI_MODEL, else what `cargo xtask model` fetched]
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// What to ask, or with --raw what to continue [default: all of stdin, if it is no terminal]
    #[arg(short, long, conflicts_with = "chat")]
    prompt: Option<String>,
    /// Hold a conversation: in a terminal, or one turn a line on stdin
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// Most tokens of an answer
    #[arg(short = 'n', long, default_value_t = 256, value_name = "TOKENS")]
    max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.9, allow_negative_numbers = true)]
    top_p: f64,
    /// Choose among this many likeliest tokens; 0 for all
    #[arg(long, default_value_t = 40, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..))]
    top_k: u32,
    /// The same seed gives the same text; -1 draws one
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    seed: i64,
    /// Make recent tokens less likely; 1 changes nothing
    #[arg(long, default_value_t = 1.1, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// Tokens that prompt and answers may have together [default: the model's, up to 8192]
    #[arg(long, value_name = "TOKENS")]
    ctx: Option<usize>,
    /// How keys and values are written at first: q8_0 takes half the memory of f16, q4_0 a quarter
    #[arg(long, value_enum, value_name = "TYPE", default_value_t)]
    kv_type: KvType,
    /// What may be lost to return memory
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Which tokens go first where some must
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    evict: Evict,
    /// Tokens below which the conversation's cache does not go
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    kv_floor: usize,
    /// Most memory of keys and values, in MiB [default: all of --ctx]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    kv_budget: Option<u32>,
    /// Guess next tokens from words that prompt and answer repeat, and check several at once where
    /// that is faster; the text is the same
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    speculate: Speculate,
    /// Instructions that come before the conversation
    #[arg(long, conflicts_with = "raw")]
    system: Option<String>,
    /// Chat template to use in place of the file's: a file with a Jinja template, or chatml,
    /// llama3, gemma, mistral or deepseek
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "raw")]
    chat_template: Option<String>,
    /// Send the prompt as it is, without the model's chat template
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    weights: weights::Args,
    /// Record pressure, cache and trims to this file, for `kvpsi replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Threads to compute with [default: $RAYON_NUM_THREADS, else one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// The source of memory pressure events
    #[arg(long, value_enum, default_value = "auto")]
    signal: Signal,
    /// How far up the ladder eBPF goes
    #[arg(long, value_enum, default_value_t = Rung::Auto)]
    rung: Rung,
}

/// Runs the command. Does not return when a signal ended it: the exit code is
/// then 128 and the signal's number.
///
/// # Errors
/// The model, the prompt or a setting cannot be used, or stdout is broken.
pub fn run(args: Args) -> anyhow::Result<()> {
    let prompt = args.prompt()?;
    let sampling = args.sampling();
    sampling.check()?;
    let model = default_model::named(args.model.as_deref())?;
    let template = args.chat_template.as_deref();
    let template = template.map(ChatTemplate::source_of).transpose()?;
    let held = HeldModel::open(&model);
    let weights = args.weights.hold(&model, &held, None);
    let kept = governor::Kept::open(args.record.as_deref())?;
    let tap = kept.as_ref().map(governor::Kept::tap);
    let prepared = listen(args.signal, args.rung, tap)?;
    let (turns, inbox) = mpsc::channel();
    let mut config = held.config();
    config.weights = weights;
    config.chat_template = template;
    config.context = args.ctx;
    config.kv_type = args.kv_type;
    config.profile = args.profile;
    config.evict = args.evict;
    config.floor_tokens = args.kv_floor;
    config.speculate = args.speculate;
    config.kv_budget = args.kv_budget.map(|mib| Bytes::mib(u64::from(mib)));
    let weights = config.weights.clone();
    let signals = Signals::catch(config.stop.clone(), turns.clone(), weights)?;
    let engine = reading::engine(&config)?;
    if let Some(why) = reading::no_chat(&engine, args.ctx).filter(|_| !args.raw) {
        bail!("{why}; give a larger --ctx, or a text to continue by --raw");
    }
    signals.ready();
    let signal = prepared.as_ref().map_or("none", Prepared::signal);
    let recording = kept.map(|k| k.start(signal, engine.pool())).transpose()?;
    let governor = prepared.map(|p| p.start(engine.ladder())).transpose()?;

    let mut talk = Talk {
        engine,
        sampling,
        out: std::io::stdout(),
        closed: false,
        hold: governor
            .as_ref()
            .map(Governor::pressure)
            .unwrap_or_default(),
    };
    match &prompt {
        Some(prompt) => talk.once(prompt, &args)?,
        None => {
            let inbox = Inbox::open(inbox, turns, signals.clone(), talk.hold.clone())?;
            let ended = talk.chat(&inbox, args.system.as_deref());
            signals.restore_terminal();
            ended?;
        }
    }
    drop(talk);
    drop(recording);
    if let Some(governor) = governor {
        report_trims(&governor.stats(), &governor.source().kinds());
    }
    match signals.caught() {
        0 => Ok(()),
        signal => std::process::exit(128 + signal),
    }
}

/// Opens the signal and drops privileges; `None` for `--signal none`, and
/// where the service manager turned watching off.
fn listen(signal: Signal, rung: Rung, tap: Option<Arc<Tap>>) -> anyhow::Result<Option<Prepared>> {
    let Some(choice) = signal.choice() else {
        privilege::drop_all().context("cannot drop privileges")?;
        return Ok(None);
    };
    let config = GovernorConfig {
        tap,
        ..GovernorConfig::default()
    };
    let listening = match governor::listen(choice, rung, false, &config) {
        Err(e) if matches!(e.downcast_ref(), Some(SignalError::Unwanted)) => {
            tell!("nothing will be trimmed: {e}");
            privilege::drop_all().context("cannot drop privileges")?;
            return Ok(None);
        }
        other => other?,
    };
    if !listening.notes.is_empty() {
        let why = listening.notes.join("; ");
        tell!("signal {}: {why}", listening.prepared.signal());
    }
    Ok(Some(listening.prepared))
}

/// What was given back, or that nothing was though tasks stalled; and what
/// was lost, if anything.
fn report_trims(stats: &GovernorStats, kinds: &[(Kind, KindCounters)]) {
    if stats.trims == 0 && stats.events.seen > 0 {
        let seen = kinds.iter().filter(|(_, c)| c.seen > 0);
        let seen: String = seen
            .map(|(kind, c)| format!(", {} {}", c.seen, kind.name()))
            .collect();
        let why = match stats.verdicts.answered() {
            0 => "no stall asked for memory",
            _ => "the cache had none that may go, or the room came back before it was its turn",
        };
        tell!(
            "nothing was given back: {why} (signal {}, {} stalls and marks seen{seen}; woken {} times; stalls: {})",
            stats.signal,
            stats.events.seen,
            stats.wakeups,
            stats.verdicts
        );
    }
    if stats.trims > 0 {
        let steps = stats.by_step.iter().map(|(step, b)| format!("{step} {b}"));
        tell!(
            "{} {} gave back {} ({}), {} tokens dropped (signal {}, {} stalls seen)",
            stats.trims,
            if stats.trims == 1 { "trim" } else { "trims" },
            stats.trimmed_bytes,
            steps.collect::<Vec<_>>().join(", "),
            stats.dropped_tokens,
            stats.signal,
            stats.events.seen
        );
    }
    if stats.owed_bytes > Bytes::ZERO {
        tell!(
            "{} more were asked of packing and thinning, which had not come to it",
            stats.owed_bytes
        );
    }
    if stats.events.dropped > 0 {
        tell!(
            "{} events were lost: the ring buffer was full",
            stats.events.dropped
        );
    }
    if let Some(note) = &stats.source_note {
        tell!("{note}");
    }
    if !stats.alive {
        tell!("the reactor's thread ended; nothing was trimmed after that");
    } else if let Some(e) = &stats.source_error {
        tell!(
            "signal {} broke: {e}; after that limits were watched, and no stall was seen",
            stats.signal
        );
    }
}

/// Most bytes of a prompt on stdin: more than any context holds.
const MOST_PROMPT: u64 = 64 << 20;

impl Args {
    /// The prompt; `None` for a conversation.
    fn prompt(&self) -> anyhow::Result<Option<String>> {
        if self.chat {
            return Ok(None);
        }
        if let Some(prompt) = &self.prompt {
            return Ok(Some(prompt.clone()));
        }
        let stdin = std::io::stdin();
        let mut bytes = Vec::new();
        if !stdin.is_terminal() {
            let mut bounded = stdin.lock().take(MOST_PROMPT + 1);
            bounded
                .read_to_end(&mut bytes)
                .context("the prompt on stdin")?;
        }
        if u64::try_from(bytes.len()).is_ok_and(|n| n > MOST_PROMPT) {
            bail!("the prompt on stdin is longer than 64 MiB: no context holds it");
        }
        let mut prompt = String::from_utf8(bytes).context("the prompt on stdin is no UTF-8")?;
        if prompt.trim().is_empty() {
            let missing = "nothing to answer: give --prompt TEXT, --chat, or a text on stdin";
            let mut cli = super::Cli::prepared();
            // Only then it knows how it was called.
            cli.build();
            let run = cli.find_subcommand_mut("run").context(missing)?;
            let kind = clap::error::ErrorKind::MissingRequiredArgument;
            return Err(run.error(kind, missing).into());
        }
        // The end of its last line is no part of it.
        if prompt.ends_with('\n') {
            prompt.pop();
        }
        Ok(Some(prompt))
    }

    fn sampling(&self) -> SamplingConfig {
        SamplingConfig {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: Some(self.top_p),
            top_k: Some(self.top_k as usize).filter(|&k| k > 0),
            seed: u64::try_from(self.seed).unwrap_or_else(|_| crate::random::number()),
            repeat_penalty: self.repeat_penalty,
            continues: self.raw,
            ..SamplingConfig::default()
        }
    }
}

/// candle and rayon read their thread count from the environment once, and
/// setting it in a running process is unsound: start again with it set.
pub(super) fn restart_with_threads(threads: Option<u16>) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    const KEY: &str = "RAYON_NUM_THREADS";
    let Some(threads) = threads.map(|n| n.to_string()) else {
        return Ok(());
    };
    if std::env::var(KEY).is_ok_and(|now| now == threads) {
        return Ok(());
    }
    let me = std::env::current_exe().context("--threads")?;
    let failed = std::process::Command::new(me)
        .args(std::env::args_os().skip(1))
        .env(KEY, threads)
        .env_remove("CANDLE_NUM_THREADS")
        .exec();
    bail!("--threads: starting again with {KEY} set: {failed}; set it yourself")
}
