//! `kvpsi config`: what `kvpsi serve` would run with, as its own file.
//!
//! Owns the text. Invariants: it is TOML that `--config` takes and that gives
//! the same values again; a secret is in it nowhere.

use super::{DEFAULT_FILE, Origin, Setting, kind::Kind};
use crate::cli::serve;
use clap::{Arg, Command};
use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
};

const EXAMPLES: &str = "Examples:
  kvpsi config                     what `kvpsi serve` would run with here
  kvpsi config --port 9000         the same, had it this flag
  kvpsi config --example           every key, to begin a file with";

/// Arguments of `kvpsi config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
// One of that name comes with the flags of `serve`.
#[group(skip)]
pub struct Args {
    /// Print every key with its default and what it means
    #[arg(long, exclusive = true)]
    example: bool,
    #[command(flatten)]
    _serve: serve::Args,
}

/// Runs the command: `prepared` is the whole command line's.
///
/// # Errors
/// Only when the text cannot be written.
pub fn run(
    args: &Args,
    settings: &[Setting],
    file: Option<&Path>,
    prepared: &Command,
) -> anyhow::Result<()> {
    let text = if args.example {
        example(prepared)
    } else {
        effective(settings, file)
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Columns before the origins.
const COLUMN: usize = 40;
/// Columns of a line of the example, without its `# `.
const WIDTH: usize = 98;

/// The settings as TOML, each with its origin.
pub(super) fn effective(settings: &[Setting], file: Option<&Path>) -> String {
    let mut text = String::from(
        "# What `kvpsi serve` runs with. The first wins: flag, environment, file, default.\n",
    );
    let _ = match file {
        Some(file) => writeln!(text, "# File: {}", shown(file)),
        None => writeln!(
            text,
            "# File: none (--config, KVPSI_CONFIG, {DEFAULT_FILE})"
        ),
    };
    for s in settings {
        let key = &s.key;
        let _ = match (&s.origin, s.toml()) {
            (None, _) => match &s.otherwise {
                Some(default) => writeln!(text, "# {key} is not set, default: {default}"),
                None => writeln!(text, "# {key} is not set"),
            },
            (Some(from), _) if s.secret => {
                writeln!(text, "# {key} is set and not shown: {}", from.describe())
            }
            (Some(from), Some(value)) => {
                let pair = format!("{key} = {value}");
                writeln!(text, "{pair:COLUMN$} # {}", from.describe())
            }
            (Some(from), None) => {
                writeln!(text, "# {key} is set and no UTF-8: {}", from.describe())
            }
        };
        if let Some((was, to)) = &s.gave_way {
            let _ = writeln!(text, "# {key} of {} gives way to {to}", was.describe());
        }
    }
    text
}

impl Setting {
    fn toml(&self) -> Option<String> {
        let values: Option<Vec<_>> = self.values.iter().map(|v| self.kind.toml(v)).collect();
        let mut values = values?;
        match values.len() {
            1 if !self.repeats => values.pop(),
            _ => Some(format!("[{}]", values.join(", "))),
        }
    }
}

impl Origin {
    /// As a comment says it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Default => "default".into(),
            Self::File(path, line) => format!("{}:{line}", shown(path)),
            Self::Environment(name) => format!("environment {name}"),
            Self::Flag => "flag".into(),
        }
    }
}

/// The default that no value is: the help tells it.
pub(super) fn otherwise(arg: &Arg) -> Option<String> {
    let help = arg.get_help()?.to_string();
    let (_, default) = help.split_once("[default: ")?;
    let (default, _) = default.split_once(']')?;
    Some(default.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// In one line, whatever the path.
fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

const HEAD: &str = "\
# Configuration of `kvpsi serve`, read from /etc/kvpsi/kvpsi.toml or from the file of --config.
#
# Each key is a flag of `kvpsi serve` without its dashes, and means what the flag means. The
# environment (KVPSI_PORT for port) wins over this file, and a flag over both. What is commented out
# shows the default. `kvpsi config` prints what holds, and where it comes from.
#
# The service runs as the user kvpsi and sees no home folders: models go to /var/lib/kvpsi, a key to
# a file that this user can read (owner root, group kvpsi, mode 640).
";

/// Every key with its default and meaning, commented out.
#[must_use]
pub fn example(prepared: &Command) -> String {
    let mut text = HEAD.to_owned();
    for arg in super::args(prepared, "serve") {
        text.push('\n');
        for line in help(arg) {
            let _ = writeln!(text, "{}", format!("# {line}").trim_end());
        }
        let _ = writeln!(text, "# {} = {}", super::key(arg), value(arg));
    }
    text
}

fn help(arg: &Arg) -> Vec<String> {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let mut lines: Vec<String> = help.lines().flat_map(|l| wrapped("", l)).collect();
    if Kind::of(arg) != Kind::Flag {
        let possible = arg.get_possible_values();
        lines.extend(possible.iter().filter(|v| !v.is_hide_set()).flat_map(|v| {
            let help = v.get_help().map(ToString::to_string).unwrap_or_default();
            wrapped(&format!("  {:10} ", v.get_name()), &help)
        }));
    }
    if super::secret(arg) {
        lines.push("(Everybody may read this file: a file of its own keeps it better.)".into());
    }
    lines
}

/// The words of `text` behind `head`, in lines of at most [`WIDTH`] columns.
fn wrapped(head: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(head.chars().count());
    let mut lines = vec![head.to_owned()];
    let mut begun = false;
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |l| l.chars().count());
        if begun && line + 1 + word.chars().count() > WIDTH {
            lines.push(indent.clone());
            begun = false;
        }
        if let Some(last) = lines.last_mut() {
            if begun {
                last.push(' ');
            }
            last.push_str(word);
            begun = true;
        }
    }
    lines
}

/// Its default, or what stands for the value.
fn value(arg: &Arg) -> String {
    let kind = Kind::of(arg);
    let defaults = arg.get_default_values();
    let values: Vec<_> = defaults.iter().filter_map(|v| kind.toml(v)).collect();
    match values.as_slice() {
        [one] => one.clone(),
        [] => {
            let name = arg.get_value_names().and_then(|n| n.first());
            let name = name.map_or("VALUE", |n| n.as_str());
            match kind {
                Kind::Text | Kind::Other => format!("{name:?}"),
                Kind::Flag | Kind::Integer | Kind::Float => name.to_owned(),
            }
        }
        several => format!("[{}]", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, config::file};

    const PACKAGED: &str = include_str!("../../../../packaging/kvpsi.toml");

    #[test]
    fn the_packaged_example_is_what_this_version_prints() {
        let now = example(&Cli::prepared());
        assert!(
            now == PACKAGED,
            "run `kvpsi config --example > packaging/kvpsi.toml`; it is now:\n{now}"
        );
    }

    #[test]
    fn the_examples_defaults_are_taken_and_each_line_fits() {
        let root = Cli::prepared();
        let args = super::super::args(&root, "serve");
        let text = example(&root);
        let of = |line: &str| {
            let key = line.strip_prefix("# ")?.split_once(" = ")?.0;
            args.iter().find(|a| super::super::key(a) == key)
        };
        let mut keys = 0;
        let mut uncommented = String::new();
        for line in text.lines() {
            assert!(line.chars().count() <= 2 + WIDTH, "{line}");
            if let Some(arg) = of(line) {
                keys += 1;
                if !arg.get_default_values().is_empty() {
                    uncommented += &line.replacen("# ", "", 1);
                    uncommented.push('\n');
                }
            }
        }
        assert_eq!(keys, args.len(), "{text}");
        let read = file::parse(Path::new("F"), &uncommented, &args);
        assert!(read.is_ok_and(|r| !r.entries.is_empty()), "{uncommented}");
    }

    #[test]
    fn long_help_is_wrapped_below_its_head() {
        let long = "word ".repeat(40);
        let lines = wrapped("  name ", &long);
        assert!(lines.len() > 1);
        assert!(lines[0].starts_with("  name word") && lines[1].starts_with("       word"));
        assert!(lines.iter().all(|l| l.len() <= WIDTH));
        assert_eq!(lines.concat().matches("word").count(), 40);
        assert_eq!(wrapped("", ""), [""]);
    }
}
