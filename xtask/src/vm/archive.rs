//! The archive that a kernel unpacks as its first root: cpio's "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owns the order of entries: a folder comes before what is in it, and nothing
//! comes twice. Out of scope: what the files are for.

use anyhow::{Context, Result};
use cpio::newc;
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

/// What is at a path.
enum Entry {
    Folder,
    File { bytes: Vec<u8>, mode: u32 },
}

/// An archive in the making; paths are absolute, as the machine will see them.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Archive {
    /// A folder, and those above it.
    pub fn folder(&mut self, path: &Path) {
        for dir in path.ancestors().filter(|d| d.parent().is_some()) {
            self.entries
                .entry(dir.to_path_buf())
                .or_insert(Entry::Folder);
        }
    }

    fn put(&mut self, path: &Path, entry: Entry) {
        if let Some(dir) = path.parent() {
            self.folder(dir);
        }
        self.entries.insert(path.to_path_buf(), entry);
    }

    /// A file that is there as text or bytes.
    pub fn text(&mut self, path: &Path, bytes: impl Into<Vec<u8>>) {
        self.put(
            path,
            Entry::File {
                bytes: bytes.into(),
                mode: 0o644,
            },
        );
    }

    /// A program, or a library.
    ///
    /// # Errors
    /// `from` cannot be read.
    pub fn program(&mut self, path: &Path, from: &Path) -> Result<()> {
        let bytes =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.put(path, Entry::File { bytes, mode: 0o755 });
        Ok(())
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// A file of 4 GiB or more: the format cannot say its length.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            // Relative to the root that the kernel unpacks into.
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
            let (mode, body): (u32, &[u8]) = match entry {
                Entry::Folder => (0o040_755, &[]),
                Entry::File { bytes, mode } => (0o100_000 | mode, bytes),
            };
            let size = u32::try_from(body.len()).context("a file is too large for an initramfs")?;
            let header = newc::Builder::new(&name).ino(inode).mode(mode);
            let mut file = header.write(&mut out, size);
            file.write_all(body)?;
            file.finish()?;
        }
        newc::trailer(&mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn folders_come_before_their_files_and_bytes_and_modes_are_kept() {
        let mut archive = Archive::default();
        archive.text(Path::new("/a/b/c"), "hello");
        archive.text(Path::new("/a/l"), "");
        let bytes = archive.bytes().expect("small");
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        loop {
            let mut file = newc::Reader::new(rest).expect("an entry");
            if file.entry().is_trailer() {
                break;
            }
            let (name, mode) = (file.entry().name().to_owned(), file.entry().mode());
            let mut body = String::new();
            file.read_to_string(&mut body).expect("text");
            found.push((name, mode, body));
            rest = file.finish().expect("its end");
        }
        let entry = |name: &str, mode, body: &str| (name.to_owned(), mode, body.to_owned());
        let want = [
            entry("a", 0o040_755, ""),
            entry("a/b", 0o040_755, ""),
            entry("a/b/c", 0o100_644, "hello"),
            entry("a/l", 0o100_644, ""),
        ];
        assert_eq!(found, want);
    }
}
