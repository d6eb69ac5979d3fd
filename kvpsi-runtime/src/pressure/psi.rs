//! PSI's text: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
//!
//! Owns one open file and its last `total`. Does not allocate after opening.

use crate::clock::monotonic_ns;
use crate::pressure::{EventTotals, SignalError, SourceConfig, SourceStats, burst::Burst, plain};
use bytemuck::Zeroable;
use kvpsi_common::{Event, Kind, Phase, event::ORDER_UNKNOWN};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Reads `total` of the `some` line, in µs.
pub(crate) fn some_total_us(text: &[u8]) -> Option<u64> {
    total_us(text, b"some ")
}

/// Reads `total` of the line that begins with `word`, in µs.
pub(crate) fn total_us(text: &[u8], word: &[u8]) -> Option<u64> {
    let line = text.split(|b| *b == b'\n').find(|l| l.starts_with(word))?;
    let field = line
        .split(|b| *b == b' ')
        .find_map(|f| f.strip_prefix(b"total="))?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// What a PSI file said, readable from any thread.
#[derive(Debug)]
pub(crate) struct PsiStats {
    file: File,
    base_us: u64,
    events: AtomicU64,
}

impl SourceStats for PsiStats {
    fn totals(&self) -> EventTotals {
        let n = self.events.load(Relaxed);
        EventTotals {
            seen: n,
            delivered: n,
            ..EventTotals::default()
        }
    }

    fn some_ns(&self) -> Option<u64> {
        let total_us = total_of(&self.file).ok()?;
        Some(total_us.saturating_sub(self.base_us).saturating_mul(1000))
    }
}

/// A PSI file and what of it was reported.
#[derive(Debug)]
pub(crate) struct PsiFile {
    pub(crate) stats: Arc<PsiStats>,
    pub(crate) burst: Burst,
    last_us: u64,
    cgroup_id: u64,
}

impl PsiFile {
    /// Opens the system's file or the scope's.
    pub(crate) fn open(
        name: &'static str,
        config: &SourceConfig,
        quiet: Duration,
        write: bool,
    ) -> Result<(Self, PathBuf), SignalError> {
        let path = match &config.cgroup {
            None => PathBuf::from("/proc/pressure/memory"),
            Some(c) => c.pressure.clone().ok_or_else(|| SignalError::File {
                name,
                path: PathBuf::from("memory.pressure"),
                why: "this cgroup has none (cgroup v1 has no PSI; use --signal ebpf, or the scope system)"
                    .into(),
            })?,
        };
        let refused = |e: io::Error| {
            let hint = match e.raw_os_error() {
                Some(2) => " (the kernel was built without CONFIG_PSI)",
                Some(95) => " (PSI is off: boot with psi=1)",
                Some(13 | 1) => " (needs write permission: run as root)",
                _ => "",
            };
            SignalError::File {
                name,
                path: path.clone(),
                why: format!("{}{hint}", plain(&e)),
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(&path)
            .map_err(refused)?;
        let psi = Self::over(file, quiet, config).map_err(refused)?;
        Ok((psi, path))
    }

    /// Over a file that is open already. A burst ends after a `quiet` spell.
    pub(crate) fn over(file: File, quiet: Duration, config: &SourceConfig) -> io::Result<Self> {
        let base_us = total_of(&file)?;
        Ok(Self {
            stats: Arc::new(PsiStats {
                file,
                base_us,
                events: AtomicU64::new(0),
            }),
            burst: Burst::new(quiet),
            last_us: base_us,
            cgroup_id: config.cgroup.as_ref().map_or(0, |c| c.id),
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.stats.file
    }

    /// Reports what `total` grew by since the last call, if it did.
    pub(crate) fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        let total = total_of(&self.stats.file)?;
        let grown = total.saturating_sub(self.last_us);
        if grown == 0 {
            return Ok(());
        }
        self.last_us = total;
        let now = monotonic_ns();
        let phase = self.burst.stall(now);
        sink(&event(
            now,
            grown.saturating_mul(1000),
            self.cgroup_id,
            phase,
        ));
        self.stats.events.fetch_add(1, Relaxed);
        Ok(())
    }
}

/// A stall without details: which task stalled PSI does not say, nor
/// when that began.
pub(crate) fn event(ts_ns: u64, stall_ns: u64, cgroup_id: u64, phase: Phase) -> Event {
    let mut event = Event::zeroed();
    event.ts_ns = ts_ns;
    event.stall_ns = stall_ns;
    event.count = 1;
    event.cgroup_id = cgroup_id;
    event.order = ORDER_UNKNOWN;
    event.kind = Kind::Memstall as u16;
    event.phase = phase as u16;
    event
}

fn total_of(file: &File) -> io::Result<u64> {
    // Two lines of less than 80 bytes each.
    let mut text = [0u8; 256];
    let n = file.read_at(&mut text, 0)?;
    some_total_us(&text[..n])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no `total` on a line of `some`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_total_of_the_some_line_is_read() {
        let text = b"some avg10=1.50 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n";
        assert_eq!(some_total_us(text), Some(12345));
        assert_eq!(total_us(text, b"full "), Some(99));
    }

    #[test]
    fn text_without_a_total_is_refused() {
        for text in [
            &b""[..],
            b"full total=3",
            b"some avg10=1",
            b"some total=-1",
            b"some total=99999999999999999999999",
        ] {
            assert_eq!(some_total_us(text), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = some_total_us(&text);
        }
    }
}
