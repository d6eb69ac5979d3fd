//! A program of candle whose cache is kvpsi's, in a cgroup that runs short of
//! memory: it gives some back, its resident set falls by as much, and it goes
//! on.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "shapes of a model"
)]

#[path = "../../kvpsi-runtime/examples/candle_model/model.rs"]
#[expect(dead_code, reason = "candle's own cache is compared elsewhere")]
mod model;

use kvpsi::{
    cache::{CacheConfig, KvCache},
    control::GovernorConfig,
    pressure::Choice,
};
use kvpsi_tests::{hog::Hog, storm::limited, talker, talking::within};
use model::Model;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

/// Names the model to the process that the test below starts.
const PROGRAM: &str = "KVPSI_TEST_CANDLE_PROGRAM";
const PROMPT: usize = 1200;
/// The context, less what the prompt takes.
const ANSWER: usize = talker::CONTEXT - PROMPT;

/// That process: it reads a prompt, says so, and talks until its stdin ends.
#[test]
#[ignore = "the process of the test below, which starts it"]
fn talks_when_told_to() {
    let Some(path) = std::env::var_os(PROGRAM) else {
        return;
    };
    let model = Model::open(path.as_ref()).unwrap();
    let c = model.config;
    let cache = KvCache::new(CacheConfig {
        context: talker::CONTEXT,
        ..CacheConfig::new(c.layers, c.heads, c.kv_heads, c.head_dim)
    })
    .unwrap();
    let governed = GovernorConfig {
        measure_rss: true,
        ..GovernorConfig::default()
    };
    let governor = cache.govern_with(Choice::Auto, &governed).unwrap();
    let mut sequence = cache.sequence().unwrap();
    let prompt: Vec<u32> = (0..).map(|i| 258 + i * 7 % 26).take(PROMPT).collect();
    let mut logits = None;
    for part in prompt.chunks(100) {
        let mut step = sequence.step(part.len()).unwrap();
        logits = Some(model.forward(part, &mut step).unwrap());
    }
    println!("ready");
    let over = Arc::new(AtomicBool::new(false));
    let ends = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        ends.store(true, SeqCst);
    });
    let (mut said, mut said_before_trim) = (0, None);
    let mut logits = logits.unwrap();
    while said < ANSWER && !over.load(SeqCst) {
        let values = logits.to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|l| l.is_finite()), "token {said}");
        let next = (0u32..).zip(&values).max_by(|a, b| a.1.total_cmp(b.1));
        let mut step = sequence.step(1).unwrap();
        logits = model.forward(&[next.unwrap().0], &mut step).unwrap();
        said += 1;
        if said_before_trim.is_none() && governor.stats().trims > 0 {
            said_before_trim = Some(said);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let (mut told, mut deferred, mut fell) = (0, 0, 0);
    while let Some(trim) = governor.next_trim() {
        if let (Some(before), Some(after)) = (trim.rss_before, trim.rss_after) {
            told += trim.trimmed.bytes.0;
            deferred += trim.trimmed.deferred.0;
            fell += before.0.saturating_sub(after.0);
        }
    }
    let stats = governor.stats();
    println!(
        "{}",
        json!({
            "signal": stats.signal, "trims": stats.trims, "trimmed_bytes": stats.trimmed_bytes.0,
            "told": told, "deferred": deferred, "rss_fell": fell, "lost_tokens": sequence.lost_tokens(),
            "said": said, "said_before_trim": said_before_trim,
        })
    );
}

#[test]
fn a_program_of_candle_gives_some_back_and_goes_on() {
    let Some(cgroup) = limited("candle", 512 << 20) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talker.gguf");
    talker::write(&path).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "talks_when_told_to", "--nocapture"])
        .env(PROGRAM, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = within(&cgroup, || command.spawn()).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The test runner's own lines come first.
    let mut next = |what: &dyn Fn(&str) -> bool| lines.by_ref().flatten().find(|l| what(l));
    let ready = next(&|l| l.ends_with("ready"));
    let mut hog = Hog::start(Some(&cgroup));
    let lives = hog.press(&cgroup);
    drop(child.stdin.take());
    let told = next(&|l| l.starts_with('{'));
    let ended = child.wait().unwrap();
    drop(hog);
    assert!(ready.is_some() && ended.success(), "{ended} {told:?}");
    assert!(lives, "the hog was killed: {told:?}");
    assert_eq!(cgroup.memory().oom_kills(), 0, "{told:?}");
    let told: Value = serde_json::from_str(&told.unwrap()).unwrap();
    eprintln!("{told}");
    let n = |key: &str| told[key].as_u64().unwrap_or(0);
    assert!(n("trims") >= 1 && n("trimmed_bytes") > 0, "{told}");
    // What was told left the resident set, within a tenth: the model allocates
    // beside the reactor. What a guard deferred may have left by then, too.
    let (least, fell) = (n("told"), n("rss_fell"));
    assert!(least > 0, "{told}");
    assert!(fell >= least / 10 * 9, "{told}");
    assert!(fell <= (least + n("deferred")) / 10 * 11, "{told}");
    assert!(n("said") > n("said_before_trim"), "it went silent: {told}");
}
