//! `cargo xtask lint`: formatting, clippy and rustdoc, for user space, arm64 and
//! eBPF.

use crate::cross::{self, TARGET as ARM64};
use crate::toolchain::{TARGET, Toolchain};
use crate::{ebpf, say};
use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// # Errors
/// If anything is not as it should be, or the eBPF crate cannot be checked here.
pub fn run(sh: &Shell) -> Result<()> {
    cmd!(sh, "cargo fmt --all --check").run()?;
    cmd!(sh, "cargo fmt --manifest-path fuzz/Cargo.toml --check").run()?;
    cmd!(sh, "cargo clippy --all-targets -- -D warnings").run()?;
    cmd!(
        sh,
        "cargo clippy --package kvpsi-runtime --no-default-features --all-targets -- -D warnings"
    )
    .run()?;
    // Two crates have a library with public items.
    cmd!(
        sh,
        "cargo doc --no-deps --package kvpsi-runtime --package kvpsi-common"
    )
    .env("RUSTDOCFLAGS", "-D warnings")
    .run()?;
    arm64(sh)?;
    let toolchain = Toolchain::find(sh)
        .context("no toolchain for the eBPF crate; `cargo xtask setup` installs one")?;
    say("$ cargo clippy --package kvpsi-ebpf, by the eBPF toolchain");
    toolchain
        .cargo(sh, "clippy")
        .args(["--quiet", "--release", "--package", "kvpsi-ebpf"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(ebpf::target_dir())
        .args(["--", "-D", "warnings"])
        .quiet()
        .run()?;
    Ok(())
}

/// The kernels that only arm64 compiles, where cargo's own toolchain has the
/// target.
fn arm64(sh: &Shell) -> Result<()> {
    if !cross::own(sh) {
        println!("skipped: clippy_for_arm64: no library of {ARM64}: rustup target add {ARM64}");
        return Ok(());
    }
    cross::clippy(sh, &["--package", "kvpsi-runtime", "--all-targets"])
}
