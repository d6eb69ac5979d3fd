//! A cheap walk over a GGUF header before anything of it is believed.
//!
//! Owns the check that every count, length and offset in the header fits the
//! file, so that the parser behind it (candle's) only ever sees a header that
//! it can read within bounds. Keeps no value but where tensors lie: candle's
//! parser does not know all of their types, and is shown a header without
//! them. Out of scope: what a key means, but for `general.alignment`, which
//! decides where the tensors begin.
//!
//! Format: the GGUF specification of ggml, versions 2 and 3, little-endian.

use crate::model::linear::Format;
use std::{
    collections::{HashMap, HashSet},
    io::{Cursor, Read, Seek, SeekFrom},
};

/// Most bytes a header may take. Real ones hold a vocabulary and its merges:
/// 2 to 20 MB.
const MAX_HEADER: usize = 256 << 20;
/// Most elements over all arrays: the parser keeps 32 bytes for each, however
/// small it is in the file.
const MAX_ELEMENTS: u64 = 4 << 20;
const MAX_ENTRIES: u64 = 65_536;
const MAX_NAME: u64 = 4096;
const MAX_DEPTH: u32 = 4;
/// Names of ggml's types that have no kernels here, by number.
const OTHER_TYPES: [(u32, &str); 13] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

/// A tensor as the header has it.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    pub(super) format: &'static Format,
    /// `[out, in]` for a matrix.
    pub(super) shape: Vec<u64>,
    /// Of its data, from the beginning of all tensors' data.
    pub(super) offset: u64,
}

/// What the walk keeps: candle's parser knows fewer types of tensors.
#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) by_name: HashMap<String, TensorInfo>,
    /// Where tensors' data begins in the file.
    pub(super) data_at: u64,
}

/// A header without tensors, for candle's parser.
pub(super) struct WithoutTensors<'a>(pub(super) Cursor<&'a [u8]>);

/// Where the number of tensors stands.
const TENSOR_COUNT: std::ops::Range<u64> = 8..16;

impl Read for WithoutTensors<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let at = self.0.position();
        let n = self.0.read(buf)?;
        for (byte, at) in buf[..n].iter_mut().zip(at..) {
            if TENSOR_COUNT.contains(&at) {
                *byte = 0;
            }
        }
        Ok(n)
    }
}

impl Seek for WithoutTensors<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

/// Reads and counts; every read is checked against the end of the file.
struct Walk<'a> {
    file: &'a [u8],
    at: usize,
    elements: u64,
}

impl<'a> Walk<'a> {
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.skip(N as u64, what)?);
        Ok(bytes)
    }

    /// The next `n` bytes.
    fn skip(&mut self, n: u64, what: &str) -> Result<&'a [u8], String> {
        let end = usize::try_from(n).ok();
        let end = end.and_then(|n| self.at.checked_add(n));
        let bytes = end.and_then(|end| Some((end, self.file.get(self.at..end)?)));
        let Some((end, bytes)) = bytes else {
            return Err(format!(
                "{what} wants {n} bytes at offset {}, but the file ends at {}: it is damaged or was not downloaded completely",
                self.at,
                self.file.len()
            ));
        };
        if end > MAX_HEADER {
            return Err(format!(
                "the header is longer than {MAX_HEADER} bytes (at {what}): this is no usable model"
            ));
        }
        self.at = end;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.take(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.take(what).map(u64::from_le_bytes)
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let len = self.u64(what)?;
        if len > MAX_NAME {
            return Err(format!(
                "{what} is {len} bytes long, {MAX_NAME} at most are usual"
            ));
        }
        let bytes = self.skip(len, what)?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Walks over one value; returns it if it is an unsigned 32-bit number.
    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Option<u32>, String> {
        let bytes = match kind {
            0 | 1 => 1,
            7 => match self.take::<1>(key)? {
                [0 | 1] => 0,
                [b] => return Err(format!("`{key}`: {b} is no truth value")),
            },
            2 | 3 => 2,
            4 => return self.u32(key).map(Some),
            5 | 6 => 4,
            10..=12 => 8,
            8 => self.u64(key)?,
            9 => return self.array(key, depth).map(|()| None),
            _ => return Err(format!("`{key}` has the unknown value type {kind}")),
        };
        self.skip(bytes, key).map(|_| None)
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<(), String> {
        if depth == MAX_DEPTH {
            return Err(format!("`{key}`: arrays nested deeper than {MAX_DEPTH}"));
        }
        let kind = self.u32(key)?;
        let len = self.u64(key)?;
        self.elements = self.elements.saturating_add(len);
        if self.elements > MAX_ELEMENTS {
            return Err(format!(
                "`{key}` has {len} elements: more than {MAX_ELEMENTS} over all arrays are refused"
            ));
        }
        let width = match kind {
            0 | 1 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            7..=9 => {
                for _ in 0..len {
                    self.value(kind, key, depth + 1)?;
                }
                return Ok(());
            }
            _ => return Err(format!("`{key}` is an array of the unknown type {kind}")),
        };
        self.skip(len * width, key).map(|_| ())
    }

    fn tensor(&mut self, index: u64) -> Result<(String, TensorInfo), String> {
        let name = self.name(&format!("the name of tensor {index}"))?;
        let dims = self.u32(&name)?;
        if !(1..=4).contains(&dims) {
            return Err(format!(
                "tensor `{name}` has {dims} dimensions, 1 to 4 are possible"
            ));
        }
        let (mut elements, mut shape) = (1u64, Vec::new());
        for _ in 0..dims {
            let n = self.u64(&name)?;
            elements = match elements.checked_mul(n) {
                // Any tensor of a file is smaller than this by far; the limit
                // keeps sizes in bytes from overflowing later on.
                Some(e @ 1..=0xffff_ffff_ffff) => e,
                _ => return Err(format!("tensor `{name}` has a dimension of {n}")),
            };
            shape.insert(0, n);
        }
        let kind = self.u32(&name)?;
        let Some(format) = Format::by_id(kind) else {
            let known = OTHER_TYPES.iter().find(|(id, _)| *id == kind);
            let kind =
                known.map_or_else(|| kind.to_string(), |(_, name)| format!("{kind} ({name})"));
            let names: Vec<_> = Format::all().map(|f| f.name).collect();
            return Err(format!(
                "tensor `{name}` has type {kind}, which has no kernels here: use a model in {}",
                names.join(", ")
            ));
        };
        let offset = self.u64(&name)?;
        let info = TensorInfo {
            format,
            shape,
            offset,
        };
        Ok((name, info))
    }
}

/// Walks the header of a file.
///
/// # Errors
/// What is wrong with it, to be shown after the file's name.
pub(super) fn scan(file: &[u8]) -> Result<Tensors, String> {
    let mut walk = Walk {
        file,
        at: 0,
        elements: 0,
    };
    if file.is_empty() {
        return Err("the file is empty: download it again".into());
    }
    let magic = walk.take::<4>("the magic number")?;
    if magic != *b"GGUF" {
        return Err("this is not a GGUF file: it does not begin with `GGUF`".into());
    }
    let version = walk.u32("the version")?;
    if (1..=3).contains(&version.swap_bytes()) {
        return Err(
            "this is a big-endian GGUF, for another kind of machine: convert the model again, little-endian".into(),
        );
    }
    if !(2..=3).contains(&version) {
        return Err(format!(
            "GGUF version {version}: kvpsi reads versions 2 and 3, little-endian; convert the model again"
        ));
    }
    let tensors = walk.u64("the number of tensors")?;
    let entries = walk.u64("the number of metadata entries")?;
    for (n, what) in [(tensors, "tensors"), (entries, "metadata entries")] {
        if n > MAX_ENTRIES {
            return Err(format!(
                "the header speaks of {n} {what}, more than {MAX_ENTRIES}: it is damaged"
            ));
        }
    }
    let (mut alignment, mut keys) = (32, HashSet::new());
    for i in 0..entries {
        let key = walk.name(&format!("the key of metadata entry {i}"))?;
        let kind = walk.u32(&key)?;
        let value = walk.value(kind, &key, 0)?;
        if key == "general.alignment" {
            alignment = value
                .filter(|a| a.is_power_of_two() && *a <= 1 << 20)
                .map(u64::from)
                .ok_or("`general.alignment` must be a power of two up to 1048576")?;
        }
        if let Some(twice) = keys.replace(key) {
            return Err(format!(
                "the key `{twice}` is there twice: the file is damaged, convert the model again"
            ));
        }
    }
    let mut by_name = HashMap::new();
    for i in 0..tensors {
        let (name, info) = walk.tensor(i)?;
        if by_name.contains_key(&name) {
            return Err(format!(
                "tensor `{name}` is there twice: the file is damaged"
            ));
        }
        by_name.insert(name, info);
    }
    Ok(Tensors {
        by_name,
        data_at: (walk.at as u64).next_multiple_of(alignment),
    })
}
