//! `kvpsi cache`: the files of repacked weights.
//!
//! Parsing and printing; what a file is and which go is of
//! [`crate::model::weights`].

use crate::{
    cli::tell::printable,
    model::weights::{Folder, WeightsError, folder::Entry},
    units::Bytes,
};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{ErrorKind, Write},
    time::{SystemTime, UNIX_EPOCH},
};

const EXAMPLES: &str = "Examples:
  kvpsi cache                list them
  kvpsi cache clear          remove them; whoever has one mapped keeps it";

/// Arguments of `kvpsi cache`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to do
    #[arg(value_enum, default_value_t)]
    action: Action,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Action {
    /// Show the files
    #[default]
    List,
    /// Remove all of them
    Clear,
}

/// Runs the command.
///
/// # Errors
/// The folder cannot be used, or the list not written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = Folder::usual()?;
    let folder = match Folder::open(&path) {
        Err(WeightsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        other => Some(other?),
    };
    let mut stays = None;
    let text = match args.action {
        Action::List => {
            let entries = folder.map(|f| f.entries()).unwrap_or_default();
            let path = path.display().to_string();
            match args.json {
                true => format!("{:#}\n", listed(&path, &entries)),
                false => list(&path, &entries),
            }
        }
        Action::Clear => {
            let (files, bytes, failed) = folder.map_or((0, Bytes::ZERO, None), |f| f.clear());
            stays = failed;
            match args.json {
                true => format!("{:#}\n", json!({ "removed": files, "bytes": bytes })),
                false => format!("{files} files removed, {bytes}\n"),
            }
        }
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    stays.map_or(Ok(()), |e| Err(e.into()))
}

/// One line on the folder, for `kvpsi doctor`.
pub(super) fn summary() -> String {
    let found = Folder::usual().and_then(|path| Folder::open(&path));
    match found {
        Ok(folder) => {
            let entries = folder.entries();
            format!(
                "{}: {} files, {}",
                folder.path().display(),
                entries.len(),
                sum(&entries)
            )
        }
        Err(WeightsError::Io { path, source, .. }) if source.kind() == ErrorKind::NotFound => {
            format!("{}: empty", path.display())
        }
        Err(e) => e.to_string(),
    }
}

fn sum(entries: &[Entry]) -> Bytes {
    Bytes(entries.iter().map(|e| e.bytes.0).sum())
}

fn list(path: &str, entries: &[Entry]) -> String {
    let path = printable(path);
    let mut out = format!("{path}: {} files, {}\n", entries.len(), sum(entries));
    for e in entries {
        let days = SystemTime::now().duration_since(e.used).unwrap_or_default();
        let model = match &e.model {
            Ok(model) => model.clone(),
            Err(why) => format!("{}: not used: {why}", e.name),
        };
        let model = printable(&model);
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{:>10}  used {} days ago  {model}",
            e.bytes.to_string(),
            days.as_secs() / 86_400
        );
    }
    out
}

fn listed(path: &str, entries: &[Entry]) -> Value {
    let each = entries.iter().map(|e| {
        let used = e.used.duration_since(UNIX_EPOCH).unwrap_or_default();
        json!({
            "name": e.name,
            "bytes": e.bytes,
            "used": used.as_secs(),
            "model": e.model.as_ref().ok(),
            "error": e.model.as_ref().err(),
        })
    });
    json!({ "folder": path, "files": each.collect::<Vec<_>>() })
}
