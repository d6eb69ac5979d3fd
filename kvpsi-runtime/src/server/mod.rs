//! The OpenAI-compatible server, and what it shows of itself.

pub mod view;
