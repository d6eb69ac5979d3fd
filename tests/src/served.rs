//! A running `kvpsi serve`, and what its clients do.

use crate::kvpsi_binary;
use kvpsi::{control::cgroup::OwnedCgroup, server::view::Status};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a server may take until it is ready, or answers.
const PATIENCE: Duration = Duration::from_secs(120);

/// The server; killed and reaped on drop.
#[derive(Debug)]
pub struct Served {
    child: Child,
    /// Where it listens, at loopback.
    pub port: u16,
    said: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    agent: ureq::Agent,
}

/// An answer that came piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// HTTP status.
    pub status: u16,
    /// The pieces and when each came.
    pub pieces: Vec<(Instant, Value)>,
    /// `[DONE]` came.
    pub done: bool,
    /// The body where it was no stream.
    pub body: String,
}

impl Streamed {
    /// All text, of a chat or a completion.
    #[must_use]
    pub fn text(&self) -> String {
        let text = |(_, v): &(Instant, Value)| {
            let choice = &v["choices"][0];
            let text = choice["delta"]["content"].as_str();
            text.or(choice["text"].as_str()).unwrap_or("").to_owned()
        };
        self.pieces.iter().map(text).collect()
    }

    /// Why it ended.
    #[must_use]
    pub fn finish(&self) -> Option<&str> {
        let reason = |(_, v): &'_ (Instant, Value)| v["choices"][0]["finish_reason"].is_string();
        let last = self.pieces.iter().find(|p| reason(p))?;
        last.1["choices"][0]["finish_reason"].as_str()
    }

    /// The usage, where it was asked for.
    #[must_use]
    pub fn usage(&self) -> Option<&Value> {
        let mut usages = self.pieces.iter().map(|(_, v)| &v["usage"]);
        usages.find(|u| u.is_object())
    }
}

impl Served {
    /// Starts one at a free port, in a cgroup if one is given, and waits until it
    /// is ready.
    ///
    /// # Panics
    /// It does not become ready; what it said is in the message.
    #[must_use]
    pub fn start(model: &Path, args: &[&str], cgroup: Option<&OwnedCgroup>) -> Self {
        Self::start_with(model, args, cgroup, &[])
    }

    /// [`Served::start`] with variables of the environment.
    ///
    /// # Panics
    /// As [`Served::start`].
    #[must_use]
    pub fn start_with(
        model: &Path,
        args: &[&str],
        cgroup: Option<&OwnedCgroup>,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut c = Command::new("sh");
        // Born into the cgroup: it looks for its limit before anything else.
        c.arg("-c")
            .arg("while [ \"$1\" != -- ]; do echo 0 > \"$1\"; shift; done; shift; exec \"$@\"")
            .arg("sh");
        for p in cgroup.iter().flat_map(|c| c.procs()) {
            c.arg(p);
        }
        c.arg("--").arg(kvpsi_binary());
        c.args(["serve", "--port", "0", "-m"]).arg(model).args(args);
        // The tests' own, and a collector of whoever runs them.
        let theirs = |n: &std::ffi::OsString| {
            let n = n.as_encoded_bytes();
            n.starts_with(b"KVPSI_") || n.starts_with(b"OTEL_")
        };
        for name in std::env::vars_os().map(|(name, _)| name).filter(theirs) {
            c.env_remove(name);
        }
        c.envs(variables.iter().copied());
        // Tests of memory count what this process alone has, and none writes
        // into the user's cache. A flag among `args` wins.
        c.env("KVPSI_WEIGHTS_CACHE", "off");
        let mut child = c
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh is there");
        let err = child.stderr.take().expect("piped");
        let said = Arc::new(Mutex::new(String::new()));
        let (tell, told) = std::sync::mpsc::channel();
        let into = said.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(err).lines().map_while(Result::ok) {
                // By itself, or in an entry of a log in JSON.
                let port = line
                    .split_once("serving at http://")
                    .and_then(|(_, l)| l.split('/').next()?.rsplit_once(':')?.1.parse().ok());
                if let Some(port) = port {
                    let _ = tell.send(port);
                }
                let mut all = into.lock().unwrap_or_else(PoisonError::into_inner);
                all.push_str(&line);
                all.push('\n');
            }
        });
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        let mut new = Self {
            child,
            port: 0,
            said,
            reader: Some(reader),
            agent: config.into(),
        };
        match told.recv_timeout(PATIENCE) {
            Ok(port) => new.port = port,
            Err(_) => panic!("it did not become ready: {}", new.said()),
        }
        new
    }

    /// What it said on stderr so far.
    #[must_use]
    pub fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.clone()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end in time.
    pub fn wait(&mut self) -> (ExitStatus, String) {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => panic!("it does not end: {other:?}: {}", self.said()),
            }
        };
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        (status, self.said())
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// GET: status and body.
    ///
    /// # Panics
    /// There is no answer.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, String) {
        let answer = self.agent.get(self.url(path)).call();
        let mut answer = answer.unwrap_or_else(|e| panic!("{path}: {e}: {}", self.said()));
        let status = answer.status().as_u16();
        (
            status,
            answer.body_mut().read_to_string().unwrap_or_default(),
        )
    }

    /// POST of JSON: status and the body, parsed where it is JSON.
    ///
    /// # Panics
    /// There is no answer.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.try_post(path, body)
            .unwrap_or_else(|e| panic!("{path}: {e}: {}", self.said()))
    }

    /// [`Served::post`] for those who go on without an answer.
    ///
    /// # Errors
    /// There is no answer.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<(u16, Value), String> {
        let answer = self.agent.post(self.url(path)).send_json(body);
        let mut answer = answer.map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, body))
    }

    /// How it is.
    ///
    /// # Panics
    /// It does not say.
    #[must_use]
    pub fn status(&self) -> Status {
        let (_, body) = self.get("/kvpsi/status");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
    }

    /// The sum of a metric over its labels, as Prometheus reads it.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics");
        let of = |line: &str| -> Option<f64> {
            let (key, value) = line.rsplit_once(' ')?;
            let base = key.split('{').next()?;
            (base == name).then(|| value.parse().ok())?
        };
        let found: Vec<f64> = text.lines().filter_map(of).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// Waits until nothing is in flight.
    ///
    /// # Panics
    /// It does not come to rest.
    pub fn rest(&self) -> Status {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if status.requests.running + status.requests.waiting == 0 && status.kv.in_use.0 == 0 {
                return status;
            }
            assert!(
                Instant::now() < until,
                "it does not come to rest: {status:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// POST whose answer comes in pieces; `go_on` is asked after each whether to
    /// read the next.
    ///
    /// # Errors
    /// The connection broke.
    pub fn stream(
        &self,
        path: &str,
        body: &Value,
        mut go_on: impl FnMut(&Streamed) -> bool,
    ) -> Result<Streamed, String> {
        let answer = self.agent.post(self.url(path)).send_json(body);
        let mut answer = answer.map_err(|e| e.to_string())?;
        let mut got = Streamed {
            status: answer.status().as_u16(),
            ..Streamed::default()
        };
        if got.status != 200 {
            got.body = answer.body_mut().read_to_string().unwrap_or_default();
            return Ok(got);
        }
        let reader = BufReader::new(answer.body_mut().as_reader());
        for line in reader.lines() {
            let line = line.map_err(|e| e.to_string())?;
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                got.done = true;
                break;
            }
            let value = serde_json::from_str(data).map_err(|e| format!("{e}: {data}"))?;
            got.pieces.push((Instant::now(), value));
            if !go_on(&got) {
                break;
            }
        }
        Ok(got)
    }

    /// A connection of its own, for those who misbehave.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Sends bytes as they are, and reads the answer to its end: status and all
    /// of it.
    ///
    /// # Errors
    /// The connection broke before a status came.
    pub fn raw(&self, bytes: &[u8]) -> std::io::Result<(u16, String)> {
        let mut stream = self.connect()?;
        // It may answer, and close, before all is sent.
        let sent = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        match text.split(' ').nth(1).and_then(|s| s.parse().ok()) {
            Some(status) => Ok((status, text)),
            None => Err(sent
                .err()
                .unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// A request of HTTP/1.1 whose connection is closed after the answer.
#[must_use]
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let mut all = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    all.extend_from_slice(body);
    all
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
