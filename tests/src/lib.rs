//! What the end-to-end tests share.

mod model;
pub mod ours;
pub mod quality;
mod skip;
pub mod storm;
pub mod tiny;

pub use model::{kvpsi_binary, model};
pub use skip::skip;
