//! `kvpsi serve` as its clients meet it: real sockets, the real model.

use kvpsi_tests::{
    kvpsi_binary, model,
    served::{Served, request},
    skip,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    process::Command,
    time::{Duration, Instant},
};

const CHAT: &str = "/v1/chat/completions";

fn hello(more: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "What is a lighthouse?"}],
        "max_tokens": 24, "temperature": 0,
    });
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    body
}

fn streaming(more: &Value) -> Value {
    let mut body = hello(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    body
}

fn serve(test: &str, args: &[&str]) -> Option<Served> {
    Some(Served::start(&model(test)?, args, None))
}

#[test]
fn a_chat_says_the_same_whole_and_in_pieces() {
    let Some(s) = serve(
        "a_chat_says_the_same_whole_and_in_pieces",
        &["--alias", "m"],
    ) else {
        return;
    };
    let (status, whole) = s.post(CHAT, &hello(&json!({"model": "m"})));
    assert_eq!(status, 200, "{whole}");
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.len() > 20, "{whole}");
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let got = s.stream(CHAT, &streaming(&json!({})), |_| true).unwrap();
    assert!(got.done);
    assert_eq!(got.text(), text);
    assert_eq!(got.finish(), Some("length"));
    assert_eq!(got.pieces[0].1["choices"][0]["delta"]["role"], "assistant");
    // The second time the whole blocks of the prompt are in the cache.
    let usage = got.usage().unwrap();
    assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert_eq!(
        usage["prompt_tokens_details"]["cached_tokens"], 32,
        "{usage}"
    );
    assert_eq!(usage["kvpsi"]["trims"], 0);

    // A stop text ends it, and is not shown.
    let stop: String = text.chars().skip(10).take(6).collect();
    let got = s.stream(CHAT, &streaming(&json!({"stop": stop})), |_| true);
    let got = got.unwrap();
    assert_eq!(got.finish(), Some("stop"));
    assert_eq!(got.text(), text.split(&stop).next().unwrap());

    let seeded = |seed: u64| {
        let body = hello(&json!({"temperature": 1.5, "seed": seed}));
        s.post(CHAT, &body).1["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(seeded(5), seeded(5));
    assert_ne!(seeded(5), seeded(6));
}

#[test]
fn logprobs_are_returned_where_requested() {
    let Some(s) = serve("logprobs_are_returned_where_requested", &[]) else {
        return;
    };
    let body = hello(&json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 6}));
    let (_, answer) = s.post(CHAT, &body);
    let content = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(content.len(), 6, "{answer}");
    let text: String = content
        .iter()
        .map(|t| t["token"].as_str().unwrap())
        .collect();
    assert_eq!(text, answer["choices"][0]["message"]["content"]);
    for t in content {
        // The likeliest token is taken: it is the first of the top.
        assert_eq!(t["logprob"], t["top_logprobs"][0]["logprob"], "{t}");
        assert!(t["logprob"].as_f64().unwrap() <= 1e-3);
        assert_eq!(t["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let body = json!({"prompt": "Once upon a", "max_tokens": 3, "logprobs": 1, "temperature": 0});
    let (_, answer) = s.post("/v1/completions", &body);
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3, "{answer}");
    assert_eq!(logprobs["text_offset"][0], 0);
}

#[test]
fn what_is_wrong_is_said_with_the_right_status() {
    let Some(s) = serve(
        "what_is_wrong_is_said_with_the_right_status",
        &["--ctx", "256"],
    ) else {
        return;
    };
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(400)}]});
    for (body, status, code) in [
        (
            hello(&json!({"model": "gpt-9"})),
            404,
            json!("model_not_found"),
        ),
        (long, 400, json!("context_length_exceeded")),
        (
            hello(&json!({"xtc_probability": 0.5})),
            400,
            json!("unsupported_parameter"),
        ),
        (hello(&json!({"temperature": "x"})), 400, json!(null)),
        (json!([]), 400, json!(null)),
    ] {
        let (got, answer) = s.post(CHAT, &body);
        assert_eq!((got, &answer["error"]["code"]), (status, &code), "{answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        assert!(answer["error"]["message"].is_string());
    }
    let tokens = json!({"prompt": [1, 999_999]});
    assert_eq!(s.post("/v1/completions", &tokens).0, 400);
    assert_eq!(s.get("/v1/nothing").0, 404);
    assert_eq!(s.get(CHAT).0, 405);
    for body in [&b"{\"messages\": "[..], b"\xff\xfe\x00", b""] {
        let (status, text) = s.raw(&request(CHAT, body)).unwrap();
        assert_eq!(status, 400, "{text}");
    }
    // A body that is said to be large, and one that is.
    let said = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n";
    assert_eq!(s.raw(said).unwrap().0, 413);
    let mut chunked =
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"20000\r\n");
        chunked.extend(std::iter::repeat_n(b'x', 0x20000));
        chunked.extend_from_slice(b"\r\n");
    }
    assert_eq!(s.raw(&chunked).unwrap().0, 413);
    // A head that is no head.
    assert_eq!(s.raw(b"NONSENSE\r\n\r\n").unwrap().0, 400);
    // All of it is counted, and the server is well.
    assert!(s.metric("kvpsi_requests_refused_total").unwrap() >= 12.0);
    assert_eq!(s.post(CHAT, &hello(&json!({}))).0, 200);
}

#[test]
fn a_slow_client_loses_its_connection_and_no_other_waits() {
    let name = "a_slow_client_loses_its_connection_and_no_other_waits";
    let Some(s) = serve(name, &["--client-timeout", "2", "--max-connections", "4"]) else {
        return;
    };
    let mut head = s.connect().unwrap();
    head.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHo")
        .unwrap();
    let mut body = s.connect().unwrap();
    body.write_all(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n{",
    )
    .unwrap();
    let mut nothing = s.connect().unwrap();
    let began = Instant::now();
    assert_eq!(s.post(CHAT, &hello(&json!({"max_tokens": 3}))).0, 200);
    let mut text = String::new();
    body.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    for slow in [&mut head, &mut nothing] {
        // An end, or a reset: nothing is left open.
        let _ = slow.read_to_end(&mut Vec::new());
    }
    let waited = began.elapsed();
    assert!(
        waited > Duration::from_secs(1) && waited < Duration::from_secs(15),
        "{waited:?}"
    );
}

#[test]
fn requests_beyond_the_queue_are_told_to_retry() {
    let name = "requests_beyond_the_queue_are_told_to_retry";
    let Some(s) = serve(name, &["--parallel", "1", "--queue", "1"]) else {
        return;
    };
    let long = streaming(&json!({"max_tokens": 300, "ignore_eos": true}));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| s.stream(CHAT, &long, |_| true));
        while s.status().requests.running == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let second = scope.spawn(|| s.stream(CHAT, &long, |got| got.pieces.len() < 3));
        while s.status().requests.waiting == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (status, text) = s
            .raw(&request(CHAT, hello(&json!({})).to_string().as_bytes()))
            .unwrap();
        assert_eq!(status, 429, "{text}");
        assert!(text.to_lowercase().contains("retry-after: "), "{text}");
        assert!(text.contains("rate_limit_exceeded"), "{text}");
        let body = hello(&json!({"max_tokens": 5})).to_string();
        for (path, says) in [
            ("/api/chat", "{\"error\":\"too many requests"),
            ("/v1/messages", "\"type\":\"rate_limit_error\""),
        ] {
            let (status, text) = s.raw(&request(path, body.as_bytes())).unwrap();
            assert!(status == 429 && text.contains(says), "{text}");
            assert!(text.to_lowercase().contains("retry-after: "), "{text}");
        }
        assert!(first.join().unwrap().unwrap().done);
        assert_eq!(second.join().unwrap().unwrap().pieces.len(), 3);
    });
    // The second one left: its place and its memory are free at once.
    let began = Instant::now();
    let status = s.rest();
    assert!(began.elapsed() < Duration::from_secs(5), "{status:?}");
    assert_eq!(status.requests.cancelled, 1);
}

#[test]
fn a_late_answer_is_given_up_with_its_memory() {
    let Some(s) = serve(
        "a_late_answer_is_given_up_with_its_memory",
        &["--request-timeout", "1"],
    ) else {
        return;
    };
    let long = json!({"max_tokens": 4000, "ignore_eos": true});
    let (status, answer) = s.post(CHAT, &hello(&long));
    assert_eq!(
        (status, &answer["error"]["code"]),
        (504, &json!("timeout")),
        "{answer}"
    );
    // In a stream the status is out already: the error is a piece, and no end.
    let got = s.stream(CHAT, &streaming(&long), |_| true).unwrap();
    assert!(got.status == 200 && !got.done);
    let last = &got.pieces.last().unwrap().1;
    assert_eq!(last["error"]["code"], "timeout", "{last}");
    s.rest();
}

#[test]
fn an_api_key_is_wanted_where_others_can_reach_it() {
    let name = "an_api_key_is_wanted_where_others_can_reach_it";
    let Some(file) = model(name) else { return };
    let run = |args: &[&str]| {
        let mut c = Command::new(kvpsi_binary());
        let c = c
            .args(["serve", "--signal", "none", "-m"])
            .arg(&file)
            .args(args);
        let out = c.env_remove("KVPSI_API_KEY").output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = run(&["--host", "0.0.0.0"]);
    assert!(code == Some(1) && said.contains("--api-key"), "{said}");

    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "s3cret\n").unwrap();
    let s = Served::start(&file, &["--api-key-file", key.to_str().unwrap()], None);
    assert_eq!(s.get("/health").0, 200);
    assert_eq!(s.get("/v1/models").0, 401);
    // It has no admin key.
    assert_eq!(s.post("/kvpsi/trim", &json!({"bytes": 1})).0, 403);
    let with = |key: &str, host: &str| {
        let head = format!(
            "GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        );
        s.raw(head.as_bytes()).unwrap().0
    };
    assert_eq!(with("s3cret", "box.example"), 200);
    assert_eq!(with("s3crft", "127.0.0.1"), 401);

    let open = Served::start(&file, &[], None);
    let from = |host: &str, origin: &str| {
        let head = format!(
            "POST /kvpsi/trim HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nContent-Length: 12\r\nConnection: close\r\n\r\n{{\"bytes\": 1}}"
        );
        open.raw(head.as_bytes()).unwrap().0
    };
    let here = format!("127.0.0.1:{}", open.port);
    assert_eq!(from(&here, &format!("http://{here}")), 200);
    assert_eq!(from(&here, "http://evil.example"), 403);
    assert_eq!(from("evil.example", "http://evil.example"), 403);
}

#[test]
fn answers_in_progress_end_when_the_server_stops() {
    let name = "answers_in_progress_end_when_the_server_stops";
    let Some(mut s) = serve(name, &[]) else {
        return;
    };
    let long = streaming(&json!({"max_tokens": 200, "ignore_eos": true}));
    std::thread::scope(|scope| {
        let asking = &s;
        let first = scope.spawn(move || {
            let mut told = false;
            asking.stream(CHAT, &long, |got| {
                if got.pieces.len() > 3 && !told {
                    asking.signal(Signal::TERM);
                    told = true;
                }
                true
            })
        });
        let got = first.join().unwrap().unwrap();
        assert!(got.done && got.finish() == Some("length"), "{got:?}");
    });
    let (status, said) = s.wait();
    assert!(status.success(), "{status}: {said}");

    // One that takes too long is cut off, and told.
    let Some(mut s) = serve(name, &["--drain", "1"]) else {
        return;
    };
    let long = streaming(&json!({"max_tokens": 8000, "ignore_eos": true}));
    let got = s.stream(CHAT, &long, |got| {
        if got.pieces.len() == 3 {
            s.signal(Signal::TERM);
        }
        true
    });
    let got = got.unwrap();
    assert!(!got.done);
    assert_eq!(
        got.pieces.last().unwrap().1["error"]["code"],
        "ending",
        "{got:?}"
    );
    assert!(s.wait().0.success());
}

#[test]
fn a_port_that_is_taken_and_a_model_that_is_not_there_are_said() {
    let name = "a_port_that_is_taken_and_a_model_that_is_not_there_are_said";
    let Some(file) = model(name) else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let run = |model: &std::path::Path, port: &str| {
        let mut c = Command::new(kvpsi_binary());
        let c = c
            .args(["serve", "--signal", "none", "--port", port, "-m"])
            .arg(model);
        let out = c.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = run(&file, &port);
    assert!(
        code == Some(1) && said.contains("choose another --port"),
        "{said}"
    );
    let (code, said) = run(std::path::Path::new("/nowhere/model.gguf"), "0");
    assert!(
        code == Some(1) && said.contains("/nowhere/model.gguf"),
        "{said}"
    );
}

#[test]
fn a_model_file_that_is_removed_is_not_missed() {
    let Some(file) = model("a_model_file_that_is_removed_is_not_missed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("m.gguf");
    std::fs::copy(file, &copy).unwrap();
    let s = Served::start(&copy, &[], None);
    std::fs::remove_file(&copy).unwrap();
    let (status, answer) = s.post(CHAT, &hello(&json!({})));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(s.get("/health").0, 200);
}

#[test]
fn what_is_shown_is_what_happened_and_can_be_changed() {
    let name = "what_is_shown_is_what_happened_and_can_be_changed";
    let Some(s) = serve(name, &["--signal", "psi-poll"]) else {
        return;
    };
    for _ in 0..3 {
        assert_eq!(s.post(CHAT, &hello(&json!({"max_tokens": 8}))).0, 200);
    }
    let status = s.rest();
    assert_eq!((status.requests.finished, status.requests.tokens), (3, 24));
    assert!(status.kv.cached.0 > 0 && status.rss.0 > 0);
    assert_eq!(s.metric("vllm:generation_tokens_total"), Some(24.0));
    assert_eq!(s.metric("vllm:request_success_total"), Some(3.0));
    assert_eq!(
        s.metric("vllm:time_to_first_token_seconds_count"),
        Some(3.0)
    );
    assert_eq!(
        s.metric("vllm:inter_token_latency_seconds_count"),
        Some(21.0)
    );
    assert_eq!(s.metric("vllm:prefix_cache_hits_total"), Some(64.0));
    let (_, text) = s.get("/metrics");
    assert!(
        text.contains("vllm:time_to_first_token_seconds_bucket{"),
        "{text}"
    );
    assert!(
        text.contains("le=\"0.025\"") || text.contains("le=\"0.02\""),
        "{text}"
    );

    let (_, done) = s.post("/kvpsi/trim", &json!({"bytes": 1u64 << 40}));
    assert_eq!(done["bytes"].as_u64(), Some(status.kv.resident.0), "{done}");
    let after = s.status();
    assert_eq!((after.kv.resident.0, after.trims.count), (0, 1));
    let (_, changed) = s.post(
        "/kvpsi/control",
        &json!({"profile": "lossless", "trimming": false}),
    );
    assert_eq!(
        (&changed["profile"], &changed["trimming"]),
        (&json!("lossless"), &json!(false))
    );
    assert_eq!(
        s.post("/kvpsi/control", &json!({"profil": "lossless"})).0,
        400
    );
    std::thread::sleep(Duration::from_millis(600));
    let (_, text) = s.get("/kvpsi/history");
    let history: kvpsi::server::view::History = serde_json::from_str(&text).unwrap();
    assert_eq!(history.samples.iter().map(|x| x.tokens).sum::<u64>(), 24);
    assert_eq!(history.trims.len(), 1);
    assert_eq!(history.trims[0].trigger, "by_hand");
    let (_, text) = s.get(&format!("/kvpsi/history?since={}", history.next));
    let later: kvpsi::server::view::History = serde_json::from_str(&text).unwrap();
    assert!(
        later.samples.len() < 20 && later.trims.is_empty(),
        "{later:?}"
    );
}

#[test]
fn curl_can_talk_to_it() {
    let Some(s) = serve("curl_can_talk_to_it", &[]) else {
        return;
    };
    let url = format!("http://localhost:{}{CHAT}", s.port);
    let body = streaming(&json!({"max_tokens": 5})).to_string();
    let out = Command::new("curl")
        .args(["-sN", &url, "-d", &body])
        .output();
    let Ok(out) = out else {
        return skip("curl_can_talk_to_it", "no curl here");
    };
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(
        text.starts_with("data: {") && text.trim_end().ends_with("data: [DONE]"),
        "{text}"
    );
}
