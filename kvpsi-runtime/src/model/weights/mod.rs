//! Repacked weights, kept in a file and mapped.
//!
//! Owns the cache of them: one file for each model and layout, made once, and
//! shared by every process that maps it. Its pages are page cache: the kernel
//! may drop them and read them again. Invariants: a file is complete under its
//! name or not there (written beside it, synced, renamed); none is ever
//! written to or cut afterwards, only removed, so that a mapping stays whole;
//! none that another user could have written is used; nothing is believed that
//! its checksums do not cover. Whatever is wrong with the cache, the model
//! loads without it, and one line says why. Out of scope: which matrices a
//! model has.

pub mod file;
pub mod folder;
mod key;
mod write;

pub use folder::Folder;
pub use key::Key;

use super::{
    Progress,
    gguf::{Gguf, Stamp},
};
use crate::units::Bytes;
use file::Cached;
use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use write::Finished;
pub(super) use write::Writer;

/// Why the cache is not used. One line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// There is no place for it.
    #[error("no home directory: set XDG_CACHE_HOME to an absolute path")]
    NoFolder,
    /// The system refused something.
    #[error("{}: {what}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others could have written what would be mapped.
    #[error("{}: {what}", path.display())]
    Trust {
        /// The file or folder.
        path: PathBuf,
        /// Who could, and what to do.
        what: String,
    },
    /// A file that is not what was written.
    #[error("{}: {what}; it is made anew where that is allowed, and `kvpsi cache clear` removes it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The file would be too large.
    #[error("{}: {what}", path.display())]
    Room {
        /// The folder.
        path: PathBuf,
        /// What there is no room for, and what to do.
        what: String,
    },
    /// The process was told to end.
    #[error("{}: not written: the process is ending", .0.display())]
    Ending(PathBuf),
    /// The model changed meanwhile.
    #[error("{}: the model was replaced while it was read", .0.display())]
    Replaced(PathBuf),
}

/// When weights are kept in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum When {
    /// Where the cache is on a disk of this machine
    #[default]
    Auto,
    /// Wherever the cache is
    On,
    /// Never: weights are in memory that only this process has
    Off,
}

/// The cached weights of one model, as far as they can be had before anything
/// of the model is read: the folder is open, and so is the file, if there is
/// one. For a process that may open neither later.
#[derive(Clone, Debug)]
pub struct Weights(Arc<Held>);

#[derive(Debug)]
struct Held {
    folder: Folder,
    /// Most bytes that the folder's files may have together.
    most: Bytes,
    key: Key,
    /// The model, for people.
    model: PathBuf,
    /// The model's parts.
    files: Vec<File>,
    stamps: Vec<Stamp>,
    found: Option<File>,
    begun: Mutex<Begun>,
}

/// What is being written.
#[derive(Debug, Default)]
struct Begun {
    /// The file's name for now.
    name: Option<String>,
    /// The process is about to end: nothing more is begun.
    ended: bool,
}

/// Where a decoder's matrices are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In memory of this process alone.
    #[default]
    Private,
    /// In a file of the cache.
    Mapped,
    /// In a file of the cache that was made for it, which took so long.
    Made(Duration),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Private => f.write_str("in private memory"),
            Self::Mapped => f.write_str("mapped from the weights cache"),
            Self::Made(took) => write!(
                f,
                "mapped from the weights cache, which took {:.1} s to write, once",
                took.as_secs_f64()
            ),
        }
    }
}

impl Weights {
    /// Looks for the weights of a model whose parts are open. Reads no more of
    /// the model than some bytes for a digest, and believes none of them.
    ///
    /// # Errors
    /// The folder cannot be made or used.
    pub fn hold(
        folder: Folder,
        most: Bytes,
        model: &Path,
        files: Vec<File>,
    ) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: model.into(),
            what: "cannot be read",
            source,
        };
        let stamps: Result<Vec<_>, _> = files
            .iter()
            .map(|file| file.metadata().map(|meta| Stamp::of(&meta)))
            .collect();
        let stamps = stamps.map_err(io)?;
        let key = Key::of(&files, &stamps).map_err(io)?;
        folder.clean_temporary();
        let name = key.file_name();
        let found = match folder.open_file(&name) {
            Err(WeightsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                None
            }
            other => Some(other?),
        };
        // While it can be removed: a process that confines itself can make
        // another only if there is none now.
        let found = found.filter(|file| match file::describe(file) {
            Ok(_) => true,
            Err(e) => {
                tracing::warn!("weights cache: {name}: {e}; it is made anew");
                folder.remove(&name).is_err()
            }
        });
        Ok(Self(Arc::new(Held {
            folder,
            most,
            key,
            model: std::fs::canonicalize(model).unwrap_or_else(|_| model.into()),
            files,
            stamps,
            found,
            begun: Mutex::default(),
        })))
    }

    /// The folder that must be writable if a file is to be made: a process that
    /// confines itself needs it. `None` where there is one already.
    #[must_use]
    pub fn to_write(&self) -> Option<&Path> {
        let held = &*self.0;
        held.found.is_none().then(|| held.folder.path())
    }

    /// The file that was found, checked as [`Cached::open`] does. Of a model
    /// that was replaced meanwhile there is none, and [`Weights::begin`] says so.
    pub(super) fn found(
        &self,
        gguf: &Gguf,
        progress: Progress<'_>,
    ) -> Option<Result<Cached, WeightsError>> {
        let held = &*self.0;
        let file = held.found.as_ref()?;
        if !gguf.stamps().eq(held.stamps.iter().copied()) {
            return None;
        }
        let opened = Cached::open(file, &held.key, &self.path(), progress);
        if opened.is_ok() {
            held.folder.used(file);
            // The bound may be a lower one than last time.
            if let Err(e) = held.folder.make_room(Bytes::ZERO, held.most) {
                tracing::debug!("{e}");
            }
        }
        Some(opened)
    }

    /// Begins a file of about so many bytes, once older ones made room for it.
    pub(super) fn begin(&self, gguf: &Gguf, about: Bytes) -> Result<Writer<'_>, WeightsError> {
        let held = &*self.0;
        if !gguf.stamps().eq(held.stamps.iter().copied()) {
            return Err(WeightsError::Replaced(held.model.clone()));
        }
        held.folder.clean(&held.model, &held.key);
        held.folder.make_room(about, held.most)?;
        let writer = Writer::begin(&held.folder, &held.key, &held.model, about)?;
        let mut begun = self.begun();
        if begun.ended {
            // The writer takes its file with it.
            return Err(WeightsError::Ending(held.folder.path().into()));
        }
        begun.name = Some(writer.temporary().to_owned());
        drop(begun);
        Ok(writer)
    }

    /// Ends a file that is not to be finished.
    pub(super) fn give_up(&self, writer: Writer<'_>) {
        drop(writer);
        // Its name for the time may be another process's from now on.
        self.begun().name.take();
    }

    /// Removes a file that is still being written, and begins none from now on:
    /// the process is about to end. A file that cannot be removed is one that the
    /// next start removes.
    pub fn abandon(&self) {
        let mut begun = self.begun();
        begun.ended = true;
        if let Some(name) = begun.name.take() {
            let _ = self.0.folder.remove(&name);
        }
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.0.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the file its name and opens it.
    pub(super) fn finish(
        &self,
        writer: Writer<'_>,
        progress: Progress<'_>,
    ) -> Result<Cached, WeightsError> {
        let held = &*self.0;
        let now = held.files.iter().map(|file| file.metadata());
        for (now, before) in now.zip(&held.stamps) {
            // What was packed may be half of one model and half of another.
            if !now.is_ok_and(|meta| Stamp::of(&meta) == *before) {
                self.give_up(writer);
                return Err(WeightsError::Replaced(held.model.clone()));
            }
        }
        let mut open = |file| Cached::open(&file, &held.key, &self.path(), progress);
        let name = held.key.file_name();
        let finished = writer.finish(|| open(held.folder.open_file(&name)?));
        // Its name for the time may be another process's from now on.
        self.begun().name.take();
        match finished? {
            Finished::Ours(file) => open(file),
            Finished::Others(cached) => Ok(cached),
        }
    }

    fn path(&self) -> PathBuf {
        self.0.folder.path().join(self.0.key.file_name())
    }
}

#[cfg(test)]
mod tests;
