//! What the targets share: bytes as a file, and a small GGUF header.
//!
//! Everything goes through kvpsi's public functions, as it does in a program.

use kvpsi::model::gguf::{Gguf, ModelError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::{fs::File, io, os::fd::AsRawFd, os::unix::fs::FileExt, path::PathBuf, sync::OnceLock};

/// Files that there may be at once.
pub const MOST_FILES: usize = 4;

/// The bytes as file `number`, below [`MOST_FILES`], until the next call of the
/// same number.
///
/// # Errors
/// The system gives no memory for it.
pub fn as_file(number: usize, bytes: &[u8]) -> io::Result<PathBuf> {
    static FILES: [OnceLock<File>; MOST_FILES] = [const { OnceLock::new() }; MOST_FILES];
    let file = match FILES[number].get() {
        Some(file) => file,
        None => {
            let made = memfd_create("fuzz", MemfdFlags::CLOEXEC)?;
            FILES[number].get_or_init(|| made.into())
        }
    };
    ftruncate(file, 0)?;
    file.write_all_at(bytes, 0)?;
    Ok(format!("/proc/self/fd/{}", file.as_raw_fd()).into())
}

/// The bytes as a model.
///
/// # Errors
/// They are none.
pub fn as_model(bytes: &[u8]) -> Result<Gguf, ModelError> {
    let path = as_file(0, bytes).map_err(|source| ModelError::Open {
        path: "memfd".into(),
        source,
    })?;
    Gguf::open(&path)
}

/// A GGUF file in the making (version 3, little-endian, by the specification
/// of ggml). All tensors are f32.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    entries: Vec<u8>,
    entry_count: u64,
    infos: Vec<u8>,
    info_count: u64,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Writer {
    fn entry(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.entry_count += 1;
        string(&mut self.entries, key.as_bytes());
        self.entries.extend(kind.to_le_bytes());
        &mut self.entries
    }

    /// A number.
    pub fn number(&mut self, key: &str, n: u32) {
        self.entry(key, 4).extend(n.to_le_bytes());
    }

    /// A fraction.
    pub fn float(&mut self, key: &str, x: f32) {
        self.entry(key, 6).extend(x.to_le_bytes());
    }

    /// A truth value.
    pub fn flag(&mut self, key: &str, on: bool) {
        self.entry(key, 7).push(on.into());
    }

    /// A text, which may be no UTF-8.
    pub fn text(&mut self, key: &str, text: &[u8]) {
        string(self.entry(key, 8), text);
    }

    fn list(&mut self, key: &str, kind: u32, count: usize) -> &mut Vec<u8> {
        let out = self.entry(key, 9);
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
        out
    }

    /// Texts.
    pub fn texts(&mut self, key: &str, texts: &[&str]) {
        let out = self.list(key, 8, texts.len());
        texts.iter().for_each(|t| string(out, t.as_bytes()));
    }

    /// Fractions.
    pub fn floats(&mut self, key: &str, list: &[f32]) {
        let out = self.list(key, 6, list.len());
        list.iter().for_each(|x| out.extend(x.to_le_bytes()));
    }

    /// Signed numbers.
    pub fn numbers(&mut self, key: &str, list: &[i32]) {
        let out = self.list(key, 5, list.len());
        list.iter().for_each(|n| out.extend(n.to_le_bytes()));
    }

    /// A tensor whose elements are all `fill`, rows last as kvpsi names shapes.
    pub fn tensor(&mut self, name: &str, shape: &[u32], fill: f32) {
        self.info_count += 1;
        string(&mut self.infos, name.as_bytes());
        self.infos.extend((shape.len() as u32).to_le_bytes());
        // The file has the length of a row first.
        for n in shape.iter().rev() {
            self.infos.extend(u64::from(*n).to_le_bytes());
        }
        self.infos.extend(0u32.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        let count: u32 = shape.iter().product();
        (0..count).for_each(|_| self.data.extend(fill.to_le_bytes()));
        self.data
            .resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// The file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.info_count.to_le_bytes());
        out.extend(self.entry_count.to_le_bytes());
        out.extend(&self.entries);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(&self.data);
        out
    }
}
