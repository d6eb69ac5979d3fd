//! A page of another origin in a real browser: what `--cors-origin` lets it do,
//! and what the browser refuses it without.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{model, served::Served, skip};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde_json::Value;
use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// What a page may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Debian's names.
const BROWSERS: [&str; 2] = ["chromium-headless-shell", "chromium"];

/// `CHROMIUM`, or the first of Debian's that is installed.
fn browser() -> Option<PathBuf> {
    if let Some(named) = env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    let find = |name: &str| {
        env::split_paths(&path)
            .map(|p| p.join(name))
            .find(|p| p.is_file())
    };
    BROWSERS.iter().find_map(|name| find(name))
}

/// A browser at a page; killed and reaped on drop, with those it started.
struct Open(Child);

impl Drop for Open {
    fn drop(&mut self) {
        // Debian's is a script that starts it: the group is told.
        let group = Pid::from_child(&self.0);
        let _ = kill_process_group(group, Signal::TERM);
        let until = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
        while test_kill_process_group(group).is_ok() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A site of its own: it has one page, and is told what became of it.
struct Site {
    listener: TcpListener,
    origin: String,
}

impl Site {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        Self { listener, origin }
    }

    /// Shows a page that asks the server at `port`: what it reports.
    fn visit(&self, browser: &PathBuf, port: u16) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args(["--disable-dev-shm-usage", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", folder.path().display()))
            .arg(format!("{}/?{port}", self.origin))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _open = Open(child);
        self.listener.set_nonblocking(true).unwrap();
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Some(report) = serve(stream) {
                        return report;
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("the page reported nothing in {PATIENCE:?}");
    }
}

/// Answers one request: with the page, or with nothing; a report is returned.
fn serve(stream: TcpStream) -> Option<Value> {
    stream.set_nonblocking(false).unwrap();
    // A browser opens connections ahead of their use.
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut reader = BufReader::new(&stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let page = if first.starts_with("GET /?") {
        PAGE
    } else {
        ""
    };
    let _ = (&stream).write_all(
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
            page.len()
        )
        .as_bytes(),
    );
    let report = first.starts_with("POST /report ");
    report.then(|| serde_json::from_slice(&body).unwrap())
}

/// Asks for a stream, reads it piece by piece, and reports to its own site.
const PAGE: &str = r#"<!doctype html><title>chat</title><script>
const told = {pieces: 0, text: ""};
async function ask() {
  const answer = await fetch(`http://127.0.0.1:${location.search.slice(1)}/v1/chat/completions`, {
    method: "POST",
    headers: {"Content-Type": "application/json", "Authorization": "Bearer any", "X-Stainless-Lang": "js"},
    body: JSON.stringify({
      messages: [{role: "user", content: "Name a river."}],
      stream: true, max_tokens: 24, temperature: 0, ignore_eos: true,
    }),
  });
  told.status = answer.status;
  told.id = answer.headers.get("x-request-id");
  let rest = "";
  for (const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();;) {
    const {done, value} = await reader.read();
    if (done) break;
    told.pieces += 1;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") told.done = true;
      else if (line.startsWith("data: ")) told.text += JSON.parse(line.slice(6)).choices[0]?.delta?.content ?? "";
    }
  }
}
ask().catch(e => told.error = String(e)).then(() => fetch("/report", {method: "POST", body: JSON.stringify(told)}));
</script>"#;

#[test]
fn a_page_of_another_origin_streams_a_chat_in_chromium_where_it_is_let_in() {
    let test = "a_page_of_another_origin_streams_a_chat_in_chromium_where_it_is_let_in";
    let Some(browser) = browser() else {
        skip(
            test,
            "there is no Chromium (`apt-get install chromium-headless-shell`, or CHROMIUM names one)",
        );
        return;
    };
    let Some(file) = model(test) else { return };
    let site = Site::new();
    let s = Served::start(
        &file,
        &["--signal", "none", "--cors-origin", &site.origin],
        None,
    );
    let told = site.visit(&browser, s.port);
    assert_eq!(told["error"], Value::Null, "{told}");
    assert_eq!(
        (&told["status"], &told["done"]),
        (&200.into(), &true.into()),
        "{told}"
    );
    // Exposed to the page, and not by default.
    assert!(
        told["id"].as_str().is_some_and(|id| id.starts_with("req-")),
        "{told}"
    );
    assert!(told["pieces"].as_u64() > Some(3), "{told}");
    assert!(
        told["text"].as_str().is_some_and(|t| t.len() > 20),
        "{told}"
    );
    drop(s);

    // The same page, and a server that names another origin: the browser asks
    // first, is told nothing, and does not send the question.
    let s = Served::start(
        &file,
        &[
            "--signal",
            "none",
            "--cors-origin",
            "http://app.example:3000",
        ],
        None,
    );
    let told = site.visit(&browser, s.port);
    assert_eq!(told["error"], "TypeError: Failed to fetch", "{told}");
    assert_eq!(s.status().requests.tokens, 0);
    drop(s);

    // And one that names none.
    let s = Served::start(&file, &["--signal", "none"], None);
    let told = site.visit(&browser, s.port);
    assert_eq!(told["error"], "TypeError: Failed to fetch", "{told}");
    assert_eq!(s.status().requests.tokens, 0);
}
