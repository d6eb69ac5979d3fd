//! From a GGUF file to logits.
//!
//! Owns what is read from a model file (metadata, weights, tokenizer, chat
//! template) and the decoder that runs on it. A model file is untrusted
//! input: every error names the key or tensor that is wrong. Out of scope:
//! who asks for tokens, how they are sampled, and that memory can be short.

pub mod chat;
pub mod decoder;
pub mod default_model;
pub mod gguf;
pub mod linear;
pub mod load;
pub mod ollama;
pub mod rope;
pub mod step;
pub mod tokenizer;
pub mod weights;
