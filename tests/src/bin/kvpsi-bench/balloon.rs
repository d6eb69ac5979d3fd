//! A whole machine that is short of memory: a process takes all but a little.
//!
//! Owns its size and its end. It is the first that the OOM killer chooses, and
//! ends with whoever started it, so that a machine that was pressed too hard
//! has its memory back at once.

use crate::piped::{Piped, join, orders};
use anyhow::{Context, Result, ensure};
use memmap2::MmapMut;
use std::{fs, path::Path, process::Command};

const PAGE: usize = 4096;
/// What is taken between two looks at what is left.
const STEP: usize = 4 << 20;

/// Sums of all zones' watermarks, in bytes: below `low` kswapd is woken, at
/// `high` it sleeps again (Documentation/admin-guide/sysctl/vm.rst).
#[derive(Clone, Copy, Debug)]
pub struct Marks {
    pub low: u64,
    pub high: u64,
}

impl Marks {
    pub fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/zoneinfo")?;
        Ok(Self::of(&text))
    }

    fn of(text: &str) -> Self {
        // Per-cpu lists have a `high:` of their own.
        let sum = |key: &str| {
            let pages = text.lines().filter_map(|l| {
                let mut words = l.split_whitespace();
                (words.next() == Some(key)).then(|| words.next()?.parse::<u64>().ok())?
            });
            pages.sum::<u64>() * PAGE as u64
        };
        Self {
            low: sum("low"),
            high: sum("high"),
        }
    }
}

/// The OOM killer takes this process before any other.
pub fn choose_me_first() -> Result<()> {
    Ok(fs::write("/proc/self/oom_score_adj", "1000")?)
}

/// The process; it ends when this is dropped.
pub struct Balloon(#[expect(dead_code, reason = "held for its end")] Piped);

impl Balloon {
    /// Takes memory until `left` bytes are free.
    pub fn start(me: &Path, left: u64) -> Result<Self> {
        let mut balloon = Piped::start(Command::new(me).args(["balloon", &left.to_string()]))?;
        ensure!(balloon.hear().is_some(), "the balloon ended");
        Ok(Self(balloon))
    }
}

/// Lets page cache go that nobody may ever use again: it would be what everybody
/// is served from.
pub fn drop_cache() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "1").context("it takes root")
}

/// That process.
pub fn run(left: u64) -> Result<()> {
    join(&[])?;
    choose_me_first()?;
    let free = || meminfo("MemFree:");
    let most = usize::try_from(free()?.saturating_sub(left))?;
    let mut map = MmapMut::map_anon(most.max(PAGE))?;
    for piece in map.chunks_mut(STEP) {
        if free()? <= left {
            break;
        }
        piece.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    }
    println!("held");
    // Until nobody is there any more.
    let orders = orders();
    while orders.recv().is_ok() {}
    Ok(())
}

fn meminfo(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("/proc/meminfo")? << 10)
}

#[cfg(test)]
mod tests {
    use super::Marks;

    #[test]
    fn the_watermarks_of_zones_are_summed_and_not_those_of_lists() {
        let text = "Node 0, zone   DMA32\n  pages free     9\n        min      10\n        low      12\n        high     15\n    cpu: 0\n              high:  7\nNode 0, zone   Normal\n        low      100\n        high     200\n";
        let marks = Marks::of(text);
        assert_eq!((marks.low, marks.high), (112 * 4096, 215 * 4096));
    }
}
