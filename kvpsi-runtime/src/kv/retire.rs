//! What left the tables and is not free yet.
//!
//! Owns the open guards and the retired blocks, whose pages are returned once
//! every guard that may have seen them is closed. Out of scope: which blocks
//! leave ([`super::reclaim`]).

use super::{block::Retired, epoch::Guards};
use std::sync::Mutex;

/// The reclaimer's parts.
#[derive(Debug)]
pub(super) struct Reclaimer {
    pub(super) guards: Guards,
    pub(super) retired: Retired,
    /// Cached blocks by age, for a trim; who finds it locked does without.
    pub(super) by_age: Mutex<Vec<(u64, u32)>>,
}

impl Reclaimer {
    pub fn new(blocks: usize) -> Self {
        Self {
            guards: Guards::new(),
            retired: Retired::new(blocks),
            by_age: Mutex::new(Vec::with_capacity(blocks)),
        }
    }

    pub fn enter(&self) -> usize {
        self.guards.enter()
    }

    pub fn leave(&self, place: usize) {
        self.guards.leave(place);
    }
}
