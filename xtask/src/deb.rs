//! `cargo xtask deb`: the Debian package.
//!
//! Owns the order (eBPF object, release, manual pages and completions of that
//! very binary, package) and the version of cargo-deb. What goes into the
//! package is in kvpsi-runtime/Cargo.toml, [package.metadata.deb]. Invariants:
//! a package without the eBPF object is never made; pages are those of the
//! binary they are packed with. Out of scope: installing the package.

use crate::{cross, ebpf, places, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// The cargo-deb that the metadata was written for.
const CARGO_DEB: &str = "3.8.0";

/// Of the completions: shell, and file name where the shell looks for them.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "kvpsi"), ("zsh", "_kvpsi"), ("fish", "kvpsi.fish")];

/// # Errors
/// Something does not build, or cannot be packed.
pub fn run(sh: &Shell, target: Option<&str>) -> Result<()> {
    for program in ["dpkg-shlibdeps", "strip", "gzip"] {
        if places::in_path(program).is_none() {
            bail!("no {program} here: apt-get install -y --no-install-recommends dpkg-dev gzip");
        }
    }
    ebpf::build(sh)?;
    let (binary, target_dir, emulator) = match target {
        None => (native(sh)?, places::target(), None),
        Some(target) => {
            let emulator = cross::emulator(sh)?;
            let built = cross::release(sh, target)?;
            (built.binary, built.target_dir, Some(emulator))
        }
    };
    pages(sh, &binary, emulator)?;

    let cargo_deb = packer(sh)?;
    let output = places::target().join("debian");
    let target = target.map(|t| ["--target", t]);
    let flags = ["--package", "kvpsi-runtime", "--no-build", "--strip"];
    say("packing");
    cmd!(sh, "{cargo_deb} deb {flags...} --output {output}/")
        .args(target.iter().flatten())
        .env("CARGO_TARGET_DIR", target_dir)
        .quiet()
        .run()
        .context("cargo-deb made no package")
}

fn native(sh: &Shell) -> Result<PathBuf> {
    cmd!(sh, "cargo build --release --package kvpsi-runtime")
        .quiet()
        .run()
        .context("kvpsi did not build")?;
    Ok(places::target().join("release/kvpsi"))
}

/// Manual pages and completions beside the binary, where the metadata looks
/// for them; none of an older version is left.
fn pages(sh: &Shell, kvpsi: &Path, emulator: Option<&str>) -> Result<()> {
    let folder = kvpsi.parent().context("the binary has no folder")?;
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        match fs::remove_dir_all(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot empty {}", folder.display()));
            }
            _ => {}
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let run = |args: &[&str]| {
        let command = match emulator {
            Some(emulator) => cmd!(sh, "{emulator} {kvpsi} {args...}"),
            None => cmd!(sh, "{kvpsi} {args...}"),
        };
        command.quiet().output()
    };
    let out = man
        .to_str()
        .context("the target folder's name is no UTF-8")?;
    run(&["man", "--out", out]).context("no manual pages")?;
    // As Debian wants them; without the time, so that the same text gives the
    // same bytes. cargo-deb compresses nothing of what was built.
    let pages = sh.read_dir(&man)?;
    cmd!(sh, "gzip --best --no-name {pages...}").quiet().run()?;
    for (shell, name) in COMPLETIONS {
        let text = run(&["completions", shell])
            .context("no completions")?
            .stdout;
        let path = completions.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// cargo-deb in kvpsi's cache folder, built if it is not there.
fn packer(sh: &Shell) -> Result<PathBuf> {
    let root = places::cache().join(format!("tools/cargo-deb-{CARGO_DEB}"));
    let cargo_deb = root.join("bin/cargo-deb");
    if cargo_deb.exists() {
        return Ok(cargo_deb);
    }
    say(format_args!(
        "$ cargo install cargo-deb --version {CARGO_DEB} --locked --root {}",
        root.display()
    ));
    cmd!(
        sh,
        "cargo install --quiet cargo-deb --version {CARGO_DEB} --locked --root {root}"
    )
    .env_remove("CARGO_TARGET_DIR")
    .quiet()
    .run()
    .context("cargo-deb did not build")?;
    Ok(cargo_deb)
}
