//! Pressure by reading PSI's `total` at an interval: the fallback that needs
//! nothing, and the comparison. It is late by up to the interval and cannot
//! say who stalled.

use crate::signal::{
    PressureSource, Readiness, SignalError, SourceConfig, SourceStats, psi::PsiFile,
};
use kvpsi_common::Event;
use std::{io, sync::Arc, time::Duration};

/// Reads `total` each interval.
#[derive(Debug)]
pub struct PsiPoll {
    psi: PsiFile,
    interval: Duration,
}

impl PsiPoll {
    /// Opens the system's PSI file, or the watched cgroup's.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn open(config: &SourceConfig) -> Result<Self, SignalError> {
        let interval = config.poll_interval;
        // A reading without growth ends a burst.
        let quiet = interval.as_nanos().saturating_mul(3) / 2;
        let quiet = u64::try_from(quiet).unwrap_or(u64::MAX);
        let (psi, _) = PsiFile::open("psi-poll", config, quiet, false)?;
        Ok(Self { psi, interval })
    }
}

impl PressureSource for PsiPoll {
    fn name(&self) -> &'static str {
        "psi-poll"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: None,
            interval: Some(self.interval),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        self.psi.drain(sink)
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.psi.stats.clone()
    }
}
