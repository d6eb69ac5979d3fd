//! The clients that people have: OpenAI's, Anthropic's, LangChain, litellm and
//! LlamaIndex from PyPI, OpenAI's, Ollama's and the AI SDK from npm.
//!
//! A script that came to its end says what works; docs/CLIENTS.md must say the
//! same of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{model, openai_client, package, served::Served};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

const CLIENTS: &str = include_str!("../../docs/CLIENTS.md");

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
fn langchain_binds_tools_and_gets_structured_output() {
    let find = |test: &str| package(test, "KVPSI_LANGCHAIN", "langchain_openai");
    let test = "langchain_binds_tools_and_gets_structured_output";
    python(test, find, "langchain_client.py");
}

#[test]
fn litellm_finds_openais_ollamas_and_anthropics_api() {
    let find = |test: &str| package(test, "KVPSI_LITELLM", "litellm");
    let test = "litellm_finds_openais_ollamas_and_anthropics_api";
    python(test, find, "litellm_client.py");
}

#[test]
fn llamaindex_chats_and_calls_tools() {
    let find = |test: &str| package(test, "KVPSI_LLAMAINDEX", "llama_index");
    python(
        "llamaindex_chats_and_calls_tools",
        find,
        "llamaindex_client.py",
    );
}

#[test]
fn ollamas_client_from_npm_is_at_home_here() {
    let find = |test: &str| package(test, "KVPSI_OLLAMA", "node_modules/ollama");
    let test = "ollamas_client_from_npm_is_at_home_here";
    node(test, find, "ollama_client.mjs");
}

#[test]
fn openais_client_from_npm_is_at_home_here() {
    let find = |test: &str| package(test, "KVPSI_OPENAI_NPM", "node_modules/openai");
    let test = "openais_client_from_npm_is_at_home_here";
    node(test, find, "openai_client.mjs");
}

#[test]
fn the_ai_sdk_is_at_home_here() {
    let find = |test: &str| package(test, "KVPSI_OPENAI_NPM", "node_modules/ai");
    node("the_ai_sdk_is_at_home_here", find, "ai_client.mjs");
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(name)
}

/// Runs a script by a client from PyPI against a server with a key.
fn python(test: &str, client: impl Fn(&str) -> Option<PathBuf>, script: &str) {
    let (Some(file), Some(client)) = (model(test), client(test)) else {
        return;
    };
    let mut python = Command::new("python3");
    python.arg(data(script)).env("PYTHONPATH", client);
    well(&file, &mut python, script);
}

/// The same by one from npm.
fn node(test: &str, client: impl Fn(&str) -> Option<PathBuf>, script: &str) {
    let (Some(file), Some(client)) = (model(test), client(test)) else {
        return;
    };
    // Node looks for packages beside the script.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(script);
    std::fs::copy(data(script), &path).unwrap();
    let modules = dir.path().join("node_modules");
    std::os::unix::fs::symlink(client.join("node_modules"), modules).unwrap();
    well(&file, Command::new("node").arg(path), script);
}

fn well(file: &Path, command: &mut Command, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "k-123").unwrap();
    // Ollama's client has no key.
    let key = match script.starts_with("ollama") {
        true => vec![],
        false => vec!["--api-key-file", key.to_str().unwrap()],
    };
    let mut s = Served::start(file, &[&["--alias", "smol"], &key[..]].concat(), None);
    let base = format!("http://127.0.0.1:{}", s.port);
    let out = command
        .env("OPENAI_BASE_URL", format!("{base}/v1"))
        .env("OPENAI_API_KEY", "k-123")
        .env("ANTHROPIC_BASE_URL", &base)
        .env("ANTHROPIC_API_KEY", "k-123")
        .env("OLLAMA_HOST", base)
        // Prices are not asked for over the network.
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.trim_end().ends_with("all is well"), "{text}\n{said}");
    let works = text.lines().find_map(|l| l.strip_prefix("works: "));
    let works: BTreeSet<&str> = works.unwrap().split(", ").collect();
    assert_eq!(documented(script), works, "docs/CLIENTS.md on {script}");
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
}

/// What docs/CLIENTS.md has in the row of a script: the columns with a yes.
fn documented(script: &str) -> BTreeSet<&'static str> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim);
    let mut rows = CLIENTS.lines().filter(|l| l.starts_with('|'));
    let head = rows.next().unwrap();
    let row = rows.find(|r| r.contains(&format!("`{script}`")));
    let row = row.unwrap_or_else(|| panic!("docs/CLIENTS.md has no row of `{script}`"));
    let marks = cells(head).zip(cells(row));
    marks
        .filter(|(_, mark)| *mark == "yes")
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_row_of_the_table_of_clients_is_a_script() {
    let (table, _) = CLIENTS.split_once("\n## ").unwrap();
    let rows = table.lines().filter(|l| l.contains("| `"));
    let mut count = 0;
    for row in rows {
        let script = row.split('`').nth(1).unwrap();
        assert!(data(script).is_file(), "{row}");
        count += 1;
    }
    assert_eq!(count, 10);
}
