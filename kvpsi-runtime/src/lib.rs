//! kvpsi: an LLM runtime that gives KV-cache pages back to the kernel the
//! moment the kernel stalls on memory.
//!
//! Data goes one way: [`pressure`] -> [`control`] -> [`kv`] <- [`attention`] <-
//! [`model`] <- [`engine`] <- [`cli`]. `pressure` knows nothing of KV blocks,
//! `kv` nothing of pressure; [`control`] alone knows both.

#[cfg(feature = "llm")]
pub mod attention;
#[cfg(feature = "llm")]
pub mod cli;
pub mod clock;
pub mod control;
#[cfg(feature = "llm")]
mod curves;
#[cfg(feature = "llm")]
pub mod demo;
#[cfg(feature = "llm")]
pub mod engine;
#[cfg(feature = "llm")]
pub mod eval;
#[cfg(all(fuzzing, feature = "llm"))]
pub mod fuzzing;
pub mod kv;
#[cfg(feature = "llm")]
pub mod model;
pub mod pressure;
#[cfg(feature = "llm")]
pub mod profile;
#[cfg(feature = "llm")]
pub mod sandbox;
#[cfg(feature = "llm")]
pub mod server;
#[cfg(feature = "llm")]
mod simd_ops;
#[cfg(feature = "llm")]
pub mod speed;
mod sync;
#[cfg(feature = "llm")]
pub mod thread_pool;
pub mod trace;
pub mod units;
