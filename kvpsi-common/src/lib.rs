//! The event ABI between kvpsi's eBPF programs and its runtime.
//!
//! Owns the layout of everything that crosses from kernel to user space
//! ([`Event`], [`Counters`], [`ScopeClock`]) and the coalescing rule
//! ([`coalesce`]) as pure code, so that the rule the kernel runs is the rule
//! the tests prove. Refuses to know how events are carried, or what is done
//! about them.
#![no_std]

pub mod event;

pub use event::{Event, Kind, Phase};

/// Version of every type in this crate, checked when the programs are loaded.
pub const ABI_VERSION: u32 = 1;
