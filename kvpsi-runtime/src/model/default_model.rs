//! Which model is used when none was named.

use super::{gguf::ModelError, ollama};
use std::path::{Path, PathBuf};

/// The default model where `cargo xtask model` puts it, whether or not it is
/// there; `None` without a home directory.
#[must_use]
pub fn cached() -> Option<PathBuf> {
    let dir = std::env::var_os("XDG_CACHE_HOME")
        .filter(|d| !d.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|h| h.join(".cache")))?;
    Some(dir.join("kvpsi/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// What `-m` means: `ollama:NAME` in Ollama's store, else a file; without it
/// the same of [`find`].
///
/// # Errors
/// The model is not in the store, or there is none.
pub fn named(given: Option<&Path>) -> Result<PathBuf, ModelError> {
    let found;
    let path = match given {
        Some(path) => path,
        None => {
            found = find()?;
            &found
        }
    };
    let text = path.to_str().unwrap_or_default();
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(ModelError::Url(text.to_owned()));
    }
    match text.strip_prefix(ollama::PREFIX) {
        Some(name) => ollama::find(name),
        None => Ok(path.to_owned()),
    }
}

/// `KVPSI_MODEL`, else [`cached`] if it is there.
///
/// # Errors
/// There is none; the error says how to get one.
pub fn find() -> Result<PathBuf, ModelError> {
    if let Some(path) = std::env::var_os("KVPSI_MODEL").filter(|p| !p.is_empty()) {
        return Ok(path.into());
    }
    cached().filter(|p| p.exists()).ok_or(ModelError::NoDefault)
}
