//! What clients can take of a server's memory, its connections and its time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{control::cgroup::OwnedCgroup, server::view::Status};
use kvpsi_tests::{
    figure, model,
    served::{Served, request},
    storm::limited,
};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

const CHAT: &str = "/v1/chat/completions";
const STORY: &str = include_str!("../data/holmes.txt");

/// A chat's body of so many bytes.
fn body(bytes: usize) -> Vec<u8> {
    let empty = json!({"messages": [{"role": "user", "content": ""}], "max_tokens": 4});
    let room = bytes - empty.to_string().len();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == ' ' || c == '.';
    let text: String = STORY
        .chars()
        .filter(|c| plain(*c))
        .cycle()
        .take(room)
        .collect();
    json!({"messages": [{"role": "user", "content": text}], "max_tokens": 4})
        .to_string()
        .into_bytes()
}

/// Looks at health and metrics all the time: the slowest answer of each.
struct Looks {
    over: AtomicBool,
}

impl Looks {
    fn new() -> Self {
        Self {
            over: AtomicBool::new(false),
        }
    }

    fn look(&self, s: &Served) -> (Duration, u32) {
        let (mut slowest, mut looks) = (Duration::ZERO, 0);
        while !self.over.load(Relaxed) {
            for path in ["/health", "/metrics"] {
                let began = Instant::now();
                let head =
                    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
                let (status, text) = s.raw(head.as_bytes()).unwrap();
                assert_eq!(status, 200, "{path}: {text}");
                slowest = slowest.max(began.elapsed());
                looks += 1;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        (slowest, looks)
    }
}

/// A request of which a part of the body comes, and then nothing.
fn stalled(s: &Served) -> TcpStream {
    let mut stream = s.connect().unwrap();
    let whole = request(CHAT, &body(100_000));
    let _ = stream.write_all(&whole[..2000]);
    stream
}

fn start(test: &str, args: &[&str], cgroup: Option<&OwnedCgroup>) -> Option<Served> {
    let file: &Path = &model(test)?;
    // Out here: page cache is charged to who reads it first.
    std::fs::read(file).unwrap();
    let s = Served::start(file, args, cgroup);
    // Threads and buffers of a server that answers are there first.
    assert_eq!(s.raw(&request(CHAT, &body(200))).unwrap().0, 200);
    s.rest();
    Some(s)
}

#[test]
fn no_bodies_and_no_sockets_take_memory_or_keep_health_waiting() {
    let test = "no_bodies_and_no_sockets_take_memory_or_keep_health_waiting";
    let Some(cgroup) = limited("serve-clients", 300 << 20) else {
        return;
    };
    let Some(s) = start(test, &[], Some(&cgroup)) else {
        return;
    };
    let before = s.status();
    let looks = Looks::new();
    let (statuses, most, (slowest, count)) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| looks.look(&s));
        let idle: Vec<_> = (0..300).map(|_| s.connect().unwrap()).collect();
        let slow: Vec<_> = (0..256).map(|_| stalled(&s)).collect();
        let asking: Vec<_> = [1_000_000, 100_000]
            .into_iter()
            .flat_map(|bytes| std::iter::repeat_n(bytes, 8))
            .map(|bytes| {
                scope.spawn({
                    let s = &s;
                    move || s.raw(&request(CHAT, &body(bytes))).map_or(0, |r| r.0)
                })
            })
            .collect();
        let mut most = 0;
        while asking.iter().any(|a| !a.is_finished()) {
            most = most.max(cgroup.memory().usage().unwrap().0);
            std::thread::sleep(Duration::from_millis(5));
        }
        let statuses: Vec<u16> = asking.into_iter().map(|a| a.join().unwrap()).collect();
        std::thread::sleep(Duration::from_secs(1));
        looks.over.store(true, Relaxed);
        drop((idle, slow));
        (statuses, most, looking.join().unwrap())
    });
    let began = Instant::now();
    let least = before.rss.0 * 11 / 10;
    let back = loop {
        let rss = s.status().rss.0;
        if rss <= least || began.elapsed() > Duration::from_secs(10) {
            break rss;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    figure(&json!({
        "figure": "clients_memory", "statuses": statuses, "rss_before": before.rss.0,
        "cgroup_most": most, "rss_after": back, "seconds": began.elapsed().as_secs_f64(),
        "slowest_look_ms": slowest.as_millis(), "looks": count,
        "oom_kills": cgroup.memory().oom_kills(),
    }));
    assert_eq!(cgroup.memory().oom_kills(), 0);
    // None of these fits into the context.
    assert!(
        statuses.iter().all(|s| [400, 503].contains(s)),
        "{statuses:?}"
    );
    assert!(statuses.contains(&400), "{statuses:?}");
    assert!(back <= least, "{} -> {back}", before.rss.0);
    assert!(
        slowest < Duration::from_millis(100),
        "{slowest:?} of {count}"
    );
    // Bodies of others are not kept for them.
    assert_eq!(s.raw(&request(CHAT, &body(200))).unwrap().0, 200);
    let after = s.rest();
    assert_eq!(
        (after.inbound.body_bytes.0, after.inbound.waiting),
        (0, 0),
        "{after:?}"
    );
}

#[test]
fn idle_connections_give_way_and_a_request_on_the_way_does_not() {
    let test = "idle_connections_give_way_and_a_request_on_the_way_does_not";
    let Some(s) = start(test, &[], None) else {
        return;
    };
    let mut idle: Vec<_> = (0..300).map(|_| s.connect().unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    assert_eq!(s.raw(&request(CHAT, &body(200))).unwrap().0, 200);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(s.metric("kvpsi_connections_closed_total").unwrap() > 10.0);
    // The oldest were closed, the youngest were not.
    let mut byte = [0];
    idle[0]
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    assert_eq!(idle[0].read(&mut byte).unwrap(), 0);
    let last = idle.last_mut().unwrap();
    last.write_all(&request(CHAT, &body(200))).unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A JSON text of so many bytes that becomes many times as much: numbers in a
/// list, or objects with a key.
fn dense(bytes: usize, piece: &str) -> String {
    format!("[{}0]", piece.repeat((bytes - 3) / piece.len()))
}

/// Bodies whose JSON becomes much more than its text, or stays while they wait.
fn dense_bodies() -> Vec<(&'static str, String)> {
    let hello = r#"[{"role": "user", "content": "hi"}]"#;
    let (zeros, objects) = (dense(990_000, "0,"), dense(990_000, r#"{"a":0},"#));
    // Admitted, and kept by who waits.
    let tools = dense(200_000, "0,");
    let texts = json!(dense(490_000, "0,")).to_string();
    let many = vec!["a"; 200];
    vec![
        (
            CHAT,
            format!(r#"{{"messages": {hello}, "chat_template_kwargs": {{"x": {zeros}}}}}"#),
        ),
        (
            CHAT,
            format!(r#"{{"messages": {hello}, "chat_template_kwargs": {{"x": {objects}}}}}"#),
        ),
        (
            CHAT,
            format!(
                r#"{{"messages": {hello}, "max_tokens": 20, "tool_choice": "none", "tools":
                [{{"type": "function", "function": {{"name": "f", "x": {tools}}}}}]}}"#
            ),
        ),
        (
            CHAT,
            format!(
                r#"{{"messages": [{{"role": "assistant", "tool_calls":
                [{{"id": "c", "function": {{"name": "f", "arguments": {texts}}}}}]}}]}}"#
            ),
        ),
        (
            "/v1/responses",
            format!(
                r#"{{"input": "hi", "max_output_tokens": 20, "user": {zeros}, "text": {{"x": 1}}}}"#
            ),
        ),
        (
            "/v1/responses",
            format!(
                r#"{{"input": "hi", "max_output_tokens": 20, "tool_choice": "none", "stream": true,
                "tools": [{{"type": "function", "name": "f", "parameters": {{"x": {tools}}}}}]}}"#
            ),
        ),
        (
            "/v1/messages",
            format!(
                r#"{{"messages": {hello}, "max_tokens": 20, "tool_choice": {{"type": "none"}},
                "tools": [{{"name": "f", "input_schema": {{"x": {tools}}}}}]}}"#
            ),
        ),
        ("/v1/completions", format!(r#"{{"prompt": {zeros}}}"#)),
        ("/detokenize", format!(r#"{{"tokens": {zeros}}}"#)),
        (
            "/tokenize",
            format!(r#"{{"content": "{}"}}"#, "a ".repeat(490_000)),
        ),
        ("/v1/embeddings", json!({ "input": many }).to_string()),
        ("/api/embed", json!({ "input": many }).to_string()),
    ]
}

#[test]
fn no_json_and_no_answer_takes_memory_that_no_bound_counts() {
    let test = "no_json_and_no_answer_takes_memory_that_no_bound_counts";
    let Some(cgroup) = limited("serve-dense", 300 << 20) else {
        return;
    };
    let Some(s) = start(test, &["--queue", "80"], Some(&cgroup)) else {
        return;
    };
    // What the first requests of each kind take for good.
    let words = "one two three ".repeat(200);
    s.post(
        CHAT,
        &json!({"messages": [{"role": "user", "content": words}], "max_tokens": 20}),
    );
    s.post("/v1/embeddings", &json!({"input": vec!["a"; 8]}));
    let before = s.rest();
    let bodies = dense_bodies();
    let (statuses, most, kept) = std::thread::scope(|scope| {
        // Answers that nobody reads.
        let long = json!({"tokens": vec![28; 8000]}).to_string();
        let unread: Vec<_> = (0..40)
            .map(|_| {
                let mut stream = s.connect().unwrap();
                let _ = stream.write_all(&request("/detokenize", long.as_bytes()));
                stream
            })
            .collect();
        let asking: Vec<_> = (bodies.iter())
            .flat_map(|body| std::iter::repeat_n(body, 4))
            .map(|(path, body)| {
                let s = &s;
                scope.spawn(move || s.raw(&request(path, body.as_bytes())).map_or(0, |r| r.0))
            })
            .collect();
        let (mut most, mut kept) = (0, 0);
        while asking.iter().any(|a| !a.is_finished()) {
            most = most.max(cgroup.memory().usage().unwrap().0);
            // A connection of its own: an idle one gives way to the others.
            let head = "GET /kvpsi/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
            if let Ok((200, text)) = s.raw(head.as_bytes()) {
                let body = text.split_once("\r\n\r\n").unwrap().1;
                let status: Status = serde_json::from_str(body).unwrap();
                kept = kept.max(status.inbound.answer_bytes.0);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(unread);
        let statuses: Vec<u16> = asking.into_iter().map(|a| a.join().unwrap()).collect();
        (statuses, most, kept)
    });
    let began = Instant::now();
    // Beside KV blocks, which have a budget of their own.
    let beside = |s: &Status| s.rss.0.saturating_sub(s.kv.resident.0);
    let least = beside(&before) * 11 / 10;
    let back = loop {
        let rss = beside(&s.status());
        if rss <= least || began.elapsed() > Duration::from_secs(10) {
            break rss;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    figure(&json!({
        "figure": "clients_json", "statuses": statuses, "rss_before": before.rss.0,
        "cgroup_most": most, "rss_after": back, "answers": kept, "kv": s.status().kv.resident,
        "seconds": began.elapsed().as_secs_f64(), "oom_kills": cgroup.memory().oom_kills(),
    }));
    assert_eq!(cgroup.memory().oom_kills(), 0);
    for ((path, _), got) in bodies.iter().zip(statuses.chunks(4)) {
        assert!(
            got.iter().all(|s| [200, 400, 429, 503].contains(s)),
            "{path}: {got:?}"
        );
    }
    assert!(statuses.contains(&200) && kept > 0, "{statuses:?}");
    assert!(back <= least, "{} -> {back}", beside(&before));
    let after = s.rest();
    assert_eq!(
        (after.inbound.answer_bytes.0, after.requests.waiting),
        (0, 0),
        "{after:?}"
    );
}
