//! Numbers that no machine has, refused before anything is counted with them.
//!
//! Invariant: what passes can be added and multiplied as a replay does, in 64
//! bits, and is played in a time and a memory that follow from the length of
//! the recording.

use crate::{
    control::gauge::Levels,
    trace::recording::{Entry, Recording},
    units::Bytes,
};
use std::io;

/// 146 years of uptime, ns.
const MOST_NS: u64 = 1 << 62;
/// A cache of 1 TiB.
const MOST_CACHE: u64 = 1 << 40;
/// A machine of 1 PiB. Limits of cgroups are only compared, and may be none.
const MOST_MEMORY: u64 = 1 << 50;
/// Pages of 1 GiB.
const MOST_PAGE: u64 = 1 << 30;

/// Looks at every number that a replay uses.
///
/// # Errors
/// One is too large; it is named.
pub(super) fn check(r: &Recording) -> io::Result<()> {
    below("page_bytes", r.head.page_bytes, MOST_PAGE)?;
    below("time_ns", r.head.began_ns, MOST_NS)?;
    for entry in &r.entries {
        match entry {
            Entry::Head(_) | Entry::Lost(_) | Entry::Psi(_) => {}
            Entry::Event(e) => below("time_ns", e.ts_ns, MOST_NS)?,
            Entry::Levels1 { ts_ns, levels } => check_levels(*ts_ns, &Levels::from(levels))?,
            Entry::Levels { ts_ns, levels } => check_levels(*ts_ns, levels)?,
            Entry::Kv {
                ts_ns,
                resident,
                in_use,
                cached,
                floor,
                budget,
                tokens: _,
            } => {
                below("time_ns", *ts_ns, MOST_NS)?;
                for bytes in [resident, in_use, cached, floor, budget] {
                    below("cache_bytes", bytes.0, MOST_CACHE)?;
                }
            }
            Entry::Trim(t) => t
                .by_step
                .iter()
                .try_for_each(|b| below("trim_bytes", b.0, MOST_CACHE))?,
        }
    }
    Ok(())
}

fn check_levels(ts_ns: u64, levels: &Levels) -> io::Result<()> {
    below("time_ns", ts_ns, MOST_NS)?;
    let cgroup = levels.cgroup.iter().flat_map(|c| {
        let maybe = [c.file, c.anonymous, c.restored].into_iter().flatten();
        maybe.chain([c.usage])
    });
    let system = levels.system.iter().flat_map(|s| {
        let maybe = [s.file, s.restored].into_iter().flatten();
        maybe.chain([s.free, s.high, s.tight])
    });
    cgroup.chain(system).try_for_each(memory)
}

fn memory(bytes: Bytes) -> io::Result<()> {
    below("memory_bytes", bytes.0, MOST_MEMORY)
}

fn below(what: &str, n: u64, most: u64) -> io::Result<()> {
    if n <= most {
        return Ok(());
    }
    let why = format!("corrupt recording: {what} = {n} exceeds {most}");
    Err(io::Error::new(io::ErrorKind::InvalidData, why))
}
