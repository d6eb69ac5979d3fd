//! The `kvpsi` binary.

use kvpsi::cli::{Cli, LogFormat};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = match Cli::load(std::env::args_os()) {
        Ok(cli) => cli,
        Err(refused) => return refused.tell(),
    };
    let format = cli.log_format();
    log(format);
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Who reads JSON reads this, too, unless he wants no logs at all.
            if format == LogFormat::Json && tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("{e:#}");
            } else {
                eprintln!("kvpsi: {e:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("KVPSI_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let to_stderr = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => to_stderr.init(),
        LogFormat::Json => to_stderr.json().flatten_event(true).init(),
    }
}
