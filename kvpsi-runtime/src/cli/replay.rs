//! `kvpsi replay`: what kvpsi would have done about recorded pressure.

use crate::cli::tell::tell;
use crate::{
    kv::{Profile, Step, evict::Evict},
    trace::{
        recorder::Recorder,
        recording::{Entry, Recording},
        replay::{Made, Outcome, Setup, lacks, simulate},
    },
    units::Bytes,
};
use anyhow::{Context, bail};
use std::{
    io::{self, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Arguments of `kvpsi replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvpsi replay box.rec                                 every profile, side by side
  kvpsi replay box.rec --profile balanced --trims      one of them, trim by trim
  kvpsi replay box.rec --evict keydiff,expected --kv-budget 128
  kvpsi replay box.rec --profile latency --speed 1     as it happened, in its own time

The rule that decides is the runtime's; the cache is only counted. Where the recording is of a
running kvpsi, the cache begins and grows as it did; else it is taken to have been part of the
memory that was in use.")]
pub struct Args {
    /// Recordings, the oldest first; FILE.1 is read before FILE by itself
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What may be lost to return memory; several are compared
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Profile::Lossless, Profile::Balanced, Profile::Latency])]
    profile: Vec<Profile>,
    /// How tokens are chosen: what thinning takes of time; several are compared
    #[arg(long, alias = "policy", value_enum, value_delimiter = ',', default_values_t = [Evict::default()])]
    evict: Vec<Evict>,
    /// Most that the cache takes [default: as recorded, else 64]
    #[arg(long, alias = "budget", value_name = "MIB")]
    kv_budget: Option<u64>,
    /// How fast the cache grows where the recording does not say [default: 20]
    #[arg(long, value_name = "TOKENS_PER_SECOND")]
    rate: Option<u32>,
    /// In how many times its own time one setup is played [default: at once]
    #[arg(long, value_name = "TIMES", value_parser = speed)]
    speed: Option<f64>,
    /// Print every trim
    #[arg(long)]
    trims: bool,
    /// JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: Option<f64> = text.parse().ok();
    speed
        .filter(|s| s.is_finite() && *s > 0.0)
        .ok_or_else(|| "a number of times, e.g. 1 or 10".to_owned())
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read, or the output not written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let recording = read(&args.files)?;
    let setups: Vec<Setup> = args
        .profile
        .iter()
        .flat_map(|profile| {
            args.evict.iter().map(|evict| Setup {
                profile: *profile,
                evict: *evict,
                budget: args.kv_budget.map(Bytes::mib),
                tokens_per_s: args.rate.unwrap_or(Setup::default().tokens_per_s),
                ..Setup::default()
            })
        })
        .collect();
    if args.speed.is_some() && setups.len() > 1 {
        bail!("--speed plays one setup: name one --profile and one --evict");
    }
    match play(args, &recording, &setups) {
        // The reader closed the pipe.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn play(args: &Args, recording: &Recording, setups: &[Setup]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut outcomes = Vec::new();
    for setup in setups {
        let (began, mut failed) = (Instant::now(), None);
        let shown = (args.trims || args.speed.is_some()) && !args.json;
        if shown {
            writeln!(out, "{}", heading(setup))?;
        }
        let outcome = simulate(recording, setup, &mut |t_ns, made| {
            if let Some(speed) = args.speed {
                let due = Duration::from_nanos(t_ns).div_f64(speed);
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            if let Some(made) = made.filter(|_| shown && failed.is_none()) {
                failed = line(&mut out, made).and_then(|()| out.flush()).err();
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        outcomes.push(outcome);
    }
    if args.json {
        json(&mut out, recording, setups, &outcomes)
    } else {
        table(&mut out, recording, setups, &outcomes)
    }
}

/// All files as one recording; what of them could not be read is told.
fn read(files: &[PathBuf]) -> anyhow::Result<Recording> {
    let mut all: Option<Recording> = None;
    for file in files {
        let older = Some(Recorder::older(file)).filter(|o| !files.contains(o) && o.exists());
        for file in older.iter().chain([file]) {
            let name = file.display();
            let one = Recording::open(file).with_context(|| name.to_string())?;
            if let Some(damage) = &one.damage {
                tell!("{name}: {damage}");
            }
            match &mut all {
                Some(all) => all.append(one),
                None => all = Some(one),
            }
        }
    }
    let all = all.context("no recording")?;
    for what in lacks(&all) {
        tell!("{what}");
    }
    Ok(all)
}

fn heading(setup: &Setup) -> String {
    format!("{}, {}", setup.profile.name(), setup.evict.name())
}

fn line(out: &mut impl Write, m: &Made) -> io::Result<()> {
    let steps = Step::ALL.iter().zip(m.by_step);
    let steps: Vec<String> = steps
        .filter(|(_, b)| *b > Bytes::ZERO)
        .map(|(s, b)| format!("{} {b}", s.name()))
        .collect();
    writeln!(
        out,
        "{:>12.3} ms  {:<13} {:<16} wanted {:>10}  gave {:<32} resident {}",
        Duration::from_nanos(m.t_ns).as_secs_f64() * 1e3,
        m.trigger,
        m.kind,
        m.wanted.to_string(),
        steps.join(", "),
        m.resident,
    )
}

/// What the recorded kvpsi did itself: trims, bytes by step, tokens.
fn recorded(recording: &Recording) -> Option<(usize, [Bytes; Step::ALL.len()], u64)> {
    let (mut count, mut by_step, mut tokens) = (0, [Bytes::ZERO; Step::ALL.len()], 0);
    for e in &recording.entries {
        if let Entry::Trim(t) = e {
            count += 1;
            tokens = t.tokens.saturating_add(tokens);
            for (sum, b) in by_step.iter_mut().zip(&t.by_step) {
                sum.0 = sum.0.saturating_add(b.0);
            }
        }
    }
    (count > 0).then_some((count, by_step, tokens))
}

fn table(
    out: &mut impl Write,
    recording: &Recording,
    setups: &[Setup],
    outcomes: &[Outcome],
) -> io::Result<()> {
    let head = &recording.head;
    let last = recording.entries.iter().rev().find_map(|e| match e {
        Entry::Levels { ts_ns, .. } | Entry::Levels1 { ts_ns, .. } | Entry::Kv { ts_ns, .. } => {
            Some(*ts_ns)
        }
        _ => None,
    });
    let length = Duration::from_nanos(last.unwrap_or(head.began_ns).saturating_sub(head.began_ns));
    let events = outcomes.first().map(|o| o.events).unwrap_or_default();
    writeln!(
        out,
        "{:.1} s on Linux {}, {} CPUs, by {}: {} events, {} entries lost",
        length.as_secs_f64(),
        head.kernel,
        head.cpus,
        head.signal,
        events.delivered,
        events.dropped,
    )?;
    let was = recorded(recording);
    let mut columns: Vec<String> = setups.iter().map(heading).collect();
    if was.is_some() {
        columns.insert(0, "as recorded".into());
    }
    let mut row = |name: &str, cells: Vec<String>| -> io::Result<()> {
        write!(out, "{name:<22}")?;
        for c in cells {
            write!(out, " {c:>18}")?;
        }
        writeln!(out)
    };
    row("", columns)?;
    let mut figures = |name: &str, of: &str, each: &dyn Fn(&Outcome) -> String| {
        let was = was.is_some().then(|| of.to_owned());
        row(
            name,
            was.into_iter().chain(outcomes.iter().map(each)).collect(),
        )
    };
    let (count, by_step, tokens) = was.unwrap_or_default();
    let total = |steps: &[Bytes]| {
        let sum = steps.iter().fold(0u64, |sum, b| sum.saturating_add(b.0));
        Bytes(sum).to_string()
    };
    figures("trims", &count.to_string(), &|o| o.trims.len().to_string())?;
    figures("given back", &total(&by_step), &|o| total(&o.by_step))?;
    for (i, step) in Step::ALL.iter().enumerate() {
        let name = format!("  by {}", step.name());
        figures(&name, &by_step[i].to_string(), &|o| {
            o.by_step[i].to_string()
        })?;
    }
    figures("tokens dropped", &tokens.to_string(), &|o| {
        o.dropped_tokens.to_string()
    })?;
    figures("least resident", "-", &|o| o.least.to_string())?;
    figures("resident at the end", "-", &|o| o.resident.to_string())?;
    figures("stalls of others", "-", &|o| o.ignored.to_string())
}

fn json(
    out: &mut impl Write,
    recording: &Recording,
    setups: &[Setup],
    outcomes: &[Outcome],
) -> io::Result<()> {
    let rows: Vec<_> = setups
        .iter()
        .zip(outcomes)
        .map(|(s, o)| {
            serde_json::json!({"profile": s.profile.name(), "policy": s.evict.name(), "outcome": o})
        })
        .collect();
    let all = serde_json::json!({
        "head": recording.head,
        "damage": recording.damage.as_ref().map(ToString::to_string),
        "rows": rows,
    });
    writeln!(out, "{all}")
}
