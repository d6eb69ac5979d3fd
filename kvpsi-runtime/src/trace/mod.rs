//! Events as something to look at: printed now, recorded and replayed later.
//!
//! Reads the same events that `control` reads and decides nothing.

pub mod format;
