//! Opens a GGUF file without believing it.
//!
//! Owns the file handle, the parsed header and the path in every error.
//! Invariants: the header was walked ([`scan`]) before candle parses it, each
//! tensor lies inside the file, and all tensors together are no larger than
//! the file, so that nothing is allocated from a number that the file's own
//! size does not back. Refuses to know how a decoder uses a tensor.

mod config;
mod keys;
mod scan;

pub use config::{Architecture, Config, RopeConfig, SUPPORTED, Sliding};

use candle_core::{
    Device,
    quantized::{
        QTensor,
        gguf_file::{Content, Value},
    },
};
use std::{
    fs::File,
    io::{BufReader, Read, Seek},
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
    file: BufReader<File>,
    content: Content,
    config: Config,
}

impl Gguf {
    /// Opens `path` and checks everything that the header says.
    ///
    /// # Errors
    /// The file is missing, unreadable, no GGUF file, damaged, or of an
    /// architecture that kvpsi does not know.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
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
        let mut file = BufReader::with_capacity(1 << 20, file);
        let header = scan::scan(&mut file, meta.len()).map_err(bad)?;

        // candle parses from memory: it asks for the position at every string,
        // which would be a system call each on a file. The header is bounded
        // by `scan`, so this is not sized by the input alone.
        file.rewind().map_err(io)?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(header.len)
            .read_to_end(&mut bytes)
            .map_err(io)?;
        let content =
            Content::read(&mut std::io::Cursor::new(bytes)).map_err(|e| bad(one_line(&e)))?;
        check_tensors(path, &content, meta.len())?;
        let config = Config::read(path, &content)?;
        Ok(Self {
            path: path.into(),
            file,
            content,
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

    /// Reads a tensor that must have exactly this shape (`[out, in]` for a
    /// matrix), still quantized.
    ///
    /// # Errors
    /// It is missing, has another shape, or cannot be read.
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let bad = |what: String| ModelError::Tensor {
            path: self.path.clone(),
            name: name.into(),
            what,
        };
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(bad(
                "is missing: the metadata speaks of more than the file holds".into(),
            ));
        };
        if info.shape.dims() != shape {
            return Err(bad(format!(
                "has the shape {:?}, the metadata asks for {shape:?}",
                info.shape.dims()
            )));
        }
        self.content
            .tensor(&mut self.file, name, &Device::Cpu)
            .map_err(|e| bad(one_line(&e)))
    }
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
        let bytes = (info.shape.elem_count() / block * info.ggml_dtype.type_size()) as u64;
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
