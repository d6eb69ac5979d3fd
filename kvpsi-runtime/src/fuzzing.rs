//! Doors for `cargo xtask fuzz` to what is not public otherwise. Compiled
//! only with the `fuzzing` that cargo-fuzz sets.

use crate::{
    control::{cgroup, system::Watermarks},
    pressure::{systemd, vmstat::Counts},
    sandbox::threads::Thread,
    trace::Sample,
};
use std::{ffi::OsStr, hint::black_box, os::unix::ffi::OsStrExt};

/// Reads a text as each file of /proc, and as what a service manager sets.
pub fn proc_text(text: &[u8]) {
    black_box(Sample::parse(0, text));
    black_box(Counts::read(text));
    let (first, second) = text.split_at(text.len() / 2);
    let word = String::from_utf8_lossy(second);
    black_box(systemd::parse(OsStr::from_bytes(first), &word).ok());
    let text = String::from_utf8_lossy(text);
    black_box(Watermarks::read(&text));
    black_box(cgroup::parse_mountinfo(&text));
    for controller in ["", "memory"] {
        black_box(cgroup::own_path(&text, controller));
    }
    black_box(Thread::parse(1, &text).excess(None));
}
