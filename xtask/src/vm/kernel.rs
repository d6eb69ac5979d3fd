//! Kernels of other machines, as Debian packages them.
//!
//! Owns the cache of unpacked packages and the choice of the newest one.
//! Invariant: what is unpacked is complete: it is moved into place in one
//! step. Out of scope: hosts; apt-get knows where packages come from.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

/// A kind of processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Aarch64,
}

/// A kind of machine and its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Machine {
    /// Debian 12's cloud kernel for x86-64
    #[value(name = "x86_64-6.1")]
    X86_64,
    /// Debian 12's cloud kernel for arm64
    #[value(name = "aarch64-6.1")]
    Aarch64,
    /// Debian 12's newer one for x86-64, which is Debian 13's
    #[value(name = "x86_64-6.12")]
    X86_64Newer,
    /// The same for arm64
    #[value(name = "aarch64-6.12")]
    Aarch64Newer,
}

impl Machine {
    /// As `--kernel` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-6.1",
            Self::Aarch64 => "aarch64-6.1",
            Self::X86_64Newer => "x86_64-6.12",
            Self::Aarch64Newer => "aarch64-6.12",
        }
    }

    /// Its processor.
    pub const fn arch(self) -> Arch {
        match self {
            Self::X86_64 | Self::X86_64Newer => Arch::X86_64,
            Self::Aarch64 | Self::Aarch64Newer => Arch::Aarch64,
        }
    }

    const fn debian(self) -> &'static str {
        match self.arch() {
            Arch::X86_64 => "amd64",
            Arch::Aarch64 => "arm64",
        }
    }

    /// What stands before and after the number of a release of its kernel.
    const fn around(self) -> (&'static str, &'static str) {
        match self {
            Self::X86_64 => ("6.1.0-", "-cloud-amd64"),
            Self::Aarch64 => ("6.1.0-", "-cloud-arm64"),
            Self::X86_64Newer => ("6.12.", "+deb12-cloud-amd64"),
            Self::Aarch64Newer => ("6.12.", "+deb12-cloud-arm64"),
        }
    }

    /// The number that Debian counts a release by; `None` for another machine's.
    fn number(self, release: &str) -> Option<u32> {
        let (before, after) = self.around();
        let number = release.strip_prefix(before)?.strip_suffix(after)?;
        number.parse().ok()
    }

    /// The emulator's program.
    pub const fn qemu(self) -> &'static str {
        match self.arch() {
            Arch::X86_64 => "qemu-system-x86_64",
            Arch::Aarch64 => "qemu-system-aarch64",
        }
    }

    /// The emulator's Debian package.
    pub const fn package(self) -> &'static str {
        match self.arch() {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
        }
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    folder: PathBuf,
    /// The kernel's own name, e.g. 6.1.0-56-cloud-amd64.
    pub release: String,
}

impl Kernel {
    /// The newest that apt-get knows, fetched once; else one that was fetched
    /// before.
    ///
    /// # Errors
    /// There is none, and none can be had.
    pub fn get(sh: &Shell, machine: Machine) -> Result<Self> {
        let cache = places::cache().join("kernels");
        let newest = newest(sh, machine);
        let at_hand = || -> Option<Self> {
            let found = fs::read_dir(&cache).ok()?.flatten();
            let found = found.filter_map(|e| e.file_name().into_string().ok());
            let release = found.max_by_key(|r| machine.number(r))?;
            machine.number(&release)?;
            Some(Self {
                folder: cache.join(&release),
                release,
            })
        };
        match newest {
            Some(release) => {
                let folder = cache.join(&release);
                if !folder.is_dir()
                    && let Err(e) = fetch(sh, machine, &release, &folder)
                {
                    let Some(old) = at_hand() else { return Err(e) };
                    say(format_args!("{e:#}; {} is here and will do", old.release));
                    return Ok(old);
                }
                Ok(Self { folder, release })
            }
            None => at_hand().with_context(|| {
                let (before, after) = machine.around();
                format!(
                    "apt-get knows no kernel linux-image-{before}N{after}-unsigned here: these are Debian 12's, 6.12 of its security updates{}",
                    match machine.arch() {
                        Arch::X86_64 => "",
                        Arch::Aarch64 => "; `cargo xtask setup --cross` adds the architecture",
                    }
                )
            }),
        }
    }

    /// The bootable file.
    pub fn image(&self) -> PathBuf {
        self.folder
            .join("boot")
            .join(format!("vmlinuz-{}", self.release))
    }

    /// The files of these modules and of those they depend on, in the order
    /// in which they can be loaded. A module that is built in needs no file,
    /// and is passed over.
    ///
    /// # Errors
    /// The package cannot be read.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        walk(
            &self.folder.join("lib/modules").join(&self.release),
            &mut all,
        )?;
        let mut order = Vec::new();
        for name in names {
            add(name, &all, &mut order, 0)?;
        }
        Ok(order)
    }
}

/// Fetches the kernels that `cargo xtask test` boots.
///
/// # Errors
/// One cannot be had.
pub fn fetch_all(sh: &Shell) -> Result<()> {
    for machine in [Machine::X86_64, Machine::X86_64Newer, Machine::Aarch64] {
        Kernel::get(sh, machine)?;
    }
    Ok(())
}

/// `depends=` of a module's information, which stands in the file as text
/// between zero bytes (Documentation/kbuild/modules.rst, MODULE_INFO).
fn depends(bytes: &[u8]) -> Vec<String> {
    let key = b"depends=";
    bytes
        .split(|b| *b == 0)
        .find_map(|s| s.strip_prefix(key))
        .map(|list| {
            String::from_utf8_lossy(list)
                .split(',')
                .filter(|n| !n.is_empty())
                .map(String::from)
                .collect()
        })
        .unwrap_or_default()
}

fn add(name: &str, all: &[PathBuf], order: &mut Vec<PathBuf>, depth: usize) -> Result<()> {
    // File names and module names differ in `-` and `_`.
    let plain = |s: &str| s.replace('-', "_");
    let file = all.iter().find(|f| {
        f.file_stem()
            .is_some_and(|s| plain(&s.to_string_lossy()) == plain(name))
    });
    let Some(file) = file.filter(|f| !order.contains(*f)) else {
        return Ok(());
    };
    if depth > 16 {
        bail!("{}: its modules depend on each other", file.display());
    }
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for d in depends(&bytes) {
        add(&d, all, order, depth + 1)?;
    }
    order.push(file.clone());
    Ok(())
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for e in entries {
        let path = e?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|x| x == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

fn newest(sh: &Shell, machine: Machine) -> Option<String> {
    let arch = machine.debian();
    let pattern = format!("^linux-image-6.*-cloud-{arch}-unsigned$");
    let found = cmd!(sh, "apt-cache search --names-only {pattern}")
        .quiet()
        .ignore_stderr()
        .read()
        .ok()?;
    found
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        // Of another architecture it may say `NAME:arm64`.
        .filter_map(|p| p.split(':').next())
        .filter_map(|p| p.strip_prefix("linux-image-")?.strip_suffix("-unsigned"))
        .filter_map(|r| Some((machine.number(r)?, r)))
        .max()
        .map(|(_, r)| r.to_owned())
}

fn fetch(sh: &Shell, machine: Machine, release: &str, folder: &Path) -> Result<()> {
    let part = folder.with_extension(format!("part.{}", std::process::id()));
    fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    let package = format!("linux-image-{release}-unsigned:{}", machine.debian());
    say(format_args!("$ apt-get download {package}"));
    let unpacked = (|| -> Result<()> {
        let _in = sh.push_dir(&part);
        cmd!(sh, "apt-get -qq download {package}")
            .quiet()
            .ignore_stderr()
            .run()
            .with_context(|| format!("{package} could not be fetched; try `apt-get update`"))?;
        let deb = fs::read_dir(&part)?
            .flatten()
            .map(|e| e.path())
            .find(|p| p.extension().is_some_and(|x| x == "deb"))
            .with_context(|| format!("apt-get left no package in {}", part.display()))?;
        let tree = part.join("tree");
        cmd!(sh, "dpkg-deb -x {deb} {tree}").quiet().run()?;
        // 6.12's are compressed, and their dependences are read from them.
        let each = "{}";
        cmd!(sh, "find {tree} -name *.ko.xz -exec xz -d {each} +")
            .quiet()
            .run()
            .context("its modules cannot be unpacked (xz is in Debian's xz-utils)")?;
        Ok(fs::rename(&tree, folder)?)
    })();
    let _ = fs::remove_dir_all(&part);
    unpacked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        let info = b"\0license=GPL\0depends=virtio,virtio_ring\0name=virtio_blk\0";
        assert_eq!(depends(info), ["virtio", "virtio_ring"]);
        assert_eq!(depends(b"\0depends=\0"), [""; 0]);
        assert_eq!(depends(b"nothing"), [""; 0]);
    }

    #[test]
    fn the_newest_kernel_is_the_one_with_the_largest_number() {
        let (old, new) = (Machine::X86_64, Machine::X86_64Newer);
        assert!(old.number("6.1.0-56-cloud-amd64") > old.number("6.1.0-9-cloud-amd64"));
        assert_eq!(new.number("6.12.117+deb12-cloud-amd64"), Some(117));
        for other in [
            "nonsense",
            "6.1.0-5-cloud-arm64",
            "6.12.117+deb12-cloud-amd64",
        ] {
            assert_eq!(old.number(other), None, "{other}");
        }
    }
}
