//! The event ABI between kvpsi's eBPF programs and its runtime.
//!
//! Owns the layout of everything that crosses from kernel to user space
//! ([`Event`], [`Counters`], [`ScopeClock`]) and the coalescing rule
//! ([`coalesce`]) as pure code, so that the rule the kernel runs is the rule
//! the tests prove. Out of scope: how events are carried, or what is done
//! about them.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod cell;
pub mod coalesce;
pub mod counters;
pub mod event;
pub mod scope;
pub mod shared;

pub use coalesce::{Decision, Rule, Slot};
pub use counters::{Counters, KindCounters};
pub use event::{Event, Kind, Phase};
pub use scope::ScopeClock;
pub use shared::{Shared, SharedReading};

/// Version of every type in this crate, checked when the programs are loaded.
pub const ABI_VERSION: u32 = 2;
