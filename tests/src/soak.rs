//! Many clients of all kinds, for a while.
//!
//! Owns what a client may do and what a server must answer to it. Everything
//! that is not as it must be is written down, nothing is let pass.

mod apis;

use crate::served::{Served, request};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What came of it.
#[derive(Debug, Default)]
pub struct Account {
    /// Requests sent, good and bad ones.
    pub asked: AtomicU64,
    /// Good ones that were answered to the end.
    pub answered: AtomicU64,
    /// Those that were told to come again (429 or 503): a full queue is said before
    /// anybody looks at what was sent.
    pub put_off: AtomicU64,
    /// Bad ones that were refused as they must be.
    pub refused: AtomicU64,
    /// Requests whose client went away.
    pub left: AtomicU64,
    /// Tokens of answers.
    pub tokens: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Account {
    /// What was not as it must be.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.clone()
    }

    fn note(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(what);
    }
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

/// So many clients, each from a seed of its own, until the time is over.
pub fn soak(served: &Served, clients: u64, time: Duration, seed: u64, account: &Account) {
    let until = Instant::now() + time;
    std::thread::scope(|s| {
        for i in 0..clients {
            s.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed + i);
                while Instant::now() < until {
                    account.asked.fetch_add(1, Relaxed);
                    one(served, &mut rng, account);
                }
            });
        }
    });
}

fn one(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    match rng.u32(0..28) {
        0..=7 => whole(served, &chat(rng, true), account),
        8 | 9 => at_once(served, rng, account),
        10 => {
            let long = text(rng, 300..900);
            let body = json!({
                "prompt": long, "max_tokens": rng.u32(1..8), "stream": true,
                "stream_options": {"include_usage": true},
            });
            streamed(served, COMPLETION, &body, account);
        }
        11 | 12 => leaves(served, rng, account),
        13 => leaves_at_once(served, rng, account),
        14 => slow(served, rng, account),
        15 => bad(served, rng, account),
        16 => refused(served, &request(CHAT, b"{\"messages\": [}"), 400, account),
        17 => refused(
            served,
            &request(CHAT, b"\xff\xfe{\"messages\""),
            400,
            account,
        ),
        18 => too_large(served, account),
        19 => half_a_head(served, account),
        _ => apis::one(served, rng, account),
    }
}

fn text(rng: &mut fastrand::Rng, words: std::ops::Range<usize>) -> String {
    const WORDS: [&str; 12] = [
        "the", "lamp", "keeper", "walked", "down", "to", "a", "harbour", "where", "boats", "wait",
        "slowly",
    ];
    let n = rng.usize(words);
    let all: Vec<&str> = (0..n).map(|_| WORDS[rng.usize(0..WORDS.len())]).collect();
    all.join(" ")
}

fn chat(rng: &mut fastrand::Rng, stream: bool) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": text(rng, 3..60)}],
        "max_tokens": rng.u32(1..60), "seed": rng.u32(..), "stream": stream,
    });
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    if rng.bool() {
        body["stop"] = json!(["\n\n"]);
    }
    body
}

fn whole(served: &Served, body: &Value, account: &Account) {
    streamed(served, CHAT, body, account);
}

/// A good request: it must be answered to its end, or put off.
fn streamed(served: &Served, path: &str, body: &Value, account: &Account) {
    match served.stream(path, body, |_| true) {
        Ok(got) if got.status == 200 => {
            let most = body["max_tokens"].as_u64().unwrap_or(0);
            let tokens = got.usage().and_then(|u| u["completion_tokens"].as_u64());
            if !got.done || got.finish().is_none() || tokens.is_none_or(|t| t > most) {
                return account.note(format!("an answer without its end: {got:?}"));
            }
            account.tokens.fetch_add(tokens.unwrap_or(0), Relaxed);
            account.answered.fetch_add(1, Relaxed);
        }
        Ok(got) => put_off(got.status, &got.body, account),
        Err(e) => account.note(format!("a good request broke: {e}")),
    }
}

/// A request that may be told to come again.
fn put_off(status: u16, body: &str, account: &Account) {
    if matches!(status, 429 | 503) && body.contains("\"error\"") {
        account.put_off.fetch_add(1, Relaxed);
        // As a client would that read Retry-After.
        std::thread::sleep(Duration::from_millis(300));
    } else {
        account.note(format!("a good request got {status}: {body}"));
    }
}

fn at_once(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    let (status, answer) = match served.try_post(CHAT, &chat(rng, false)) {
        Ok(got) => got,
        Err(e) => return account.note(format!("a good request broke: {e}")),
    };
    if status != 200 {
        return put_off(status, &answer.to_string(), account);
    }
    if answer["choices"][0]["finish_reason"].is_string() && answer["usage"]["kvpsi"].is_object() {
        account.answered.fetch_add(1, Relaxed);
    } else {
        account.note(format!("not an answer: {answer}"));
    }
}

/// Goes after some pieces.
fn leaves(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    let mut body = chat(rng, true);
    body["max_tokens"] = json!(400);
    body["ignore_eos"] = json!(true);
    let after = rng.usize(1..6);
    match served.stream(CHAT, &body, |got| got.pieces.len() < after) {
        Ok(got) if got.status == 200 => {
            account.left.fetch_add(1, Relaxed);
        }
        Ok(got) => put_off(got.status, &got.body, account),
        Err(e) => account.note(format!("a good request broke: {e}")),
    }
}

/// Goes before there is an answer.
fn leaves_at_once(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    let body = chat(rng, rng.clone().bool()).to_string();
    if let Ok(mut stream) = served.connect() {
        let _ = stream.write_all(&request(CHAT, body.as_bytes()));
        std::thread::sleep(Duration::from_millis(rng.u64(0..50)));
    }
    account.left.fetch_add(1, Relaxed);
}

/// Reads a little at a time.
fn slow(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    let body = chat(rng, true).to_string();
    let Ok(mut stream) = served.connect() else {
        return account.note("no connection".into());
    };
    let _ = stream.write_all(&request(CHAT, body.as_bytes()));
    let (mut all, mut some) = (Vec::new(), [0u8; 64]);
    let mut naps = 20;
    loop {
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&some[..n]),
            Err(e) => return account.note(format!("a slow reader was cut off: {e}")),
        }
        if naps > 0 {
            naps -= 1;
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let text = String::from_utf8_lossy(&all);
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    match status {
        Some(200) if text.contains("[DONE]") => {
            account.answered.fetch_add(1, Relaxed);
        }
        Some(status @ (429 | 503)) => put_off(status, &text, account),
        _ => account.note(format!("a slow reader got: {text}")),
    }
}

/// A field that is wrong: its name must be in the answer.
fn bad(served: &Served, rng: &mut fastrand::Rng, account: &Account) {
    const WRONG: [(&str, &str); 5] = [
        ("temperature", "9"),
        ("n", "1000"),
        ("messages", "[]"),
        ("max_tokens", "\"many\""),
        ("tools", "[{}]"),
    ];
    let (field, value) = WRONG[rng.usize(0..WRONG.len())];
    let mut body = chat(rng, false);
    body[field] = serde_json::from_str(value).unwrap_or(Value::Null);
    let (status, answer) = match served.try_post(CHAT, &body) {
        Ok(got) => got,
        Err(e) => return account.note(format!("a bad request got no answer: {e}")),
    };
    if status == 400 && answer["error"]["param"] == field {
        account.refused.fetch_add(1, Relaxed);
    } else if status == 429 {
        put_off(status, &answer.to_string(), account);
    } else {
        account.note(format!("{field}: {value} got {status}: {answer}"));
    }
}

fn refused(served: &Served, bytes: &[u8], want: u16, account: &Account) {
    match served.raw(bytes) {
        Ok((status, text)) if status == want && text.contains("\"error\"") => {
            account.refused.fetch_add(1, Relaxed);
        }
        Ok((status @ 429, text)) => put_off(status, &text, account),
        other => account.note(format!("not refused with {want}: {other:?}")),
    }
}

/// Said to be larger than is taken, and sent in part.
fn too_large(served: &Served, account: &Account) {
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{{",
        64 << 20
    );
    refused(served, head.as_bytes(), 413, account);
}

fn half_a_head(served: &Served, account: &Account) {
    if let Ok(mut stream) = served.connect() {
        let _ = stream.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHo");
    }
    account.left.fetch_add(1, Relaxed);
}
