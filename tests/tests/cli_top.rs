//! `kvpsi top` as a user meets it: without a terminal, and in one.
//!
//! The terminal is a real one, by `script`; `stty` says whether it was given
//! back as it was.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{kvpsi_binary, quiet, terminal::Terminal};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::Write,
    net::TcpListener,
    process::{ChildStdin, Command, Output, Stdio},
};

/// An address where no server answers.
fn unreachable_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn top(args: &[&str]) -> Output {
    quiet(Command::new(kvpsi_binary()))
        .arg("top")
        .args(args)
        .env_remove("KVPSI_URL")
        .env_remove("KVPSI_API_KEY")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Exit code 1 and one line on stderr that holds all of `says`.
fn refused(out: &Output, says: &[&str]) {
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert_eq!(err.trim_end().lines().count(), 1, "{err}");
    for s in says {
        assert!(err.contains(s), "`{s}` is not in: {err}");
    }
}

/// Runs a shell command in a terminal of 80 by 24 and returns what it was
/// sent. Once that has `mark` in it, `act` gets it, and what types.
fn in_a_terminal(
    test: &str,
    command: &str,
    mark: &str,
    act: impl FnOnce(&str, &mut ChildStdin),
) -> Option<String> {
    let mut terminal = Terminal::start(test, command)?;
    let shown = terminal.until(mark).to_owned();
    act(&shown, terminal.keys());
    Some(terminal.end())
}

/// The terminal's settings before and after are the same line, and the other
/// screen was left, with the cursor shown.
fn given_back(sent: &str) {
    let settings: Vec<&str> = sent
        .split(['\n', '\r'])
        .filter_map(|l| l.split("stty:").nth(1))
        .collect();
    assert_eq!(settings.len(), 2, "{sent:?}");
    assert_eq!(settings[0], settings[1]);
    let at = |what: &str| sent.rfind(what).unwrap_or_else(|| panic!("no {what:?}"));
    assert!(at("\u{1b}[?1049l") > at("\u{1b}[?1049h"));
    assert!(at("\u{1b}[?25h") > at("\u{1b}[?25l"));
}

/// Prints the terminal's settings around a command, and its exit status.
fn around(command: &str) -> String {
    let settings = r#"echo "stty:$(stty -g)""#;
    format!("{settings}; {command}; echo status:$?; {settings}")
}

#[test]
fn without_a_terminal_the_error_says_how_to_get_the_figures() {
    refused(&top(&[]), &["no terminal", "kvpsi top --once"]);
}

#[test]
fn once_says_what_to_do_where_no_server_answers() {
    let url = unreachable_url();
    let out = top(&["--once", "--url", &url]);
    refused(&out, &[&url, "kvpsi serve", "--url"]);
    assert!(out.stdout.is_empty());
}

#[test]
fn an_address_that_cannot_be_asked_is_a_wrong_command_line() {
    for url in ["https://robot:8080", "http://", "a b"] {
        let out = top(&["--once", "--url", url]);
        assert_eq!(out.status.code(), Some(2), "{url}");
    }
}

#[test]
fn the_help_does_not_tell_the_key() {
    let out = quiet(Command::new(kvpsi_binary()))
        .args(["top", "--help"])
        .env("KVPSI_API_KEY", "sk-secret")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("KVPSI_API_KEY"), "{text}");
    assert!(!text.contains("sk-secret"), "{text}");
}

#[test]
fn q_quits_while_no_server_answers_and_the_terminal_is_restored() {
    let name = "q_quits_while_no_server_answers_and_the_terminal_is_restored";
    let kvpsi = kvpsi_binary().display().to_string();
    let command = around(&format!("'{kvpsi}' top --url {}", unreachable_url()));
    let mark = "no answer: Connection refused";
    let typed = in_a_terminal(name, &command, mark, |_, stdin| {
        stdin.write_all(b"q").unwrap();
    });
    let Some(sent) = typed else {
        return;
    };
    given_back(&sent);
    assert!(sent.contains("status:0"), "{sent:?}");
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_given_back() {
    let name = "a_signal_ends_it_and_the_terminal_is_given_back";
    let kvpsi = kvpsi_binary().display().to_string();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::QUIT] {
        let command = around(&format!(
            "sh -c 'echo pid:$$; exec {kvpsi} top --url {}'",
            unreachable_url()
        ));
        let signalled = in_a_terminal(name, &command, "no answer", |sent, _| {
            let pid = sent.split("pid:").nth(1).unwrap();
            let pid = pid.split_whitespace().next().unwrap().parse().unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        });
        let Some(sent) = signalled else {
            return;
        };
        given_back(&sent);
        let status = format!("status:{}", 128 + signal.as_raw());
        assert!(sent.contains(&status), "{sent:?}");
    }
}

#[test]
fn what_is_printed_of_a_running_server_is_what_it_says_of_itself() {
    let test = "what_is_printed_of_a_running_server_is_what_it_says_of_itself";
    let Some(file) = kvpsi_tests::model(test) else {
        return;
    };
    let s = kvpsi_tests::served::Served::start(&file, &["--alias", "smol"], None);
    let body = serde_json::json!({"prompt": "A lamp", "max_tokens": 9, "ignore_eos": true});
    for _ in 0..2 {
        assert_eq!(s.post("/v1/completions", &body).0, 200);
    }
    let status = s.rest();
    let url = format!("http://127.0.0.1:{}", s.port);
    let out = top(&["--once", "--url", &url]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{text}");
    for figure in [
        "smol".to_owned(),
        format!("cached {}", status.kv.cached),
        format!("signal     {}", status.signal),
        "2 finished".to_owned(),
    ] {
        assert!(text.contains(&figure), "`{figure}` is not in: {text}");
    }
}
