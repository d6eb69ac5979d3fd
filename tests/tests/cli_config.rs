//! Configuration of `kvpsi serve` as a user meets it: the real binary, a real
//! environment. What a unit test cannot set.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::kvpsi_binary;
use proptest::prelude::*;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// Exit code, stdout, stderr of `kvpsi ARGS` with nothing of ours in the
/// environment but `env`.
fn kvpsi(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let out = Command::new(kvpsi_binary())
        .args(args)
        .env_clear()
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn config(file: &Path, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut all = vec!["config", "--config", file.to_str().unwrap()];
    all.extend(args);
    let (code, out, err) = kvpsi(&all, env);
    assert_eq!(code, Some(0), "{err}");
    out
}

/// Value and origin of a key.
fn line_of<'a>(text: &'a str, key: &str) -> (&'a str, &'a str) {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(&format!("{key} = ")));
    let (value, origin) = line
        .unwrap_or_else(|| panic!("{key} in {text}"))
        .split_once('#')
        .unwrap();
    (value.trim(), origin.trim())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_flag_wins_over_the_environment_over_the_file_over_the_default(
        flag in prop::option::of(1u16..),
        env in prop::option::of(1u16..),
        file in prop::option::of(1u16..),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.toml");
        fs::write(&path, file.map_or(String::new(), |p| format!("# here\nport = {p}\n"))).unwrap();
        let (flag_word, env_word) = (flag.map(|p| p.to_string()), env.map(|p| p.to_string()));
        let args: Vec<&str> = flag_word.iter().flat_map(|p| ["--port", p]).collect();
        let vars: Vec<_> = env_word.iter().map(|p| ("KVPSI_PORT", p.as_str())).collect();
        let shown = config(&path, &args, &vars);
        let (value, origin) = line_of(&shown, "port");
        let expected = match (flag, env, file) {
            (Some(p), ..) => (p, "flag".to_owned()),
            (None, Some(p), _) => (p, "environment KVPSI_PORT".to_owned()),
            (None, None, Some(p)) => (p, format!("{}:2", path.display())),
            (None, None, None) => (8080, "default".to_owned()),
        };
        prop_assert_eq!((value, origin), (&*expected.0.to_string(), &*expected.1));
    }
}

#[test]
fn the_file_may_be_named_by_the_environment_and_what_is_shown_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.toml"), dir.path().join("2.toml"));
    fs::write(&first, "host = \"::1\"\nlog_format = \"json\"\n").unwrap();
    let (code, shown, _) = kvpsi(&["config"], &[("KVPSI_CONFIG", first.to_str().unwrap())]);
    assert_eq!(code, Some(0));
    // What is no value is a default all the same.
    let default = "# ctx is not set, default: the model's, up to 8192\n";
    assert!(shown.contains(default), "{shown}");
    let (value, origin) = line_of(&shown, "log-format");
    assert_eq!(
        (value, origin),
        ("\"json\"", &*format!("{}:2", first.display()))
    );
    fs::write(&second, &shown).unwrap();
    let again = config(&second, &[], &[]);
    assert_eq!(line_of(&again, "host").0, "\"::1\"");
    assert_eq!(line_of(&again, "port").0, line_of(&shown, "port").0);
}

#[test]
fn a_key_is_shown_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.toml");
    fs::write(&path, "api-key = \"hush-hush\"\n").unwrap();
    let env = [("KVPSI_API_KEY", "hush-hush")];
    let shown = [
        config(&path, &[], &[]),
        config(&path, &[], &env),
        config(Path::new("/dev/null"), &["--api-key", "hush-hush"], &[]),
        kvpsi(&["serve", "--help"], &env).1,
        kvpsi(&["config", "-h"], &env).1,
        kvpsi(&["man"], &env).1,
    ];
    for text in &shown {
        assert!(!text.contains("hush-hush"), "{text}");
    }
    for text in &shown[..3] {
        assert!(text.contains("# api-key is set and not shown: "), "{text}");
    }
}

/// Exit code 2 and one line on stderr that holds all of `says`.
fn refused(args: &[&str], env: &[(&str, &str)], says: &[&str]) {
    let (code, out, err) = kvpsi(args, env);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    for s in says {
        assert!(err.contains(s), "`{s}` is not in: {err}");
    }
}

#[test]
fn a_mistake_is_named_by_file_line_and_key_or_by_variable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.toml");
    let file = path.to_str().unwrap();
    let cases = [
        ("\nprot = 1", ":2: prot: no such key; did you mean port?"),
        ("port = '1'", ":1: port: wants a whole number"),
        ("port = 99999", ":1: port: 99999 will not do"),
        ("port =", ":1: not TOML"),
    ];
    for (text, says) in cases {
        fs::write(&path, text).unwrap();
        let whole = format!("kvpsi: {file}{says}");
        refused(&["serve", "--config", file], &[], &[&whole]);
        refused(&["config"], &[("KVPSI_CONFIG", file)], &[&whole]);
    }
    refused(
        &["config", "--config", "/nonexistent"],
        &[],
        &["/nonexistent: cannot be read"],
    );
    refused(
        &["config"],
        &[("KVPSI_PORT", "x")],
        &["kvpsi: KVPSI_PORT: x will not do"],
    );
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let (code, _, err) = kvpsi(&["--log-format", "json", "replay", "/nonexistent"], &[]);
    assert_eq!(code, Some(1));
    let last = err.lines().last().unwrap();
    let line: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().unwrap().contains("/nonexistent"));
    let (_, _, human) = kvpsi(&["replay", "/nonexistent"], &[]);
    assert!(human.starts_with("kvpsi: "), "{human}");
    // A wrong command line, too, wherever the format is said.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.toml");
    fs::write(&path, "log-format = 'json'").unwrap();
    let file = path.to_str().unwrap();
    let json = [("KVPSI_LOG_FORMAT", "json")];
    for (args, env, says) in [
        (
            &["run", "--bogus", "--log-format", "json"][..],
            &[][..],
            "'--bogus' found",
        ),
        (&["run", "--log-format=json"], &[], "nothing to answer"),
        (&["replay"], &json, "required arguments were not provided"),
        (
            &["serve", "--config", "/nonexistent"],
            &json,
            "cannot be read",
        ),
        (
            &["serve", "--config", file, "--bogus"],
            &[],
            "'--bogus' found",
        ),
        (
            &["config"],
            &[json[0], ("KVPSI_LOG", "a=b=c")],
            "KVPSI_LOG: ",
        ),
    ] {
        let (code, out, err) = kvpsi(args, env);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        let line: serde_json::Value = serde_json::from_str(&err).unwrap();
        let message = line["message"].as_str().unwrap();
        assert!(message.contains(says), "{args:?}: {err}");
        assert!(line["level"] == "ERROR" && !message.contains('\n'), "{err}");
    }
    // Help is for people all the same.
    let (code, out, _) = kvpsi(&["--help"], &json);
    assert!(code == Some(0) && out.starts_with("LLM runtime"), "{out}");
}

#[test]
fn a_misspelt_variable_is_named_and_another_commands_key_is_in_nobodys_way() {
    for (args, wanted) in [
        (&["config"][..], 0),
        (&["cache", "list"], 0),
        (
            &["run", "-m", "/nonexistent", "-p", "a", "--threads", "1"],
            1,
        ),
        (&["bench", "-m", "/nonexistent"], 1),
        (
            &["perplexity", "-m", "/nonexistent", "-f", "/nonexistent"],
            1,
        ),
        (&["serve", "-m", "/nonexistent"], 1),
    ] {
        let (code, _, err) = kvpsi(args, &[("KVPSI_PROT", "1"), ("KVPSI_PORT", "1")]);
        assert_eq!(code, Some(wanted), "{args:?}: {err}");
        assert_eq!(err.matches(": KVPSI_PROT\n").count(), 1, "{args:?}: {err}");
    }
    let args = [
        "trace-dump",
        "--signal",
        "vmstat",
        "--duration",
        "1",
        "--summary",
    ];
    let (code, _, err) = kvpsi(&args, &[("KVPSI_API_KEY", "k")]);
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn an_error_is_said_once_and_names_what_was_given() {
    let (code, _, err) = kvpsi(&["replay", "/nonexistent"], &[]);
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(err.matches("No such file").count(), 1, "{err}");
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("x.rec");
    let record = ["--record", recording.to_str().unwrap()];
    let run = ["run", "-m", "/nonexistent", "-p", "x", record[0], record[1]];
    let (code, _, err) = kvpsi(&run, &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(!recording.exists(), "an empty recording is left");
    assert_eq!(err.matches("No such file").count(), 1, "{err}");
    // What was recorded before is lost to a new recording alone.
    fs::write(&recording, "before").unwrap();
    kvpsi(&run, &[]);
    assert_eq!(fs::read_to_string(&recording).unwrap(), "before");
    // A wrong path fails before the work.
    for args in [
        &["demo", "--report", "/no/where", "-m", "/nonexistent"][..],
        &["demo", "--record", "/no/where", "-m", "/nonexistent"],
        &[
            "perplexity",
            "--json",
            "/no/where",
            "-f",
            "/nonexistent",
            "-m",
            "/nonexistent",
        ],
    ] {
        let (code, _, err) = kvpsi(args, &[]);
        assert_eq!(code, Some(1), "{err}");
        let says = format!("{}: cannot write /no/where: No such file", args[1]);
        assert!(err.contains(&says), "{err}");
    }
    let (_, _, err) = kvpsi(&["run", "-p", "x", "--temperature", "-1"], &[]);
    assert!(err.contains("temperature must be between"), "{err}");

    let test = "an_error_is_said_once_and_names_what_was_given";
    if !rustix::process::geteuid().is_root() {
        return kvpsi_tests::skip(test, "needs root to become another user");
    }
    let Some(model) = kvpsi_tests::model(test) else {
        return;
    };
    let private = dir.path().join("private.gguf");
    fs::copy(model, &private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).unwrap();
    let private = private.to_str().unwrap();
    let args = [
        "serve",
        "--user",
        "65534:65534",
        "--port",
        "0",
        "-m",
        private,
    ];
    let (code, _, err) = kvpsi(&args, &[]);
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains(&format!("{private}: Permission denied")),
        "{err}"
    );
}
