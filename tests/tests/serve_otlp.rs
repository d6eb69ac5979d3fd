//! Traces of requests: what a collector gets of a real server, and what a
//! collector that is not there costs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{model, served::Served};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What a collector got.
#[derive(Clone, Debug, Default)]
struct Got {
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    heads: Vec<String>,
}

/// A collector at loopback that reads OTLP.
struct Collector {
    port: u16,
    got: Arc<Mutex<Got>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let got = Arc::<Mutex<Got>>::default();
        let into = got.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                collect(stream, &into);
            }
        });
        Self { port, got }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn got(&self) -> Got {
        self.got.lock().unwrap().clone()
    }
}

/// One request of a connection.
fn collect(stream: TcpStream, into: &Mutex<Got>) {
    let mut reader = BufReader::new(&stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let from = head.len();
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
        let line = head[from..].trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    let mut got = into.lock().unwrap();
    got.heads.push(head);
    for of in request.resource_spans {
        got.resource = of.resource.unwrap_or_default().attributes;
        got.spans
            .extend(of.scope_spans.into_iter().flat_map(|s| s.spans));
    }
    drop(got);
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    let _ = (&stream).write_all(answer.as_bytes());
}

fn attribute(all: &[KeyValue], key: &str) -> Value {
    let found = all.iter().find(|kv| kv.key == key);
    match found.and_then(|kv| kv.value.clone()?.value) {
        Some(Any::StringValue(s)) => json!(s),
        Some(Any::IntValue(n)) => json!(n),
        Some(Any::DoubleValue(x)) => json!(x),
        Some(Any::BoolValue(b)) => json!(b),
        _ => Value::Null,
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

/// The span of the request with this id, and those below it.
fn request<'a>(spans: &'a [Span], id: &str) -> (&'a Span, Vec<&'a Span>) {
    let found: Vec<&Span> = (spans.iter())
        .filter(|s| attribute(&s.attributes, "kvpsi.request.id") == id)
        .collect();
    assert_eq!(found.len(), 1, "{id}: {spans:#?}");
    let below = |s: &&Span| s.parent_span_id == found[0].span_id;
    let mut children: Vec<&Span> = spans.iter().filter(below).collect();
    children.sort_by_key(|s| s.start_time_unix_nano);
    for child in &children {
        assert_eq!(child.trace_id, found[0].trace_id);
        assert!(child.start_time_unix_nano >= found[0].start_time_unix_nano);
        assert!(child.end_time_unix_nano >= child.start_time_unix_nano);
    }
    (found[0], children)
}

fn names(spans: &[&Span]) -> Vec<String> {
    spans.iter().map(|s| s.name.clone()).collect()
}

/// A POST with headers, of which the answer is read until `enough`.
fn post(
    s: &Served,
    path: &str,
    headers: &str,
    body: &Value,
    enough: impl Fn(&str) -> bool,
) -> String {
    let body = body.to_string();
    let mut stream = s.connect().unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !enough(&String::from_utf8_lossy(&all)) {
        match stream.read(&mut piece).unwrap() {
            0 => break,
            n => all.extend_from_slice(&piece[..n]),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn ask(words: &str, tokens: usize) -> Value {
    json!({
        "messages": [{"role": "user", "content": words}], "stream": true,
        "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
    })
}

/// Whether the server has the exporter's thread.
fn has_exporter(s: &Served) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", s.pid())).unwrap();
    tasks.flatten().any(|t| {
        let name = fs::read_to_string(t.path().join("comm")).unwrap_or_default();
        name.starts_with("OpenTelemetry")
    })
}

#[test]
fn a_request_is_a_span_with_queue_prefill_and_decode_below_and_continues_its_trace() {
    let test = "a_request_is_a_span_with_queue_prefill_and_decode_below_and_continues_its_trace";
    let Some(file) = model(test) else { return };
    let collector = Collector::start();
    let url = collector.url();
    let args = [
        "--otlp-endpoint",
        &url,
        "--signal",
        "psi-poll",
        "--alias",
        "smol",
    ];
    let variables = [(
        "OTEL_RESOURCE_ATTRIBUTES",
        "deployment.environment.name=test",
    )];
    let mut s = Served::start_with(&file, &args, None, &variables);
    assert!(has_exporter(&s));
    let ended = |text: &str| text.contains("[DONE]");

    let headers = format!("X-Request-Id: whole\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n");
    let text = post(&s, CHAT, &headers, &ask("Name a river.", 12), ended);
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    // Its caller does not sample it: nobody would see it.
    let unsampled = format!("X-Request-Id: unsampled\r\ntraceparent: 00-{TRACE}-{PARENT}-00\r\n");
    let _ = post(&s, CHAT, &unsampled, &ask("Name a river.", 2), ended);
    // A header that is none is no reason to refuse.
    let headers = "X-Request-Id: two\r\ntraceparent: 00-zz\r\n";
    let mut two = ask("Name two rivers.", 5);
    two["n"] = json!(2);
    let _ = post(&s, CHAT, headers, &two, ended);
    // The client leaves within the answer.
    let some = |text: &str| text.matches("\"content\"").count() > 4;
    let _ = post(
        &s,
        CHAT,
        "X-Request-Id: left\r\n",
        &ask("Count to 900.", 1500),
        some,
    );
    s.rest();
    // Refused, and never with the model.
    let mut other = ask("x", 1);
    other["model"] = json!("gpt-9");
    let text = post(&s, CHAT, "X-Request-Id: refused\r\n", &other, |_| false);
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    // A trim while it is answered takes what is not protected.
    let long = "The river goes on and on to the sea, past hills and towns. ".repeat(80);
    let before = s.status().requests.tokens;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            post(
                &s,
                CHAT,
                "X-Request-Id: trimmed\r\n",
                &ask(&long, 300),
                ended,
            )
        });
        let until = Instant::now() + Duration::from_secs(60);
        let kv = loop {
            let status = s.status();
            if status.requests.tokens > before + 40 {
                break status.kv;
            }
            assert!(Instant::now() < until, "{status:?}");
            std::thread::sleep(Duration::from_millis(5));
        };
        // What nobody uses goes first.
        let bytes = kv.slack.0 + kv.cached.0 + (4 << 20);
        let (status, done) = s.post("/kvpsi/trim", &json!({"bytes": bytes}));
        assert_eq!(status, 200, "{done}");
        let text = asked.join().unwrap();
        assert!(text.contains("[DONE]"), "{text}");
    });
    s.rest();
    assert_eq!(s.get("/health").0, 200);
    let (status, said) = s.stop();
    assert!(status.success(), "{said}");
    let got = collector.got();
    assert!(
        got.heads[0].starts_with("POST /v1/traces "),
        "{:?}",
        got.heads
    );
    let head = got.heads[0].to_lowercase();
    assert!(
        head.contains("content-type: application/x-protobuf"),
        "{head}"
    );
    assert_eq!(attribute(&got.resource, "service.name"), "kvpsi");
    assert_eq!(
        attribute(&got.resource, "deployment.environment.name"),
        "test"
    );

    let (root, below) = request(&got.spans, "whole");
    assert_eq!(hex(&root.trace_id), TRACE);
    assert_eq!(hex(&root.parent_span_id), PARENT);
    assert_eq!(root.name, format!("POST {CHAT}"));
    assert_eq!(root.kind, SpanKind::Server as i32);
    for (key, value) in [
        ("http.response.status_code", json!(200)),
        ("url.path", json!(CHAT)),
        ("gen_ai.response.model", json!("smol")),
        ("gen_ai.usage.output_tokens", json!(12)),
        ("kvpsi.trims", json!(0)),
    ] {
        assert_eq!(attribute(&root.attributes, key), value, "{key}");
    }
    assert!(attribute(&root.attributes, "gen_ai.usage.input_tokens").as_i64() > Some(5));
    assert_eq!(names(&below), ["queue", "prefill", "decode"]);
    // One goes on where the other ends, within the request.
    assert_eq!(below[0].end_time_unix_nano, below[1].start_time_unix_nano);
    assert_eq!(below[1].end_time_unix_nano, below[2].start_time_unix_nano);
    assert!(below[2].end_time_unix_nano <= root.end_time_unix_nano);
    assert!(below[2].end_time_unix_nano > below[2].start_time_unix_nano);
    assert_eq!(attribute(&below[2].attributes, "kvpsi.outcome"), "length");

    let id = |s: &&Span| attribute(&s.attributes, "kvpsi.request.id");
    assert!(!got.spans.iter().any(|s| id(&s) == "unsampled"));
    let (root, below) = request(&got.spans, "two");
    assert!(root.parent_span_id.is_empty() && hex(&root.trace_id) != TRACE);
    assert_eq!(below.len(), 6, "{below:#?}");
    let of = |n| {
        let own = |s: &&&Span| attribute(&s.attributes, "kvpsi.choice") == n;
        below.iter().filter(own).count()
    };
    assert_eq!((of(0), of(1)), (3, 3));

    let (root, below) = request(&got.spans, "left");
    assert_eq!(names(&below), ["queue", "prefill", "decode"]);
    assert_eq!(
        attribute(&below[2].attributes, "kvpsi.outcome"),
        "client_gone"
    );
    let tokens = attribute(&root.attributes, "gen_ai.usage.output_tokens");
    assert!(tokens.as_i64() < Some(1500), "{tokens}");

    let (root, below) = request(&got.spans, "refused");
    assert_eq!(
        attribute(&root.attributes, "http.response.status_code"),
        404
    );
    assert!(below.is_empty(), "{below:#?}");
    let failed =
        |s: &&Span| (s.status.as_ref()).is_some_and(|s| s.code == StatusCode::Error as i32);
    assert_eq!(got.spans.iter().filter(failed).count(), 0);

    let (root, below) = request(&got.spans, "trimmed");
    let trim = root.events.iter().find(|e| e.name == "trim");
    let trim = trim.unwrap_or_else(|| panic!("{root:#?}"));
    assert!(attribute(&trim.attributes, "kvpsi.trims").as_i64() >= Some(1));
    assert!(attribute(&trim.attributes, "kvpsi.tokens_missing").as_i64() > Some(0));
    assert!(trim.time_unix_nano > below[2].start_time_unix_nano);
    assert!(trim.time_unix_nano <= root.end_time_unix_nano);
    assert!(attribute(&root.attributes, "kvpsi.trims").as_i64() >= Some(1));

    // No text of a prompt or an answer, and no key of another path.
    let all = format!("{:?}", got.spans);
    assert!(!all.contains("river") && !all.contains("/health"), "{all}");
}

#[test]
fn nothing_is_sent_unless_asked_for_and_the_standard_variables_ask() {
    let test = "nothing_is_sent_unless_asked_for_and_the_standard_variables_ask";
    let Some(file) = model(test) else { return };
    let collector = Collector::start();
    // A name, which is looked up behind the sandbox.
    let url = format!("http://localhost:{}", collector.port);
    let run = |variables: &[(&str, &str)]| {
        let mut s = Served::start_with(&file, &["--signal", "none"], None, variables);
        let exports = has_exporter(&s);
        let body = json!({"prompt": "a", "max_tokens": 2});
        assert_eq!(s.post("/v1/completions", &body).0, 200);
        s.stop();
        (exports, collector.got())
    };
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
        &[endpoint, ("OTEL_SDK_DISABLED", "true")],
    ] {
        let (exports, got) = run(variables);
        assert!(!exports && got.heads.is_empty(), "{variables:?}: {got:?}");
    }
    let (exports, got) = run(&[
        endpoint,
        ("OTEL_SERVICE_NAME", "porch"),
        ("OTEL_BSP_SCHEDULE_DELAY", "60000"),
    ]);
    assert!(exports);
    assert_eq!(attribute(&got.resource, "service.name"), "porch");
    // The server's end did not wait for the delay.
    assert_eq!(got.spans.len(), 4, "{got:?}");
}

#[test]
fn a_collector_that_does_not_answer_costs_a_line_and_a_count() {
    let test = "a_collector_that_does_not_answer_costs_a_line_and_a_count";
    let Some(file) = model(test) else { return };
    // One that is not there, and one that takes and never answers.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let gone = free.local_addr().unwrap().port();
    drop(free);
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    for port in [gone, silent_port] {
        let url = format!("http://127.0.0.1:{port}");
        let args = ["--otlp-endpoint", &url, "--signal", "none"];
        let mut s = Served::start_with(&file, &args, None, &[("OTEL_BSP_SCHEDULE_DELAY", "50")]);
        let body = json!({"prompt": "a", "max_tokens": 2});
        assert_eq!(s.post("/v1/completions", &body).0, 200);
        if port == gone {
            for n in 1..4 {
                let until = Instant::now() + Duration::from_secs(20);
                let failed = |s: &Served| {
                    let (_, text) = s.get("/metrics");
                    let line = "kvpsi_otlp_spans_total{result=\"failed\"} ";
                    let of = text
                        .lines()
                        .find_map(|l| l.strip_prefix(line)?.parse().ok());
                    of.unwrap_or(0)
                };
                while failed(&s) < 4 * n {
                    assert!(Instant::now() < until, "{}", s.get("/metrics").1);
                    std::thread::sleep(Duration::from_millis(20));
                }
                assert_eq!(s.post("/v1/completions", &body).0, 200);
            }
        } else {
            // It is on its way to nowhere when the server is told to end.
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(s.post("/v1/completions", &body).0, 200);
        }
        let told = Instant::now();
        let (status, said) = s.stop();
        let took = told.elapsed();
        assert!(status.success(), "{said}");
        assert!(took < Duration::from_secs(4), "{took:?}: {said}");
        let lines = said.lines().filter(|l| l.contains(&url)).count();
        assert_eq!(lines, 1, "{said}");
        let what = match port == gone {
            true => "spans cannot be sent to",
            false => "were not sent to",
        };
        assert!(said.contains(what), "{said}");
    }
}
