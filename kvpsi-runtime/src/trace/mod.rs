//! Events as something to look at: printed now, recorded and replayed later.
//!
//! Owns what outputs have in common: [`Output`], and which events reach one
//! ([`filter`]). Reads the same events that `control` reads and decides
//! nothing.

pub mod filter;
pub mod format;
pub mod perfetto;
pub mod recorder;
pub mod recording;
pub mod replay;
pub mod summary;

use crate::{pressure::psi_total_us as total_us, units::Bytes};
use kvpsi_common::Event;
use serde::{Deserialize, Serialize};
use std::io;

/// PSI's own account of memory at one moment, the whole system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// `CLOCK_MONOTONIC`, ns.
    pub ts_ns: u64,
    /// Total of the `some` line, us.
    pub some_us: u64,
    /// Total of the `full` line, us.
    pub full_us: u64,
}

impl Sample {
    /// What PSI says now, where the kernel keeps it.
    #[must_use]
    pub fn now() -> Option<Self> {
        let text = std::fs::read("/proc/pressure/memory").ok()?;
        Self::parse(crate::clock::monotonic_ns(), &text)
    }

    /// From the text of a PSI file.
    #[must_use]
    pub fn parse(ts_ns: u64, text: &[u8]) -> Option<Self> {
        Some(Self {
            ts_ns,
            some_us: total_us(text, b"some ")?,
            full_us: total_us(text, b"full ")?,
        })
    }
}

/// The KV memory of a running kvpsi at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLevel {
    /// `CLOCK_MONOTONIC`, ns.
    pub ts_ns: u64,
    /// Resident blocks.
    pub resident: Bytes,
    /// Blocks of sequences in flight.
    pub in_use: Bytes,
    /// Most that may be resident.
    pub budget: Bytes,
}

/// Where events go to be looked at.
pub trait Output {
    /// Takes one event, in the order of arrival.
    ///
    /// # Errors
    /// What was written to refused.
    fn event(&mut self, e: &Event) -> io::Result<()>;

    /// Takes one sample of PSI; most outputs show none.
    ///
    /// # Errors
    /// What was written to refused.
    fn sample(&mut self, _sample: &Sample) -> io::Result<()> {
        Ok(())
    }

    /// Takes a trim of a running kvpsi; others have none.
    ///
    /// # Errors
    /// What was written to refused.
    fn trim(&mut self, _trim: &recording::Trim) -> io::Result<()> {
        Ok(())
    }

    /// Takes a look at the KV memory of a running kvpsi; others have none.
    ///
    /// # Errors
    /// What was written to refused.
    fn kv(&mut self, _kv: &KvLevel) -> io::Result<()> {
        Ok(())
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// What was written to refused.
    fn flush(&mut self) -> io::Result<()>;

    /// Ends the output.
    ///
    /// # Errors
    /// What was written to refused.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// A name without control characters: a task may call itself anything.
#[must_use]
pub fn printable(name: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    name.chars().map(shown).collect()
}
