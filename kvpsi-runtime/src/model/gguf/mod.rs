//! Opens a GGUF file without believing it.
//!
//! Owns the mapping of the file, the parsed header and the path in every
//! error. Invariants: the header was walked ([`scan`]) before candle parses it,
//! each tensor lies inside the file, and all tensors together are no larger
//! than the file, so that nothing is allocated from a number that the file's
//! own size does not back. A file that is cut short while it is read ends the
//! process by SIGBUS, as with every program that maps its model. Refuses to
//! know how a decoder uses a tensor.

mod config;
pub mod files;
mod keys;
mod scan;

pub use config::{Architecture, Config, RopeConfig, SUPPORTED, Sliding};

use crate::units::Bytes;
use candle_core::{
    Device,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{Content, TensorInfo, Value},
    },
};
use memmap2::{Mmap, UncheckedAdvice};
use std::{
    collections::HashMap,
    fs::File,
    io::Cursor,
    ops::Range,
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
    /// The file cannot be opened or read.
    #[error("{}: {source}; `cargo xtask model` fetches the default model", path.display())]
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
    /// An architecture for which there is no decoder.
    #[error("{}: the architecture `{arch}` is not supported; supported: {SUPPORTED}", path.display())]
    Architecture {
        /// The model file.
        path: PathBuf,
        /// `general.architecture`.
        arch: String,
    },
    /// The chat template of the file cannot be compiled or rendered.
    #[error("chat template: {0}; `--raw` sends the prompt without it")]
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
    /// The first part's, with the tensors of all.
    content: Content,
    /// Part of each tensor.
    part_of: HashMap<String, usize>,
    config: Config,
}

/// One file of a model.
#[derive(Debug)]
struct Part {
    map: Mmap,
    /// Where its tensors begin.
    data: u64,
}

/// A tensor as the file has it.
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// Type of its blocks.
    pub dtype: GgmlDType,
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
        Self::open_parts(&files::parts(path)?)
    }

    /// Opens the parts of one model, in their order.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn open_parts(paths: &[PathBuf]) -> Result<Self, ModelError> {
        let opened = paths.iter().map(|path| open_part(path));
        let opened = opened.collect::<Result<Vec<_>, _>>()?;
        let headers = paths.iter().zip(&opened);
        let headers: Vec<_> = headers.map(|(p, (_, c))| (p.as_path(), c)).collect();
        files::belong_together(&headers)?;
        let mut opened = opened.into_iter();
        let (Some(path), Some((map, mut content))) = (paths.first(), opened.next()) else {
            return Err(ModelError::NoDefault);
        };
        let mut parts = vec![Part {
            map,
            data: content.tensor_data_offset,
        }];
        let names = content.tensor_infos.keys().cloned();
        let mut part_of: HashMap<_, _> = names.map(|name| (name, 0)).collect();
        for (map, more) in opened {
            let at = parts.len();
            parts.push(Part {
                map,
                data: more.tensor_data_offset,
            });
            part_of.extend(more.tensor_infos.keys().map(|name| (name.clone(), at)));
            content.tensor_infos.extend(more.tensor_infos);
        }
        let config = Config::read(path, &content)?;
        Ok(Self {
            path: path.clone(),
            parts,
            content,
            part_of,
            config,
        })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parsed header.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Whether the file holds a tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
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
        Bytes(self.content.tensor_infos.values().map(tensor_bytes).sum())
    }

    /// Reads a tensor that must have exactly this shape (`[out, in]` for a
    /// matrix), still quantized.
    ///
    /// # Errors
    /// It is missing, has another shape, or cannot be read.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let (part, _) = self.place(name, shape)?;
        self.content.tensor_infos[name]
            .read(&mut Cursor::new(&part.map[..]), part.data, &Device::Cpu)
            .map_err(|e| self.bad(name, one_line(&e)))
    }

    /// The bytes of a tensor that must have exactly this shape, where they lie.
    ///
    /// # Errors
    /// It is missing or has another shape.
    pub fn data(&self, name: &str, shape: &[usize]) -> Result<TensorData<'_>, ModelError> {
        let (part, range) = self.place(name, shape)?;
        Ok(TensorData {
            dtype: self.content.tensor_infos[name].ggml_dtype,
            bytes: &part.map[range],
        })
    }

    /// Lets go of the pages of a tensor that was read: they are the page
    /// cache's, and are read again should somebody ask.
    pub fn let_go(&self, name: &str) {
        let Some((part, range)) = self.range(name) else {
            return;
        };
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

    /// Where a tensor lies in the file: `check_tensors` has made sure of it.
    fn range(&self, name: &str) -> Option<(&Part, Range<usize>)> {
        let info = self.content.tensor_infos.get(name)?;
        let part = self.parts.get(*self.part_of.get(name)?)?;
        let start = usize::try_from(part.data + info.offset).ok()?;
        Some((
            part,
            start..start + usize::try_from(tensor_bytes(info)).ok()?,
        ))
    }

    fn place(&self, name: &str, shape: &[usize]) -> Result<(&Part, Range<usize>), ModelError> {
        let missing = "is missing: the metadata speaks of more than the file holds";
        let place = self
            .range(name)
            .ok_or_else(|| self.bad(name, missing.into()))?;
        let dims = self.content.tensor_infos[name].shape.dims();
        if dims != shape {
            return Err(self.bad(
                name,
                format!("has the shape {dims:?}, the metadata asks for {shape:?}"),
            ));
        }
        Ok(place)
    }
}

/// Maps a file and reads its header, once it was walked and every tensor was
/// found to lie in the file.
fn open_part(path: &Path) -> Result<(Mmap, Content), ModelError> {
    let io = |source| ModelError::Open {
        path: path.into(),
        source,
    };
    let bad = |what: String| ModelError::Format {
        path: path.into(),
        what,
    };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(bad("is not a regular file".into()));
    }
    // SAFETY: the mapping is private and only read; that others do not
    // write to a model that is being loaded is asked of the user.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    scan::scan(&map[..], meta.len()).map_err(bad)?;
    let content = Content::read(&mut Cursor::new(&map[..])).map_err(|e| bad(one_line(&e)))?;
    check_tensors(path, &content, meta.len())?;
    Ok((map, content))
}

/// Bytes of a tensor whose rows are whole blocks.
fn tensor_bytes(info: &TensorInfo) -> u64 {
    let dtype = info.ggml_dtype;
    (info.shape.elem_count() / dtype.block_size() * dtype.type_size()) as u64
}

/// Every tensor must lie in the file, and all of them together must not be
/// larger than it (tensors that share bytes would multiply in memory).
fn check_tensors(path: &Path, content: &Content, file_len: u64) -> Result<(), ModelError> {
    let mut total = 0u64;
    for (name, info) in &content.tensor_infos {
        let bad = |what: String| ModelError::Tensor {
            path: path.into(),
            name: name.clone(),
            what,
        };
        let block = info.ggml_dtype.block_size();
        let last = info.shape.dims().last().copied().unwrap_or(0);
        if last == 0 || !last.is_multiple_of(block) {
            return Err(bad(format!(
                "has rows of {last}, which is no multiple of its block of {block}"
            )));
        }
        let bytes = tensor_bytes(info);
        let end = content
            .tensor_data_offset
            .checked_add(info.offset)
            .and_then(|start| start.checked_add(bytes));
        if end.is_none_or(|end| end > file_len) {
            return Err(bad(format!(
                "({bytes} bytes at offset {} of the tensor data) ends beyond the file's {file_len} bytes: the download is incomplete, fetch it again",
                info.offset
            )));
        }
        total = total.saturating_add(bytes);
    }
    if total > file_len {
        return Err(ModelError::Format {
            path: path.into(),
            what: format!("its tensors overlap: {total} bytes in a file of {file_len}"),
        });
    }
    Ok(())
}

/// candle's errors may carry a backtrace: the first line is the message.
fn one_line(e: &candle_core::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
