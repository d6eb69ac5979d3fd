//! Configuration of `kvpsi serve`: a TOML file, the environment, flags.
//!
//! Owns the order (flags win over the environment, that over the file, that
//! over the defaults) and where each value came from; other commands take the
//! environment for the flags that they share with the server. clap does the
//! work: what the file says becomes the default of the flag of that name.
//! Invariants: a value of the file passes the flag's own parser; a value gives way to one of
//! higher rank that its flag excludes. Out of scope: any flag by name but the
//! secret one: what `serve` takes, a file takes.

mod file;
mod kind;
mod refused;
mod show;

pub use refused::{Refused, format_of};
pub use show::{Args, run};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{BoolishValueParser, Resettable, StyledStr},
    parser::ValueSource,
};
use file::{Configuration, Entry};
use kind::Kind;
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Read where no other file is named, if it exists.
pub const DEFAULT_FILE: &str = "/etc/kvpsi/kvpsi.toml";

/// Before the name of a flag in the environment.
const PREFIX: &str = "KVPSI_";
/// Variables that are no flag's: the log's filter, and the processor's instructions.
const OTHERS: [&str; 2] = ["KVPSI_LOG", "KVPSI_ISA"];
/// Subcommands that are configured: the server, and who shows how it would be.
const CONFIGURED: [&str; 2] = ["serve", "config"];
/// Subcommands whose flags that `serve` has, too, take its variables. Not those
/// of `perplexity`: there `--ctx` and `--kv-budget` are other things, and the rest
/// is what is measured.
const LISTENING: [&str; 2] = ["run", "bench"];
/// The key whose value is never shown.
const SECRETS: [&str; 1] = ["api_key"];
/// The flag that names the file.
const FILE: &str = "config";

const ABOUT_ORDER: &str = "\
Each option can be given in three ways, of which the first wins:
  --port 8080               as a flag; what is on or off also as --flag=false
  KVPSI_PORT=8080           in the environment
  port = 8080               in the file of --config, else in /etc/kvpsi/kvpsi.toml if there is one
`kvpsi config` prints what would hold, and where it comes from.";

const ABOUT_VARIABLES: &str = "\
Options that `kvpsi serve` has, too, can be set in the environment as there: KVPSI_KV_TYPE=q8_0
is --kv-type q8_0. A flag wins. The file of `kvpsi serve` is not read.";

/// Where a value comes from, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not set anywhere.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
    /// The command line.
    Flag,
}

/// A flag, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As in a file.
    pub key: String,
    /// As on a command line; empty where it has no value.
    pub values: Vec<OsString>,
    /// Where the values come from; none where there are none.
    pub origin: Option<Origin>,
    /// What holds without a value, in the help's words.
    pub otherwise: Option<String>,
    /// Where a value was that gave way, and the key of the one of higher rank
    /// that excludes it.
    pub gave_way: Option<(Origin, String)>,
    /// Not to be shown.
    pub secret: bool,
    kind: Kind,
    repeats: bool,
}

/// A command line with all that configures it.
#[derive(Debug)]
pub struct Loaded {
    /// As if all of it had been flags.
    pub matches: ArgMatches,
    /// Of each flag of a configured subcommand; empty for others.
    pub settings: Vec<Setting>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Variables of the environment that are like kvpsi's and are no flag's.
    pub unknown: Vec<String>,
}

/// Makes the configured subcommands of `root` take their flags from the
/// environment, too, and name a file; and others those flags that are the server's.
#[must_use]
pub fn prepare(root: Command) -> Command {
    let server = root.find_subcommand(CONFIGURED[0]);
    let shared: Vec<String> = (server.into_iter().flat_map(Command::get_arguments))
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    let root = CONFIGURED.iter().fold(root, |root, name| {
        root.mut_subcommand(name, |c| {
            described(c.mut_args(prepared), ABOUT_ORDER).arg(file_flag())
        })
    });
    let listening = |arg: Arg| match arg.get_long() {
        // Who looks for a model takes an empty variable for none.
        Some("model") => arg,
        Some(long) if shared.iter().any(|s| s == long) => prepared(arg),
        _ => arg,
    };
    LISTENING.iter().fold(root, |root, name| {
        if root.find_subcommand(name).is_none() {
            return root;
        }
        root.mut_subcommand(name, |c| described(c.mut_args(listening), ABOUT_VARIABLES))
    })
}

fn described(command: Command, about: &str) -> Command {
    let after = |own: Option<&StyledStr>| match own {
        Some(own) => format!("{own}\n\n{about}"),
        None => about.into(),
    };
    match command.get_after_long_help() {
        Some(own) => {
            let own = after(Some(own));
            command.after_long_help(own)
        }
        None => {
            let own = after(command.get_after_help());
            command.after_help(own)
        }
    }
}

fn file_flag() -> Arg {
    Arg::new(FILE)
        .long(FILE)
        .env(variable(FILE))
        .hide_env(true)
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(format!(
            "File to be configured by [default: {DEFAULT_FILE}, if it exists]"
        ))
}

fn variable(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}

fn secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set() || SECRETS.contains(&arg.get_id().as_str())
}

/// A flag that the environment may set, and that may be taken back.
fn prepared(arg: Arg) -> Arg {
    let Some(long) = arg.get_long() else {
        return arg;
    };
    let variable = arg.get_env().is_none().then(|| variable(long));
    let secret = secret(&arg);
    let arg = match variable {
        // Said once for all in the help.
        Some(variable) => arg.env(variable).hide_env(true),
        None => arg,
    };
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let arg = if switch || Kind::of(&arg) == Kind::Flag {
        // The environment's yes and no are 1 and 0, too.
        arg.value_parser(BoolishValueParser::new())
    } else {
        arg
    };
    let arg = if switch {
        // As clap has it a flag could not say no to a file that says yes.
        arg.action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_name("BOOL")
            .default_missing_value("true")
            .default_value("false")
            .hide_default_value(true)
            .hide_possible_values(true)
    } else {
        arg
    };
    arg.hide_env_values(secret)
}

/// Parses a command line; where it is for a configured subcommand, with the
/// environment and the file: the one that it names, else `default_file` if it
/// exists. `root` is [`prepare`]d.
///
/// # Errors
/// The command line, the environment or the file is wrong.
pub fn load(root: Command, argv: Vec<OsString>, default_file: &Path) -> Result<Loaded, Refused> {
    let unknown = unknown(&root, std::env::vars_os().map(|(name, _)| name));
    // What is said without the file, wrong as it may be: clap's own words for
    // that come below, and a broken file does not keep help from being printed.
    let said = root
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(&argv)
        .map_err(Refused::Usage)?;
    let listens = |name: &str| CONFIGURED.contains(&name) || LISTENING.contains(&name);
    let Some((name, said)) = said.subcommand().filter(|(n, _)| listens(n)) else {
        let matches = root.try_get_matches_from(argv).map_err(Refused::Usage)?;
        return Ok(Loaded {
            matches,
            settings: Vec::new(),
            file: None,
            unknown,
        });
    };
    let args = args(&root, name);
    variables(&args, said)?;
    let configured = CONFIGURED.contains(&name);
    let named = configured.then(|| said.get_one::<PathBuf>(FILE)).flatten();
    let file = match named {
        Some(named) => Some(file::read(named, &args)?),
        None if !configured => None,
        // Who may not even look is told so by reading.
        None if default_file.try_exists().unwrap_or(true) => Some(file::read(default_file, &args)?),
        None => None,
    };
    let file = file.unwrap_or_default();
    let command = root.find_subcommand(name);
    let gave_way = command.map_or(Ok(Vec::new()), |c| gave_way(c, said, &file))?;

    let overlaid = overlaid(root.clone(), name, &file, &gave_way);
    let matches = overlaid
        .try_get_matches_from(argv)
        .map_err(|e| Refused::usage(e, name))?;
    if !configured {
        return Ok(Loaded {
            matches,
            settings: Vec::new(),
            file: None,
            unknown,
        });
    }
    let settings = match matches.subcommand() {
        Some((_, m)) => settings(&args, m, &file, &gave_way),
        None => Vec::new(),
    };
    Ok(Loaded {
        matches,
        settings,
        file: (!file.path.as_os_str().is_empty()).then_some(file.path),
        unknown,
    })
}

/// Those of `names` that begin as kvpsi's variables do and that no flag of any
/// subcommand has, in order.
fn unknown(root: &Command, names: impl Iterator<Item = OsString>) -> Vec<String> {
    let commands = std::iter::once(root).chain(root.get_subcommands());
    let known: Vec<_> = (commands.flat_map(Command::get_arguments))
        .filter_map(Arg::get_env)
        .collect();
    let ours = names.filter(|n| n.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    let unknown =
        ours.filter(|n| !known.contains(&n.as_os_str()) && !OTHERS.iter().any(|o| n == o));
    let mut unknown: Vec<String> = unknown.map(|n| n.to_string_lossy().into_owned()).collect();
    unknown.sort_unstable();
    unknown
}

/// clap would refuse what the environment says by the flag's name, which the user never
/// has used then.
fn variables(args: &[&Arg], said: &ArgMatches) -> Result<(), Refused> {
    for arg in args {
        let (Some(name), None | Some(ValueSource::EnvVariable)) =
            (arg.get_env(), said.value_source(arg.get_id().as_str()))
        else {
            continue;
        };
        let value = std::env::var_os(name).and_then(|v| v.into_string().ok());
        if let Some(value) = value {
            file::accepted(arg, &[value])
                .map_err(|why| Refused::Setting(format!("{}: {why}", name.display())))?;
        }
    }
    Ok(())
}

/// The flags that a file may set: the subcommand's, and the global ones.
fn args<'a>(root: &'a Command, name: &str) -> Vec<&'a Arg> {
    let own = root.find_subcommand(name).into_iter();
    own.flat_map(Command::get_arguments)
        .chain(root.get_arguments().filter(|a| a.is_global_set()))
        .filter(|a| a.get_long().is_some() && a.get_id() != FILE && !a.is_exclusive_set())
        .collect()
}

/// A value that another of higher rank excludes.
struct GaveWay {
    id: String,
    was: Origin,
    to: String,
}

/// What gives way: of flags that exclude each other the one of lower rank.
fn gave_way(
    command: &Command,
    said: &ArgMatches,
    file: &Configuration,
) -> Result<Vec<GaveWay>, Refused> {
    let mut candidates: Vec<(&Arg, Origin)> = command
        .get_arguments()
        .filter_map(|a| Some((a, ranked(a, said, file)?)))
        .collect();
    candidates.sort_by_key(|(_, origin)| std::cmp::Reverse(origin.rank()));

    let mut held: Vec<(&Arg, Origin)> = Vec::new();
    let mut gave_way = Vec::new();
    for (arg, origin) in candidates {
        match held.iter().find(|(other, _)| exclude(command, arg, other)) {
            Some((winner, by)) if by.rank() > origin.rank() => gave_way.push(GaveWay {
                id: arg.get_id().to_string(),
                was: origin,
                to: key(winner),
            }),
            Some((other, Origin::File(path, first))) if matches!(origin, Origin::File(..)) => {
                let line = origin.line().unwrap_or_default();
                return Err(Refused::Setting(format!(
                    "{}:{}: {} and {} (line {}) exclude each other",
                    path.display(),
                    line.max(*first),
                    if line > *first { key(arg) } else { key(other) },
                    if line > *first { key(other) } else { key(arg) },
                    line.min(*first),
                )));
            }
            // clap refuses two of the same rank.
            _ => held.push((arg, origin)),
        }
    }
    Ok(gave_way)
}

impl Origin {
    const fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(..) => 1,
            Self::Environment(_) => 2,
            Self::Flag => 3,
        }
    }

    const fn line(&self) -> Option<usize> {
        match self {
            Self::File(_, line) => Some(*line),
            _ => None,
        }
    }
}

/// Where `arg` is said to be anything but off.
fn ranked(arg: &Arg, said: &ArgMatches, file: &Configuration) -> Option<Origin> {
    let id = arg.get_id().as_str();
    let off =
        |said: &ArgMatches| Kind::of(arg) == Kind::Flag && said.get_one::<bool>(id) == Some(&false);
    match said.value_source(id) {
        Some(ValueSource::CommandLine) => (!off(said)).then_some(Origin::Flag),
        Some(ValueSource::EnvVariable) => (!off(said)).then(|| environment(arg)),
        _ => file
            .entries
            .iter()
            .find(|e| e.id == id && e.values != ["false"])
            .map(|e| Origin::File(file.path.clone(), e.line)),
    }
}

fn environment(arg: &Arg) -> Origin {
    let name = arg.get_env().unwrap_or_default();
    Origin::Environment(name.to_string_lossy().into_owned())
}

fn exclude(command: &Command, a: &Arg, b: &Arg) -> bool {
    let one_way = |a: &Arg, b: &Arg| {
        let excluded = command.get_arg_conflicts_with(a);
        excluded.iter().any(|c| c.get_id() == b.get_id())
    };
    one_way(a, b) || one_way(b, a)
}

fn key(arg: &Arg) -> String {
    arg.get_long().unwrap_or(arg.get_id().as_str()).to_owned()
}

/// `root` with the file as defaults, and deaf to what gave way.
fn overlaid(root: Command, name: &str, file: &Configuration, gave_way: &[GaveWay]) -> Command {
    let overlay = |arg: Arg| {
        let id = arg.get_id().to_string();
        if gave_way.iter().any(|g| g.id == id) {
            return arg.env(Resettable::Reset);
        }
        match file.entries.iter().find(|e| e.id == id) {
            // A default does not count as given.
            Some(Entry { values, .. }) => arg
                .required(false)
                .required_unless_present(Resettable::Reset)
                .default_values(values.clone()),
            None => arg,
        }
    };
    root.mut_args(overlay)
        .mut_subcommand(name, |c| c.mut_args(overlay))
}

fn settings(
    args: &[&Arg],
    matches: &ArgMatches,
    file: &Configuration,
    gave_way: &[GaveWay],
) -> Vec<Setting> {
    let setting = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        let gave_way = gave_way.iter().find(|g| g.id == id);
        let entry = file.entries.iter().find(|e| e.id == id);
        let origin = match (matches.value_source(id), entry) {
            (None, _) => None,
            (Some(ValueSource::CommandLine), _) => Some(Origin::Flag),
            (Some(ValueSource::EnvVariable), _) => Some(environment(arg)),
            (Some(_), Some(e)) if gave_way.is_none() => {
                Some(Origin::File(file.path.clone(), e.line))
            }
            (Some(_), _) => Some(Origin::Default),
        };
        Setting {
            key: key(arg),
            values: matches
                .get_raw(id)
                .map(|raw| raw.map(ToOwned::to_owned).collect())
                .unwrap_or_default(),
            origin,
            otherwise: show::otherwise(arg),
            gave_way: gave_way.map(|g| (g.was.clone(), g.to.clone())),
            secret: secret(arg),
            kind: Kind::of(arg),
            repeats: kind::repeats(arg),
        }
    };
    args.iter().map(setting).collect()
}

#[cfg(test)]
mod tests;
