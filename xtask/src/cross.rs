//! arm64 from another machine: building for it, and the kernels' tests under
//! qemu-user.
//!
//! Owns the list of what that takes, which `cargo xtask setup --cross` installs
//! and nothing else does. Invariant: what cannot be built or run here is said
//! by name and reason.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

/// What is built for.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-aarch64-static";

/// Debian's packages: C compiler, its library, emulator, Rust's library.
pub const DEBIAN_PACKAGES: [&str; 4] = [
    "gcc-aarch64-linux-gnu",
    "libc6-dev-arm64-cross",
    "qemu-user-static",
    "libstd-rust-web-dev:arm64",
];

/// Processors that the kernels are tried on, with the tests left out there:
/// all there is, and one without the dot product (Raspberry Pi 4), which
/// candle's own products do not run on: nothing to compare with.
const PROCESSORS: [(&str, &[&str]); 2] = [
    ("max", &[]),
    (
        "cortex-a72",
        &["--skip", "the_scalar_reference_agrees_with_candle"],
    ),
];

/// Unit tests that run there.
const TESTS: [&str; 4] = [
    "model::linear::",
    "attention::",
    "thread_pool::",
    "model::step::ops::",
];

/// A compiler that has the target's library.
enum Rustc {
    /// The one that cargo calls anyway. What it builds for this machine
    /// (procedural macros, build scripts) is the same for both.
    Own,
    /// Another, which gets a target folder of its own: it would throw away
    /// what the first has built.
    Other(PathBuf),
}

impl Rustc {
    fn find(sh: &Shell) -> Option<Self> {
        let has = |rustc: &Path| {
            cmd!(sh, "{rustc} --print target-libdir --target {TARGET}")
                .quiet()
                .ignore_stderr()
                .read()
                .is_ok_and(|dir| Path::new(dir.trim()).is_dir())
        };
        let own = std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
        if has(&own) {
            return Some(Self::Own);
        }
        let debians = PathBuf::from("/usr/bin/rustc");
        has(&debians).then_some(Self::Other(debians))
    }

    fn target_dir(&self) -> PathBuf {
        match self {
            Self::Own => places::target(),
            Self::Other(_) => places::target().join("cross"),
        }
    }
}

/// Cargo's own compiler can check for arm64: clippy takes no other's library.
pub fn own(sh: &Shell) -> bool {
    matches!(Rustc::find(sh), Some(Rustc::Own))
}

/// Why nothing can be built for arm64 here, if so.
pub fn missing(sh: &Shell, to_run: bool) -> Option<String> {
    let hint = "`cargo xtask setup --cross` installs it";
    if places::in_path(LINKER).is_none() {
        return Some(format!("no {LINKER}; {hint}"));
    }
    if Rustc::find(sh).is_none() {
        return Some(format!("no rustc with the library of {TARGET}; {hint}"));
    }
    (to_run && places::in_path(QEMU).is_none()).then(|| format!("no {QEMU}; {hint}"))
}

fn cargo<'a>(sh: &'a Shell, rustc: &Rustc, args: &[&str]) -> Cmd<'a> {
    let target_dir = rustc.target_dir();
    let cargo = cmd!(
        sh,
        "cargo {args...} --target {TARGET} --target-dir {target_dir}"
    )
    .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
    // One object for all machines: it lies in the host's target folder.
    .env("KVPSI_BPF_OBJECT", places::ebpf_object())
    .quiet();
    match rustc {
        Rustc::Own => cargo,
        Rustc::Other(rustc) => cargo.env("RUSTC", rustc),
    }
}

/// cargo for arm64 with these arguments; what it says, and the folder of what
/// it built.
///
/// # Errors
/// There is no compiler, or it does not build.
pub fn cargo_for_arm64(sh: &Shell, args: &[&str]) -> Result<(String, PathBuf)> {
    let rustc = Rustc::find(sh).context("no rustc")?;
    let told = cargo(sh, &rustc, args).read()?;
    Ok((told, rustc.target_dir().join(TARGET)))
}

/// clippy for arm64 with these arguments, by cargo's own compiler.
///
/// # Errors
/// Something is not as it should be.
pub fn clippy(sh: &Shell, args: &[&str]) -> Result<()> {
    let clippy = [&["clippy"], args].concat();
    say(format_args!(
        "$ cargo {} --target {TARGET}",
        clippy.join(" ")
    ));
    let strict = ["--", "-D", "warnings"];
    Ok(cargo(sh, &Rustc::Own, &clippy).args(strict).run()?)
}

/// To the compiler: with a libc of its own.
const STATIC: [&str; 2] = ["-C", "target-feature=+crt-static"];

/// `cargo xtask build --target aarch64-unknown-linux-gnu`: prints where it is.
///
/// # Errors
/// As [`release`].
pub fn build(sh: &Shell, target: &str) -> Result<()> {
    println!("{}", release(sh, target)?.binary.display());
    Ok(())
}

/// A release for another machine.
pub struct Release {
    /// The runtime, static.
    pub binary: PathBuf,
    /// Cargo's target folder.
    pub target_dir: PathBuf,
}

/// Builds the runtime in release, static.
///
/// # Errors
/// Something is missing, or it does not build.
pub fn release(sh: &Shell, target: &str) -> Result<Release> {
    if target != TARGET {
        bail!("{target}: only {TARGET} is known");
    }
    if let Some(why) = missing(sh, false) {
        bail!("{why}");
    }
    let rustc = Rustc::find(sh).context("no rustc")?;
    let args = [
        "rustc",
        "--release",
        "--package",
        "kvpsi-runtime",
        "--bin",
        "kvpsi",
    ];
    // The libc here is newer than the one of JetPack 6 (Ubuntu 22.04).
    cargo(sh, &rustc, &args)
        .args(["--", STATIC[0], STATIC[1]])
        .run()?;
    let target_dir = rustc.target_dir();
    Ok(Release {
        binary: target_dir.join(TARGET).join("release/kvpsi"),
        target_dir,
    })
}

/// The emulator that runs what was built for arm64.
///
/// # Errors
/// It is not there.
pub fn emulator(sh: &Shell) -> Result<&'static str> {
    missing(sh, true).map_or(Ok(QEMU), |why| Err(anyhow::anyhow!(why)))
}

/// Runs the kernels' unit tests on each of the processors; returns what was
/// left out, by name and reason.
///
/// # Errors
/// They do not build, or one fails.
pub fn test(sh: &Shell) -> Result<Vec<String>> {
    let rustc = Rustc::find(sh).context("no rustc")?;
    say("the kernels' tests for arm64");
    let args = [
        "rustc",
        "--package",
        "kvpsi-runtime",
        "--lib",
        "--profile",
        "test",
        "--message-format=json",
    ];
    // Static: qemu-user has been seen to hang in the dynamic linker.
    let told = cargo(sh, &rustc, &args)
        .args(["--", STATIC[0], STATIC[1]])
        .read()?;
    let program = told
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|m| m["profile"]["test"] == true)
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
        .context("cargo named no test program")?;
    let mut left_out_names = Vec::new();
    for (cpu, left_out) in PROCESSORS {
        say(format_args!("on {cpu}"));
        cmd!(sh, "{QEMU} -cpu {cpu} {program} {TESTS...} {left_out...}")
            .env("PROPTEST_CASES", "16")
            .quiet()
            .run()
            .with_context(|| format!("on {cpu}"))?;
        left_out_names.extend(
            left_out
                .iter()
                .filter(|word| **word != "--skip")
                .map(|test| {
                    format!("{test} on {cpu}: candle's products need the dot product of ARMv8.2")
                }),
        );
    }
    Ok(left_out_names)
}
