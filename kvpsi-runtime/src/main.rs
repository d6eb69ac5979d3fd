//! The `kvpsi` binary.

use kvpsi::cli::{
    Cli, LogFormat,
    config::{self, Refused},
    tell,
};
use std::{ffi::OsString, io::IsTerminal, path::Path, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let (cli, format) = match Cli::load(argv.clone()) {
        Ok(cli) => {
            let format = cli.log_format();
            (Ok(cli), format)
        }
        Err(refused) => {
            let format = config::format_of(&argv, Path::new(config::DEFAULT_FILE));
            (Err(refused), format)
        }
    };
    let logged = log(format);
    let cli = match (cli, logged) {
        (Err(refused), _) => return refused.tell(),
        (Ok(_), Err(why)) => return Refused::Setting(why).tell(),
        (Ok(cli), Ok(())) => cli,
    };
    // A template that panics is told of by the error that it gives.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(kvpsi::model::chat::THREAD) {
            usual(info);
        }
    }));
    match cli.run().map_err(anyhow::Error::downcast::<clap::Error>) {
        Ok(()) => ExitCode::SUCCESS,
        // Of a command that lacks what no parser could miss.
        Err(Ok(usage)) => Refused::Usage(usage).tell(),
        Err(Err(e)) => {
            tell::error(&line(&e));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, but those that it has already said.
fn line(e: &anyhow::Error) -> String {
    let line = e.chain().fold(String::new(), |line, cause| {
        let cause = cause.to_string();
        match line.is_empty() {
            true => cause,
            false if line.contains(&cause) => line,
            false => format!("{line}: {cause}"),
        }
    });
    tell::printable(&line).into_owned()
}

/// What is logged unless KVPSI_LOG says otherwise: what is wrong, and requests.
const FILTER: &str = "warn,kvpsi::request=info";

/// Begins the log. Where KVPSI_LOG is wrong it is as without it.
fn log(format: LogFormat) -> Result<(), String> {
    let wanted = std::env::var("KVPSI_LOG").unwrap_or_default();
    let parsed = filter(match wanted.trim() {
        "" => FILTER,
        wanted => wanted,
    });
    let (filter, wrong) = match parsed {
        Ok(filter) => (filter, None),
        Err(why) => (
            EnvFilter::new(format!("{FILTER},{}=info", tell::TARGET)),
            Some(why),
        ),
    };
    let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let to_stderr = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours && std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => to_stderr.fmt_fields(tell::fields()).init(),
        LogFormat::Json => {
            tell::as_json();
            to_stderr.json().flatten_event(true).init();
        }
    }
    wrong.map_or(Ok(()), Err)
}

fn filter(wanted: &str) -> Result<EnvFilter, String> {
    let mut filter = wanted.to_owned();
    if filter != "off" {
        filter = format!("{filter},{}=info", tell::TARGET);
    }
    EnvFilter::builder()
        .parse(&filter)
        .map_err(|e| format!("KVPSI_LOG: {e}; for example KVPSI_LOG=kvpsi=debug"))
}
