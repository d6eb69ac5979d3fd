//! `cargo xtask loom`: models of threads, every interleaving up to the number of
//! preemptions that each model names.
//!
//! Owns how they are built: with `--cfg loom`, without the model, in a target
//! folder of their own, so that nothing else is built anew.

use crate::{places, say};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// # Errors
/// If they do not build or one fails.
pub fn run(sh: &Shell) -> Result<()> {
    say("loom: models of guards, blocks, tables and orders");
    let target = places::target().join("loom");
    let features = ["--no-default-features", "--features", "trim"];
    cmd!(
        sh,
        "cargo test -p kvpsi-runtime --lib {features...} loom_tests"
    )
    .env("RUSTFLAGS", "--cfg loom")
    .env("CARGO_TARGET_DIR", target)
    .quiet()
    .run()
    .context("a model failed, or did not build")
}
