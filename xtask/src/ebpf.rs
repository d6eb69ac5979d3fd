//! Builds the eBPF object that the runtime embeds.
//!
//! Owns target/ebpf (cargo's) and target/bpf/kvpsi.bpf.o (the result).
//! Invariant: the result's modification time moves only with its content, so
//! that the runtime is not rebuilt for nothing; it is replaced in one step.

use crate::toolchain::{TARGET, Toolchain};
use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use xshell::Shell;

/// `cargo xtask build-ebpf`.
///
/// # Errors
/// If no toolchain can build it, or it does not build.
pub fn build(sh: &Shell) -> Result<()> {
    let Some(toolchain) = Toolchain::find(sh) else {
        bail!(
            "nothing here can build the eBPF object; `cargo xtask setup` installs what is missing, \
             `cargo xtask setup --check` lists it"
        );
    };
    say(format_args!("eBPF by {}", toolchain.describe(sh)));
    let target_dir = target_dir();
    toolchain
        .cargo(sh, "build")
        .args(["--quiet", "--release", "--package", "kvpsi-ebpf"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .quiet()
        .run()
        .context("the eBPF object did not build")?;

    let built = target_dir.join(TARGET).join("release/kvpsi-ebpf");
    let object = places::ebpf_object();
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let changed = fs::read(&object).ok().as_deref() != Some(&bytes);
    if changed {
        let folder = object.parent().context("the object has no folder")?;
        let part = object.with_extension(format!("part.{}", std::process::id()));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&part, &bytes))
            .and_then(|()| fs::rename(&part, &object))
            .with_context(|| format!("cannot write {}", object.display()))?;
    }
    say(format_args!(
        "{}: {} bytes, {}",
        object.display(),
        bytes.len(),
        if changed { "new" } else { "unchanged" }
    ));
    Ok(())
}

/// As [`build`], on the way to another task: says so and goes on where no
/// toolchain is available.
///
/// # Errors
/// If there is a toolchain and the object does not build.
pub fn build_if_possible(sh: &Shell) -> Result<()> {
    if Toolchain::find(sh).is_some() {
        return build(sh);
    }
    let object = places::ebpf_object();
    if object.exists() {
        say(format_args!(
            "no eBPF toolchain: {} of an earlier build stays in use",
            object.display()
        ));
    } else {
        say("no eBPF toolchain: kvpsi is built without eBPF and will fall back to PSI");
    }
    Ok(())
}

/// Cargo's own folder for the eBPF build: another compiler's output would throw
/// the user-space build away.
pub fn target_dir() -> PathBuf {
    places::target().join("ebpf")
}
