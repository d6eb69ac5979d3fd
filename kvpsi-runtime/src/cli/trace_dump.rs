//! `kvpsi trace-dump`: the kernel's memory stalls as they happen.
//!
//! Trace mode by default, every event; with `--coalesced` (and with the PSI
//! sources, which have nothing else) what the runtime would see.

use crate::clock::monotonic_ns;
use crate::signal::{
    self, Choice, PressureSource, SourceConfig, SourceStats,
    accounting::Accounting,
    ebpf::{EbpfSource, EbpfStats, EventRing},
    privilege,
    programs::{self, Rung},
};
use crate::trace::format::{Filter, Format, Writer};
use anyhow::Context;
use kvpsi_common::{Event, Kind};
use std::{
    io::{self, BufWriter},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

/// Size of the trace ring buffer: some 40 000 events.
const TRACE_RING_BYTES: u32 = 4 << 20;

/// How long an event may wait that did not wake anybody.
const LATENCY: Duration = Duration::from_millis(50);

/// Arguments of `kvpsi trace-dump`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How the events are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Stop after this many seconds [default: at Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Only this kind, e.g. memcg_reclaim; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<Kind>,
    /// Only this process
    #[arg(long)]
    pid: Option<u32>,
    /// Where the events come from
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    signal: Choice,
    /// How far up the ladder eBPF goes
    #[arg(long, value_enum, default_value_t = Rung::Auto)]
    rung: Rung,
    /// What the runtime would see instead of every event
    #[arg(long)]
    coalesced: bool,
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::ALL
        .into_iter()
        .find(|k| k.name() == name)
        .ok_or_else(|| {
            let names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
            format!("the kinds are {}", names.join(", "))
        })
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .ok_or_else(|| "a number of seconds, e.g. 10 or 0.5".to_owned())
}

/// Where the events come from, once open.
enum Input {
    Trace {
        source: Box<EbpfSource>,
        ring: Box<EventRing>,
        stats: Arc<EbpfStats>,
        since: Box<Accounting>,
    },
    Coalesced(Box<dyn PressureSource>),
}

impl Input {
    fn open(args: &Args) -> anyhow::Result<(Self, Vec<String>)> {
        let mut config = SourceConfig {
            rung: args.rung,
            ..SourceConfig::default()
        };
        let mut notes = Vec::new();
        let signal = args.signal.with_rung(args.rung);
        if !args.coalesced && matches!(signal, Choice::Auto | Choice::Ebpf) {
            config.trace_ring_bytes = Some(TRACE_RING_BYTES);
            match EbpfSource::open(&config) {
                Ok(mut source) => {
                    notes.extend(programs::missing(source.programs()));
                    notes.extend(programs::unheard(source.programs()));
                    let ring = Box::new(source.take_trace().context("no trace ring buffer")?);
                    let stats = source.counters();
                    let source = Box::new(source);
                    let since = Box::new(Accounting::start(&stats));
                    return Ok((
                        Self::Trace {
                            source,
                            ring,
                            stats,
                            since,
                        },
                        notes,
                    ));
                }
                Err(e) if signal == Choice::Auto => {
                    tracing::debug!("trace mode: {e}");
                    config.trace_ring_bytes = None;
                }
                Err(e) => return Err(e.into()),
            }
        }
        let opened = signal::open(signal, &config)?;
        notes.extend(opened.notes);
        Ok((Self::Coalesced(opened.source), notes))
    }

    fn name(&self) -> String {
        match self {
            Self::Trace { source, .. } => {
                format!("ebpf, rung {}, every event", source.rung().name())
            }
            Self::Coalesced(s) => format!("{}, coalesced", s.name()),
        }
    }

    /// What to wait on: a descriptor, if there is one, and how long at most.
    fn readiness(&self) -> io::Result<(Option<(OwnedFd, Interest)>, Duration)> {
        Ok(match self {
            Self::Trace { ring, .. } => {
                let fd = ring.as_fd().try_clone_to_owned()?;
                (Some((fd, Interest::READABLE)), LATENCY)
            }
            Self::Coalesced(s) => {
                let r = s.readiness();
                let fd = match r.fd {
                    None => None,
                    Some((fd, flags)) => {
                        let urgent = flags.contains(rustix::event::PollFlags::PRI);
                        let interest = if urgent {
                            Interest::PRIORITY
                        } else {
                            Interest::READABLE
                        };
                        Some((fd.try_clone_to_owned()?, interest))
                    }
                };
                (fd, r.interval.unwrap_or(LATENCY))
            }
        })
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        match self {
            Self::Trace { source, ring, .. } => {
                // The coalesced events are not shown, but must not pile up.
                source.drain(&mut |_| {})?;
                ring.drain(sink)
            }
            Self::Coalesced(s) => s.drain(sink),
        }
    }

    fn summary(&self, shown: u64) -> String {
        let totals = |stats: &dyn SourceStats| {
            let t = stats.totals();
            let some = stats.some_ns().map_or_else(
                || "not known".into(),
                |ns| format!("{:.3} ms", Duration::from_nanos(ns).as_secs_f64() * 1e3),
            );
            let note = stats.note().map(|n| format!("\nkvpsi: {n}"));
            format!(
                "seen {}, delivered {}, coalesced {}, dropped {}; some {some}{}",
                t.seen,
                t.delivered,
                t.coalesced,
                t.dropped,
                note.unwrap_or_default()
            )
        };
        match self {
            Self::Trace {
                source,
                stats,
                since,
                ..
            } => {
                let c = stats.counters();
                let account = since.read(stats, source.rung() != Rung::RawTp);
                format!(
                    "shown {shown}; traced {}, lost {}; {}; background {}, orphan ends {}, lost ends {}, untracked {}, implausible {}\nkvpsi: {account}",
                    c.trace_delivered,
                    c.trace_dropped,
                    totals(&**stats),
                    c.background,
                    c.orphan_ends,
                    c.lost_ends,
                    c.untracked,
                    c.implausible
                )
            }
            Self::Coalesced(s) => {
                format!("shown {shown}; {}", totals(&*s.stats()))
            }
        }
    }
}

/// Runs the command.
///
/// # Errors
/// No source works here, or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    // The first events come while the last programs are being attached.
    let start_ns = monotonic_ns();
    let (mut input, notes) = Input::open(&args)?;
    privilege::drop_all().context("capabilities cannot be dropped")?;
    for note in notes {
        eprintln!("kvpsi: {note}");
    }
    eprintln!("kvpsi: source: {}; Ctrl-C ends", input.name());
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(follow(&args, &mut input, start_ns))
}

async fn follow(args: &Args, input: &mut Input, start_ns: u64) -> anyhow::Result<()> {
    let filter = Filter {
        kinds: args.kind.clone(),
        pid: args.pid,
    };
    let out = BufWriter::new(io::stdout());
    let mut writer = Writer::new(out, args.format, filter, start_ns);
    let (fd, longest) = input.readiness()?;
    let ready = fd
        .map(|(fd, interest)| {
            // SAFETY: an `OwnedFd` is one descriptor for as long as it lives.
            unsafe { AsyncFd::register_with_interest(fd, interest) }.map(|a| (a, interest))
        })
        .transpose()?;
    let mut tick = interval(longest);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let end = async {
        match args.duration {
            Some(d) => sleep(d).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    let mut open = true;
    let mut more = true;
    while open && more {
        tokio::select! {
            biased;
            _ = interrupt.recv() => more = false,
            _ = terminate.recv() => more = false,
            () = &mut end => more = false,
            _ = tick.tick() => {}
            guard = wait(ready.as_ref()) => guard?.clear_ready(),
        }
        let mut failed = None;
        input.drain(&mut |event| {
            if failed.is_none() {
                failed = writer.event(event).err();
            }
        })?;
        match failed.map_or_else(|| writer.flush(), Err) {
            Ok(()) => {}
            // Whoever read has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => open = false,
            Err(e) => return Err(e.into()),
        }
    }
    eprintln!("kvpsi: {}", input.summary(writer.shown()));
    Ok(())
}

async fn wait(
    ready: Option<&(AsyncFd<OwnedFd>, Interest)>,
) -> io::Result<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>> {
    match ready {
        Some((fd, interest)) => fd.ready(*interest).await,
        None => std::future::pending().await,
    }
}
