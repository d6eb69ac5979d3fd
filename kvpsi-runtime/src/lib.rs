//! kvpsi: an LLM runtime that gives KV-cache pages back to the kernel the
//! moment the kernel stalls on memory.
//!
//! Where to begin:
//!
//! - A program of candle's that brings its own model: [`cache`], keys, values and
//!   attention on tensors, trimmed by a governor that two lines start. The
//!   example `candle_model` is a whole model on it.
//! - A program that wants text: [`engine::Engine`] for one conversation after
//!   another, [`engine::batch::Batch`] for many at once.
//! - A cache of another kind that is to follow memory pressure: [`pressure`] has
//!   the events, [`control`] what they mean in bytes, [`kv`] blocks that can be
//!   returned.
//! - The server and the command line: [`server`], [`cli`].
//!
//! Data goes one way: [`pressure`] -> [`control`] -> [`kv`] <- [`attention`] <-
//! [`model`] <- [`engine`] <- [`cli`]. `pressure` knows nothing of KV blocks,
//! `kv` nothing of pressure; [`control`] alone knows both.

#[cfg(feature = "llm")]
pub mod attention;
#[cfg(feature = "llm")]
pub mod cache;
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
#[cfg_attr(
    not(feature = "llm"),
    expect(dead_code, reason = "weights come with models")
)]
mod mapped;
#[cfg(feature = "llm")]
pub mod model;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod pressure;
#[cfg(feature = "llm")]
pub mod profile;
#[cfg(feature = "llm")]
pub mod random;
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
