//! `kvpsi record`: a machine's memory pressure, kept to be replayed.

use super::arrivals::{Arrivals, Next, readiness, seconds};
use crate::cli::{signals, tell::tell};
use crate::{
    clock::monotonic_ns,
    control::{GovernorConfig, Scope, gauge::Gauges, open_gauges, wall::Depth},
    pressure::{self, Choice, PressureSource, SourceConfig, privilege, programs::Rung},
    trace::{
        Sample,
        recorder::Recorder,
        recording::{Entry, Head},
    },
};
use anyhow::Context;
use std::{path::PathBuf, time::Duration};

/// Arguments of `kvpsi record`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvpsi record -o box.rec --duration 3600     an hour of this machine's pressure
  kvpsi record -o box.rec --max-size 64       for as long as you like, the newest 64 MiB
  kvpsi replay box.rec                        what kvpsi would have trimmed, by each profile

`kvpsi run --record FILE` writes one of a running model: its cache and its trims too.")]
pub struct Args {
    /// The recording; what is there is overwritten
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Stop after this many seconds [default: at Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Keep the newest so many MiB, in FILE and FILE.1; 0 keeps all
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    max_size: u64,
    /// Where the events come from
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    signal: Choice,
    /// How far up the ladder eBPF goes
    #[arg(long, value_enum, default_value_t = Rung::Auto)]
    rung: Rung,
    /// Whose shortage is recorded
    #[arg(long, value_enum, default_value_t = Scope::Auto)]
    scope: Scope,
}

/// Runs the command.
///
/// # Errors
/// No source works here, or the file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let opened = pressure::open(
        args.signal.with_rung(args.rung),
        &SourceConfig {
            rung: args.rung,
            ..SourceConfig::default()
        },
    )?;
    let mut gauges = open_gauges(&GovernorConfig {
        scope: args.scope,
        ..GovernorConfig::default()
    })?;
    privilege::drop_all().context("capabilities cannot be dropped")?;
    for note in opened.notes {
        tell!("{note}");
    }
    let mut source = opened.source;
    let file = args.output.display().to_string();
    let most = args.max_size << 20;
    let mut recorder = Recorder::create(&args.output, Head::here(source.name()), most)
        .with_context(|| format!("cannot write {file}"))?;
    tell!(
        "source: {}; recording to {file}; Ctrl-C ends",
        source.name()
    );
    let ended =
        signals::one_thread()?.block_on(follow(args, source.as_mut(), &mut gauges, &mut recorder));
    let totals = source.stats().totals();
    tell!(
        "{} entries, {} files before this one; events: seen {}, delivered {}, coalesced {}, dropped {}",
        recorder.entries(),
        recorder.turns(),
        totals.seen,
        totals.delivered,
        totals.coalesced,
        totals.dropped,
    );
    ended.with_context(|| format!("the recording ended early; {file} is whole up to there"))
}

async fn follow(
    args: &Args,
    source: &mut dyn PressureSource,
    gauges: &mut Gauges,
    recorder: &mut Recorder,
) -> anyhow::Result<()> {
    let mut arrivals = Arrivals::new(readiness(source)?, args.duration)?;
    let mut dropped = 0;
    loop {
        let next = arrivals.next().await?;
        let mut delivered = false;
        source.drain(&mut |e| {
            delivered = true;
            recorder.put(&Entry::Event(e.into()));
        })?;
        let sampled = next != Next::Look;
        if delivered || sampled {
            recorder.put(&Entry::Levels {
                ts_ns: monotonic_ns(),
                levels: gauges.levels(Depth::All),
            });
        }
        if sampled {
            if let Some(sample) = Sample::now() {
                recorder.put(&Entry::Psi(sample));
            }
            let now = source.stats().totals().dropped;
            if now > dropped {
                recorder.put(&Entry::Lost(now - dropped));
                dropped = now;
            }
            recorder.flush()?;
        }
        if next == Next::End {
            return Ok(());
        }
    }
}
