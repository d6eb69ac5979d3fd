//! An untrusted recording: the file as it is, and, since a checksum keeps
//! chance out, its bytes as entries with right lengths and checksums. What is
//! read is written and read again, and played to the rule.

#![no_main]

use kvpsi::trace::{
    recording::{Entry, Recording, prefix},
    replay::{Setup, simulate},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let framed = frame(bytes);
    for file in [bytes, &framed] {
        let Ok(read) = Recording::parse(file) else {
            continue;
        };
        let mut again = prefix();
        Entry::Head(read.head.clone()).write(&mut again);
        read.entries.iter().for_each(|e| e.write(&mut again));
        let twice = Recording::parse(&again).expect("what was written is read");
        assert!(twice.damage.is_none());
        // A share may be no number, and then is not the same as itself.
        assert_eq!(twice.entries.len(), read.entries.len());
        if let Ok(outcome) = simulate(&read, &Setup::default(), &mut |_, _| ()) {
            assert!(outcome.least <= outcome.resident.max(outcome.least));
        }
    }
});

/// An entry for each piece of bytes: a byte says how long it is.
fn frame(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = prefix();
    while let [length, rest @ ..] = bytes {
        let (payload, left) = rest.split_at(rest.len().min(usize::from(*length)));
        let begin = out.len();
        out.extend((payload.len() as u16).to_le_bytes());
        out.extend(payload);
        let crc = crc32fast::hash(&out[begin..]);
        out.extend(crc.to_le_bytes());
        bytes = left;
    }
    out
}
