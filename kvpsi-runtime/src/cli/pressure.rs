//! From `--signal` to a reactor that waits for its pool, and to a process
//! without privileges. The one order of steps for every command that trims.

use crate::{
    control::{Governor, GovernorConfig, Prepared},
    signal::{self, Choice, SourceConfig, privilege, programs::Rung},
};
use anyhow::Context;
use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// A reactor that is ready, and what was refused on the way.
#[derive(Debug)]
pub struct Listening {
    /// Waits for the pool.
    pub prepared: Prepared,
    /// One line for each source that was tried in vain.
    pub notes: Vec<String>,
}

/// Opens the source, starts the reactor's thread, then gives up every
/// capability. Call it before any other thread is started: Linux keeps
/// capabilities per thread. With `witness`, a source other than eBPF is
/// watched by eBPF, where that works, so that its delay can be told.
///
/// # Errors
/// No source works, or the reactor cannot be started.
pub fn listen(
    choice: Choice,
    rung: Rung,
    witness: bool,
    config: &GovernorConfig,
) -> anyhow::Result<Listening> {
    let sources = SourceConfig {
        rung,
        ..SourceConfig::default()
    };
    let opened = signal::open(choice.with_rung(rung), &sources)?;
    let mut notes = opened.notes;
    let mut watching = None;
    if witness && opened.source.name() != "ebpf" {
        match signal::open(Choice::Ebpf, &sources) {
            Ok(w) => watching = Some(w.source),
            Err(e) => notes.push(format!("onsets are as late as the signal: {e}")),
        }
    }
    let prepared = Governor::prepare(opened.source, watching, config)?;
    privilege::drop_all().context("cannot give up privileges")?;
    Ok(Listening { prepared, notes })
}

/// A model file opened while there was privilege to: under sudo the user's
/// home is often closed to a root without capabilities.
#[derive(Debug)]
pub struct HeldFile {
    path: PathBuf,
    file: Option<File>,
}

impl HeldFile {
    /// Opens `path`; a failure shows when it is used.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: File::open(path).ok(),
        }
    }

    /// The path, or where the open file can be reached if the path no longer
    /// can.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match &self.file {
            Some(f) if File::open(&self.path).is_err() => {
                format!("/proc/self/fd/{}", f.as_raw_fd()).into()
            }
            _ => self.path.clone(),
        }
    }
}
