//! kvpsi: an LLM runtime that gives KV-cache pages back to the kernel the
//! moment the kernel stalls on memory.
//!
//! Data goes one way: [`signal`] -> [`control`] -> [`kv`] <- [`attention`] <-
//! [`model`] <- [`engine`] <- [`cli`]. `signal` knows nothing of KV blocks,
//! `kv` nothing of pressure; [`control`] alone knows both.

#[cfg(feature = "llm")]
pub mod attention;
#[cfg(feature = "llm")]
pub mod cli;
pub mod clock;
#[cfg(feature = "llm")]
pub mod confine;
pub mod control;
#[cfg(feature = "llm")]
pub mod crew;
#[cfg(feature = "llm")]
pub mod engine;
#[cfg(feature = "llm")]
pub mod eval;
#[cfg(all(fuzzing, feature = "llm"))]
pub mod fuzzing;
pub mod kv;
#[cfg(feature = "llm")]
pub mod model;
#[cfg(feature = "llm")]
pub mod profile;
#[cfg(feature = "llm")]
pub mod server;
pub mod signal;
pub mod trace;
pub mod units;
