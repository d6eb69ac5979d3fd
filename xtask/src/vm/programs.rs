//! What runs in the machine: the test binaries, their children, `kvpsi`.
//!
//! Owns how they get there. They are the very binaries that cargo builds for
//! the tests on the host, dynamically linked, at the very paths they have
//! here (tests know their children by the path that cargo compiled in), with
//! the few libraries that Rust's programs name beside them. Static ones would
//! take a second build of everything with other flags.

use super::archive::Archive;
use super::kernel::Arch;
use crate::{cross, ebpf, places};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// Shared libraries that Rust's programs name on Debian.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1"];

/// Test binaries that make sense on another kernel.
const SUITES: [&str; 5] = ["fallbacks", "kernel", "kernel_events", "latency", "rungs"];

/// More of them that need the model, and so candle: for another architecture
/// that is all of it once more, and done on request.
const WITH_MODEL: [&str; 3] = ["kernel_field", "kernel_swap", "kernel_trims"];

/// Built programs, by name.
#[derive(Debug)]
pub struct Programs {
    with_model: bool,
    arch: Arch,
    files: BTreeMap<String, PathBuf>,
    tests: BTreeMap<String, PathBuf>,
    /// Where `CARGO_TARGET_TMPDIR` points, which the tests were compiled with.
    pub scratch: PathBuf,
}

impl Programs {
    /// Builds them; those for arm64 with the model only if that is wanted.
    ///
    /// # Errors
    /// They do not build.
    pub fn build(sh: &Shell, arch: Arch, model_on_arm64: bool) -> Result<Self> {
        let with_model = model_on_arm64 || arch == Arch::X86_64;
        ebpf::build_if_possible(sh)?;
        let mut args = vec!["build"];
        if with_model {
            // As `cargo xtask test` builds, for other packages would mean
            // other features, and all of it once more.
            args.extend(["--workspace", "--exclude", "kvpsi-ebpf", "--bin", "kvpsi"]);
            args.extend(WITH_MODEL.iter().flat_map(|s| ["--test", s]));
        } else {
            args.extend(["--package", "kvpsi-tests", "--no-default-features"]);
        }
        args.extend(["--bin", "pressure", "--bin", "vm-init"]);
        args.extend(SUITES.iter().flat_map(|s| ["--test", s]));
        args.push("--message-format=json-render-diagnostics");
        let built = match arch {
            Arch::X86_64 => {
                let told = cmd!(sh, "cargo {args...}").quiet().read();
                told.map(|t| (t, places::target())).map_err(Into::into)
            }
            Arch::Aarch64 => cross::cargo_for_arm64(sh, &args),
        };
        let (told, target) = built.context("the tests did not build")?;
        let (mut files, mut tests) = (BTreeMap::new(), BTreeMap::new());
        for line in told.lines() {
            let Ok(m) = serde_json::from_str::<serde_json::Value>(line) else {
                continue;
            };
            if let (Some(name), Some(file)) =
                (m["target"]["name"].as_str(), m["executable"].as_str())
            {
                let test = m["profile"]["test"] == true;
                let into = if test { &mut tests } else { &mut files };
                into.insert(name.to_owned(), PathBuf::from(file));
            }
        }
        Ok(Self {
            with_model,
            arch,
            files,
            tests,
            scratch: target.join("tmp"),
        })
    }

    /// Tests that are left out on this machine: `NAME: REASON`.
    pub fn left_out(&self) -> impl Iterator<Item = String> {
        let out = WITH_MODEL.iter().filter(|_| !self.with_model);
        out.map(|s| format!("{s}: the model is built for that machine with --model only"))
    }

    /// The test binaries, by name.
    pub fn tests(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.tests.iter().map(|(n, p)| (n.as_str(), p.as_path()))
    }

    /// Puts them into the archive, with what they need; `vm-init` is the
    /// first process.
    ///
    /// # Errors
    /// One is missing, or a library is.
    pub fn pack(&self, sh: &Shell, archive: &mut Archive, folder: &Path) -> Result<()> {
        let strip = match self.arch {
            Arch::X86_64 => "strip",
            Arch::Aarch64 => "aarch64-linux-gnu-strip",
        };
        let init = self.files.get("vm-init").context("vm-init was not built")?;
        for file in self.files.values().chain(self.tests.values()) {
            // Debug information would be half of the machine's memory.
            let slim = folder.join(file.file_name().unwrap_or(OsStr::new("program")));
            cmd!(sh, "{strip} --strip-debug -o {slim} {file}")
                .quiet()
                .run()
                .context("binutils should be there with the compiler")?;
            let path = if file == init {
                Path::new("/init")
            } else {
                file
            };
            archive.program(path, &slim)?;
            std::fs::remove_file(&slim).ok();
        }
        let (loader, dirs): (_, &[&str]) = match self.arch {
            Arch::X86_64 => (
                "/lib64/ld-linux-x86-64.so.2",
                &[
                    "/lib/x86_64-linux-gnu",
                    "/usr/lib/x86_64-linux-gnu",
                    "/lib64",
                ],
            ),
            Arch::Aarch64 => (
                "/lib/ld-linux-aarch64.so.1",
                &["/usr/aarch64-linux-gnu/lib", "/lib/aarch64-linux-gnu"],
            ),
        };
        let find = |name: &OsStr| {
            let found = dirs.iter().map(|d| Path::new(d).join(name));
            let mut found = found.filter(|f| f.is_file());
            found
                .next()
                .with_context(|| format!("no {} in {}", name.display(), dirs.join(", ")))
        };
        let loader = Path::new(loader);
        archive.program(loader, &find(loader.file_name().context("a file")?)?)?;
        for name in LIBRARIES {
            archive.program(&Path::new("/lib").join(name), &find(OsStr::new(name))?)?;
        }
        Ok(())
    }
}
