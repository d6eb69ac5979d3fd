//! `kvpsi serve` where memory is short: in a memory cgroup, with a hog, and
//! clients of all kinds.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "serve_memory/weights.rs"]
mod weights;

use kvpsi::{
    control::{
        cgroup::OwnedCgroup,
        early::{EarlyWarning, FACTOR},
    },
    units::Bytes,
};
use kvpsi_tests::{
    figure,
    hog::Hog,
    kvpsi_binary, model, openai_client, perfetto,
    served::Served,
    skip,
    soak::{Account, soak},
    storm::limited,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

const CHAT: &str = "/v1/chat/completions";
const STORY: &str = include_str!("../data/holmes.txt");

/// What must be there to give before demand is made for it, as in the demo:
/// where nothing can be given the OOM killer is right.
const WORTH_GROWING: u64 = 8 << 20;

/// A limit that leaves so much above what is used now.
fn tighten(cgroup: &OwnedCgroup, above: u64) -> u64 {
    let used = cgroup.memory().anonymous().unwrap();
    let limit = (used.0 + above).next_multiple_of(1 << 20);
    cgroup.set_limit(Bytes(limit)).unwrap();
    limit
}

/// One burst of demand: anonymous memory that half of what the server could
/// give makes room for, at most `most`; else a file that does not fit. False
/// if the hog was killed.
fn burst(s: &Served, cgroup: &OwnedCgroup, hog: &mut Hog, limit: u64, most: u64) -> bool {
    let room = limit.saturating_sub(cgroup.memory().anonymous().unwrap().0);
    let kv = s.status().kv;
    let trimmable = kv.resident.0.saturating_sub(kv.floor.0);
    if trimmable >= WORTH_GROWING {
        // As fast as the demo's: at a GiB a second the race with the OOM killer is not
        // won each time (decision 0058).
        hog.grow_at((room + trimmable / 2).min(most), 256)
    } else {
        hog.read(room + (32 << 20))
    }
}

/// Runs a client beside a hog that presses from the first tokens on: what came of
/// it, and whether the hog lived.
fn pressed<T: Send>(
    s: &Served,
    cgroup: &OwnedCgroup,
    hog: &mut Hog,
    client: impl FnOnce() -> T + Send,
) -> (T, bool) {
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(move || {
            let got = client();
            over.store(true, Relaxed);
            got
        });
        // The prompt's own memory goes with the first token.
        while s.status().requests.tokens < 10 && !over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let limit = tighten(cgroup, 28 << 20);
        let mut lived = true;
        while !over.load(Relaxed) && lived {
            lived &= burst(s, cgroup, hog, limit, u64::MAX);
            std::thread::sleep(Duration::from_millis(200));
        }
        (asking.join().unwrap(), lived)
    })
}

#[test]
fn openais_client_streams_on_while_a_hog_presses() {
    let test = "openais_client_streams_on_while_a_hog_presses";
    let (Some(file), Some(client)) = (model(test), openai_client(test)) else {
        return;
    };
    let Some(cgroup) = limited("serve-openai", 1 << 30) else {
        return;
    };
    let s = Served::start(
        &file,
        &["--parallel", "2", "--alias", "smol"],
        Some(&cgroup),
    );
    let mut hog = Hog::start(Some(&cgroup));
    let ask = || {
        let mut python = Command::new("python3")
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/data/openai_pressed.py"
            ))
            .env("PYTHONPATH", client)
            .env("OPENAI_BASE_URL", format!("http://127.0.0.1:{}/v1", s.port))
            .env("OPENAI_API_KEY", "none")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let long: String = STORY.chars().take(6000).collect();
        python
            .stdin
            .take()
            .unwrap()
            .write_all(long.as_bytes())
            .unwrap();
        python.wait_with_output().unwrap()
    };
    let (out, lived) = pressed(&s, &cgroup, &mut hog, ask);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let usage: Value = serde_json::from_slice(&out.stdout).unwrap();
    figure(&json!({"figure": "openai_pressed", "usage": usage}));
    assert!(lived && cgroup.memory().oom_kills() == 0, "{usage}");
    assert_eq!(usage["completion_tokens"], 500);
    assert!(usage["kvpsi"]["trims"].as_u64().unwrap() >= 1, "{usage}");
}

#[test]
fn a_chat_goes_on_under_memory_pressure_and_its_usage_reports_trims() {
    let test = "a_chat_goes_on_under_memory_pressure_and_its_usage_reports_trims";
    let Some(file) = model(test) else { return };
    let Some(cgroup) = limited("serve-chat", 1 << 30) else {
        return;
    };
    let s = Served::start(&file, &["--parallel", "2"], Some(&cgroup));
    let mut hog = Hog::start(Some(&cgroup));
    let dir = tempfile::tempdir().unwrap();
    let (mut attached, traced) = attach(&s, dir.path());
    without_capabilities(s.pid());
    let long: String = STORY.chars().take(6000).collect();
    let body = json!({
        "messages": [{"role": "user", "content": format!("{long}\n\nTell me about it at length.")}],
        "max_tokens": 500, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let (got, lived) = pressed(&s, &cgroup, &mut hog, || s.stream(CHAT, &body, |_| true));
    let got = got.unwrap();
    let status = s.rest();
    kill_process(Pid::from_child(&attached), Signal::INT).unwrap();
    assert!(attached.wait().unwrap().success());
    let usage = got.usage().unwrap();
    let kvpsi = &usage["kvpsi"];
    figure(&json!({"figure": "serve_trims", "usage": usage, "trims": status.trims.count}));
    assert!(lived && cgroup.memory().oom_kills() == 0, "{kvpsi}");
    assert!(got.done && usage["completion_tokens"] == 500, "{usage}");
    assert!(status.trims.bytes.0 > 1 << 20, "{status:?}");
    // It has no privilege since before the first request, and still receives events.
    without_capabilities(s.pid());
    assert!(
        status.stalls.seen > 0 && status.stalls.dropped == 0,
        "{status:?}"
    );
    assert!(kvpsi["trims"].as_u64().unwrap() >= 1, "{usage}");
    assert!(kvpsi["tokens_dropped"].as_u64().unwrap() > 0, "{usage}");
    arrows(test, &traced, status.trims.count);
    let mass = kvpsi["attention_mass_dropped"].as_f64().unwrap();
    assert!(mass > 0.0 && mass <= 1.0, "{usage}");
}

/// No thread has a capability in any set, nor a way to gain one.
fn without_capabilities(pid: u32) {
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}"))
                .trim()
                .to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(
                field(set),
                "0000000000000000",
                "{set} of {}",
                field("Name:")
            );
        }
        assert_eq!(field("NoNewPrivs:"), "1", "{}", field("Name:"));
        threads += 1;
    }
    assert!(threads > 4, "{threads}");
}

/// `trace-dump --attach` beside it: the process, and the file it writes.
fn attach(s: &Served, dir: &Path) -> (Child, PathBuf) {
    let file = dir.join("trace.json");
    let url = format!("http://127.0.0.1:{}", s.port);
    let child = Command::new(kvpsi_binary())
        .args(["trace-dump", "--format", "perfetto", "--attach", &url])
        .stdout(std::fs::File::create(&file).unwrap())
        .spawn()
        .unwrap();
    (child, file)
}

/// Every trim is in the trace, and arrows lead to trims from onsets; so says
/// Perfetto's engine too, where it is.
fn arrows(test: &str, traced: &Path, trims: u64) {
    let text = std::fs::read_to_string(traced).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of = |ph: &str, cat: &str| -> Vec<&Value> {
        let all = all.iter();
        all.filter(|e| e["ph"] == ph && (cat.is_empty() || e["cat"] == cat))
            .collect()
    };
    assert_eq!(of("X", "trim").len() as u64, trims);
    assert!(
        of("C", "")
            .iter()
            .any(|c| c["args"]["resident"].as_u64() > Some(0))
    );
    let (from, to) = (of("s", "trim"), of("f", "trim"));
    assert_eq!(from.len(), to.len());
    for (s, f) in from.iter().zip(&to) {
        assert_eq!(s["id"], f["id"]);
        assert!(s["ts"].as_f64() <= f["ts"].as_f64(), "{s} {f}");
    }
    if let Some(engine) = perfetto::engine(test) {
        let answers = engine.ask(
            text.as_bytes(),
            &[
                "select count(*) n from slice join thread_track on thread_track.id = track_id where category = 'trim'",
                "select count(*) n from flow join slice a on a.id = slice_out join slice b on b.id = slice_in where a.category = 'onset' and b.category = 'trim' and a.ts <= b.ts",
            ],
        );
        let counts: Vec<_> = answers.iter().map(|a| a[0]["n"].as_u64()).collect();
        assert_eq!(counts, [Some(trims), Some(from.len() as u64)]);
    }
    if of("X", "onset").is_empty() {
        // Not every signal tells of onsets.
        return;
    }
    assert!(!from.is_empty(), "no trim came from an onset that is known");
}

#[test]
fn what_the_budget_never_holds_is_refused_or_ends() {
    let test = "what_the_budget_never_holds_is_refused_or_ends";
    let Some(file) = model(test) else { return };
    let s = Served::start(&file, &["--kv-budget", "1", "--signal", "none"], None);
    let body = json!({"prompt": "a lamp ".repeat(300), "max_tokens": 4});
    let (status, answer) = s.post("/v1/completions", &body);
    // Asking again is of no use.
    assert_eq!(status, 400, "{answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("--kv-budget gives 1.0 MiB"), "{message}");
    // One that fits is answered, and an answer that grows beyond it is cut.
    for (most, finish) in [(4, 4..=4), (200, 8..=40)] {
        let body = json!({"prompt": "a lamp", "max_tokens": most, "ignore_eos": true});
        let (status, answer) = s.post("/v1/completions", &body);
        let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
        assert!(status == 200 && finish.contains(&tokens), "{answer}");
    }
    s.rest();
}

/// RSS once nothing is in flight and no cache is kept.
fn bare(s: &Served) -> u64 {
    s.rest();
    s.post("/kvpsi/trim", &json!({"bytes": 1u64 << 40}));
    // A prefill's memory goes with the next decoded token.
    let tiny = json!({"prompt": "a", "max_tokens": 2});
    s.post("/v1/completions", &tiny);
    s.rest();
    s.post("/kvpsi/trim", &json!({"bytes": 1u64 << 40}));
    s.status().rss.0
}

/// Two minutes; `KVPSI_SOAK_SECONDS` says otherwise.
#[test]
fn no_client_and_no_pressure_loses_a_request_a_block_or_memory() {
    let test = "no_client_and_no_pressure_loses_a_request_a_block_or_memory";
    let Some(file) = model(test) else { return };
    let Some(cgroup) = limited("serve-soak", 1 << 30) else {
        return;
    };
    let seconds = std::env::var("KVPSI_SOAK_SECONDS");
    let time = Duration::from_secs(seconds.map_or(120, |s| s.parse().unwrap()));
    let args = ["--parallel", "4", "--queue", "6", "--client-timeout", "5"];
    let s = Served::start(&file, &args, Some(&cgroup));
    let account = Account::default();
    // Threads, buffers and caches of a loaded server are there first.
    soak(&s, 10, time / 8, 1, &account);
    let before = bare(&s);
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let (lived, bursts) = std::thread::scope(|scope| {
        let pressing = scope.spawn(|| press(&s, &cgroup, &over));
        soak(&s, 10, time, 1000, &account);
        over.store(true, Relaxed);
        pressing.join().unwrap()
    });
    let took = began.elapsed();
    cgroup.set_limit(Bytes(1 << 30)).unwrap();
    let after = bare(&s);
    let status = s.rest();
    let n = |a: &std::sync::atomic::AtomicU64| a.load(Relaxed);
    let account_json = json!({
        "asked": n(&account.asked), "answered": n(&account.answered),
        "put_off": n(&account.put_off), "refused": n(&account.refused),
        "left": n(&account.left), "tokens": n(&account.tokens),
    });
    let figures: Value = json!({
        "figure": "soak", "seconds": took.as_secs(), "clients": account_json, "bursts": bursts,
        "trims": status.trims.count, "returned": status.trims.bytes.0,
        "requests": status.requests, "rss_before": before, "rss_after": after,
        "oom_kills": cgroup.memory().oom_kills(),
    });
    eprintln!("{figures:#}");
    figure(&figures);
    let wrong = account.wrong();
    assert!(
        wrong.is_empty(),
        "{} of these: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
    let ends = n(&account.answered) + n(&account.put_off) + n(&account.refused) + n(&account.left);
    assert_eq!(ends, n(&account.asked), "every request has one end");
    assert_eq!(cgroup.memory().oom_kills(), 0);
    assert!(lived, "the hog was killed");
    assert!(status.trims.count > 0 && bursts > 0, "nothing pressed");
    let (_, metrics) = s.get("/metrics");
    let why = metrics
        .lines()
        .filter(|l| l.starts_with("kvpsi_requests_failed"));
    let why: Vec<&str> = why.collect();
    assert_eq!(status.requests.failed, 0, "{why:?} {status:?}");
    assert_eq!(
        (status.kv.in_use.0, status.kv.tokens),
        (0, 0),
        "a block is lost"
    );
    assert_eq!(status.kv.resident.0, status.kv.cached.0 + status.kv.slack.0);
    assert!(
        after as f64 <= before as f64 * 1.05,
        "RSS was {before} and is {after}"
    );
    let leftover = Path::new("/proc").join(s.pid().to_string()).join("status");
    let threads = std::fs::read_to_string(leftover).unwrap();
    let threads = threads.lines().find_map(|l| l.strip_prefix("Threads:"));
    assert!(
        threads.unwrap().trim().parse::<u32>().unwrap() < 40,
        "{threads:?}"
    );
}

/// What the requests of all places need when all else is given: sinks, recent
/// tokens and the memory of a prompt's chunk.
const FLOOR: u64 = 48 << 20;

/// Random demand until the time is over: whether the hog lived, and how often
/// it pressed.
fn press(s: &Served, cgroup: &OwnedCgroup, over: &AtomicBool) -> (bool, u32) {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut hog = Hog::start(Some(cgroup));
    let (mut lived, mut bursts) = (true, 0);
    let limit = tighten(cgroup, 2 * FLOOR);
    // A server that is gone, and a test that has failed, end it too.
    while s.connect().is_ok() && !over.load(Relaxed) && lived {
        std::thread::sleep(Duration::from_millis(rng.u64(100..1500)));
        lived &= burst(s, cgroup, &mut hog, limit, FLOOR);
        bursts += 1;
    }
    (lived, bursts)
}

/// However the server ends, the machine's setting is as it was.
#[test]
fn watermarks_are_put_back_however_the_server_ends() {
    let test = "watermarks_are_put_back_however_the_server_ends";
    let Some(model) = model(test) else { return };
    let now = || std::fs::read_to_string(FACTOR).unwrap().trim().to_owned();
    let Some(advised) = EarlyWarning::read().and_then(|e| e.advice()) else {
        return skip(test, "kswapd wakes early enough on this machine");
    };
    let old = now();
    if let Err(e) = std::fs::write(FACTOR, &old) {
        return skip(test, format!("{FACTOR}: {e}"));
    }
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let mut s = Served::start(&model, &["--tune-watermarks"], None);
        assert_eq!(now(), advised.to_string());
        s.signal(signal);
        s.wait();
        let since = Instant::now();
        while now() != old {
            assert!(since.elapsed() < Duration::from_secs(5), "{signal:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
