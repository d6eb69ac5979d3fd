//! Who may ask a running server: keys, the admin socket, pages of other sites;
//! and what its log says of who asked.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{kvpsi_binary, model, served::Served, skip};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Command,
};

fn head(method: &str, path: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn ask(s: &Served, method: &str, path: &str, headers: &[&str], body: &str) -> (u16, String) {
    s.raw(head(method, path, headers, body).as_bytes()).unwrap()
}

fn trim(s: &Served, headers: &[&str]) -> (u16, String) {
    ask(s, "POST", "/kvpsi/trim", headers, "{\"bytes\": 1}")
}

/// By the admin socket: status and all of the answer.
fn by_socket(path: &Path, what: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(what.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[test]
fn what_administers_wants_the_admin_key_and_top_and_trace_dump_send_it() {
    let test = "what_administers_wants_the_admin_key_and_top_and_trace_dump_send_it";
    let Some(file) = model(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "boss\n").unwrap();
    let key = key.to_str().unwrap();
    let s = Served::start(&file, &["--api-key", "api", "--admin-key-file", key], None);
    let (api, boss) = ("Authorization: bearer api", "authorization: BEARER boss");
    for (headers, status) in [
        (&[][..], 401),
        (&["Authorization: Bearer nobody"], 401),
        (&[api], 403),
        (&[boss], 200),
    ] {
        let (got, text) = trim(&s, headers);
        assert_eq!(got, status, "{headers:?}: {text}");
        let (got, _) = ask(&s, "POST", "/kvpsi/control", headers, "{}");
        assert_eq!(got, status, "{headers:?}");
    }
    assert_eq!(ask(&s, "GET", "/kvpsi/trace", &[api], "").0, 403);
    // A missing key is called missing, a wrong one wrong, with a challenge.
    let (_, missing) = ask(&s, "GET", "/v1/models", &[], "");
    assert!(
        missing.contains("missing_api_key") && missing.contains("www-authenticate: Bearer"),
        "{missing}"
    );
    let (_, wrong) = ask(&s, "GET", "/v1/models", &["Authorization: Bearer x"], "");
    assert!(
        wrong.contains("invalid_api_key") && wrong.contains("invalid_token"),
        "{wrong}"
    );
    for headers in [[api], [boss]] {
        assert_eq!(ask(&s, "GET", "/v1/models", &headers, "").0, 200);
    }
    let url = format!("http://127.0.0.1:{}", s.port);
    let run = |args: &[&str], key: &str| {
        let mut c = Command::new(kvpsi_binary());
        let out = c
            .args(args)
            .env("KVPSI_ADMIN_KEY", key)
            .env_remove("KVPSI_API_KEY")
            .output();
        out.unwrap()
    };
    let top = ["top", "--once", "--url", &url];
    assert!(run(&top, "boss").status.success());
    assert!(!run(&top, "x").status.success());
    let dump = ["trace-dump", "--attach", &url, "--duration", "1"];
    let out = run(&dump, "boss");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let out = run(&dump, "api");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("--admin-key") && !said.contains('{'),
        "{said}"
    );
    // Without an address it is the variable's, as in `kvpsi top`.
    let by_variable = |url: &str| {
        let mut c = Command::new(kvpsi_binary());
        c.args(["trace-dump", "--attach", "--duration", "0"])
            .env("KVPSI_ADMIN_KEY", "boss")
            .env("KVPSI_URL", url);
        let out = c.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.success(), said)
    };
    let (well, said) = by_variable(&url);
    assert!(well && said.contains(&url), "{said}");
    let (well, said) = by_variable("https://robot");
    assert!(!well && said.contains("KVPSI_URL=https://robot"), "{said}");
}

#[test]
fn the_admin_socket_opens_what_the_port_does_not() {
    let test = "the_admin_socket_opens_what_the_port_does_not";
    let Some(file) = model(test) else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let socket = path.to_str().unwrap();
    let mut s = Served::start(&file, &["--admin-socket", socket], None);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (status, text) = trim(&s, &[]);
    assert!(status == 403 && text.contains("--admin-socket"), "{text}");
    assert_eq!(ask(&s, "GET", "/kvpsi/status", &[], "").0, 200);
    let what = head("POST", "/kvpsi/trim", &[], "{\"bytes\": 1}");
    assert_eq!(by_socket(&path, &what).0, 200);
    let what = head("POST", "/kvpsi/control", &[], "{\"profile\": \"lossless\"}");
    assert_eq!(by_socket(&path, &what).0, 200);
    assert_eq!(by_socket(&path, &head("GET", "/v1/models", &[], "")).0, 200);
    let attached = |socket: &str| {
        let mut c = Command::new(kvpsi_binary());
        c.args(["trace-dump", "--duration", "0.2", "--admin-socket", socket]);
        let out = c.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.success(), said)
    };
    let (well, said) = attached(socket);
    assert!(well && said.contains("stalls meanwhile"), "{said}");
    let (well, said) = attached("/nonexistent.sock");
    assert!(
        !well
            && said
                .contains("no kvpsi answers at /nonexistent.sock: No such file or directory; is"),
        "{said}"
    );
    let (status, said) = s.stop();
    assert!(status.success() && !path.exists(), "{said}");

    // With an API key and nothing more nobody may.
    let s = Served::start(&file, &["--api-key", "api"], None);
    let (status, text) = trim(&s, &["Authorization: Bearer api"]);
    assert!(status == 403 && text.contains("--admin-key"), "{text}");
}

#[test]
fn pages_of_named_origins_and_named_hosts_are_let_in() {
    let test = "pages_of_named_origins_and_named_hosts_are_let_in";
    let Some(file) = model(test) else { return };
    let args = [
        "--cors-origin",
        "http://app.example:3000",
        "--allowed-host",
        "kvpsi",
    ];
    let s = Served::start(&file, &args, None);
    let origin = "Origin: http://app.example:3000";
    let preflight = [
        origin,
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: content-type,x-stainless-lang",
    ];
    let (status, text) = ask(&s, "OPTIONS", "/v1/chat/completions", &preflight, "");
    assert_eq!(status, 200, "{text}");
    for want in [
        "access-control-allow-origin: http://app.example:3000",
        "access-control-allow-headers: content-type,x-stainless-lang",
        "access-control-allow-methods: GET,POST",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    let (status, text) = ask(&s, "GET", "/v1/models", &[origin], "");
    assert_eq!(status, 200, "{text}");
    assert!(
        text.contains("access-control-allow-origin: http://app.example:3000"),
        "{text}"
    );
    let (status, text) = ask(
        &s,
        "GET",
        "/v1/models",
        &["Origin: http://evil.example"],
        "",
    );
    assert!(
        status == 403 && text.contains("--cors-origin http://evil.example"),
        "{text}"
    );
    assert!(!text.contains("access-control-allow-origin"), "{text}");
    let named = |host: &str| {
        let head = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        s.raw(head.as_bytes()).unwrap()
    };
    assert_eq!(named("kvpsi:8080").0, 200);
    let (status, text) = named("evil.example");
    assert!(
        status == 403 && text.contains("--allowed-host evil.example"),
        "{text}"
    );
    let any = Served::start(&file, &["--insecure"], None);
    let head = "GET /v1/models HTTP/1.1\r\nHost: any.example\r\nConnection: close\r\n\r\n";
    assert_eq!(any.raw(head.as_bytes()).unwrap().0, 200);
}

#[test]
fn a_request_is_a_line_of_the_log_and_every_line_is_json() {
    let test = "a_request_is_a_line_of_the_log_and_every_line_is_json";
    let Some(file) = model(test) else { return };
    let mut s = Served::start(&file, &["--log-format", "json"], None);
    let body = json!({"prompt": "A lamp", "max_tokens": 3}).to_string();
    let (status, text) = ask(
        &s,
        "POST",
        "/v1/completions",
        &["X-Request-Id: mine-1"],
        &body,
    );
    assert!(
        status == 200 && text.contains("x-request-id: mine-1"),
        "{text}"
    );
    let (_, text) = ask(&s, "GET", "/v1/nothing", &[], "");
    assert!(text.contains("x-request-id: req-"), "{text}");
    for (path, id) in [("/robots.txt", "mine-3"), ("/v1/models/other", "mine-4")] {
        ask(&s, "GET", path, &[&format!("X-Request-Id: {id}")], "");
    }
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
    let lines: Vec<Value> = (said.lines())
        .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}")))
        .collect();
    let of = |id: &str| {
        lines
            .iter()
            .find(|l| l["id"] == id)
            .unwrap_or_else(|| panic!("{said}"))
    };
    assert_eq!(of("mine-3")["path"], "/robots.txt");
    assert_eq!(of("mine-4")["path"], "/v1/models/other");
    let line = of("mine-1");
    assert_eq!(
        (
            &line["path"],
            &line["status"],
            &line["completion_tokens"],
            &line["prompt_tokens"]
        ),
        (&json!("/v1/completions"), &json!(200), &json!(3), &json!(2)),
        "{line}"
    );
    assert!(
        line["ms"].as_f64().unwrap() >= line["first_token_ms"].as_f64().unwrap(),
        "{line}"
    );
    assert!(
        line["client"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );

    // For people; a file gets no colours.
    let mut s = Served::start(&file, &[], None);
    ask(
        &s,
        "POST",
        "/v1/completions",
        &["X-Request-Id: mine-2"],
        &body,
    );
    let (_, said) = s.stop();
    assert!(
        said.contains("mine-2") && !said.contains('\u{1b}'),
        "{said}"
    );

    let mut c = Command::new(kvpsi_binary());
    let out = c.args(["doctor", "--help"]).output().unwrap();
    assert!(out.status.success());
    let out = Command::new(kvpsi_binary())
        .args(["config"])
        .env("KVPSI_LOG", "a=b=c")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.code() == Some(2) && said.contains("KVPSI_LOG"),
        "{said}"
    );
}

#[test]
fn markdown_on_the_page_is_elements_without_attributes_and_html_is_text() {
    let test = "markdown_on_the_page_is_elements_without_attributes_and_html_is_text";
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    // Node takes a module for one by its name.
    let module = dir.path().join("markdown.mjs");
    let page = here.join("../kvpsi-runtime/src/server/page/markdown.js");
    std::fs::copy(page, &module).unwrap();
    let node = Command::new("node")
        .arg(here.join("data/markdown.mjs"))
        .arg(module)
        .output();
    let out = match node {
        Ok(out) => out,
        Err(e) => return skip(test, format!("no node: {e}")),
    };
    let (text, said) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(text.ends_with("all is well\n"), "{text}\n{said}");
}
