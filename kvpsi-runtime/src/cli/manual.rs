//! `kvpsi completions` and `kvpsi man`: what a shell and `man` know of kvpsi.
//!
//! Owns the pages' make-up; what they say is the command line's own help, so
//! that the two cannot drift. Invariant: the same binary writes the same bytes
//! (no date). Out of scope: any flag.

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

/// Section of user commands.
const SECTION: &str = "1";

const COMPLETIONS_EXAMPLES: &str = "Examples:
  kvpsi completions bash > ~/.local/share/bash-completion/completions/kvpsi
  kvpsi completions zsh > ~/.zfunc/_kvpsi
  kvpsi completions fish > ~/.config/fish/completions/kvpsi.fish";

/// Arguments of `kvpsi completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

const MAN_EXAMPLES: &str = "Examples:
  kvpsi man | man -l -
  kvpsi man --out /usr/local/share/man/man1";

/// Arguments of `kvpsi man`.
#[derive(Debug, clap::Args)]
#[command(after_help = MAN_EXAMPLES)]
pub struct ManArgs {
    /// Write this page and one for each subcommand into a folder, made if it is not there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions; `root` is the whole command line.
///
/// # Errors
/// They cannot be written.
pub fn completions(args: &CompletionsArgs, mut root: Command) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut root, "kvpsi", &mut text);
    print(&text)
}

/// Prints the page of `root`, or writes all pages.
///
/// # Errors
/// They cannot be written.
pub fn man(args: &ManArgs, root: Command) -> anyhow::Result<()> {
    let pages = pages(root)?;
    let Some(folder) = &args.out else {
        return pages.first().map_or(Ok(()), |(_, page)| print(page));
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, page) in &pages {
        let path = folder.join(name);
        fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Names and contents, that of `root` first.
fn pages(root: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = root.disable_help_subcommand(true);
    root.build();
    let subcommands: Vec<_> = root
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .collect();
    let names: Vec<_> = subcommands
        .iter()
        .filter_map(|c| c.get_display_name())
        .collect();
    std::iter::once(&root)
        .chain(subcommands)
        .map(|c| page(c, &root, &names))
        .collect()
}

fn page(command: &Command, root: &Command, names: &[&str]) -> io::Result<(String, Vec<u8>)> {
    let version = root.get_version().unwrap_or_default();
    let man = Man::new(command.clone())
        .section(SECTION)
        .source(format!("kvpsi {version}"))
        .manual("kvpsi");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|a| !a.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    after_help(&mut roff, command);
    let is_root = command.get_name() == root.get_name();
    if is_root {
        about_all(&mut roff);
    }
    let others: Vec<_> = match is_root {
        true => names.iter().map(|n| format!("{n}({SECTION})")).collect(),
        false => vec![format!("{}({SECTION})", root.get_name())],
    };
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(others.join(", "))]);
    roff.to_writer(&mut page)?;
    Ok((man.get_filename(), page))
}

/// Examples and notes, line by line as they are.
fn after_help(roff: &mut Roff, command: &Command) {
    let Some(help) = command.get_after_help() else {
        return;
    };
    for part in help.to_string().split("\n\n") {
        let (heading, lines) = match part.strip_prefix("Examples:\n") {
            Some(examples) => ("EXAMPLES", examples),
            None => ("NOTES", part),
        };
        roff.control("SH", [heading]);
        roff.control("nf", []);
        for line in lines.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
}

/// What holds for every subcommand.
fn about_all(roff: &mut Roff) {
    let sections: [(&str, &[(&str, &str)]); 3] = [
        (
            "ENVIRONMENT",
            &[
                ("KVPSI_MODEL", "GGUF file, where no flag names one."),
                (
                    "KVPSI_LOG",
                    "What is logged, e.g. kvpsi=debug; warn without it.",
                ),
                (
                    "KVPSI_LOG_FORMAT",
                    "human or json: how it is logged, on standard error.",
                ),
                (
                    "KVPSI_CONFIG",
                    "File that kvpsi serve is configured by. Each of its options has a variable, too.",
                ),
            ],
        ),
        (
            "FILES",
            &[(
                super::config::DEFAULT_FILE,
                "Configuration of kvpsi serve, where no other file is named.",
            )],
        ),
        (
            "EXIT STATUS",
            &[
                ("0", "It did what was asked."),
                ("1", "It could not, and one line says why and what to do."),
                ("2", "The command line, or the configuration, is wrong."),
            ],
        ),
    ];
    for (heading, entries) in sections {
        roff.control("SH", [heading]);
        for (name, what) in entries {
            roff.control("TP", []);
            roff.text([bold(*name)]);
            roff.text([roman(*what)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use std::collections::BTreeMap;

    fn all() -> BTreeMap<String, String> {
        let pages = pages(Cli::prepared()).unwrap();
        let text = |page| String::from_utf8(page).unwrap();
        pages.into_iter().map(|(n, p)| (n, text(p))).collect()
    }

    #[test]
    fn each_command_has_a_page_with_all_its_flags() {
        let pages = all();
        let mut root = Cli::prepared();
        root.build();
        let subcommands = root
            .get_subcommands()
            .filter(|c| c.get_name() != "help" && !c.is_hide_set());
        let mut count = 1;
        for command in subcommands {
            count += 1;
            let page = &pages[&format!("kvpsi-{}.1", command.get_name())];
            let shown = command.get_arguments().filter(|a| !a.is_hide_set());
            for long in shown.filter_map(clap::Arg::get_long) {
                let long = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(page.contains(&long), "{long} of {}", command.get_name());
            }
            assert!(page.contains(".SH \"SEE ALSO\"\nkvpsi(1)"), "{page}");
        }
        assert_eq!(pages.len(), count);
        let root = &pages["kvpsi.1"];
        assert!(root.contains("kvpsi\\-serve(1)"), "{root}");
        assert!(root.contains("/etc/kvpsi/kvpsi.toml"), "{root}");
    }

    #[test]
    fn pages_are_the_same_each_time_and_name_nothing_of_the_machine_that_wrote_them() {
        assert_eq!(all(), all());
        let home = std::env::var("HOME").unwrap_or("/nonexistent".into());
        for (name, page) in all() {
            assert!(home == "/" || !page.contains(&home), "{name}");
        }
    }

    #[test]
    fn examples_keep_their_lines() {
        let page = &all()["kvpsi-completions.1"];
        let (_, examples) = page.split_once(".SH EXAMPLES\n.nf\n").unwrap();
        assert!(examples.starts_with("  kvpsi completions bash >"), "{page}");
    }

    #[test]
    fn every_shell_that_is_offered_has_completions_that_know_a_subcommand() {
        use clap::ValueEnum;
        for shell in Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::prepared(), "kvpsi", &mut text);
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("trace-dump"), "{shell}");
        }
    }

    #[test]
    fn pages_are_written_into_a_folder_that_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        let args = ManArgs {
            out: Some(out.clone()),
        };
        man(&args, Cli::prepared()).unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), all().len());
        let args = ManArgs {
            out: Some(out.join("kvpsi.1")),
        };
        let why = format!("{:#}", man(&args, Cli::prepared()).unwrap_err());
        assert!(why.contains("kvpsi.1"), "{why}");
    }
}
