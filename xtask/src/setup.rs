//! What must be on the machine, and how it gets there.
//!
//! Owns the list of needs. Invariants: looking never changes the machine; each
//! command is printed before it runs and is the one a reader could type; what
//! is there already is never touched. Only the C linker, pip and the eBPF
//! toolchain come by apt-get; bpf-linker goes into kvpsi's cache folder and not
//! into the PATH. Refuses to install outside Debian's packages, rustup
//! and crates.io, and refuses to ask for a password without a terminal.

use crate::toolchain::{self, BPF_LINKER, DEBIAN_PACKAGES, LLVM, Toolchain};
use crate::{model, npm, pip, places, say, text, vm};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use xshell::{Cmd, Shell, cmd};

/// Everything that is missing here.
#[derive(Debug, Default)]
struct Missing {
    /// Debian packages without which nothing can be built or fetched.
    packages: Vec<&'static str>,
    /// Debian packages for the eBPF object.
    ebpf_packages: Vec<&'static str>,
    bpf_linker: bool,
    /// rustup components, for `lint` only.
    components: Vec<&'static str>,
}

impl Missing {
    fn look(sh: &Shell) -> Self {
        let mut missing = Self::default();
        if places::in_path("cc").is_none() {
            missing.packages.extend(["gcc", "libc6-dev"]);
        }
        if !model::fetched() && !pip_works(sh) {
            missing.packages.push("python3-pip");
        }
        match Toolchain::find(sh) {
            Some(Toolchain::Nightly { .. }) => {}
            _ => {
                missing.ebpf_packages = DEBIAN_PACKAGES
                    .into_iter()
                    .filter(|p| !installed(sh, p))
                    .collect();
                missing.bpf_linker = toolchain::own_linker(sh).is_none();
            }
        }
        for (component, program) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
            let there = cmd!(sh, "cargo {program} --version")
                .quiet()
                .ignore_stdout();
            if there.ignore_stderr().run().is_err() {
                missing.components.push(component);
            }
        }
        missing
    }

    fn nothing(&self) -> bool {
        self.packages.is_empty()
            && self.ebpf_packages.is_empty()
            && !self.bpf_linker
            && self.components.is_empty()
    }

    fn print(&self) {
        for p in &self.packages {
            println!("missing: {p}: apt-get install -y --no-install-recommends {p}");
        }
        for p in &self.ebpf_packages {
            println!("missing: {p} (eBPF): apt-get install -y --no-install-recommends {p}");
        }
        if self.bpf_linker {
            println!(
                "missing: bpf-linker {BPF_LINKER} (eBPF): {}",
                linker_command()
            );
        }
        for c in &self.components {
            println!("missing: {c} (lint): rustup component add {c}");
        }
    }
}

/// `cargo xtask setup --check`: says what is missing.
///
/// # Errors
/// If anything is.
pub fn check(sh: &Shell) -> Result<()> {
    let missing = Missing::look(sh);
    missing.print();
    if missing.nothing() {
        println!("nothing is missing");
        return Ok(());
    }
    bail!("something is missing; `cargo xtask setup` installs it")
}

/// `cargo xtask setup`: installs all that is missing, or fails.
///
/// # Errors
/// If something could not be installed; the eBPF toolchain counts.
pub fn all(sh: &Shell) -> Result<()> {
    report_linker();
    let missing = Missing::look(sh);
    if missing.nothing() {
        text::fetch_if_possible(sh);
        pip::fetch_if_possible(sh);
        npm::fetch_if_possible(sh);
        say("nothing is missing");
        return Ok(());
    }
    let packages = [missing.packages.as_slice(), &missing.ebpf_packages].concat();
    if !packages.is_empty() {
        // Who may not install is told once of everything.
        as_root(sh, &by_hand(&packages))?;
    }
    needed(sh, &missing)?;
    ebpf(sh, &missing)?;
    components(sh, &missing)?;
    text::fetch_if_possible(sh);
    pip::fetch_if_possible(sh);
    npm::fetch_if_possible(sh);
    say("everything is installed");
    Ok(())
}

/// `cargo xtask setup --cross`: what arm64 and emulated machines take, besides
/// all the rest.
///
/// # Errors
/// As [`all`].
pub fn cross(sh: &Shell) -> Result<()> {
    all(sh)?;
    let packages: Vec<_> = crate::cross::DEBIAN_PACKAGES
        .into_iter()
        .chain(vm::DEBIAN_PACKAGES)
        .filter(|p| !installed(sh, p))
        .collect();
    if packages.is_empty() {
        kernels(sh, true);
        return Ok(());
    }
    let hint = format!("dpkg --add-architecture arm64 && {}", by_hand(&packages));
    let mut foreign = as_root(sh, &hint)?;
    foreign.extend(["dpkg", "--add-architecture", "arm64"].map(String::from));
    say(format_args!("$ {}", foreign.join(" ")));
    words(sh, &foreign).quiet().run()?;
    apt_update(sh)?;
    apt_install(sh, &packages)?;
    kernels(sh, false);
    Ok(())
}

/// A C++ compiler, which libFuzzer takes and nothing else here.
///
/// # Errors
/// It could not be installed.
pub fn cpp(sh: &Shell) -> Result<()> {
    if places::in_path("c++").is_some() {
        return Ok(());
    }
    apt_update(sh)?;
    apt_install(sh, &["g++"])
}

/// The kernels of emulated machines, into kvpsi's cache folder; with one look
/// whether newer lists of packages know them, where that may help. Without
/// them machines are skipped by name, no more.
fn kernels(sh: &Shell, lists_may_be_old: bool) {
    let mut fetched = vm::kernel::fetch_all(sh);
    if fetched.is_err() && lists_may_be_old {
        fetched = apt_update(sh).and_then(|()| vm::kernel::fetch_all(sh));
    }
    if let Err(e) = fetched {
        say(format_args!("going on without kernels to emulate: {e:#}"));
    }
}

/// Set-up on the way to another task: quiet when nothing is missing, and
/// without the eBPF toolchain where it cannot be had.
///
/// # Errors
/// If something could not be installed without which the task is impossible.
pub fn on_the_way(sh: &Shell) -> Result<()> {
    report_linker();
    let missing = Missing::look(sh);
    needed(sh, &missing)?;
    if let Err(e) = ebpf(sh, &missing) {
        say(format_args!("going on without eBPF: {e:#}"));
    }
    Ok(())
}

/// xtask/rustc-wrapper installs a C linker before xtask exists, where no person may
/// be looking: the account is given here, once.
fn report_linker() {
    let log = places::root().join("target/bootstrap.log");
    let Ok(text) = fs::read_to_string(&log) else {
        return;
    };
    for line in text.lines() {
        if line.starts_with("kvpsi: ") || line.starts_with("$ ") || line.starts_with("installed: ")
        {
            say(format_args!("before xtask could be linked: {line}"));
        }
    }
    // Worth no failure: it would only be told twice.
    let _ = fs::rename(&log, log.with_extension("log.told"));
}

fn needed(sh: &Shell, missing: &Missing) -> Result<()> {
    if missing.packages.is_empty() {
        return Ok(());
    }
    apt_update(sh)?;
    apt_install(sh, &missing.packages)
}

fn ebpf(sh: &Shell, missing: &Missing) -> Result<()> {
    if !missing.ebpf_packages.is_empty() {
        if places::in_path("apt-get").is_none() {
            bail!("{}", elsewhere("no apt-get here"));
        }
        apt_update(sh)?;
        for p in &missing.ebpf_packages {
            let known = cmd!(sh, "apt-cache show --no-all-versions {p}")
                .quiet()
                .ignore_stdout();
            if known.ignore_stderr().run().is_err() {
                bail!(
                    "{}",
                    elsewhere(&format!("apt-get knows no package {p} here"))
                );
            }
        }
        apt_install(sh, &missing.ebpf_packages)?;
    }
    if missing.bpf_linker {
        bpf_linker(sh)?;
    }
    Ok(())
}

fn elsewhere(why: &str) -> String {
    format!(
        "{why}. What works outside Debian: `rustup toolchain install nightly --component rust-src`, \
         then bpf-linker on PATH (`cargo +nightly install bpf-linker`)"
    )
}

fn linker_command() -> String {
    format!(
        "LLVM_PREFIX=/usr/lib/llvm-{LLVM} cargo install bpf-linker --version {BPF_LINKER} --locked \
         --no-default-features --features llvm-{LLVM} --root {}",
        toolchain::linker_root().display()
    )
}

fn bpf_linker(sh: &Shell) -> Result<()> {
    let version = cmd!(sh, "/usr/bin/rustc -vV").quiet().read()?;
    let theirs = version
        .lines()
        .find_map(|l| l.strip_prefix("LLVM version: "))
        .and_then(|v| v.split('.').next())
        .unwrap_or("unknown");
    if theirs != LLVM {
        bail!(
            "/usr/bin/rustc has LLVM {theirs}, bpf-linker {BPF_LINKER} is set up for LLVM {LLVM}: \
             change both in xtask/src/toolchain.rs"
        );
    }
    let (root, feature) = (toolchain::linker_root(), format!("llvm-{LLVM}"));
    say(format_args!("$ {}", linker_command()));
    cmd!(
        sh,
        "cargo install --quiet bpf-linker --version {BPF_LINKER} --locked --force --no-default-features
         --features {feature} --root {root}"
    )
    .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
    .env_remove("CARGO_TARGET_DIR")
    .quiet()
    .run()
    .context("bpf-linker did not build")
}

fn components(sh: &Shell, missing: &Missing) -> Result<()> {
    for component in &missing.components {
        if places::in_path("rustup").is_none() {
            bail!("cargo has no {component} and there is no rustup to add it: install {component}");
        }
        say(format_args!("$ rustup component add {component}"));
        cmd!(sh, "rustup component add {component}").quiet().run()?;
    }
    Ok(())
}

fn pip_works(sh: &Shell) -> bool {
    cmd!(sh, "python3 -m pip --version")
        .quiet()
        .ignore_stdout()
        .ignore_stderr()
        .run()
        .is_ok()
}

fn installed(sh: &Shell, package: &str) -> bool {
    let format = "--showformat=${Status}";
    cmd!(sh, "dpkg-query --show {format} {package}")
        .quiet()
        .ignore_stderr()
        .read()
        .is_ok_and(|status| status == "install ok installed")
}

fn apt_update(sh: &Shell) -> Result<()> {
    let mut update = as_root(sh, "apt-get update")?;
    update.push("apt-get".into());
    update.extend(["-qq", "update"].map(String::from));
    say(format_args!("$ {}", update.join(" ")));
    // Old lists may do; if not, the installation says so.
    if let Err(e) = words(sh, &update).quiet().run() {
        say(format_args!("{e}; going on with the lists that are there"));
    }
    Ok(())
}

fn apt_install(sh: &Shell, packages: &[&str]) -> Result<()> {
    let by_hand = by_hand(packages);
    let mut install = as_root(sh, &by_hand)?;
    install.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"].map(String::from));
    install.extend(["-o", "DPkg::Lock::Timeout=300", "-qq"].map(String::from));
    install.extend(["install", "-y", "--no-install-recommends"].map(String::from));
    install.extend(packages.iter().map(ToString::to_string));
    say(format_args!("$ {}", install.join(" ")));
    words(sh, &install)
        .quiet()
        .ignore_stdout()
        .run()
        .with_context(|| format!("could not install; try as root: {by_hand}"))
}

fn by_hand(packages: &[&str]) -> String {
    format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

fn words<'a>(sh: &'a Shell, words: &[String]) -> Cmd<'a> {
    sh.cmd(&words[0]).args(&words[1..])
}

/// The words before a command that needs root.
fn as_root(sh: &Shell, by_hand: &str) -> Result<Vec<String>> {
    if places::in_path("apt-get").is_none() {
        bail!("no apt-get here; find the like of these by your package manager: {by_hand}");
    }
    if root(sh) {
        return Ok(Vec::new());
    }
    match sudo(sh) {
        Some(sudo) => Ok(sudo),
        None => bail!("this user may not install packages; run as root: {by_hand}"),
    }
}

/// This process is root.
pub fn root(sh: &Shell) -> bool {
    cmd!(sh, "id -u").quiet().read().is_ok_and(|id| id == "0")
}

/// How to call sudo here, if it can be called at all: without a terminal it
/// must not need a password.
pub fn sudo(sh: &Shell) -> Option<Vec<String>> {
    places::in_path("sudo")?;
    if cmd!(sh, "sudo -n true")
        .quiet()
        .ignore_stderr()
        .run()
        .is_ok()
    {
        return Some(vec!["sudo".into(), "-n".into()]);
    }
    let terminal = std::io::stdin().is_terminal() && Path::new("/dev/tty").exists();
    terminal.then(|| vec!["sudo".into()])
}
