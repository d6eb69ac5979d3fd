use super::*;
use clap::value_parser;
use proptest::prelude::*;
use std::time::Duration;

fn flags() -> Vec<Arg> {
    let flag = |name: &'static str| Arg::new(name).long(name);
    let seconds = |s: &str| s.parse().map(Duration::from_secs);
    vec![
        flag("port").value_parser(value_parser!(u16).range(1..)),
        flag("share").value_parser(value_parser!(f32)),
        flag("insecure").value_parser(value_parser!(bool)),
        flag("user").value_parser(value_parser!(String)),
        flag("profile").value_parser(["lossless", "balanced"]),
        flag("deadline").value_parser(seconds),
        flag("kv-floor").value_parser(value_parser!(i64)),
        flag("also").action(clap::ArgAction::Append),
        flag("api_key").value_parser(value_parser!(u16)),
    ]
}

fn read(text: &str) -> Result<Configuration, String> {
    let flags = flags();
    let args: Vec<&Arg> = flags.iter().collect();
    parse(Path::new("F"), text, &args).map_err(|e| match e {
        Refused::Setting(why) => why,
        Refused::Usage(e) => panic!("{e}"),
    })
}

fn entries(text: &str) -> Vec<(String, Vec<String>, usize)> {
    let entries = read(text).unwrap().entries;
    entries
        .into_iter()
        .map(|e| (e.id, e.values, e.line))
        .collect()
}

fn refused(text: &str) -> String {
    read(text).unwrap_err()
}

#[test]
fn keys_are_flags_with_dashes_or_underscores_and_keep_their_lines() {
    let entry = |id: &str, values: &[&str], line| {
        let values = values.iter().map(ToString::to_string).collect();
        (id.to_owned(), values, line)
    };
    assert_eq!(
        entries("# c\nkv_floor = 0x10\n\nalso = [\n'a',\n'b']\nuser = \"u\""),
        [
            entry("kv-floor", &["16"], 2),
            entry("also", &["a", "b"], 4),
            entry("user", &["u"], 7),
        ]
    );
    let dashes = entries("kv-floor = 1_000");
    assert_eq!(dashes, [entry("kv-floor", &["1000"], 1)]);
}

#[test]
fn each_type_takes_its_own_and_numbers_that_mean_the_same() {
    for ok in [
        "port = 80",
        "share = 1",
        "share = 1.5",
        "share = inf",
        "insecure = true",
        "user = ''",
        "profile = 'lossless'",
        "deadline = 5",
        "deadline = '5'",
        "also = 'one'",
        "also = []",
    ] {
        assert_eq!(read(ok).err(), None, "{ok}");
    }
}

#[test]
fn a_wrong_type_is_named_with_the_right_one() {
    let says = [
        (
            "port = '80'",
            "F:1: port: wants a whole number, not the text \"80\"",
        ),
        (
            "\nport = 80.5",
            "F:2: port: wants a whole number, not the number 80.5",
        ),
        (
            "share = 'x'",
            "F:1: share: wants a number, not the text \"x\"",
        ),
        (
            "insecure = 1",
            "F:1: insecure: wants true or false, not the number 1",
        ),
        (
            "user = 5",
            "F:1: user: wants a text in quotes, not the number 5",
        ),
        (
            "user = ['u']",
            "F:1: user: wants a text in quotes, not an array",
        ),
        (
            "user = 2020-01-01",
            "F:1: user: wants a text in quotes, not the date 2020-01-01",
        ),
        (
            "user.name = 5",
            "F:1: user: wants a text in quotes, not a table",
        ),
        (
            "also = [['u']]",
            "F:1: also: wants a text in quotes, not an array",
        ),
    ];
    for (text, why) in says {
        assert_eq!(refused(text), why);
    }
}

#[test]
fn a_value_that_the_flag_does_not_take_is_refused_by_the_flags_own_words() {
    let says = [
        (
            "port = 0",
            "F:1: port: 0 will not do: 0 is not in 1..=65535",
        ),
        (
            "port = 65536",
            "F:1: port: 65536 will not do: 65536 is not in 1..=65535",
        ),
        (
            "profile = 'best'",
            "F:1: profile: \"best\" is none of lossless, balanced",
        ),
        (
            "deadline = -5",
            "F:1: deadline: \"-5\" will not do: invalid digit found in string",
        ),
    ];
    for (text, why) in says {
        assert_eq!(refused(text), why);
    }
}

#[test]
fn a_secret_is_not_shown_when_it_is_wrong() {
    for text in ["api_key = 'hush'", "api_key = 77777"] {
        let why = refused(text);
        assert!(why.contains("api_key: "), "{why}");
        assert!(!why.contains("hush") && !why.contains("77777"), "{why}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_what_is_near() {
    let says = [
        (
            "port = 1\nprot = 1",
            "F:2: prot: no such key; did you mean port?",
        ),
        (
            "kv_flor = 1",
            "F:1: kv_flor: no such key; did you mean kv-floor?",
        ),
        (
            "zzz = 1",
            "F:1: zzz: no such key; `kvpsi serve --help` lists them",
        ),
        (
            "'' = 1",
            "F:1: : no such key; `kvpsi serve --help` lists them",
        ),
        (
            "\n[server]\nport = 1",
            "F:2: server: no section is known, keys stand alone; did you mean user?",
        ),
    ];
    for (text, why) in says {
        assert_eq!(refused(text), why);
    }
}

#[test]
fn a_key_that_is_set_twice_is_refused_by_either_spelling() {
    let why = refused("kv-floor = 1\nuser = 'u'\nkv_floor = 2");
    assert_eq!(why, "F:3: kv_floor: it was set in line 1");
    assert!(refused("port = 1\nport = 2").starts_with("F:2: not TOML: "));
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    let why = refused("port = 1\nport 2");
    assert!(why.starts_with("F:2: not TOML: "), "{why}");
}

#[test]
fn a_file_that_cannot_be_one_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    let refuse = |content: &[u8]| {
        std::fs::write(&path, content).unwrap();
        match super::read(&path, &[]) {
            Err(Refused::Setting(why)) => why.replace(path.to_str().unwrap(), "F"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refuse(b"# a\n# \xff"), "F:2: not UTF-8");
    let long = vec![b'#'; usize::try_from(MOST).unwrap() + 1];
    assert_eq!(refuse(&long), "F: more than 1 MiB: is this the file?");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(\\PC|\n|[=\\[\\]\"'.#0-9a-z]){0,80}") {
        let _ = read(&text);
    }

    #[test]
    fn no_value_of_a_known_key_makes_it_panic(
        key in "port|share|user|also|deadline|profile|api_key",
        value in "[-+0-9a-fx_.:TZ]{1,12}|'[^']{0,8}'|\\[.{0,8}\\]|\\{.{0,8}\\}",
    ) {
        let _ = read(&format!("{key} = {value}"));
    }
}
