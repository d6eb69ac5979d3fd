//! PSI's text: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
//!
//! Owns one open file and its last `total`. Does not allocate after opening.

use crate::clock::monotonic_ns;
use crate::signal::{EventTotals, SignalError, SourceConfig, SourceStats, plain};
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

    fn some_ns(&self) -> u64 {
        total_of(&self.file).map_or(0, |us| us.saturating_sub(self.base_us) * 1000)
    }
}

/// A PSI file and what of it was reported.
#[derive(Debug)]
pub(crate) struct PsiFile {
    pub(crate) stats: Arc<PsiStats>,
    last_us: u64,
    quiet_ns: u64,
    last_growth_ns: Option<u64>,
    cgroup_id: u64,
}

impl PsiFile {
    /// Opens the system's file or the scope's.
    pub(crate) fn open(
        name: &'static str,
        config: &SourceConfig,
        quiet_ns: u64,
        write: bool,
    ) -> Result<(Self, PathBuf), SignalError> {
        let path = match &config.cgroup {
            None => PathBuf::from("/proc/pressure/memory"),
            Some(c) => c.pressure.clone().ok_or_else(|| SignalError::Psi {
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
            SignalError::Psi {
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
        let base_us = total_of(&file).map_err(refused)?;
        Ok((
            Self {
                stats: Arc::new(PsiStats {
                    file,
                    base_us,
                    events: AtomicU64::new(0),
                }),
                last_us: base_us,
                quiet_ns,
                last_growth_ns: None,
                cgroup_id: config.cgroup.as_ref().map_or(0, |c| c.id),
            },
            path,
        ))
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
        let onset = self
            .last_growth_ns
            .is_none_or(|t| now.saturating_sub(t) > self.quiet_ns);
        self.last_growth_ns = Some(now);
        let phase = if onset { Phase::Onset } else { Phase::Summary };
        // Which task stalled PSI does not say; nor when the stall began.
        let mut event = Event::zeroed();
        event.ts_ns = now;
        event.stall_ns = grown * 1000;
        event.count = 1;
        event.cgroup_id = self.cgroup_id;
        event.order = ORDER_UNKNOWN;
        event.kind = Kind::Memstall as u16;
        event.phase = phase as u16;
        sink(&event);
        self.stats.events.fetch_add(1, Relaxed);
        Ok(())
    }
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
