//! kvpsi: an LLM runtime that gives KV-cache pages back to the kernel the
//! moment the kernel stalls on memory.
//!
//! Data goes one way: [`signal`] -> [`control`] -> [`kv`] <- [`attention`] <-
//! [`model`] <- [`engine`] <- [`cli`]. `signal` knows nothing of KV blocks,
//! `kv` nothing of pressure; [`control`] alone knows both.

pub mod attention;
pub mod cli;
pub mod clock;
pub mod control;
pub mod crew;
pub mod engine;
pub mod eval;
pub mod kv;
pub mod model;
pub mod profile;
pub mod signal;
pub mod trace;
pub mod units;
