//! The archive that a kernel unpacks as its first root: cpio's "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owns the order of entries: a folder comes before what is in it, and nothing
//! comes twice. Out of scope: what the files are for.

use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            // Relative to the root that the kernel unpacks into.
            let name = path.strip_prefix("/").unwrap_or(path);
            let (mode, body): (u32, &[u8]) = match entry {
                Entry::Folder => (0o040_755, &[]),
                Entry::File { bytes, mode } => (0o100_000 | mode, bytes),
            };
            write(
                &mut out,
                number,
                mode,
                name.as_os_str().as_encoded_bytes(),
                body,
            )?;
        }
        write(&mut out, 0, 0, b"TRAILER!!!", &[])?;
        Ok(out)
    }
}

fn write(out: &mut Vec<u8>, inode: u32, mode: u32, name: &[u8], body: &[u8]) -> Result<()> {
    let size = u32::try_from(body.len()).context("a file is too large for an initramfs")?;
    let name_size = u32::try_from(name.len() + 1).context("a path is too long")?;
    // inode, mode, uid, gid, links, mtime, size, device and its own twice two, name, checksum
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend(b"070701");
    for f in fields {
        out.extend(format!("{f:08X}").bytes());
    }
    out.extend(name);
    out.push(0);
    pad(out);
    out.extend(body);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_aligned_and_folders_come_first() {
        let mut archive = Archive::default();
        archive.text(Path::new("/a/b/c"), "hello");
        archive.text(Path::new("/a/l"), "");
        let bytes = archive.bytes().expect("small");
        let (mut at, mut names) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text =
                    std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).expect("hex");
                usize::from_str_radix(text, 16).expect("hex")
            };
            let (size, name_size) = (field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            names.push(String::from_utf8_lossy(name).into_owned());
            at = (at + 110 + name_size).next_multiple_of(4) + size;
            at = at.next_multiple_of(4);
        }
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/l", "TRAILER!!!"]);
    }
}
