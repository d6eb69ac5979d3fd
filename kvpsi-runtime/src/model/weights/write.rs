//! How a file of the cache is made.
//!
//! Owns the steps: a temporary file in the folder, locked while it is written;
//! tiles, table, head; fsync; rename; fsync of the folder. Invariant: a writer
//! that is dropped, or a process that dies, leaves no file under a name that
//! is read. Of two that write the same file the first one's stays, so that both
//! map the same pages. Out of scope: what is packed.

use super::{
    Cached, Folder, Key, WeightsError,
    file::{HEAD_BYTES, Head, Matrix, Table},
};
use crate::{model::linear::Packed, units::Bytes};
use rustix::process::{Resource, getrlimit};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// A file that has no name yet.
#[derive(Debug)]
pub(in crate::model) struct Writer<'a> {
    folder: &'a Folder,
    key: Key,
    temporary: String,
    file: File,
    at: u64,
    /// A write beyond would end the process by SIGXFSZ.
    limit: u64,
    table: Table,
    failed: Option<io::Error>,
}

/// Whose file has the name.
pub(super) enum Finished {
    Ours(File),
    Others(Cached),
}

impl<'a> Writer<'a> {
    pub(super) fn begin(
        folder: &'a Folder,
        key: &Key,
        model: &Path,
        about: Bytes,
    ) -> Result<Self, WeightsError> {
        folder.has_room(about)?;
        let (file, temporary) = folder.temporary(key)?;
        Ok(Self {
            folder,
            key: *key,
            temporary,
            file,
            at: HEAD_BYTES as u64,
            limit: getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX),
            table: Table {
                model: model.to_string_lossy().into_owned(),
                by: env!("CARGO_PKG_VERSION").into(),
                matrices: Vec::new(),
            },
            failed: None,
        })
    }

    /// Its name for now.
    pub(super) fn temporary(&self) -> &str {
        &self.temporary
    }

    /// Writes the next matrix. Once a write has failed nothing more is
    /// written, and [`Writer::finish`] says why.
    pub(in crate::model) fn add(&mut self, tensor: &str, packed: &Packed) {
        if self.failed.is_some() {
            return;
        }
        let bytes = packed.as_bytes();
        self.table.matrices.push(Matrix {
            tensor: tensor.to_owned(),
            format: packed.format().id,
            shape: (packed.n() as u64, packed.k() as u64),
            at: self.at,
            crc: crc32fast::hash(bytes),
        });
        self.failed = self.append(bytes).err();
    }

    /// Whether a write has failed, so that packing more is in vain.
    pub(in crate::model) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, self.at)?;
        self.at += (bytes.len() as u64).next_multiple_of(64);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at + bytes.len() as u64 > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all_at(bytes, at)
    }

    /// Gives the file its name, but where another process was first and
    /// `others` finds its file whole.
    pub(super) fn finish(
        mut self,
        others: impl FnOnce() -> Result<Cached, WeightsError>,
    ) -> Result<Finished, WeightsError> {
        let io = |source| WeightsError::Io {
            path: self.folder.path().into(),
            what: "the weights cannot be written",
            source,
        };
        match self.failed.take() {
            Some(failed) => return Err(io(failed)),
            None => self.close().map_err(io)?,
        }
        let name = self.key.file_name();
        let named = self.folder.rename_to_new(&self.temporary, &name);
        if !named.map_err(io)? {
            if let Ok(cached) = others() {
                return Ok(Finished::Others(cached));
            }
            self.folder.rename(&self.temporary, &name).map_err(io)?;
        }
        let file = self.file.try_clone().map_err(io)?;
        self.temporary.clear();
        Ok(Finished::Ours(file))
    }

    fn close(&self) -> io::Result<()> {
        let table = postcard::to_stdvec(&self.table).map_err(io::Error::other)?;
        self.write_at(&table, self.at)?;
        let head = Head {
            key: self.key,
            table_at: self.at,
            table_bytes: table.len() as u64,
            table_crc: crc32fast::hash(&table),
        };
        // Last: without it the file is none.
        self.write_at(&head.write(), 0)?;
        self.file.sync_all()
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.temporary.is_empty() {
            // Who begins the next file removes it, if this cannot.
            let _ = self.folder.remove(&self.temporary);
        }
    }
}
