//! `kvpsi trace-dump`: the kernel's memory stalls as they happen.
//!
//! Trace mode by default, every event; with `--coalesced` (and with the PSI
//! sources, which have nothing else) what the runtime would see.

use super::arrivals::{self, Arrivals, LATENCY, Next, Readiness, seconds};
use super::attach::{self, Server};
use crate::cli::{signals, tell::tell, top::client};
use crate::clock::monotonic_ns;
use crate::control::cgroup::MemoryCgroup;
use crate::pressure::{
    self, Choice, PressureSource, SourceConfig, SourceStats,
    accounting::Accounting,
    ebpf::{EbpfSource, EbpfStats, EventRing},
    privilege,
    programs::{self, Rung},
};
use crate::trace::{
    Output, Sample,
    filter::Filter,
    format::{Jsonl, Text},
    perfetto::Perfetto,
    summary::Summary,
};
use anyhow::{Context, bail};
use kvpsi_common::{Event, Kind};
use std::{
    io::{self, BufWriter},
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::io::Interest;

/// Size of the trace ring buffer: some 40 000 events.
const TRACE_RING_BYTES: u32 = 4 << 20;

/// How events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One line of columns
    Text,
    /// One JSON object per line
    Jsonl,
    /// A trace for ui.perfetto.dev
    Perfetto,
}

/// Arguments of `kvpsi trace-dump`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kvpsi trace-dump --duration 10 --summary          who stalled, how often, how long
  kvpsi trace-dump --min-us 1000 --comm camera      stalls of a millisecond and more of one program
  kvpsi trace-dump --cgroup /sys/fs/cgroup/robot.slice --kind memcg_reclaim
  kvpsi trace-dump --format perfetto > stalls.json  then open it in ui.perfetto.dev
  kvpsi trace-dump --attach                         of a running `kvpsi serve`: trims between the stalls")]
pub struct Args {
    /// How the events are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Figures at the end instead of the events: per kind count, times and a
    /// histogram, and the processes that waited most
    #[arg(long, conflicts_with = "format")]
    summary: bool,
    /// Colours, by how long a stall took
    #[arg(long, value_enum, default_value_t = clap::ColorChoice::Auto)]
    color: clap::ColorChoice,
    /// Stop after this many seconds [default: at Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Only this kind, e.g. memcg_reclaim; may be repeated
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<Kind>,
    /// Only this process
    #[arg(long)]
    pid: Option<u32>,
    /// Only tasks with this command name
    #[arg(long)]
    comm: Option<String>,
    /// Only tasks of this cgroup: its directory below the v2 hierarchy, or its id
    #[arg(long, value_name = "DIR|ID", value_parser = cgroup)]
    cgroup: Option<u64>,
    /// Only what lasted so many microseconds or more
    #[arg(long, value_name = "MICROSECONDS")]
    min_us: Option<u64>,
    /// The stalls and trims of a running `kvpsi serve`, instead of attaching anew [without URL:
    /// $KVPSI_URL, else http://127.0.0.1:8080]
    #[arg(
        long,
        value_name = "URL",
        value_parser = client::address,
        conflicts_with_all = ["signal", "rung", "coalesced"]
    )]
    attach: Option<Option<String>>,
    /// The same, asked by the Unix socket of its --admin-socket: needs no key
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["signal", "rung", "coalesced"]
    )]
    admin_socket: Option<PathBuf>,
    /// The running server's API key
    #[arg(
        long,
        value_name = "KEY",
        env = "KVPSI_API_KEY",
        hide_env_values = true
    )]
    api_key: Option<String>,
    /// The running server's admin key, where it has one
    #[arg(
        long,
        value_name = "KEY",
        env = "KVPSI_ADMIN_KEY",
        hide_env_values = true
    )]
    admin_key: Option<String>,
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

impl Args {
    /// The running server whose stalls are asked for, if one is.
    fn server(&self) -> anyhow::Result<Option<Server>> {
        let url = match (&self.attach, &self.admin_socket) {
            (Some(Some(url)), Some(socket)) => bail!(
                "--attach {url} and --admin-socket {} are two servers: give one",
                socket.display()
            ),
            (_, Some(socket)) => return Ok(Some(Server::Socket(socket.clone()))),
            (None, None) => return Ok(None),
            (Some(Some(url)), None) => url.clone(),
            (Some(None), None) => match std::env::var("KVPSI_URL") {
                Ok(url) => client::address(&url)
                    .map_err(|why| anyhow::anyhow!("KVPSI_URL={url}: {why}"))?,
                Err(_) => client::USUAL.into(),
            },
        };
        let key = self.admin_key.as_ref().or(self.api_key.as_ref());
        Ok(Some(Server::Address(url, key.cloned())))
    }
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

/// `CGROUP2_SUPER_MAGIC` and `CGROUP_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: u64 = 0x6367_7270;
const CGROUP1: u64 = 0x27_e0eb;

/// The id of a cgroup is its directory's inode; events have that of v2 alone.
fn cgroup(text: &str) -> Result<u64, String> {
    use std::os::unix::fs::MetadataExt;
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let io = |e: io::Error| format!("{text}: {}", pressure::plain(&e));
    let kind = rustix::fs::statfs(text).map_err(|e| io(e.into()))?.f_type;
    let what = match u64::try_from(kind) {
        Ok(CGROUP2) => return Ok(std::fs::metadata(text).map_err(io)?.ino()),
        Ok(CGROUP1) => "is a cgroup of v1, and events name the task's cgroup of v2",
        _ => "is no cgroup of v2",
    };
    let instead = match MemoryCgroup::unified_root() {
        Some(root) => format!(
            "give a folder below {}: the line `0::` of /proc/PID/cgroup names a task's",
            root.display()
        ),
        None => "no v2 hierarchy is mounted (`mount -t cgroup2 none DIR`); --pid and --comm filter without one".into(),
    };
    Err(format!("{text} {what}; {instead}"))
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
                    notes.extend(programs::undetected(source.programs()));
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
        let opened = pressure::open(signal, &config)?;
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

    fn readiness(&self) -> io::Result<Readiness> {
        Ok(match self {
            Self::Trace { ring, .. } => {
                let fd = ring.as_fd().try_clone_to_owned()?;
                (Some((fd, Interest::READABLE)), LATENCY)
            }
            Self::Coalesced(s) => arrivals::readiness(s.as_ref())?,
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
    if let Some(server) = args.server()? {
        let taken = filter(&args);
        let mut output = output(&args, start_ns);
        return attach::follow(&server, args.duration, &taken, &mut *output);
    }
    let (mut input, notes) = Input::open(&args)?;
    privilege::drop_all().context("capabilities cannot be dropped")?;
    for note in notes {
        tell!("{note}");
    }
    tell!("source: {}; Ctrl-C ends", input.name());
    signals::one_thread()?.block_on(follow(&args, &mut input, start_ns))
}

/// Where the events go.
fn output(args: &Args, start_ns: u64) -> Box<dyn Output> {
    let stdout = io::stdout();
    let colour = match args.color {
        clap::ColorChoice::Always => true,
        clap::ColorChoice::Never => false,
        // What a terminal and NO_COLOR, CLICOLOR and the like say.
        clap::ColorChoice::Auto => {
            anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never
        }
    };
    let out = BufWriter::new(stdout);
    match args.format {
        _ if args.summary => Box::new(Summary::new(out)),
        Format::Text => Box::new(Text::new(out, start_ns, colour)),
        Format::Jsonl => Box::new(Jsonl::new(out, start_ns)),
        Format::Perfetto => Box::new(Perfetto::new(out)),
    }
}

fn filter(args: &Args) -> Filter {
    Filter {
        kinds: args.kind.clone(),
        pid: args.pid,
        comm: args.comm.clone(),
        cgroup: args.cgroup,
        least: args.min_us.map(Duration::from_micros),
    }
}

async fn follow(args: &Args, input: &mut Input, start_ns: u64) -> anyhow::Result<()> {
    let filter = filter(args);
    let mut output = output(args, start_ns);
    let mut shown = 0u64;
    let mut arrivals = Arrivals::new(input.readiness()?, args.duration)?;
    let mut more = true;
    while more {
        let next = arrivals.next().await?;
        let end = next == Next::End;
        let sampled = if next == Next::Look {
            None
        } else {
            Sample::now()
        };
        let mut failed = sampled.and_then(|s| output.sample(&s).err());
        input.drain(&mut |event| {
            if failed.is_none() && filter.takes(event) {
                shown += 1;
                failed = output.event(event).err();
            }
        })?;
        more = !end;
        let done = failed.map_or_else(|| if end { output.finish() } else { output.flush() }, Err);
        match done {
            Ok(()) => {}
            // The reader closed the pipe.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => more = false,
            Err(e) => return Err(e.into()),
        }
    }
    tell!("{}", input.summary(shown));
    Ok(())
}
