//! OpenAI's Python client, for the test that talks to the server by it.
//!
//! Owns its version and its folder. Fetched with all it needs from PyPI into
//! kvpsi's cache folder, where nothing else of Python's sees it. Refuses to be
//! needed: without it one test is skipped by name.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use xshell::{Shell, cmd};

const VERSION: &str = "3.57.0";

/// Where it is, or would be.
pub fn folder() -> PathBuf {
    places::cache().join(format!("tools/openai-{VERSION}"))
}

/// Fetches it, unless it is there; goes on without it where that fails.
pub fn fetch_if_possible(sh: &Shell) {
    if let Err(e) = fetch(sh) {
        say(format_args!(
            "going on without OpenAI's Python client: {e:#}"
        ));
    }
}

fn fetch(sh: &Shell) -> Result<()> {
    let folder = folder();
    if folder.join("openai").is_dir() {
        return Ok(());
    }
    // Whole or not at all: a folder that was begun is not taken for the client.
    let begun = folder.with_extension(format!("new.{}", std::process::id()));
    let wanted = format!("openai=={VERSION}");
    say(format_args!(
        "$ python3 -m pip install --target {} {wanted}",
        folder.display()
    ));
    let pip = cmd!(
        sh,
        "python3 -m pip --disable-pip-version-check install --quiet --root-user-action ignore --target {begun} {wanted}"
    );
    let status = std::process::Command::from(pip.quiet())
        .status()
        .context("cannot start python3")?;
    if !status.success() {
        let _ = std::fs::remove_dir_all(&begun);
        bail!("pip could not install {wanted} ({status})");
    }
    std::fs::rename(&begun, &folder).with_context(|| format!("cannot make {}", folder.display()))
}
