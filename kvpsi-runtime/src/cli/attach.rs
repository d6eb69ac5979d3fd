//! `kvpsi trace-dump --attach`: the stalls and trims of a running server.
//!
//! Owns the connection, and the way back from JSON lines to entries. What the
//! server could not hand over in time is counted and said. Out of scope: how
//! entries are shown.

use crate::cli::{
    signals::{self, Ending},
    tell::tell,
    top::client::said,
};
use crate::{
    control::Verdicts,
    pressure::plain,
    trace::{KvLevel, Output, filter::Filter, recording::Entry},
};
use anyhow::{Context, anyhow, bail};
use kvpsi_common::Event;
use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::mpsc;

/// Time to connect, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of a refusal, and of a line of a head.
const MOST_REFUSAL: u64 = 64 << 10;
/// Most bytes of a status.
const MOST_STATUS: u64 = 1 << 20;
/// What does not end.
const TRACE: &str = "trace";
/// Lines that may wait to be shown.
const ROOM: usize = 4096;

/// A running server, and how it is asked.
#[derive(Debug)]
pub(super) enum Server {
    /// By its address, perhaps with a key.
    Address(String, Option<String>),
    /// By its admin socket.
    Socket(PathBuf),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(url, _) => f.write_str(url),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Status and body of an answer.
type Answer = (u16, Box<dyn BufRead + Send>);

impl Server {
    /// What it answers at a path below `/kvpsi/`.
    fn ask(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = match self {
            Self::Address(url, key) => by_address(url, path, key.as_deref()),
            Self::Socket(socket) => by_socket(socket, path),
        };
        answer.map_err(|e| {
            let whose = match self {
                Self::Address(..) => "at this port (--attach URL, or KVPSI_URL)",
                Self::Socket(_) => "with this --admin-socket, and by this user",
            };
            let why = e.downcast_ref().map_or_else(|| e.to_string(), plain);
            anyhow!("no kvpsi answers at {self}: {why}; is `kvpsi serve` running, {whose}?")
        })
    }

    /// The trace, line by line.
    fn trace(&self) -> anyhow::Result<Box<dyn BufRead + Send>> {
        let (status, mut body) = self.ask(TRACE)?;
        if status == 200 {
            return Ok(body);
        }
        let mut why = Vec::new();
        // What there is of it will do.
        let _ = (&mut body).take(MOST_REFUSAL).read_to_end(&mut why);
        let why = said(&why).unwrap_or_else(|| "it is no kvpsi, or an older one".into());
        let hint = match status {
            401 | 403 => "; send --admin-key (or KVPSI_ADMIN_KEY), or ask by --admin-socket PATH",
            _ => "",
        };
        bail!("{self} refuses ({status}): {why}{hint}")
    }

    /// What became of its stalls so far; an older server counts none.
    fn verdicts(&self) -> Option<Verdicts> {
        let (_, body) = self.ask("status").ok()?;
        let status: serde_json::Value = serde_json::from_reader(body.take(MOST_STATUS)).ok()?;
        serde_json::from_value(status["stalls"]["verdicts"].clone()).ok()
    }
}

fn by_address(url: &str, path: &str, key: Option<&str>) -> anyhow::Result<Answer> {
    let config = ureq::Agent::config_builder()
        .proxy(None)
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .build();
    let agent: ureq::Agent = config.into();
    let mut request = agent.get(format!("{url}/kvpsi/{path}"));
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let answer = request.call().map_err(ureq::Error::into_io)?;
    let status = answer.status().as_u16();
    let body = BufReader::new(answer.into_body().into_reader());
    Ok((status, Box::new(body)))
}

/// By HTTP/1.0: its body has no chunks and ends with the connection.
fn by_socket(socket: &Path, path: &str) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET /kvpsi/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n"
    )?;
    let mut body = BufReader::new(stream);
    let mut head = || -> io::Result<String> {
        let mut line = String::new();
        (&mut body).take(MOST_REFUSAL).read_line(&mut line)?;
        Ok(line)
    };
    let first = head()?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("it answers no HTTP: {}", first.trim()))?;
    while !head()?.trim().is_empty() {}
    if path == TRACE && status == 200 {
        // Of a calm machine nothing may come for long.
        body.get_ref().set_read_timeout(None)?;
    }
    Ok((status, Box::new(body)))
}

/// Shows what a server says until it ends, a signal comes, or the time is over.
///
/// # Errors
/// There is no such server, it refuses, or the output cannot be written.
pub(super) fn follow(
    server: &Server,
    duration: Option<Duration>,
    filter: &Filter,
    output: &mut dyn Output,
) -> anyhow::Result<()> {
    let lines = server.trace()?;
    let before = server.verdicts();
    tell!("source: {server}, coalesced, with its trims; Ctrl-C ends");
    let (tell, told) = mpsc::channel(ROOM);
    // It ends with the connection, or with the process.
    std::thread::spawn(move || {
        for line in lines.lines() {
            if tell.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let counts = signals::one_thread()?.block_on(show(told, duration, filter, output))?;
    tell!(
        "shown: events {}, trims {}; lost {}",
        counts.shown,
        counts.trims,
        counts.lost
    );
    if let (Some(before), Some(now)) = (before, server.verdicts()) {
        tell!("stalls meanwhile: {}", now.since(&before));
    }
    if counts.gone {
        bail!("{server} is gone");
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    shown: u64,
    trims: u64,
    lost: u64,
    /// The server ended first.
    gone: bool,
}

async fn show(
    mut told: mpsc::Receiver<io::Result<String>>,
    duration: Option<Duration>,
    filter: &Filter,
    output: &mut dyn Output,
) -> anyhow::Result<Counts> {
    let mut ending = Ending::listen()?;
    let end = tokio::time::sleep(duration.unwrap_or(Duration::from_secs(u64::from(u32::MAX))));
    tokio::pin!(end);
    let mut counts = Counts::default();
    loop {
        let line = tokio::select! {
            line = told.recv() => line,
            _ = ending.next() => break,
            () = &mut end => break,
        };
        let Some(Ok(line)) = line else {
            counts.gone = true;
            break;
        };
        let entry = serde_json::from_str(&line)
            .with_context(|| format!("the server says what this kvpsi does not know: {line}"))?;
        match put(&entry, filter, output, &mut counts) {
            // The reader closed the pipe.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(counts),
            other => other?,
        }
        if told.is_empty() {
            output.flush()?;
        }
    }
    match output.finish() {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(counts),
    }
}

fn put(
    entry: &Entry,
    filter: &Filter,
    output: &mut dyn Output,
    counts: &mut Counts,
) -> io::Result<()> {
    match entry {
        Entry::Event(recorded) => {
            let event = Event::from(recorded);
            if filter.takes(&event) {
                counts.shown += 1;
                output.event(&event)?;
            }
            Ok(())
        }
        Entry::Psi(sample) => output.sample(sample),
        Entry::Trim(trim) => {
            counts.trims += 1;
            output.trim(trim)
        }
        Entry::Kv {
            ts_ns,
            resident,
            in_use,
            budget,
            ..
        } => output.kv(&KvLevel {
            ts_ns: *ts_ns,
            resident: *resident,
            in_use: *in_use,
            budget: *budget,
        }),
        Entry::Lost(n) => {
            counts.lost += n;
            Ok(())
        }
        Entry::Head(_) | Entry::Levels { .. } | Entry::Levels1 { .. } => Ok(()),
    }
}
