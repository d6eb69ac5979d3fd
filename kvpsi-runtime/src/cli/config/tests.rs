//! A command of the tests' own: which flags `serve` has is none of its business.

use super::*;
use crate::cli::Cli;
use clap::{CommandFactory, Parser, Subcommand};
use proptest::prelude::*;
use std::fs;

/// Set by cargo for every test: a variable that is there without `set_var`.
const VARIABLE: &str = "CARGO_PKG_NAME";

#[derive(Debug, Parser)]
#[command(name = "kvpsi")]
struct Root {
    #[arg(long, global = true, default_value = "human")]
    style: String,
    #[command(subcommand)]
    command: Sub,
}

#[derive(Debug, Subcommand)]
enum Sub {
    Serve(Flags),
    Config(Flags),
    Other(Flags),
}

#[derive(Debug, Default, PartialEq, clap::Args)]
struct Flags {
    #[arg(short, long, required = true)]
    model: Option<String>,
    #[arg(long, default_value_t = 8080)]
    port: u16,
    #[arg(long, default_value_t = 0.5)]
    share: f64,
    #[arg(long)]
    insecure: bool,
    #[arg(long, default_value_t = true, action = ArgAction::Set)]
    landlock: bool,
    #[arg(long, conflicts_with = "api_key_file")]
    api_key: Option<String>,
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    #[arg(long)]
    also: Vec<String>,
    #[arg(long, env = VARIABLE, default_value = "nobody")]
    from_cargo: String,
}

struct Case {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Case {
    fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvpsi.toml");
        fs::write(&file, toml).unwrap();
        Self { _dir: dir, file }
    }

    fn load(&self, argv: &[&str]) -> Result<Loaded, Refused> {
        let argv = std::iter::once("kvpsi").chain(argv.iter().copied());
        load(
            prepare(Root::command()),
            argv.map(OsString::from).collect(),
            &self.file,
        )
    }

    fn flags(&self, argv: &[&str]) -> (Flags, Loaded) {
        let loaded = self.load(argv).unwrap();
        let root = <Root as clap::FromArgMatches>::from_arg_matches(&loaded.matches).unwrap();
        let (Sub::Serve(flags) | Sub::Config(flags) | Sub::Other(flags)) = root.command;
        (flags, loaded)
    }

    fn refused(&self, argv: &[&str]) -> String {
        match self.load(argv).unwrap_err() {
            Refused::Setting(why) => why.replace(&self.file.display().to_string(), "FILE"),
            Refused::Usage(e) => e.to_string(),
        }
    }
}

fn setting<'a>(loaded: &'a Loaded, key: &str) -> &'a Setting {
    loaded.settings.iter().find(|s| s.key == key).unwrap()
}

fn origin(loaded: &Loaded, key: &str) -> Origin {
    setting(loaded, key).origin.clone().unwrap()
}

#[test]
fn a_file_gives_what_is_not_set_elsewhere_even_what_is_required() {
    let case = Case::new("model = \"m\"\nport = 1\n\nstyle = \"json\"\nalso = [\"a\", \"b\"]\n");
    let (flags, loaded) = case.flags(&["serve", "--port", "2"]);
    assert_eq!((flags.model.as_deref(), flags.port), (Some("m"), 2));
    assert_eq!(flags.also, ["a", "b"]);
    assert_eq!(origin(&loaded, "model"), Origin::File(case.file.clone(), 1));
    assert_eq!(origin(&loaded, "style"), Origin::File(case.file.clone(), 4));
    assert_eq!(origin(&loaded, "port"), Origin::Flag);
    assert_eq!(origin(&loaded, "share"), Origin::Default);
    assert_eq!(setting(&loaded, "api-key").origin, None);
}

#[test]
fn a_file_configures_the_server_alone() {
    let case = Case::new("port = 1");
    let (flags, loaded) = case.flags(&["other", "-m", "m"]);
    assert_eq!((flags.port, loaded.file), (8080, None));
    assert!(loaded.settings.is_empty());
}

#[test]
fn a_named_file_is_read_in_place_of_the_default_one() {
    let (default, named) = (Case::new("port = 1"), Case::new("share = 1"));
    let file = named.file.to_str().unwrap();
    let (flags, loaded) = default.flags(&["serve", "-m", "m", "--config", file]);
    assert_eq!((flags.port, flags.share), (8080, 1.0));
    assert_eq!(loaded.file, Some(named.file));
}

#[test]
fn without_a_file_the_defaults_hold_and_a_named_one_must_be_there() {
    let case = Case::new("");
    fs::remove_file(&case.file).unwrap();
    let (flags, loaded) = case.flags(&["serve", "-m", "m"]);
    assert_eq!((flags.port, loaded.file), (8080, None));
    let why = case.refused(&["serve", "-m", "m", "--config", "/nonexistent/k.toml"]);
    assert!(
        why.starts_with("/nonexistent/k.toml: cannot be read"),
        "{why}"
    );
    let why = case.refused(&["serve", "-m", "m", "--config", "/"]);
    assert!(why.starts_with("/: cannot be read"), "{why}");
}

#[test]
fn a_flag_can_say_no_to_a_file_that_says_yes() {
    let case = Case::new("insecure = true");
    assert!(case.flags(&["serve", "-m", "m"]).0.insecure);
    assert!(
        !case
            .flags(&["serve", "-m", "m", "--insecure=false"])
            .0
            .insecure
    );
    let case = Case::new("landlock = false");
    assert!(!case.flags(&["serve", "-m", "m"]).0.landlock);
    let on = ["serve", "-m", "m", "--landlock", "yes"];
    assert!(case.flags(&on).0.landlock);
    let case = Case::new("insecure = false");
    assert!(!case.flags(&["serve", "-m", "m"]).0.insecure);
    assert!(case.flags(&["serve", "--insecure", "-m", "m"]).0.insecure);
}

#[test]
fn a_value_gives_way_to_one_of_higher_rank_that_its_flag_excludes() {
    let case = Case::new("model = \"m\"\napi-key-file = \"/f\"");
    let (flags, loaded) = case.flags(&["serve", "--api-key", "k"]);
    assert_eq!(
        (flags.api_key.as_deref(), flags.api_key_file),
        (Some("k"), None)
    );
    let gave_way = setting(&loaded, "api-key-file").gave_way.clone();
    let line = Origin::File(case.file.clone(), 2);
    assert_eq!(gave_way, Some((line, "api-key".into())));

    let case = Case::new("model = \"m\"\napi-key = \"k\"");
    let (flags, _) = case.flags(&["serve", "--api-key-file", "/f"]);
    assert_eq!(flags.api_key, None);
}

#[test]
fn two_keys_of_a_file_that_exclude_each_other_are_refused_with_both_lines() {
    let case = Case::new("api_key_file = \"/f\"\nmodel = \"m\"\napi-key = \"k\"");
    assert_eq!(
        case.refused(&["serve"]),
        "FILE:3: api-key and api-key-file (line 1) exclude each other"
    );
}

#[test]
fn help_is_given_whatever_the_file_says_and_a_wrong_flag_is_claps_to_refuse() {
    let case = Case::new("nonsense");
    assert!(
        case.refused(&["serve", "--help"])
            .contains("--config <FILE>")
    );
    let case = Case::new("model = \"m\"");
    let why = case.refused(&["serve", "--prot", "1"]);
    assert!(why.contains("'--port'"), "{why}");
    let why = case.refused(&["serve", "--port", "x"]);
    assert!(why.contains("invalid value 'x' for '--port"), "{why}");
    assert!(Case::new("").refused(&["serve"]).contains("--model"));
}

#[test]
fn the_value_of_a_secret_is_in_no_help() {
    let mut root = prepare(Root::command());
    for name in CONFIGURED {
        let serve = root.find_subcommand_mut(name).unwrap();
        let key = serve.get_arguments().find(|a| a.get_id() == "api_key");
        assert!(key.unwrap().is_hide_env_values_set());
    }
}

#[test]
fn what_is_shown_is_a_file_that_gives_the_same_without_the_secret() {
    let case = Case::new("model = \"\\\"m\\\"\"\napi-key = \"hush\"\nalso = [\"a b\"]");
    let (mut flags, loaded) = case.flags(&["config", "--share", "1e16", "--insecure"]);
    let text = show::effective(&loaded.settings, loaded.file.as_deref());
    assert!(!text.contains("hush"), "{text}");
    let line = |key: &str| {
        text.lines()
            .find(|l| l.starts_with(key))
            .unwrap()
            .to_owned()
    };
    assert!(line("model").ends_with(&format!(" # {}:1", case.file.display())));
    assert!(line("share").ends_with(" # flag"));
    assert!(line("port = 8080").ends_with(" # default"));
    assert!(line("# api-key is set and not shown").ends_with(":2"));
    assert!(text.contains("# api-key-file is not set\n"));
    assert!(line("from-cargo").ends_with(&format!(" # environment {VARIABLE}")));

    let (again, _) = Case::new(&text).flags(&["serve"]);
    flags.api_key = None;
    assert_eq!(again, flags);
}

/// Each flag of `serve` can be said by a file, has a variable, and an example.
#[test]
fn every_flag_of_serve_is_of_a_kind_that_a_file_can_say() {
    let root = Cli::prepared();
    let serve = root.find_subcommand("serve").unwrap();
    for arg in serve.get_arguments().filter(|a| a.get_long().is_some()) {
        let action = arg.get_action();
        assert!(
            matches!(action, ArgAction::Set | ArgAction::Append),
            "{arg}"
        );
        assert!(arg.get_env().is_some(), "{arg}");
        assert!(arg.get_help().is_some(), "{arg}");
    }
}

/// Values as a file and a command line would have them.
fn port() -> impl Strategy<Value = Option<u16>> {
    prop::option::of(any::<u16>())
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[^\0-]\\PC{0,8}|\\PC?[\n\r\t\"'\\\\#]{1,4}")
}

proptest! {
    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_a_file_and_that_over_the_default(
        in_file in (port(), text()),
        in_flags in (port(), text()),
    ) {
        let mut toml = String::from("model = 'm'\n");
        if let Some(port) = in_file.0 {
            toml += &format!("port = {port}\n");
        }
        if let Some(name) = &in_file.1 {
            toml += &format!("from_cargo = {}\n", toml::Value::from(name.as_str()));
        }
        let mut argv = vec!["serve".to_owned()];
        argv.extend(in_flags.0.map(|port| format!("--port={port}")));
        argv.extend(in_flags.1.as_ref().map(|name| format!("--from-cargo={name}")));
        let case = Case::new(&toml);
        let (flags, loaded) = case.flags(&argv.iter().map(String::as_str).collect::<Vec<_>>());

        prop_assert_eq!(flags.port, in_flags.0.or(in_file.0).unwrap_or(8080));
        let cargo = std::env::var(VARIABLE).unwrap();
        prop_assert_eq!(&flags.from_cargo, in_flags.1.as_ref().unwrap_or(&cargo));
        let expected = match (in_flags.0, in_file.0) {
            (Some(_), _) => Origin::Flag,
            (None, Some(_)) => Origin::File(case.file.clone(), 2),
            (None, None) => Origin::Default,
        };
        prop_assert_eq!(origin(&loaded, "port"), expected);
        let expected = match in_flags.1 {
            Some(_) => Origin::Flag,
            None => Origin::Environment(VARIABLE.into()),
        };
        prop_assert_eq!(origin(&loaded, "from-cargo"), expected);
    }

    #[test]
    fn whatever_is_set_is_shown_so_that_a_file_says_it_again(
        model in "[^\0]*",
        share in any::<f64>(),
        port in any::<u16>(),
        also in prop::collection::vec("[^\0]*", 0..4),
    ) {
        let mut argv = vec![
            "config".to_owned(),
            format!("--model={model}"),
            format!("--share={share:?}"),
            format!("--port=0{port}"),
        ];
        argv.extend(also.iter().map(|a| format!("--also={a}")));
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let (mut flags, loaded) = Case::new("").flags(&argv);
        let text = show::effective(&loaded.settings, None);
        let (mut again, _) = Case::new(&text).flags(&["serve"]);
        // What is not a number equals nothing.
        prop_assert_eq!(again.share.to_bits(), flags.share.to_bits());
        (again.share, flags.share) = (0.0, 0.0);
        prop_assert_eq!(again, flags, "{}", text);
    }
}

#[test]
fn a_variable_that_is_no_options_is_named() {
    let root = Cli::prepared();
    let names = [
        "KVPSI_PORT",
        "KVPSI_PROT",
        "KVPSI_LOG",
        "KVPSI_MODEL",
        "HOME",
        "KVPSI_A",
    ];
    let unknown = unknown(&root, names.into_iter().map(OsString::from));
    assert_eq!(unknown, ["KVPSI_A", "KVPSI_PROT"]);
}
