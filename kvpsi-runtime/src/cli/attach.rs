//! `kvpsi trace-dump --attach`: the stalls and trims of a running server.
//!
//! Owns the connection, and the way back from JSON lines to entries. What the
//! server could not hand over in time is counted and said. Out of scope: how
//! entries are shown.

use crate::cli::{
    signals::{self, Ending},
    tell::tell,
};
use crate::{
    control::Verdicts,
    trace::{KvLevel, Output, filter::Filter, recording::Entry},
};
use anyhow::{Context, bail};
use kvpsi_common::Event;
use std::{
    io::{self, BufRead, BufReader},
    time::Duration,
};
use tokio::sync::mpsc;

/// Time to connect, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines that may wait to be shown.
const ROOM: usize = 4096;

/// Shows what `url` says until it ends, a signal comes, or the time is over.
///
/// # Errors
/// There is no such server, it refuses, or the output cannot be written.
pub(super) fn follow(
    url: &str,
    key: Option<&str>,
    duration: Option<Duration>,
    filter: &Filter,
    output: &mut dyn Output,
) -> anyhow::Result<()> {
    let lines = open(url, key)?;
    // An older server counts none.
    let before = verdicts(url, key);
    tell!("source: {url}, coalesced, with its trims; Ctrl-C ends");
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
    if let (Some(before), Some(now)) = (before, verdicts(url, key)) {
        tell!("stalls meanwhile: {}", now.since(&before));
    }
    if counts.gone {
        bail!("{url} is gone");
    }
    Ok(())
}

/// What became of the server's stalls so far.
fn verdicts(url: &str, key: Option<&str>) -> Option<Verdicts> {
    let text = call(url, "status", key).ok()?.body_mut().read_to_string();
    let status: serde_json::Value = serde_json::from_str(&text.ok()?).ok()?;
    serde_json::from_value(status["stalls"]["verdicts"].clone()).ok()
}

fn call(
    url: &str,
    path: &str,
    key: Option<&str>,
) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .build();
    let agent: ureq::Agent = config.into();
    let mut request = agent.get(format!("{}/kvpsi/{path}", url.trim_end_matches('/')));
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    request.call().with_context(|| {
        format!("no kvpsi answers at {url}; is `kvpsi serve` running, and at this port?")
    })
}

/// The server's answer, line by line.
fn open(url: &str, key: Option<&str>) -> anyhow::Result<impl BufRead + use<>> {
    let mut answer = call(url, "trace", key)?;
    let status = answer.status().as_u16();
    if status != 200 {
        let why = answer.body_mut().read_to_string().unwrap_or_default();
        let hint = match status {
            401 | 403 => "; give --admin-key",
            _ => "",
        };
        bail!("{url} refuses ({status}){hint}: {}", why.trim());
    }
    Ok(BufReader::new(answer.into_body().into_reader()))
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
