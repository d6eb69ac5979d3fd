//! The format of a file of the cache, and how it is read.
//!
//! Owns the head, the table of matrices, and all checks. Invariant: a file is
//! mapped for use only when its head, its table and every matrix have their
//! checksums; the table lies at the very end, so that a file that was cut
//! anywhere is refused by its length. Out of scope: how it is written, and
//! whether it may be trusted ([`super::folder`]).
//!
//! Numbers are little-endian. A head of 128 bytes: the magic number, the
//! version (u32), CRC-32 of what follows (u32), the key (32 bytes), where the
//! table begins (u64), its length (u64), its CRC-32 (u32), zeros. Then tiles,
//! each matrix at a multiple of 64 bytes; then the table, as postcard.

use super::{Key, WeightsError};
use crate::{
    mapped::MappedWeights,
    model::{
        Progress,
        linear::{Format, Packed},
    },
    thread_pool::thread_pool,
    units::Bytes,
};
use memmap2::Advice;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// What a file begins with.
pub const MAGIC: [u8; 8] = *b"KVPSIWTS";
/// Of head and table. Layouts of tiles have a digest of their own.
pub const VERSION: u32 = 1;
/// How a file's name ends.
pub const ENDING: &str = ".weights";
/// Bytes of the head; also what tiles may begin at.
pub const HEAD_BYTES: usize = 128;
/// Most bytes of a table: 18,000 experts take less than one MiB.
const MOST_TABLE: usize = 64 << 20;
/// Most bytes of a mapping that are asked for ahead of the check.
const PIECE: usize = 4 << 20;

/// What a file says it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The model's path, for people.
    pub model: String,
    /// In the order in which a decoder asks for them.
    pub matrices: Vec<Matrix>,
}

/// A packed matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// The tensor that it is of, or a part of.
    pub tensor: String,
    /// ggml's number of the format.
    pub format: u32,
    /// Rows and inputs.
    pub shape: (u64, u64),
    /// Where its tiles begin.
    pub at: u64,
    /// CRC-32 of its tiles.
    pub crc: u32,
}

/// A head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) key: Key,
    pub(super) table_at: u64,
    pub(super) table_bytes: u64,
    pub(super) table_crc: u32,
}

impl Head {
    pub(super) fn write(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..48].copy_from_slice(&self.key.0);
        out[48..56].copy_from_slice(&self.table_at.to_le_bytes());
        out[56..64].copy_from_slice(&self.table_bytes.to_le_bytes());
        out[64..68].copy_from_slice(&self.table_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[16..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the head of a file of so many bytes.
    pub(super) fn read(bytes: &[u8; HEAD_BYTES], file_bytes: u64) -> Result<Self, String> {
        let u32_at = |at: usize| {
            let mut n = [0; 4];
            n.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(n)
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[..8] != MAGIC {
            return Err("is no file of weights".into());
        }
        if u32_at(8) != VERSION {
            return Err(format!("has version {}, not {VERSION}", u32_at(8)));
        }
        if u32_at(12) != crc32fast::hash(&bytes[16..]) {
            return Err("its head is damaged".into());
        }
        let mut key = [0; 32];
        key.copy_from_slice(&bytes[16..48]);
        let head = Self {
            key: Key(key),
            table_at: u64_at(48),
            table_bytes: u64_at(56),
            table_crc: u32_at(64),
        };
        let end = head.table_at.checked_add(head.table_bytes);
        if end != Some(file_bytes)
            || head.table_at < HEAD_BYTES as u64
            || head.table_bytes > MOST_TABLE as u64
        {
            return Err(format!("has {file_bytes} bytes and should have others"));
        }
        Ok(head)
    }

    /// Reads the table; nothing of it is believed but for its checksum.
    fn table(&self, bytes: &[u8]) -> Result<Table, String> {
        if crc32fast::hash(bytes) != self.table_crc {
            return Err("its table is damaged".into());
        }
        postcard::from_bytes(bytes).map_err(|e| format!("its table cannot be read: {e}"))
    }
}

impl Matrix {
    /// Format, shape and place of the tiles, if they lie before `end`.
    fn place(&self, end: usize) -> Option<(&'static Format, (usize, usize), Range<usize>)> {
        let format = Format::by_id(self.format)?;
        let n = usize::try_from(self.shape.0).ok()?;
        let k = usize::try_from(self.shape.1).ok()?;
        let at = usize::try_from(self.at).ok()?;
        let until = at.checked_add(Packed::bytes_of(format, n, k)?)?;
        let inside = n > 0 && at >= HEAD_BYTES && at.is_multiple_of(64) && until <= end;
        inside.then_some((format, (n, k), at..until))
    }
}

/// Reads a whole file: its key's bytes and its table, all of whose matrices lie
/// in it. Checks all checksums but those of the matrices' own bytes.
///
/// # Errors
/// In words, to be shown after the file's name.
pub fn parse(bytes: &[u8]) -> Result<([u8; 32], Table), String> {
    let (head, table) = parts(bytes)?;
    Ok((head.key.0, table))
}

/// A file with so many bytes of zeros as tiles, and this as its table: what
/// chance alone would never get past the checksums with.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn framed(tiles: usize, table: &[u8]) -> Vec<u8> {
    let head = Head {
        key: Key([0; 32]),
        table_at: (HEAD_BYTES + tiles) as u64,
        table_bytes: table.len() as u64,
        table_crc: crc32fast::hash(table),
    };
    [&head.write()[..], &vec![0; tiles], table].concat()
}

fn parts(bytes: &[u8]) -> Result<(Head, Table), String> {
    let first = bytes.first_chunk::<HEAD_BYTES>();
    let first = first.ok_or("is shorter than its head")?;
    let head = Head::read(first, bytes.len() as u64)?;
    // The head's numbers add up to the length of what is in memory.
    let at = usize::try_from(head.table_at).map_err(|e| e.to_string())?;
    let table = head.table(&bytes[at..])?;
    match table.matrices.iter().find(|m| m.place(at).is_none()) {
        Some(m) => Err(format!("its matrix of {} does not lie in it", m.tensor)),
        None => Ok((head, table)),
    }
}

/// Key and table of a file, without looking at matrices.
pub(super) fn describe(file: &File) -> io::Result<(Key, Table)> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let len = file.metadata()?.len();
    let mut head = [0; HEAD_BYTES];
    file.read_exact_at(&mut head, 0)?;
    let head = Head::read(&head, len).map_err(bad)?;
    let bytes = usize::try_from(head.table_bytes).map_err(io::Error::other)?;
    let mut table = vec![0; bytes];
    file.read_exact_at(&mut table, head.table_at)?;
    Ok((head.key, head.table(&table).map_err(bad)?))
}

/// A checked file, mapped.
#[derive(Debug)]
pub struct Cached {
    map: Arc<MappedWeights>,
    table: Table,
}

impl Cached {
    /// Maps a file and checks all of it.
    ///
    /// # Errors
    /// It cannot be mapped, is of another key, or damaged.
    pub(super) fn open(
        file: &File,
        key: &Key,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<Self, WeightsError> {
        // SAFETY: the mapping is only read. Nobody but our user can write to the
        // file (`Folder::open_file`), and kvpsi never writes to one that has
        // its name: it makes a new one and renames it.
        let map = unsafe { MappedWeights::new(file) }.map_err(|source| WeightsError::Io {
            path: path.into(),
            what: "cannot be mapped",
            source,
        })?;
        let damaged = |what| WeightsError::Damaged {
            path: path.into(),
            what,
        };
        let (head, table) = parts(&map).map_err(damaged)?;
        if head.key != *key {
            return Err(damaged("is of another model or another kvpsi".into()));
        }
        let cached = Self {
            map: Arc::new(map),
            table,
        };
        match cached.first_damaged(progress) {
            None => Ok(cached),
            Some(tensor) => Err(damaged(format!("its weights of {tensor} are damaged"))),
        }
    }

    /// The tensor of a matrix that has not its checksum. Reads everything, on
    /// all threads: the weights are in memory afterwards, where there is room.
    fn first_damaged(&self, progress: Progress<'_>) -> Option<&str> {
        let matrices = &self.table.matrices;
        let ranges = matrices.iter().filter_map(|m| m.place(self.map.len()));
        let all = Bytes(ranges.map(|(.., range)| range.len() as u64).sum());
        let (found, done, told) = (OnceLock::new(), AtomicU64::new(0), Mutex::new(progress));
        let checked = |bytes: usize| {
            done.fetch_add(bytes as u64, Ordering::Relaxed);
            // Whoever tells now tells of most of it.
            if let Ok(mut progress) = told.try_lock() {
                progress(Bytes(done.load(Ordering::Relaxed)), all);
            }
        };
        thread_pool().spread(matrices.len(), |i| {
            let matrix = &matrices[i];
            if !self.intact(matrix, &checked) {
                // Of several any will do.
                let _ = found.set(matrix.tensor.as_str());
            }
        });
        if let Ok(progress) = told.into_inner()
            && found.get().is_none()
        {
            progress(all, all);
        }
        found.into_inner()
    }

    fn intact(&self, matrix: &Matrix, checked: &impl Fn(usize)) -> bool {
        let Some((_, _, range)) = matrix.place(self.map.len()) else {
            return false;
        };
        let mut crc = crc32fast::Hasher::new();
        for at in range.clone().step_by(PIECE) {
            let piece = at..range.end.min(at + PIECE);
            // From a disk in large reads; where it is refused the pages come
            // one by one.
            let _ = self
                .map
                .advise_range(Advice::WillNeed, piece.start, piece.len());
            crc.update(&self.map[piece.clone()]);
            checked(piece.len());
        }
        crc.finalize() == matrix.crc
    }

    /// The matrix number `index`, which must be of this tensor, format and shape.
    pub(in crate::model) fn matrix(
        &self,
        index: usize,
        tensor: &str,
        format: &'static Format,
        shape: (usize, usize),
    ) -> Option<Packed> {
        let matrix = self.table.matrices.get(index)?;
        let (has, its, range) = matrix.place(self.map.len())?;
        let same = matrix.tensor == tensor && has == format && its == shape;
        same.then(|| Packed::mapped(format, shape, &self.map, range.start))?
    }
}
