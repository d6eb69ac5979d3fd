//! Lines that a command says to its user, on stderr.
//!
//! Owns their two forms: `kvpsi: TEXT`, and under `--log-format json` an entry
//! of the log, so that who reads JSON reads nothing else. Out of scope: what is
//! said, and logs.

use std::{
    borrow::Cow,
    fmt::Arguments,
    io::Write,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use tracing_subscriber::{
    field::MakeExt,
    fmt::format::{self, FormatFields},
};

/// What such an entry's target is; the filter lets it through.
pub const TARGET: &str = "kvpsi::said";

static JSON: AtomicBool = AtomicBool::new(false);

/// From now on as JSON.
pub fn as_json() {
    JSON.store(true, Relaxed);
}

/// Whether lines are JSON.
#[must_use]
pub fn is_json() -> bool {
    JSON.load(Relaxed)
}

/// Says what the command ends with: to who reads JSON as JSON, unless he wants no
/// logs at all.
pub fn error(text: &str) {
    if is_json() && tracing::enabled!(target: TARGET, tracing::Level::ERROR) {
        tracing::error!(target: TARGET, "{text}");
    } else {
        eprintln!("kvpsi: {text}");
    }
}

/// Says it.
pub fn line(text: Arguments<'_>) {
    if is_json() {
        tracing::info!(target: TARGET, "{text}");
    } else {
        // Several are lines of ours.
        for (i, line) in text.to_string().lines().enumerate() {
            let head = if i == 0 { "kvpsi: " } else { "" };
            // A terminal that hung up takes nothing; the command goes on to its end.
            let _ = writeln!(std::io::stderr(), "{head}{}", printable(line));
        }
    }
}

/// Most bytes of a line; a file may hold a name of megabytes.
const MOST: usize = 2000;

/// As one line of a terminal: what a file or a client wrote moves no cursor.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.len() <= MOST && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut line = String::new();
    for c in text.chars() {
        if line.len() > MOST {
            line.push_str(" ...");
            break;
        }
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    Cow::Owned(line)
}

/// How the log for people writes an event: as one line, whatever names of files and
/// clients are in it.
#[must_use]
pub fn fields() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    format::debug_fn(|to, field, value| {
        let value = format!("{value:?}");
        match field.name() {
            "message" => write!(to, "{}", printable(&value)),
            // Of the `log` crate: where in a library it was.
            name if name.starts_with("log.") => Ok(()),
            name => write!(to, "{name}={}", printable(&value)),
        }
    })
    .delimited(" ")
}

/// [`line`] of a format.
macro_rules! tell {
    ($($text:tt)*) => { $crate::cli::tell::line(format_args!($($text)*)) };
}
pub(crate) use tell;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_line_stays_one_and_is_no_command_to_the_terminal() {
        assert_eq!(printable("tensor é"), "tensor é");
        assert_eq!(printable("a\u{1b}]0;x\u{7}\nb"), "a\\u{1b}]0;x\\u{7}\\nb");
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .fmt_fields(fields())
            .with_writer(Mutex::new(file.reopen().unwrap()))
            .finish();
        tracing::subscriber::with_default(log, || {
            let name = "a\u{1b}[2J\r\nWARN forged";
            tracing::warn!(name, by = %name, "{name}: removed");
        });
        let logged = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(logged.lines().count(), 1, "{logged}");
        assert!(!logged.trim_end().contains(char::is_control), "{logged:?}");
        assert!(
            logged.contains("a\\u{1b}[2J\\r\\nWARN forged: removed"),
            "{logged}"
        );
        let long = printable(&"x".repeat(1 << 20)).len();
        assert!((MOST..MOST + 16).contains(&long), "{long}");
    }
}
