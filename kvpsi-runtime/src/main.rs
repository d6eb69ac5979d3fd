//! The `kvpsi` binary.

use kvpsi::cli::{Cli, LogFormat, tell};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::load(std::env::args_os()) {
        Ok(cli) => cli,
        Err(refused) => return refused.tell(),
    };
    // A template that panics is told of by the error that it gives.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(kvpsi::model::chat::THREAD) {
            tell(info);
        }
    }));
    let format = cli.log_format();
    if let Err(why) = log(format) {
        eprintln!("kvpsi: {why}");
        return ExitCode::from(2);
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Who reads JSON reads this, too, unless he wants no logs at all.
            if format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("{}", line(&e));
            } else {
                eprintln!("kvpsi: {}", line(&e));
            }
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

fn log(format: LogFormat) -> Result<(), String> {
    let wanted = std::env::var("KVPSI_LOG").unwrap_or_default();
    let mut filter = match wanted.trim() {
        "" => FILTER,
        wanted => wanted,
    }
    .to_owned();
    if filter != "off" {
        filter = format!("{filter},{}=info", tell::TARGET);
    }
    let filter = EnvFilter::builder()
        .parse(&filter)
        .map_err(|e| format!("KVPSI_LOG: {e}; for example KVPSI_LOG=kvpsi=debug"))?;
    let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let to_stderr = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours && std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => to_stderr.init(),
        LogFormat::Json => {
            tell::as_json();
            to_stderr.json().flatten_event(true).init();
        }
    }
    Ok(())
}
