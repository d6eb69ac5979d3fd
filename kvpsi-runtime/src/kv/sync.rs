//! Atomics of the KV memory: std's, or loom's where a model is checked.

#[cfg(all(test, loom))]
pub(super) use loom::{
    sync::atomic::{
        AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        fence,
    },
    thread::yield_now,
};
#[cfg(not(all(test, loom)))]
pub(super) use std::{
    sync::atomic::{
        AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        fence,
    },
    thread::yield_now,
};
