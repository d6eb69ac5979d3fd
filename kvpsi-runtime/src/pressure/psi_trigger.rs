//! Pressure by a PSI trigger: the kernel makes the file readable (`POLLPRI`)
//! once a window's stall time is spent. At most once per window, and the
//! kernel itself looks only some ten times per window.
//!
//! Format and limits: Documentation/accounting/psi.rst. Without
//! `CAP_SYS_RESOURCE` the window must be a multiple of 2 s.

use crate::pressure::{
    PressureSource, Readiness, SignalError, SourceConfig, SourceStats, plain, psi::PsiFile,
};
use kvpsi_common::Event;
use rustix::event::PollFlags;
use std::{io, io::Write, os::fd::AsFd, sync::Arc, time::Duration};

/// The window that needs no privilege.
const FREE_WINDOW: Duration = Duration::from_secs(2);

/// Waits for the kernel to say that a window's stall time is spent.
#[derive(Debug)]
pub struct PsiTrigger {
    psi: PsiFile,
}

impl PsiTrigger {
    /// Sets the trigger. The second value is a line for the user if the
    /// window is not the one asked for.
    ///
    /// # Errors
    /// There is no PSI file, it cannot be written, or the kernel takes no
    /// trigger.
    pub fn open(config: &SourceConfig) -> Result<(Self, Option<String>), SignalError> {
        let window = config.trigger_window;
        match Self::with_window(config, window) {
            Err(SignalError::File { .. }) if window != FREE_WINDOW => {
                let source = Self::with_window(config, FREE_WINDOW)?;
                let note = format!(
                    "psi-trigger: a window of {window:?} was refused (needs CAP_SYS_RESOURCE), {FREE_WINDOW:?} is used"
                );
                Ok((source, Some(note)))
            }
            other => other.map(|s| (s, None)),
        }
    }

    fn with_window(config: &SourceConfig, window: Duration) -> Result<Self, SignalError> {
        let (psi, path) = PsiFile::open("psi-trigger", config, window * 2, true)?;
        let trigger = format!(
            "some {} {}\0",
            config.trigger_stall.as_micros(),
            window.as_micros()
        );
        let mut file = psi.file();
        file.write_all(trigger.as_bytes())
            .map_err(|e| SignalError::File {
                name: "psi-trigger",
                path,
                why: format!("trigger refused: {}", plain(&e)),
            })?;
        Ok(Self { psi })
    }
}

impl PressureSource for PsiTrigger {
    fn name(&self) -> &'static str {
        "psi-trigger"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: Some((self.psi.file().as_fd(), PollFlags::PRI)),
            interval: None,
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        self.psi.drain(sink)
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.psi.stats.clone()
    }
}
