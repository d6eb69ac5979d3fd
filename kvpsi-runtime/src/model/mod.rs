//! From a GGUF file to logits.
//!
//! Owns what is read from a model file (metadata, weights, tokenizer, chat
//! template) and the decoder that runs on it. A model file is untrusted
//! input: every error names the key or tensor that is wrong. Out of scope:
//! who asks for tokens, how they are sampled, and that memory can be short.

pub mod about;
pub mod chat;
pub mod decoder;
pub mod default_model;
pub mod gguf;
pub mod linear;
pub mod load;
pub mod ollama;
pub mod rope;
pub mod step;
pub mod tokenizer;
pub mod weights;

use crate::units::Bytes;
use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

/// Told how many bytes were read or checked so far, and of how many.
pub type Progress<'a> = &'a mut (dyn FnMut(Bytes, Bytes) + Send);

/// Opens a file to be read as a whole: one that has an end. A pipe would wait for
/// its writer, a device go on for ever.
///
/// # Errors
/// It cannot be opened, or is no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a regular file")),
    }
}
