//! Which toolchain builds the eBPF object.
//!
//! Owns the choice between the two that can: Debian's packages (core comes
//! prebuilt for bpfel-unknown-none, so stable rustup is no obstacle) and the
//! convention elsewhere, rustup's nightly with rust-src and build-std.
//! Invariant: bpf-linker's LLVM is at least as new as the compiler's, or it
//! cannot read the bitcode; with Debian's compiler only the linker that
//! `setup` built against Debian's LLVM is taken. Out of scope: installing.

use crate::places;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use xshell::{Cmd, Shell, cmd};

/// The target that the programs compile for.
pub const TARGET: &str = "bpfel-unknown-none";
/// The bpf-linker that works with the compilers below.
pub const BPF_LINKER: &str = "0.10.3";
/// The LLVM of Debian's rustc-web, which bpf-linker is built against.
pub const LLVM: &str = "22";
/// Debian's packages for the eBPF object.
pub const DEBIAN_PACKAGES: [&str; 6] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "rust-web-clippy",
    "llvm-22-dev",
    "libpolly-22-dev",
];

/// A toolchain that can build the eBPF object.
#[derive(Debug)]
pub enum Toolchain {
    /// Debian's rustc with core prebuilt for BPF.
    Debian {
        /// The bpf-linker that `setup` built.
        linker: PathBuf,
    },
    /// rustup's nightly, building core from rust-src.
    Nightly {
        /// A bpf-linker from PATH.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// The toolchain that this machine has, if any.
    pub fn find(sh: &Shell) -> Option<Self> {
        if debian_rust()
            && let Some(linker) = own_linker(sh)
        {
            return Some(Self::Debian { linker });
        }
        if nightly_with_source(sh)
            && let Some(linker) = places::in_path("bpf-linker")
        {
            return Some(Self::Nightly { linker });
        }
        None
    }

    /// What it is, for the user.
    pub fn describe(&self, sh: &Shell) -> String {
        let (rustc, linker) = match self {
            Self::Debian { linker } => {
                (cmd!(sh, "/usr/bin/rustc --version").quiet().read(), linker)
            }
            Self::Nightly { linker } => (
                cmd!(sh, "rustup run nightly rustc --version")
                    .quiet()
                    .read(),
                linker,
            ),
        };
        let rustc = rustc.unwrap_or_else(|_| "rustc".into());
        let which = match self {
            Self::Debian { .. } => "Debian's prebuilt core",
            Self::Nightly { .. } => "nightly with rust-src",
        };
        format!("{which}, {rustc}, {}", linker.display())
    }

    /// `cargo SUBCOMMAND` for the eBPF crate, without its arguments.
    pub fn cargo<'a>(&self, sh: &'a Shell, subcommand: &str) -> Cmd<'a> {
        let (command, linker) = match self {
            // rustup's cargo would find its own clippy and compiler.
            Self::Debian { linker } if subcommand == "clippy" => (
                cmd!(sh, "/usr/bin/cargo-clippy clippy").env("CARGO", "/usr/bin/cargo"),
                linker,
            ),
            Self::Debian { linker } => (
                cmd!(sh, "/usr/bin/cargo {subcommand}").env_remove("CARGO"),
                linker,
            ),
            Self::Nightly { linker } => (
                cmd!(
                    sh,
                    "rustup run nightly cargo {subcommand} -Z build-std=core"
                )
                .env_remove("CARGO"),
                linker,
            ),
        };
        let command = match self {
            Self::Debian { .. } => command.env("RUSTC", "/usr/bin/rustc"),
            Self::Nightly { .. } => command.env_remove("RUSTC"),
        };
        command
            // aya-ebpf needs compiler internals for its maps.
            .env("RUSTC_BOOTSTRAP", "1")
            // BTF is made from the debug information.
            .env("RUSTFLAGS", "-Cdebuginfo=2 -Clink-arg=--btf")
            .env("PATH", path_with(linker))
            // cargo set these for rustup's toolchain, which may not be this one.
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("CARGO_TARGET_DIR")
    }
}

/// Debian's compiler is there with core for BPF.
pub fn debian_rust() -> bool {
    Path::new("/usr/bin/cargo").exists()
        && Path::new("/usr/bin/rustc").exists()
        && Path::new("/usr/lib/rustlib").join(TARGET).is_dir()
}

/// rustup has a nightly with the source of core.
fn nightly_with_source(sh: &Shell) -> bool {
    cmd!(sh, "rustup run nightly rustc --print sysroot")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok_and(|sysroot| {
            Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core")
                .is_dir()
        })
}

/// Where `setup` installs its bpf-linker.
pub fn linker_root() -> PathBuf {
    places::cache().join(format!("tools/bpf-linker-{BPF_LINKER}-llvm-{LLVM}"))
}

/// The bpf-linker that `setup` built, if it still starts: it needs the libLLVM
/// that it was linked to.
pub fn own_linker(sh: &Shell) -> Option<PathBuf> {
    let linker = linker_root().join("bin/bpf-linker");
    cmd!(sh, "{linker} --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok()
        .then_some(linker)
}

fn path_with(linker: &Path) -> OsString {
    let mut path = OsString::from(linker.parent().unwrap_or(Path::new("/")));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}
