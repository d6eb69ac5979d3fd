//! Pressure by reading /proc/vmstat at an interval: the last resort, where
//! there is neither BPF nor PSI.
//!
//! Owns one open file and its last values. It sees the whole system's
//! direct reclaim and kswapd, not reclaim in a cgroup, which the kernel does
//! not count there (`cgroup_reclaim` in mm/vmscan.c), and no stall time. The
//! counters are those of include/linux/vm_event_item.h. Does not allocate after
//! opening.

use crate::clock::monotonic_ns;
use crate::pressure::{
    EventTotals, PressureSource, Readiness, SignalError, SourceConfig, SourceStats,
    burst::{Burst, Pace},
    plain,
};
use bytemuck::Zeroable;
use kvpsi_common::{Event, Kind, Phase, event::ORDER_UNKNOWN};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const NAME: &str = "vmstat";
const PATH: &str = "/proc/vmstat";
/// Several times what the longest such file has.
const TEXT_BYTES: usize = 64 << 10;

/// What the file counts since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tasks that began to reclaim by themselves.
    stalls: u64,
    /// Pages that such tasks looked at.
    scanned: u64,
    /// Pages that they freed.
    reclaimed: u64,
    /// Pages that kswapd looked at.
    kswapd: u64,
}

impl Counts {
    /// Sums the lines that count here: one a zone, in some kernels. `None` if
    /// there is none of stalls.
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let mut sum = Self::default();
        let mut found = false;
        for line in text.split(|b| *b == b'\n') {
            let Some(space) = line.iter().position(|b| *b == b' ') else {
                continue;
            };
            let (name, number) = (&line[..space], &line[space + 1..]);
            let field = if name.starts_with(b"allocstall") {
                found = true;
                &mut sum.stalls
            } else if name.ends_with(b"_throttle") {
                continue;
            } else if name.starts_with(b"pgscan_direct") {
                &mut sum.scanned
            } else if name.starts_with(b"pgsteal_direct") {
                &mut sum.reclaimed
            } else if name.starts_with(b"pgscan_kswapd") {
                &mut sum.kswapd
            } else {
                continue;
            };
            let number = std::str::from_utf8(number).ok()?.parse().ok()?;
            *field = field.saturating_add(number);
        }
        found.then_some(sum)
    }
}

/// What the source saw, readable from any thread.
#[derive(Debug, Default)]
struct VmstatStats {
    seen: AtomicU64,
    delivered: AtomicU64,
}

impl SourceStats for VmstatStats {
    fn totals(&self) -> EventTotals {
        // In this order: an event is counted as seen before it is delivered.
        let delivered = self.delivered.load(Relaxed);
        let seen = self.seen.load(Relaxed);
        EventTotals {
            seen,
            delivered,
            coalesced: seen.saturating_sub(delivered),
            dropped: 0,
        }
    }

    fn some_ns(&self) -> Option<u64> {
        None
    }
}

/// Reads the counters each interval.
#[derive(Debug)]
pub struct Vmstat {
    file: File,
    text: Box<[u8]>,
    last: Counts,
    kswapd_ran: bool,
    burst: Burst,
    pace: Pace,
    stats: Arc<VmstatStats>,
}

impl Vmstat {
    /// Opens the system's counters.
    ///
    /// # Errors
    /// There is no such file, it counts no stalls, or a cgroup is to be
    /// watched.
    pub fn open(config: &SourceConfig) -> Result<Self, SignalError> {
        let refused = |why: String| SignalError::File {
            name: NAME,
            path: PathBuf::from(PATH),
            why,
        };
        if config.cgroup.is_some() {
            return Err(refused(
                "it counts for the whole system; a cgroup cannot be watched by it".into(),
            ));
        }
        let file = File::open(PATH).map_err(|e| refused(plain(&e)))?;
        let mut text = vec![0u8; TEXT_BYTES].into_boxed_slice();
        let last = read(&file, &mut text).map_err(|e| refused(plain(&e)))?;
        let pace = config.pace();
        Ok(Self {
            file,
            text,
            last,
            kswapd_ran: false,
            burst: Burst::new(pace.quiet()),
            pace,
            stats: Arc::default(),
        })
    }
}

fn read(file: &File, text: &mut [u8]) -> io::Result<Counts> {
    let mut held = 0;
    // The kernel hands it out a page at a time.
    loop {
        let n = file.read_at(&mut text[held..], held as u64)?;
        if n == 0 {
            break;
        }
        held += n;
    }
    let whole = held < text.len();
    Counts::read(&text[..held])
        .filter(|_| whole)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it counts no `allocstall`"))
}

impl PressureSource for Vmstat {
    fn name(&self) -> &'static str {
        NAME
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: None,
            interval: Some(self.pace.interval(&self.burst, monotonic_ns())),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        let now = read(&self.file, &mut self.text)?;
        let last = std::mem::replace(&mut self.last, now);
        let ts_ns = monotonic_ns();
        let mut event = Event::zeroed();
        event.ts_ns = ts_ns;
        event.order = ORDER_UNKNOWN;
        let stalls = now.stalls.saturating_sub(last.stalls);
        let runs = now.kswapd > last.kswapd;
        // One that began before the last look still looks at pages.
        if stalls > 0 || now.scanned > last.scanned {
            event.kind = Kind::DirectReclaim as u16;
            event.phase = self.burst.stall(ts_ns) as u16;
            event.count = stalls.max(1);
            event.pages = now.reclaimed.saturating_sub(last.reclaimed);
        } else if runs && !self.kswapd_ran {
            event.kind = Kind::KswapdWake as u16;
            event.phase = Phase::Mark as u16;
            event.count = 1;
        }
        self.kswapd_ran = runs;
        if event.count > 0 {
            self.stats.seen.fetch_add(event.count, Relaxed);
            self.stats.delivered.fetch_add(1, Relaxed);
            sink(&event);
        }
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.stats.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_counters_of_all_zones_are_summed_and_others_are_not() {
        let text =
            b"nr_free_pages 7\nallocstall_dma 1\nallocstall_normal 20\nallocstall_movable 300\n\
            pgscan_kswapd 5\npgscan_direct 40\npgscan_direct_throttle 9000\npgsteal_direct 30\n\
            pgscan_khugepaged 8\n";
        let want = Counts {
            stalls: 321,
            scanned: 40,
            reclaimed: 30,
            kswapd: 5,
        };
        assert_eq!(Counts::read(text), Some(want));
    }

    #[test]
    fn a_text_without_stalls_or_with_nonsense_for_a_number_is_refused() {
        assert_eq!(Counts::read(b""), None);
        assert_eq!(Counts::read(b"pgscan_direct 3\n"), None);
        assert_eq!(Counts::read(b"allocstall_normal many\n"), None);
        assert_eq!(
            Counts::read(b"allocstall_normal 99999999999999999999999\n"),
            None
        );
    }

    #[test]
    fn this_kernel_counts_stalls_and_a_cgroup_is_not_watched_by_it() {
        let mut source = Vmstat::open(&SourceConfig::default()).unwrap();
        source.drain(&mut |_| {}).unwrap();
        let totals = source.stats().totals();
        assert_eq!(totals.seen, totals.delivered + totals.coalesced);
        let config = SourceConfig {
            cgroup: Some(crate::pressure::CgroupScope {
                id: 1,
                level: None,
                pressure: None,
            }),
            ..SourceConfig::default()
        };
        let why = Vmstat::open(&config).unwrap_err().to_string();
        assert!(why.starts_with("vmstat: /proc/vmstat: "), "{why}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = Counts::read(&text);
        }
    }
}
