//! The clients that people have: OpenAI's and Anthropic's own from PyPI,
//! Ollama's from npm.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{model, openai_client, package, served::Served};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn openais_python_client_is_at_home_here() {
    let test = "openais_python_client_is_at_home_here";
    python(test, openai_client, "openai_client.py");
}

#[test]
fn openais_python_client_calls_tools_and_gets_answers_that_follow_schemas() {
    let test = "openais_python_client_calls_tools_and_gets_answers_that_follow_schemas";
    python(test, openai_client, "openai_tools.py");
}

#[test]
fn openais_python_client_finds_the_responses_api() {
    let test = "openais_python_client_finds_the_responses_api";
    python(test, openai_client, "openai_responses.py");
}

#[test]
fn anthropics_python_client_is_at_home_here() {
    let find = |test: &str| package(test, "KVPSI_ANTHROPIC", "anthropic");
    let test = "anthropics_python_client_is_at_home_here";
    python(test, find, "anthropic_client.py");
}

#[test]
fn ollamas_client_from_npm_is_at_home_here() {
    let test = "ollamas_client_from_npm_is_at_home_here";
    let find = |test: &str| package(test, "KVPSI_OLLAMA", "node_modules/ollama");
    let (Some(file), Some(client)) = (model(test), find(test)) else {
        return;
    };
    let mut s = Served::start(&file, &["--alias", "smol"], None);
    // Node looks for packages beside the script.
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("client.mjs");
    std::fs::copy(data("ollama_client.mjs"), &script).unwrap();
    let modules = dir.path().join("node_modules");
    std::os::unix::fs::symlink(client.join("node_modules"), modules).unwrap();
    let mut node = Command::new("node");
    node.arg(script)
        .env("OLLAMA_HOST", format!("http://127.0.0.1:{}", s.port));
    well(&mut node);
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(name)
}

/// Runs a script by a client against a server with a key.
fn python(test: &str, client: impl Fn(&str) -> Option<PathBuf>, script: &str) {
    let (Some(file), Some(client)) = (model(test), client(test)) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "k-123").unwrap();
    let key = key.to_str().unwrap();
    let mut s = Served::start(&file, &["--alias", "smol", "--api-key-file", key], None);
    let base = format!("http://127.0.0.1:{}", s.port);
    let mut python = Command::new("python3");
    python
        .arg(data(script))
        .env("PYTHONPATH", client)
        .env("OPENAI_BASE_URL", format!("{base}/v1"))
        .env("OPENAI_API_KEY", "k-123")
        .env("ANTHROPIC_BASE_URL", base)
        .env("ANTHROPIC_API_KEY", "k-123");
    well(&mut python);
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
}

fn well(command: &mut Command) {
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.trim_end().ends_with("all is well"), "{text}\n{said}");
}
