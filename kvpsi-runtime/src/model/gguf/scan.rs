//! A cheap walk over a GGUF header before anything of it is believed.
//!
//! Owns the check that every count, length and offset in the header fits the
//! file, so that the parser behind it (candle's) only ever sees a header that
//! it can read within bounds. Keeps no value but a few: the walk itself takes
//! constant memory. Refuses to know what a key means, but for
//! `general.alignment`, which decides where the tensors begin.
//!
//! Format: the GGUF specification of ggml, versions 2 and 3, little-endian.

use std::io::{BufRead, Read};

/// Most bytes a header may take. Real ones hold a vocabulary and its merges:
/// 2 to 20 MB.
const MAX_HEADER: u64 = 256 << 20;
/// Most elements over all arrays: the parser keeps 32 bytes for each, however
/// small it is in the file.
const MAX_ELEMENTS: u64 = 4 << 20;
const MAX_ENTRIES: u64 = 65_536;
const MAX_NAME: u64 = 4096;
const MAX_DEPTH: u32 = 4;
/// Tensor types that candle can read, by ggml's number: 0 F32, 1 F16,
/// 2 `Q4_0`, 3 `Q4_1`, 6 `Q5_0`, 7 `Q5_1`, 8 `Q8_0`, 10..=14 `Q2_K` to `Q6_K`, 30 BF16.
const TENSOR_TYPES: [u32; 13] = [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30];

/// Reads and counts; every read is checked against the end of the file.
struct Walk<R> {
    from: R,
    at: u64,
    end: u64,
    elements: u64,
}

impl<R: BufRead> Walk<R> {
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.need(N as u64, what)?;
        self.from
            .read_exact(&mut bytes)
            .map_err(|e| format!("reading {what}: {e}"))?;
        Ok(bytes)
    }

    /// Accounts for `n` bytes that are about to be read.
    fn need(&mut self, n: u64, what: &str) -> Result<(), String> {
        let end = self.at.checked_add(n).filter(|&e| e <= self.end);
        let Some(end) = end else {
            return Err(format!(
                "{what} wants {n} bytes at offset {}, but the file ends at {}: it is damaged or was not downloaded completely",
                self.at, self.end
            ));
        };
        if end > MAX_HEADER {
            return Err(format!(
                "the header is longer than {MAX_HEADER} bytes (at {what}): this is no usable model"
            ));
        }
        self.at = end;
        Ok(())
    }

    fn skip(&mut self, n: u64, what: &str) -> Result<(), String> {
        self.need(n, what)?;
        let mut left = n;
        while left > 0 {
            let have = self
                .from
                .fill_buf()
                .map_err(|e| format!("reading {what}: {e}"))?
                .len();
            if have == 0 {
                return Err(format!("the file became shorter while reading {what}"));
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(have);
            self.from.consume(step);
            left -= step as u64;
        }
        Ok(())
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
        self.need(len, what)?;
        let mut bytes = Vec::new();
        (&mut self.from)
            .take(len)
            .read_to_end(&mut bytes)
            .map_err(|e| format!("reading {what}: {e}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Walks over one value; returns it if it is an unsigned 32-bit number.
    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Option<u32>, String> {
        match kind {
            0 | 1 => self.skip(1, key)?,
            7 => match self.take::<1>(key)? {
                [0 | 1] => {}
                [b] => return Err(format!("`{key}`: {b} is no truth value")),
            },
            2 | 3 => self.skip(2, key)?,
            4 => return self.u32(key).map(Some),
            5 | 6 => self.skip(4, key)?,
            10..=12 => self.skip(8, key)?,
            8 => {
                let len = self.u64(key)?;
                self.skip(len, key)?;
            }
            9 => self.array(key, depth)?,
            _ => return Err(format!("`{key}` has the unknown value type {kind}")),
        }
        Ok(None)
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
        self.skip(len * width, key)
    }

    fn tensor(&mut self, index: u64) -> Result<(), String> {
        let name = self.name(&format!("the name of tensor {index}"))?;
        let dims = self.u32(&name)?;
        if !(1..=4).contains(&dims) {
            return Err(format!(
                "tensor `{name}` has {dims} dimensions, 1 to 4 are possible"
            ));
        }
        let mut elements = 1u64;
        for _ in 0..dims {
            let n = self.u64(&name)?;
            elements = match elements.checked_mul(n) {
                // Any tensor of a file is smaller than this by far; the limit
                // keeps sizes in bytes from overflowing later on.
                Some(e @ 1..=0xffff_ffff_ffff) => e,
                _ => return Err(format!("tensor `{name}` has a dimension of {n}")),
            };
        }
        let kind = self.u32(&name)?;
        if !TENSOR_TYPES.contains(&kind) {
            return Err(format!(
                "tensor `{name}` has type {kind}, which kvpsi cannot read: use a model in F32, F16, BF16, Q4_0 to Q8_0 or Q2_K to Q6_K"
            ));
        }
        self.u64(&name)?;
        Ok(())
    }
}

/// Walks the header of a file of `file_len` bytes.
///
/// # Errors
/// What is wrong with it, to be shown after the file's name.
pub(super) fn scan(from: impl BufRead, file_len: u64) -> Result<(), String> {
    let mut walk = Walk {
        from,
        at: 0,
        end: file_len,
        elements: 0,
    };
    if file_len == 0 {
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
    for i in 0..entries {
        let key = walk.name(&format!("the key of metadata entry {i}"))?;
        let kind = walk.u32(&key)?;
        let value = walk.value(kind, &key, 0)?;
        if key == "general.alignment" && !value.is_some_and(|a| a.is_power_of_two() && a <= 1 << 20)
        {
            return Err("`general.alignment` must be a power of two up to 1048576".into());
        }
    }
    for i in 0..tensors {
        walk.tensor(i)?;
    }
    Ok(())
}
