//! Pressure by reading PSI's `total` at an interval: the fallback that needs
//! nothing, and the comparison. It looks often while pressure is recent and
//! seldom while it is not, is late by up to that interval and cannot say who
//! stalled.

use crate::clock::monotonic_ns;
use crate::pressure::{
    PressureSource, Readiness, SignalError, SourceConfig, SourceStats, burst::Pace, psi::PsiFile,
};
use kvpsi_common::Event;
use std::{io, sync::Arc};

/// Reads `total` each interval.
#[derive(Debug)]
pub struct PsiPoll {
    psi: PsiFile,
    pace: Pace,
}

impl PsiPoll {
    /// Opens the system's PSI file, or the watched cgroup's.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    pub fn open(config: &SourceConfig) -> Result<Self, SignalError> {
        let pace = config.pace();
        let (psi, _) = PsiFile::open("psi-poll", config, pace.quiet(), false)?;
        Ok(Self { psi, pace })
    }
}

impl PressureSource for PsiPoll {
    fn name(&self) -> &'static str {
        "psi-poll"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: None,
            interval: Some(self.pace.interval(&self.psi.burst, monotonic_ns())),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        self.psi.drain(sink)
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.psi.stats.clone()
    }
}
