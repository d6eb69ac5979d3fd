//! What the end-to-end tests share.

#[cfg(feature = "llm")]
pub mod families;
mod figures;
#[cfg(feature = "llm")]
pub mod hog;
#[cfg(feature = "llm")]
mod model;
#[cfg(feature = "llm")]
pub mod ours;
#[cfg(feature = "llm")]
pub mod perfetto;
#[cfg(feature = "llm")]
pub mod quality;
#[cfg(feature = "llm")]
mod requantize;
#[cfg(feature = "llm")]
pub mod served;
mod skip;
#[cfg(feature = "llm")]
pub mod soak;
pub mod storm;
pub mod swap;
#[cfg(feature = "llm")]
pub mod talker;
#[cfg(feature = "llm")]
pub mod talking;
pub mod terminal;
#[cfg(feature = "llm")]
pub mod tiny;

pub use figures::figure;
#[cfg(feature = "llm")]
pub use model::{kvpsi_binary, model, openai_client, package, quiet, vocabularies};
#[cfg(feature = "llm")]
pub use requantize::requantize;
pub use skip::{emulated, skip};
