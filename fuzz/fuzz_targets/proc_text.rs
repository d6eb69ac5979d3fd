//! Text as the kernel and the service manager give it, and as it never was.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| kvpsi::fuzzing::proc_text(text));
