//! A file of repacked weights by an unknown author: as it is, and, since
//! checksums keep chance out, its bytes as a table with a right head around it.
//! Every matrix of a file that is taken lies in it.

#![no_main]

use kvpsi::model::{
    linear::{Format, Packed},
    weights::file::{HEAD_BYTES, framed, parse},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The first byte says how many lines of tiles there are.
    let (tiles, table) = bytes
        .split_first()
        .map_or((0, bytes), |(n, rest)| (*n, rest));
    let framed = framed(usize::from(tiles) * 64, table);
    for file in [bytes, &framed] {
        let Ok((_, table)) = parse(file) else {
            continue;
        };
        for m in &table.matrices {
            let format = Format::by_id(m.format).expect("a format that is known");
            let shape = [m.shape.0, m.shape.1].map(|n| usize::try_from(n).expect("a length"));
            let tiles = Packed::bytes_of(format, shape[0], shape[1]).expect("a matrix");
            let at = usize::try_from(m.at).expect("a place");
            assert!(at >= HEAD_BYTES && at.is_multiple_of(64));
            assert!(at + tiles <= file.len());
        }
    }
});
