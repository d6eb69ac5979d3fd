//! How early kswapd wakes: what is left between its wake and the first task that
//! must reclaim itself, and `vm.watermark_scale_factor`, which decides it.
//!
//! Out of scope: writing it, which needs a privilege that a serving kvpsi has
//! dropped ([`crate::cli::watermarks`]).
//!
//! Sources: `__setup_per_zone_wmarks` in mm/page_alloc.c (low is min plus the larger of
//! a quarter of min and managed pages times the factor over 10,000; high is as much
//! above low); Documentation/admin-guide/sysctl/vm.rst.

use crate::units::Bytes;
use std::fs;

/// The setting.
pub const FACTOR: &str = "/proc/sys/vm/watermark_scale_factor";
/// Less than this is too late: a program takes so much in some 30 ms (1 GiB/s).
const LEAST: Bytes = Bytes::mib(32);
/// What the advice is made for.
const WANTED: Bytes = Bytes::mib(64);
/// The kernel takes no more: 30 % of memory.
const MOST_FACTOR: u64 = 3000;

/// The system's early warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyWarning {
    /// From the low watermarks, where kswapd wakes, to the min ones: bytes of all
    /// zones.
    pub distance: Bytes,
    /// Memory of all zones.
    pub managed: Bytes,
    /// `vm.watermark_scale_factor` now.
    pub factor: u64,
}

impl EarlyWarning {
    /// As it is now; `None` where /proc does not say.
    #[must_use]
    pub fn read() -> Option<Self> {
        let factor = fs::read_to_string(FACTOR).ok()?.trim().parse().ok()?;
        let zones = fs::read_to_string("/proc/zoneinfo").ok()?;
        Self::of(&zones, factor)
    }

    fn of(zoneinfo: &str, factor: u64) -> Option<Self> {
        let page = rustix::param::page_size() as u64;
        let sum = |key: &str| {
            let numbers = zoneinfo.lines().filter_map(|l| {
                // Per-CPU page sets have a line "high: N", with a colon.
                l.trim_start().strip_prefix(key)?.trim().parse::<u64>().ok()
            });
            numbers.fold(0, u64::saturating_add).saturating_mul(page)
        };
        let (min, low, managed) = (sum("min "), sum("low "), sum("managed "));
        (managed > 0).then_some(Self {
            distance: Bytes(low.saturating_sub(min)),
            managed: Bytes(managed),
            factor,
        })
    }

    /// The factor that warns early enough, where this one does not.
    #[must_use]
    pub fn advice(&self) -> Option<u64> {
        let wanted = WANTED.0.saturating_mul(10_000).div_ceil(self.managed.0);
        let advised = wanted.min(MOST_FACTOR);
        (self.distance < LEAST && advised > self.factor).then_some(advised)
    }
}

impl std::fmt::Display for EarlyWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "kswapd wakes {} before tasks reclaim themselves (vm.watermark_scale_factor = {})",
            self.distance, self.factor
        )?;
        match self.advice() {
            None => Ok(()),
            Some(n) => write!(
                f,
                "; {n} would make it {WANTED}: `kvpsi serve --tune-watermarks` sets it while it runs"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_with_the_kernels_default_is_advised_and_one_tuned_is_not() {
        let zones = |low: u64| {
            format!(
                "Node 0, zone DMA\n  pages free 1\n  min 10\n  low 12\n  high 14\n managed 3840\n\
                 pagesets\n   high: 700\nNode 0, zone Normal\n  min 2800\n  low {low}\n  high 9\n managed 2000000\n"
            )
        };
        let early = EarlyWarning::of(&zones(4798), 10).unwrap();
        assert_eq!(early.distance, Bytes(2000 * 4096));
        // 64 MiB of 7.6 GiB.
        assert_eq!(early.advice(), Some(82));
        assert!(early.to_string().contains("; 82 would make it 64.0 MiB"));
        let tuned = EarlyWarning::of(&zones(2800 + 16_400), 82).unwrap();
        assert_eq!(tuned.advice(), None);
        assert_eq!(EarlyWarning::of("nothing", 10), None);
    }
}
