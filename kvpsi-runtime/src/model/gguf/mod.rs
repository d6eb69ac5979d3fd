//! Opens a GGUF file without believing it.
//!
//! Owns the mapping of the file, the parsed header and the path in every
//! error. Invariants: the header was walked (`scan`) before candle parses it,
//! each tensor lies inside the file, and none over another, so that nothing is
//! allocated from a number that the file's own size does not back. A file that is cut short while it is read ends the
//! process by SIGBUS, as with every program that maps its model. Out of scope:
//! how a decoder uses a tensor.

mod config;
mod experts;
mod family;
pub mod files;
mod keys;
mod positions;
mod scan;

use scan::{TensorInfo, Tensors, WithoutTensors};

pub use config::Config;
pub use experts::Experts;
pub use family::{FAMILIES, Family, HasExperts, QkNorm};
pub(super) use keys::whole;
pub use positions::{Layers, RopeConfig, Sliding, Temperature};

use super::{
    linear::{Format, LinearError},
    open_regular,
};
use crate::units::Bytes;
use candle_core::quantized::gguf_file::{Content, Value};
use memmap2::{Mmap, UncheckedAdvice};
use std::{
    fs::Metadata,
    io::Cursor,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Why a model cannot be used. One line each, with what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// No model was named and there is no default one.
    #[error(
        "no model: give -m FILE, set KVPSI_MODEL, or fetch the default one by `cargo xtask model`"
    )]
    NoDefault,
    /// An address.
    #[error("{0}: addresses are not fetched; download the file and give its path")]
    Url(String),
    /// The file cannot be opened or read.
    #[error("{}: {source}{}", path.display(), to_open(path, source))]
    Open {
        /// The model file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no GGUF file, or a damaged one.
    #[error("{}: {what}", path.display())]
    Format {
        /// The model file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// There is less memory than the weights take.
    #[error(
        "{}: its weights take {needed} of memory, and {available} are available ({of}): use a smaller file, or weights that are mapped (--weights-cache auto)",
        path.display()
    )]
    Memory {
        /// The model file.
        path: PathBuf,
        /// What they take, repacked.
        needed: Bytes,
        /// What there is, page cache given up and swap taken.
        available: Bytes,
        /// Whose limit that is.
        of: String,
    },
    /// A metadata entry is missing or out of its range.
    #[error("{}: `{key}` {what}", path.display())]
    Metadata {
        /// The model file.
        path: PathBuf,
        /// Key of the entry.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is missing or has a wrong place, type or shape.
    #[error("{}: tensor `{name}` {what}", path.display())]
    Tensor {
        /// The model file.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The kernels that were asked for cannot run here: nothing is wrong with the model.
    #[error(transparent)]
    Kernels(LinearError),
    /// An architecture for which there is no decoder.
    #[error("{}: the architecture `{arch}` is not supported; supported: {}", path.display(), Family::all_named())]
    Architecture {
        /// The model file.
        path: PathBuf,
        /// `general.architecture`.
        arch: String,
    },
    /// The chat template of the file cannot be compiled or rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// Text could not be turned into tokens or back.
    #[error("tokenizer: {0}")]
    Tokenize(String),
}

/// An opened model file: header parsed and checked, weights still on disk.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    parts: Vec<Part>,
    /// The first part's.
    content: Content,
    config: Config,
}

/// One file of a model.
#[derive(Debug)]
struct Part {
    map: Mmap,
    stamp: Stamp,
    tensors: Tensors,
}

/// What changes when a file is replaced or written to: its inode, its length
/// and its times. Nobody sets the time of change (`ctime`), so a file whose
/// time of modification was put back differs, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its number in the file system.
    pub inode: u64,
    /// Bytes.
    pub len: u64,
    /// Of modification, in seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Of change, likewise.
    pub changed: (i64, i64),
}

impl Stamp {
    /// What the system says of an open file.
    #[must_use]
    pub fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A tensor as the file has it.
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// What it is made of.
    pub format: &'static Format,
    /// Row after row.
    pub bytes: &'a [u8],
}

impl Gguf {
    /// Opens `path` and checks everything that the header says. Where it is a
    /// part of a model ([`files::parts`]), the others are opened with it.
    ///
    /// # Errors
    /// The file is missing, unreadable, no GGUF file, damaged, or of an
    /// architecture that kvpsi does not know; or a part is.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let parts = files::parts(path)?;
        match parts.split_first() {
            Some((first, others)) => Self::open_parts(first, others),
            None => Self::open_parts(path, &[]),
        }
    }

    /// Opens the parts of one model, in their order.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn open_parts(path: &Path, others: &[PathBuf]) -> Result<Self, ModelError> {
        let paths = [path]
            .into_iter()
            .chain(others.iter().map(PathBuf::as_path));
        let opened = paths.clone().map(open_part);
        let opened = opened.collect::<Result<Vec<_>, _>>()?;
        let headers = paths.zip(&opened);
        let headers: Vec<_> = headers
            .map(|(path, (part, content))| (path, content, &part.tensors))
            .collect();
        files::belong_together(&headers)?;
        let (parts, mut contents): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        // There is one of each path.
        let content = contents.swap_remove(0);
        let embedding = find(&parts, "token_embd.weight");
        let vocab = embedding.and_then(|(_, info)| info.shape.first().copied());
        let config = Config::read(path, &content, vocab)?;
        Ok(Self {
            path: path.to_owned(),
            parts,
            content,
            config,
        })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which files these are, in the order of the parts.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.parts.iter().map(|part| part.stamp)
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parsed metadata. Its tensors are not there: see [`Gguf::tensors`].
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Names, formats and shapes of all tensors; a matrix is `[out, in]`.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &'static Format, &[u64])> {
        let all = self.parts.iter().flat_map(|part| &part.tensors.by_name);
        all.map(|(name, info)| (name.as_str(), info.format, info.shape.as_slice()))
    }

    /// Whether the file holds a tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        find(&self.parts, name).is_some()
    }

    /// A metadata string.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.content.metadata.get(key) {
            Some(Value::String(s)) => Some(s),
            _ => None,
        }
    }

    /// Bytes of all tensors.
    #[must_use]
    pub fn tensor_bytes(&self) -> Bytes {
        let all = self.parts.iter().flat_map(|p| p.tensors.by_name.values());
        Bytes(all.map(tensor_bytes).sum())
    }

    /// The bytes of a tensor that must have exactly this shape (`[out, in]` for
    /// a matrix), where they lie.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn data(&self, name: &str, shape: &[usize]) -> Result<TensorData<'_>, ModelError> {
        let missing = "is missing: the metadata speaks of more than the file holds";
        let (part, info) = find(&self.parts, name).ok_or_else(|| self.bad(name, missing.into()))?;
        if !info
            .shape
            .iter()
            .copied()
            .eq(shape.iter().map(|&n| n as u64))
        {
            let dims = &info.shape;
            return Err(self.bad(
                name,
                format!("has the shape {dims:?}, the metadata asks for {shape:?}"),
            ));
        }
        Ok(TensorData {
            format: info.format,
            bytes: &part.map[part.range(info)],
        })
    }

    /// Lets go of the pages of a tensor that was read: they are the page
    /// cache's, and are read again if needed.
    pub fn let_go(&self, name: &str) {
        let Some((part, info)) = find(&self.parts, name) else {
            return;
        };
        let range = part.range(info);
        // SAFETY: the pages are clean ones of a private mapping of a file, so
        // they read the same afterwards.
        let advised = unsafe {
            part.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(e) = advised {
            tracing::debug!(name, %e, "pages of the model file stay mapped");
        }
    }

    fn bad(&self, name: &str, what: String) -> ModelError {
        ModelError::Tensor {
            path: self.path.clone(),
            name: name.into(),
            what,
        }
    }
}

impl Part {
    /// Where a tensor of this part lies in its file; empty where an address
    /// cannot say, which `check_tensors` has ruled out.
    fn range(&self, info: &TensorInfo) -> Range<usize> {
        let start = usize::try_from(self.tensors.data_at.saturating_add(info.offset));
        let (Ok(start), Ok(bytes)) = (start, usize::try_from(tensor_bytes(info))) else {
            return 0..0;
        };
        start..start.saturating_add(bytes)
    }
}

/// What to do about a file that cannot be opened, if that is known.
fn to_open(path: &Path, e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::NotFound => match files::count(path) {
            Some(count) => {
                format!("; the model has {count} parts: put all of them into one folder")
            }
            None => "; `cargo xtask model` fetches the default model".into(),
        },
        std::io::ErrorKind::PermissionDenied => "; this user must be able to read it".into(),
        // Ours: see `open_regular`.
        std::io::ErrorKind::Other => "; give the path of a GGUF file".into(),
        _ => String::new(),
    }
}

/// A tensor and the part that holds it.
fn find<'a>(parts: &'a [Part], name: &str) -> Option<(&'a Part, &'a TensorInfo)> {
    parts
        .iter()
        .find_map(|part| Some((part, part.tensors.by_name.get(name)?)))
}

/// Maps a file and reads its header, once it was walked and every tensor was
/// found to lie in the file.
fn open_part(path: &Path) -> Result<(Part, Content), ModelError> {
    let io = |source| ModelError::Open {
        path: path.into(),
        source,
    };
    let bad = |what: String| ModelError::Format {
        path: path.into(),
        what,
    };
    let file = open_regular(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    // SAFETY: the mapping is private and only read; that others do not
    // write to a model that is being loaded is asked of the user.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    // What is mapped counts: the file may have become another meanwhile.
    let tensors = scan::scan(&map).map_err(bad)?;
    let mut header = WithoutTensors(Cursor::new(&map[..]));
    let content = Content::read(&mut header).map_err(|e| bad(one_line(&e)))?;
    check_tensors(path, &tensors, map.len() as u64)?;
    let stamp = Stamp::of(&meta);
    let part = Part {
        map,
        stamp,
        tensors,
    };
    Ok((part, content))
}

/// Bytes of a tensor whose rows are whole blocks.
fn tensor_bytes(info: &TensorInfo) -> u64 {
    let (block, bytes) = (info.format.block as u64, info.format.file_bytes as u64);
    info.shape.iter().product::<u64>() / block * bytes
}

/// Every tensor must lie in the file, and none over another: they would multiply in
/// memory.
fn check_tensors(path: &Path, tensors: &Tensors, file_len: u64) -> Result<(), ModelError> {
    let mut all: Vec<_> = tensors.by_name.iter().collect();
    all.sort_unstable_by_key(|(name, info)| (info.offset, name.as_str()));
    let mut before = ("", 0);
    for (name, info) in all {
        let bad = |what: String| ModelError::Tensor {
            path: path.into(),
            name: name.clone(),
            what,
        };
        let block = info.format.block as u64;
        let last = info.shape.last().copied().unwrap_or(0);
        if last == 0 || !last.is_multiple_of(block) {
            return Err(bad(format!(
                "has rows of {last}, which is no multiple of its block of {block}"
            )));
        }
        let bytes = tensor_bytes(info);
        let end = info.offset.saturating_add(bytes);
        let at = tensors.data_at.saturating_add(end);
        if at > file_len || at == u64::MAX {
            return Err(bad(format!(
                "({bytes} bytes at offset {} of the tensor data) ends beyond the file's {file_len} bytes: the download is incomplete, fetch it again",
                info.offset
            )));
        }
        if info.offset < before.1 {
            return Err(bad(format!(
                "lies over tensor `{}`: the file is damaged, convert the model again",
                before.0
            )));
        }
        before = (name, end);
    }
    Ok(())
}

/// candle's errors may carry a backtrace: the first line is the message.
fn one_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
