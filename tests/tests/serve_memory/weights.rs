//! Two servers of one model where its weights fit once, and where they do not
//! fit: mapped ones are page cache, which the kernel drops and reads again.

use super::tighten;
use kvpsi_tests::{model, served::Served, storm::limited};
use serde_json::json;
use std::{fs, time::Instant};

const TOKENS: usize = 24;
/// Above anonymous memory and weights: pages of the program, and what the kernel
/// keeps for the processes.
const BESIDE: u64 = 24 << 20;

/// What each says to the same prompt at the same time, and tokens a second.
fn answers(servers: &[Served]) -> (Vec<String>, f64) {
    let asked = json!({"prompt": "The lighthouse at the end of the", "max_tokens": TOKENS,
        "temperature": 0, "ignore_eos": true});
    let began = Instant::now();
    let answer = |s: &Served| {
        let (status, answer) = s.post("/v1/completions", &asked);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let texts = std::thread::scope(|scope| {
        let all: Vec<_> = servers.iter().map(|s| scope.spawn(|| answer(s))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let tokens = (servers.len() * TOKENS) as f64;
    (texts, tokens / began.elapsed().as_secs_f64())
}

#[test]
fn two_servers_answer_where_their_weights_fit_once_and_none_is_killed() {
    let test = "two_servers_answer_where_their_weights_fit_once_and_none_is_killed";
    let Some(model) = model(test) else { return };
    let Some(cgroup) = limited("weights", 4 << 30) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let home = [("XDG_CACHE_HOME", dir.path().to_str().unwrap())];
    let args = ["--weights-cache", "on", "--signal", "none"];
    let servers: Vec<_> = (0..2)
        .map(|_| Served::start_with(&model, &args, Some(&cgroup), &home))
        .collect();
    let file = fs::read_dir(dir.path().join("kvpsi/weights")).unwrap();
    let [weights] = file
        .map(|f| f.unwrap().metadata().unwrap().len())
        .collect::<Vec<_>>()[..]
    else {
        panic!("one file is of both");
    };
    let (texts, calm) = answers(&servers);
    assert_eq!(texts[0], texts[1]);
    for (what, above) in [("once", weights + BESIDE), ("half", weights / 2 + BESIDE)] {
        let limit = tighten(&cgroup, above);
        let (pressed, rate) = answers(&servers);
        println!(
            "weights of {} MiB fit {what} (limit {} MiB): {rate:.1} tokens/s, {calm:.1} without a limit",
            weights >> 20,
            limit >> 20
        );
        assert_eq!(pressed, texts, "{what}");
        assert_eq!(cgroup.memory().oom_kills(), 0, "{what}");
    }
}
