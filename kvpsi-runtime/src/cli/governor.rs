//! From `--signal` to a reactor that waits for its pool, and to a process
//! without privileges. The one order of steps for every command that trims.

use crate::{
    control::{Governor, GovernorConfig, Prepared, Tap, room},
    engine::EngineConfig,
    kv::KvPool,
    model::{gguf::files, open_regular},
    pressure::{self, Choice, PressureSource, SourceConfig, privilege, programs::Rung},
    sandbox::{Confinement, Report},
    trace::{
        recorder::{Background, Recorder, Sink},
        recording::Head,
    },
};
use anyhow::Context;
use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A reactor that is ready, and what was refused on the way.
#[derive(Debug)]
pub struct Listening {
    /// Waits for the pool.
    pub prepared: Prepared,
    /// One line for each source that was tried in vain.
    pub notes: Vec<String>,
}

/// Opens the source, starts the reactor's thread, then drops every
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
    let source = OpenSource::open(choice, rung, witness)?;
    let listening = source.prepare(config)?;
    privilege::drop_all().context("cannot drop privileges")?;
    Ok(listening)
}

/// [`listen`] of a serving process: drops what `confinement`
/// says, ids and capabilities among it. The threads of the reactor work for
/// the same user.
///
/// # Errors
/// As [`listen`]; a thread keeps a privilege.
pub fn listen_confined(
    choice: Choice,
    rung: Rung,
    config: GovernorConfig,
    confinement: &Confinement,
) -> anyhow::Result<(Listening, Report)> {
    let source = OpenSource::open(choice, rung, false)?;
    // Before there are threads: Landlock holds those that are started later.
    let fenced = confinement.fence();
    let listening = source.prepare(&GovernorConfig {
        ids: confinement.ids().cloned(),
        ..config
    })?;
    let report = fenced.leave().context("cannot drop privileges")?;
    Ok((listening, report))
}

/// A source that is open and attached.
struct OpenSource {
    source: Box<dyn PressureSource>,
    witness: Option<Box<dyn PressureSource>>,
    notes: Vec<String>,
}

impl OpenSource {
    fn open(choice: Choice, rung: Rung, witness: bool) -> anyhow::Result<Self> {
        let sources = SourceConfig {
            rung,
            ..SourceConfig::default()
        };
        let opened = pressure::open(choice.with_rung(rung), &sources)?;
        let mut notes = opened.notes;
        let mut watching = None;
        if witness && opened.source.name() != "ebpf" {
            match pressure::open(Choice::Ebpf, &sources) {
                Ok(w) => watching = Some(w.source),
                Err(e) => notes.push(format!("onsets are as late as the signal: {e}")),
            }
        }
        Ok(Self {
            source: opened.source,
            witness: watching,
            notes,
        })
    }

    fn prepare(self, config: &GovernorConfig) -> anyhow::Result<Listening> {
        let prepared = Governor::prepare(self.source, self.witness, config)?;
        Ok(Listening {
            prepared,
            notes: self.notes,
        })
    }
}

/// Entries that a recorder may be late by: some ten seconds of a storm.
const TAP: usize = 1 << 15;
/// Bytes of a recording of a running model, in FILE and FILE.1.
const MOST: u64 = 256 << 20;

/// A recording that waits for the model: its file is open while there is the
/// privilege for it.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    /// None once it is written to.
    file: Option<File>,
    tap: Arc<Tap>,
}

/// What failed before it began leaves no empty file.
impl Drop for Kept {
    fn drop(&mut self) {
        let unused = self.file.as_ref().and_then(|f| f.metadata().ok());
        if unused.is_some_and(|m| m.is_file() && m.len() == 0) {
            // Where it cannot be removed, it stays.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Kept {
    /// Makes the file, if one is wanted.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        // What is there stays until there is something to write.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(Self {
            path: path.to_path_buf(),
            file: Some(file),
            tap: Arc::new(Tap::new(TAP)),
        }))
    }

    /// For [`GovernorConfig::tap`].
    #[must_use]
    pub fn tap(&self) -> Arc<Tap> {
        Arc::clone(&self.tap)
    }

    /// Begins to write.
    ///
    /// # Errors
    /// The file cannot be written, or the thread not made.
    pub fn start(self, signal: &str, pool: Arc<KvPool>) -> anyhow::Result<Background> {
        let path = self.path.display().to_string();
        let tap = self.tap();
        self.sink(signal)
            .and_then(|r| Background::start(vec![r], tap, pool))
            .with_context(|| format!("cannot write {path}"))
    }

    /// Begins the recording, for the caller that hands the entries on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sink(mut self, signal: &str) -> io::Result<Box<dyn Sink>> {
        let file = self.file.take();
        let file = file.ok_or_else(|| io::Error::other("the recording has begun"))?;
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        let recorder = Recorder::over(&self.path, file, Head::here(signal), MOST)?;
        Ok(Box::new(recorder))
    }
}

/// A model file opened while there was privilege to: under sudo the user's
/// home is often closed to a root without capabilities.
#[derive(Debug)]
pub struct HeldFile {
    path: PathBuf,
    file: Option<File>,
}

/// The files of a model, held open.
pub struct HeldModel(Vec<HeldFile>);

impl HeldModel {
    /// Opens all parts of the model that `path` is, or is a part of; a failure
    /// shows when they are used.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        let parts = files::parts(path).unwrap_or_else(|_| vec![path.to_owned()]);
        Self(parts.iter().map(|part| HeldFile::open(part)).collect())
    }

    /// The open files of all parts; `None` where one is not open.
    #[must_use]
    pub fn files(&self) -> Option<Vec<File>> {
        let files = self
            .0
            .iter()
            .map(|held| held.file.as_ref()?.try_clone().ok());
        files.collect()
    }

    /// What an engine is started with, by the paths that can be reached.
    #[must_use]
    pub fn config(&self) -> EngineConfig {
        let mut paths = self.0.iter().map(HeldFile::path);
        let mut config = EngineConfig::new(paths.next().unwrap_or_default());
        config.more_parts = paths.collect();
        config.obtainable = room::obtainable;
        config
    }
}

impl HeldFile {
    /// Opens `path`; a failure shows when it is used.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: open_regular(path).ok(),
        }
    }

    /// The path, or where the open file can be reached if the path no longer
    /// can; the path, too, where this user may not read the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let open = self
            .file
            .as_ref()
            .filter(|_| File::open(&self.path).is_err());
        open.map(|f| PathBuf::from(format!("/proc/self/fd/{}", f.as_raw_fd())))
            .filter(|held| File::open(held).is_ok())
            .unwrap_or_else(|| self.path.clone())
    }
}
