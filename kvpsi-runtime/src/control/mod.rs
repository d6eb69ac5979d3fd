//! From events to bytes: the only place that knows both pressure and KV.
//!
//! Owns the walls that memory runs into ([`wall`], found by [`cgroup`]; [`system`]),
//! what is missing there ([`gauge`]), the rule that turns stalls into trims
//! ([`controller`], pure), the thread that carries it out ([`reactor`]) and its
//! owner ([`Governor`]). Out of scope: how events are read (`pressure`) and
//! which blocks are given back (`kv`).
//!
//! Invariant: from the ring buffer to `madvise` nothing here allocates,
//! blocks, logs or takes a lock that a slow path holds.

mod bucket;
pub mod cgroup;
pub mod controller;
pub(crate) mod counters;
pub mod early;
mod gate;
pub mod gauge;
pub mod governor;
pub mod harden;
mod order;
pub mod reactor;
pub mod record;
pub mod report;
pub mod room;
mod survey;
mod swap;
pub mod system;
pub mod wall;
mod witness;
mod worker;

pub use controller::{Controller, Decision, Gave, Tuning};
pub use governor::{
    Governor, GovernorConfig, GovernorError, GovernorStats, Prepared, Scope, open_gauges,
};
pub use record::{Tap, Tapped, Trigger, TrimRecord};
pub use report::{Verdicts, WallReport};
