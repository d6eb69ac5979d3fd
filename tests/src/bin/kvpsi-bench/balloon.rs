//! A whole machine that is short of memory: a process takes all but a little.
//!
//! Owns its size and its end. It is the first that the OOM killer chooses, and
//! ends with its parent, so that a machine that was pressed too hard
//! has its memory back at once.

use crate::piped::{Piped, join, orders};
use anyhow::{Context, Result, ensure};
use kvpsi_tests::storm::meminfo;
use memmap2::MmapMut;
use std::{fs, path::Path, process::Command};

const PAGE: usize = 4096;
/// What is taken between two looks at what is left.
const STEP: usize = 4 << 20;

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
        ensure!(balloon.next_line().is_some(), "the balloon ended");
        Ok(Self(balloon))
    }
}

/// Drops page cache that may never be used again: it would serve
/// every read.
pub fn drop_cache() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "1").context("it takes root")
}

/// That process.
pub fn run(left: u64) -> Result<()> {
    join(&[])?;
    choose_me_first()?;
    let free = || meminfo("MemFree:");
    let most = usize::try_from(free().saturating_sub(left))?;
    let mut map = MmapMut::map_anon(most.max(PAGE))?;
    for piece in map.chunks_mut(STEP) {
        if free() <= left {
            break;
        }
        piece.chunks_mut(PAGE).for_each(|page| page[0] = 1);
    }
    println!("held");
    // Until the parent is gone.
    let orders = orders();
    while orders.recv().is_ok() {}
    Ok(())
}
