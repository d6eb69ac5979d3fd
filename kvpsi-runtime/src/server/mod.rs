//! The OpenAI-compatible server, and what it shows of itself.
//!
//! Owns the sockets, the requests on them, and how the engine's thread is asked.
//! Invariants: nothing of a request is believed before it was checked; a request
//! that was let in ends with exactly one answer or error, and gives its place
//! back; handlers never wait for the model on a thread of the runtime. Out of
//! scope: how memory is given back.

mod anthropic;
pub mod api;
mod complete;
mod connections;
mod embeddings;
mod error;
mod guard;
mod heap;
mod inbound;
mod live;
mod metrics;
mod model;
pub mod names;
mod observe;
mod ollama;
mod page;
mod parts;
mod paths;
mod permits;
mod prompt;
mod responses;
mod routes;
mod sender;
mod serve;
mod shape;
pub mod spans;
mod sse;
mod state;
mod texts;
mod trace;
pub mod view;
mod wire;
mod zeros;

pub use error::ApiError;
pub use guard::Access;
pub use heap::share_one_arena;
pub use live::Live;
pub use model::{Loaded, ModelThread};
pub use serve::Listeners;
pub use state::{Config, Server};
pub use trace::Watchers;
