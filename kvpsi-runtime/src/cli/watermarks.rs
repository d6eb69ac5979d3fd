//! `kvpsi serve --tune-watermarks`: kswapd wakes earlier while the server runs.
//!
//! Owns a process that sets `vm.watermark_scale_factor` and puts it back. It keeps the
//! privilege that the server drops, does nothing else, and ends with the server however
//! that ends: its standard input is then closed. What somebody else wrote meanwhile
//! stays. Out of scope: which value ([`crate::control::early`]).

use crate::{
    cli::{signals, tell::tell},
    control::early::{EarlyWarning, FACTOR},
};
use anyhow::{Context, bail};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of the keeper's own command.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The value to set
    factor: u64,
}

/// The process; it puts the value back when this is dropped.
#[derive(Debug)]
pub struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Sets what is advised; `None` where the warning comes early enough.
///
/// # Errors
/// The setting cannot be read or written.
pub fn tune() -> anyhow::Result<Option<Keeper>> {
    let now = EarlyWarning::read().context("/proc/zoneinfo or the setting cannot be read")?;
    let Some(factor) = now.advice() else {
        tell!("--tune-watermarks: nothing to do: {now}");
        return Ok(None);
    };
    let mut child = Command::new("/proc/self/exe")
        .args(["watermark-keeper", &factor.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C is for the server, which ends it.
        .process_group(0)
        .spawn()
        .context("cannot start the process that puts the setting back")?;
    let told = child.stdout.take().context("its output is piped")?;
    let keeper = Keeper(child);
    let mut line = String::new();
    BufReader::new(told).read_line(&mut line)?;
    if line.trim() != "set" {
        bail!("vm.watermark_scale_factor stays {}", now.factor);
    }
    tell!(
        "vm.watermark_scale_factor: {} -> {factor} while this runs",
        now.factor
    );
    Ok(Some(keeper))
}

/// The process: sets, says so, waits, puts back.
///
/// # Errors
/// The setting cannot be written.
pub fn keep(args: &Args) -> anyhow::Result<()> {
    let why = || format!("{FACTOR}: it takes root, and a /proc/sys that is not read-only");
    let runtime = signals::one_thread()?;
    runtime.block_on(async {
        // Before anything is changed: a signal must not end this in between.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let old = fs::read_to_string(FACTOR).with_context(why)?;
        fs::write(FACTOR, args.factor.to_string()).with_context(why)?;
        let (tell, closed) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            let _ = tell.send(());
        });
        println!("set");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = closed => {}
        }
        let now = fs::read_to_string(FACTOR).with_context(why)?;
        if now.trim() == args.factor.to_string() {
            fs::write(FACTOR, old.trim()).with_context(why)?;
        }
        // Not waited for: the thread may still read.
        std::process::exit(0)
    })
}
