//! A model in parts by unknown authors, and the name of one: parts that open
//! together have no tensor twice, and each can be read.

#![no_main]

use kvpsi::model::gguf::{Gguf, files};
use kvpsi_fuzz::{MOST_FILES, as_file};
use libfuzzer_sys::fuzz_target;
use std::{ffi::OsStr, hint::black_box, os::unix::ffi::OsStrExt, path::Path};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(parts) = files::parts(Path::new(OsStr::from_bytes(bytes))) {
        assert!((1..=1000).contains(&parts.len()));
    }
    // The length of each part is before it.
    let (mut rest, mut parts) = (bytes, Vec::new());
    while let Some((len, after)) = rest
        .split_first_chunk()
        .filter(|_| parts.len() < MOST_FILES)
    {
        let len = usize::from(u16::from_le_bytes(*len)).min(after.len());
        let (part, after) = after.split_at(len);
        parts.push(as_file(parts.len(), part).expect("a file in memory"));
        rest = after;
    }
    let Some((first, others)) = parts.split_first() else {
        return;
    };
    let Ok(gguf) = Gguf::open_parts(first, others) else {
        return;
    };
    let mut names: Vec<_> = gguf.tensors().map(|(name, ..)| name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|two| two[0] != two[1]));
    for (name, _, shape) in gguf.tensors() {
        let shape: Vec<usize> = shape.iter().filter_map(|&n| n.try_into().ok()).collect();
        let data = gguf.data(name, &shape).expect("a tensor of its own shape");
        black_box(data.bytes.iter().fold(0u8, |sum, b| sum ^ b));
    }
});
