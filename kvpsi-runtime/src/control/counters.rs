//! Counters of the kernel's flat keyed files, read without allocating.
//!
//! Owns what is read of a cgroup's `memory.stat` and of /proc/vmstat.
//! Pages read again are harm only where the kernel *restores* them: they were in
//! use before they were evicted, and a little more memory would have kept them
//! (`workingset_refault` in mm/workingset.c; PSI counts waits for these alone).
//! Most refaults are none: a file larger than memory that is read twice refaults
//! each page.
//! Out of scope: what a number means for a trim ([`super::controller`]).

use super::cgroup::Version;
use crate::units::Bytes;
use rustix::io::pread;
use std::fs::File;

/// Twice what either file has on current kernels.
const TEXT_BYTES: usize = 8 << 10;

/// What matters of `memory.stat`: bytes, and pages read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemStat {
    pub file: u64,
    pub dirty: u64,
    /// Page cache that some process has mapped.
    pub mapped: u64,
    pub anonymous: u64,
    /// Evicted pages that were read again.
    pub refaults: u64,
    /// Those of them that were in use; `None` where it is not counted, as in v1.
    pub restored: Option<u64>,
}

/// What matters of /proc/vmstat: pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VmStat {
    pub file: u64,
    pub dirty: u64,
    /// Page cache that some process has mapped.
    pub mapped: u64,
    /// Pages read again that had been in use; all refaults before Linux 4.20.
    pub restored: u64,
    /// Pages that kswapd looked at.
    pub kswapd_scanned: u64,
    /// Pages that were evicted for want of memory in the whole system: none of
    /// those that a cgroup's limit costs.
    pub stolen: u64,
    /// Free pages that only movable allocations may take.
    pub cma_free: u64,
}

/// What the kernel drops without anybody missing it: clean page cache that is
/// none of our `weights`. Of mapped pages it is not known whose they are.
fn spare(file: u64, dirty: u64, mapped: u64, weights: u64) -> u64 {
    file.saturating_sub(dirty)
        .saturating_sub(mapped.min(weights))
}

impl MemStat {
    /// Page cache that reclaim can give while we have so much of `weights` mapped.
    pub(super) fn spare(self, weights: Bytes) -> Bytes {
        Bytes(spare(self.file, self.dirty, self.mapped, weights.0))
    }

    /// Pages read again that may have been in use.
    pub(super) fn again(self) -> u64 {
        self.restored.unwrap_or(self.refaults)
    }

    pub(super) fn read(file: &File, version: Version) -> Option<Self> {
        let mut buf = [0u8; TEXT_BYTES];
        Self::parse(read_text(file, &mut buf)?, version)
    }

    /// v1 has its own pages first and those of all below as `total_`; v2 counts
    /// all. `None` where it names no file pages.
    pub(crate) fn parse(text: &[u8], version: Version) -> Option<Self> {
        let mut sum = Self::default();
        let mut found = false;
        for (name, value) in lines(text) {
            let name = match version {
                Version::V2 => name,
                Version::V1 => match name.strip_prefix(b"total_") {
                    Some(name) => name,
                    None => continue,
                },
            };
            let field = match name {
                b"inactive_file" | b"active_file" => {
                    found = true;
                    &mut sum.file
                }
                b"dirty" | b"writeback" | b"file_dirty" | b"file_writeback" => &mut sum.dirty,
                b"mapped_file" | b"file_mapped" => &mut sum.mapped,
                b"rss" | b"anon" => &mut sum.anonymous,
                // Until 5.8 one counter, then one each.
                b"workingset_refault" | b"workingset_refault_file" | b"workingset_refault_anon" => {
                    &mut sum.refaults
                }
                b"workingset_restore" | b"workingset_restore_file" | b"workingset_restore_anon" => {
                    sum.restored.get_or_insert(0)
                }
                _ => continue,
            };
            *field = field.saturating_add(value);
        }
        found.then_some(sum)
    }
}

impl VmStat {
    /// Pages of page cache that reclaim can give while we have so many of weights
    /// mapped.
    pub(super) fn spare(self, weights: u64) -> u64 {
        spare(self.file, self.dirty, self.mapped, weights)
    }

    pub(super) fn read(file: &File) -> Option<Self> {
        let mut buf = [0u8; TEXT_BYTES];
        Self::parse(read_text(file, &mut buf)?)
    }

    /// `None` where it names no file pages.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let mut sum = Self::default();
        let (mut found, mut refaults, mut restored) = (false, 0u64, None);
        for (name, value) in lines(text) {
            let field = match name {
                b"nr_inactive_file" | b"nr_active_file" => {
                    found = true;
                    &mut sum.file
                }
                b"nr_dirty" | b"nr_writeback" => &mut sum.dirty,
                b"nr_mapped" => &mut sum.mapped,
                b"nr_free_cma" => &mut sum.cma_free,
                b"pgsteal_kswapd" | b"pgsteal_direct" => &mut sum.stolen,
                b"pgscan_kswapd" => &mut sum.kswapd_scanned,
                b"workingset_refault" | b"workingset_refault_file" | b"workingset_refault_anon" => {
                    &mut refaults
                }
                b"workingset_restore" | b"workingset_restore_file" | b"workingset_restore_anon" => {
                    restored.get_or_insert(0)
                }
                _ => continue,
            };
            *field = field.saturating_add(value);
        }
        sum.restored = restored.unwrap_or(refaults);
        found.then_some(sum)
    }
}

/// All that fits of a file.
fn read_text<'a>(file: &File, buf: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut held = 0;
    while held < buf.len() {
        match pread(file, &mut buf[held..], held as u64) {
            Ok(0) => break,
            Ok(n) => held += n,
            Err(_) => return None,
        }
    }
    Some(&buf[..held])
}

/// Pairs of a flat keyed file. Lines that are none are passed over.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let space = line.iter().position(|b| *b == b' ')?;
        Some((&line[..space], number(&line[space + 1..])?))
    })
}

/// The decimal number that a text starts with.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit());
    digits.fold(None, |value, d| {
        let value = value.unwrap_or(0u64).saturating_mul(10);
        Some(value.saturating_add(u64::from(d - b'0')))
    })
}

/// The decimal number that a file starts with: none of `max`, nor of nonsense.
pub(super) fn read_number(file: &File) -> Option<u64> {
    let mut buf = [0u8; 32];
    let n = pread(file, &mut buf, 0).ok()?;
    number(&buf[..n])
}

/// How far a counter moved; `None` at first and where it is not there. A counter
/// that went back (the cgroup was made anew) begins again.
pub(super) fn since(last: &mut Option<u64>, now: Option<u64>) -> Option<u64> {
    let before = std::mem::replace(last, now)?;
    Some(now?.saturating_sub(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_goes_back_begins_again() {
        let mut last = None;
        assert_eq!(since(&mut last, Some(7)), None);
        assert_eq!(since(&mut last, Some(9)), Some(2));
        assert_eq!(since(&mut last, Some(1)), Some(0));
        assert_eq!(since(&mut last, Some(u64::MAX)), Some(u64::MAX - 1));
        assert_eq!(since(&mut last, None), None);
        assert_eq!(since(&mut last, Some(3)), None);
    }

    #[test]
    fn v1_counts_what_is_below_too_and_has_neither_high_nor_restored() {
        let text = b"cache 5\nrss 6\ninactive_file 7\nactive_file 8\ntotal_rss 60\n\
            total_dirty 2\ntotal_writeback 1\nmapped_file 9\ntotal_mapped_file 90\ntotal_inactive_file 70\ntotal_active_file 80\n\
            total_workingset_refault_file 4\n";
        let want = MemStat {
            file: 150,
            dirty: 3,
            mapped: 90,
            anonymous: 60,
            refaults: 4,
            restored: None,
        };
        assert_eq!(MemStat::parse(text, Version::V1), Some(want));
        assert_eq!(MemStat::parse(b"garbage", Version::V1), None);
        assert_eq!(MemStat::parse(b"inactive_file x\n", Version::V2), None);
        let text = b"inactive_file 1\nworkingset_refault_file 9\nworkingset_restore_anon 2\n\
            workingset_restore_file 3\n";
        let v2 = MemStat::parse(text, Version::V2).unwrap();
        assert_eq!((v2.refaults, v2.restored), (9, Some(5)));
    }

    #[test]
    fn weights_that_we_have_mapped_are_not_spare() {
        let stat = MemStat::parse(
            b"inactive_file 70\nactive_file 80\nfile_dirty 10\nfile_mapped 60\n",
            Version::V2,
        );
        let spare = |weights| stat.unwrap().spare(Bytes(weights)).0;
        assert_eq!((spare(0), spare(50)), (140, 90));
        // Some of them are not in memory, or charged to another cgroup.
        assert_eq!(spare(1000), 80);
        let text = b"nr_inactive_file 7\nnr_active_file 8\nnr_mapped 20\nnr_dirty 1\n";
        let stat = VmStat::parse(text).unwrap();
        assert_eq!((stat.spare(0), stat.spare(4), stat.spare(99)), (14, 10, 0));
    }

    #[test]
    fn old_kernels_that_do_not_count_restored_pages_have_all_refaults() {
        let text = b"nr_free_cma 7\nnr_inactive_file 1\nnr_active_file 2\nnr_dirty 1\n\
            workingset_refault 9\npgsteal_kswapd 3\n\
            pgsteal_direct 1\npgscan_kswapd 5\n";
        let old = VmStat::parse(text).unwrap();
        let got = (old.file, old.dirty, old.restored, old.kswapd_scanned);
        assert_eq!((got, old.stolen, old.cma_free), ((3, 1, 9, 5), 4, 7));
        let new = [&text[..], b"workingset_restore_file 5\n"].concat();
        assert_eq!(VmStat::parse(&new).unwrap().restored, 5);
        assert_eq!(VmStat::parse(b""), None);
    }
}
