//! Trims on this kernel, with a tiny model: in a cgroup that is short of
//! memory, and where everything is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::control::cgroup::{MemoryCgroup, OwnedCgroup};
use kvpsi::units::Bytes;
use kvpsi_tests::{
    emulated, figure,
    hog::Hog,
    kvpsi_binary, skip,
    storm::{fill_page_cache, meminfo},
    talker,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    fs,
    io::{Read, Seek},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

/// A model at work; killed and reaped on drop.
struct Talking {
    child: Child,
    err: Option<ChildStderr>,
    out: Option<std::thread::JoinHandle<u64>>,
    _file: tempfile::TempDir,
}

impl Talking {
    /// Starts one, and waits until it has read its prompt and talks.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("talker.gguf");
        talker::write(&model).unwrap();
        let prompt = "it was a dark and stormy night ".repeat(12);
        let mut child = Command::new(kvpsi_binary())
            .args(["run", "--raw", "--temperature", "1", "--top-k", "0"])
            .args(["--ctx", &talker::CONTEXT.to_string(), "-n", "1400"])
            .args(["-p", &prompt, "-m"])
            .arg(&model)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let err = child.stderr.take();
        // The prompt is repeated; what follows is the model's.
        let mut first = vec![0u8; prompt.len() + 1];
        let spoke = out.read_exact(&mut first);
        let mut talking = Self {
            child,
            err,
            out: None,
            _file: dir,
        };
        if spoke.is_err() {
            let said = talking.end().1;
            panic!("the model said nothing: {said}");
        }
        talking.out = Some(std::thread::spawn(move || {
            std::io::copy(&mut out, &mut std::io::sink()).unwrap_or(0)
        }));
        talking
    }

    /// Interrupts it: whether all went well, and what it reported.
    fn end(&mut self) -> (bool, String) {
        let pid = Pid::from_child(&self.child);
        // It may have come to its own end.
        let _ = kill_process(pid, Signal::INT);
        let mut said = String::new();
        if let Some(mut err) = self.err.take() {
            err.read_to_string(&mut said).unwrap();
        }
        if let Some(out) = self.out.take() {
            out.join().unwrap();
        }
        let code = self.child.wait().unwrap().code();
        (matches!(code, Some(0 | 130)), said)
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kvpsi: 3 trims gave back 4.0 MiB (signal ebpf, 17 stalls seen)`.
fn check(scope: &str, well: bool, said: &str) {
    eprintln!("{said}");
    assert!(well, "{said}");
    let line = said
        .lines()
        .find_map(|l| l.strip_prefix("kvpsi: ")?.split_once(" trims gave back "));
    let (trims, rest) = line.unwrap_or_else(|| panic!("nothing was given back: {said}"));
    figure(&json!({ "figure": "trims", "scope": scope, "trims": trims, "gave_back": rest }));
    assert!(trims.parse::<u64>().unwrap() >= 1);
}

#[test]
fn a_model_in_a_cgroup_gives_some_back_to_a_neighbour_in_it() {
    let test = "a_model_in_a_cgroup_gives_some_back_to_a_neighbour_in_it";
    let before = match MemoryCgroup::of_self() {
        Ok(c) => c.path.join("cgroup.procs"),
        Err(e) => return skip(test, e),
    };
    let made = OwnedCgroup::create(&format!("kvpsi-test-trims-{}", std::process::id()))
        .and_then(|c| c.set_limit(Bytes::mib(512)).map(|()| c));
    let cgroup = match made {
        Ok(c) => c,
        Err(why) => return skip(test, why),
    };
    // The child is born into the cgroup, as in a container: it looks for its
    // limit before it does anything else.
    for p in cgroup.procs() {
        fs::write(p, "0").unwrap();
    }
    let talking = std::panic::catch_unwind(Talking::start);
    fs::write(before, "0").unwrap();
    if let Some(v2) = cgroup.procs().nth(1) {
        // v1: the twin is below the root of v2.
        let root = v2.parent().and_then(|d| d.parent()).unwrap();
        fs::write(root.join("cgroup.procs"), "0").unwrap();
    }
    let mut talking = talking.unwrap_or_else(|e| std::panic::resume_unwind(e));
    let mut hog = Hog::start(Some(&cgroup));
    let used = cgroup.memory().anonymous().unwrap();
    let limit = Bytes((used.0 + (40 << 20)).next_multiple_of(1 << 20));
    cgroup.set_limit(limit).unwrap();
    let mut lives = true;
    for _ in 0..3 {
        let used = cgroup.memory().anonymous().unwrap();
        // It fits, but for what is to stay free below the limit: page cache
        // alone would be no harm, and that the race with the OOM killer is won
        // is the demo's to show, for a machine that is emulated may lose it.
        let room = limit.0.saturating_sub(used.0);
        lives &= hog.grow(room.saturating_sub(4 << 20));
        std::thread::sleep(Duration::from_millis(300));
    }
    let (well, said) = talking.end();
    drop(hog);
    assert!(lives, "the hog was killed: {said}");
    assert_eq!(cgroup.memory().oom_kills(), 0, "{said}");
    check("cgroup", well, &said);
}

/// The wall that everything here runs into (the limit of a cgroup that the
/// test was born into, or the end of the machine's memory), and what
/// anonymous memory may still have before it.
fn wall() -> (&'static str, u64, u64) {
    match MemoryCgroup::of_self().ok().and_then(|c| c.tightest()) {
        Some((c, limit)) => {
            let used = c.anonymous().unwrap();
            ("the cgroup around", limit.0, limit.0.saturating_sub(used.0))
        }
        None => ("system", meminfo("MemTotal:"), meminfo("MemAvailable:")),
    }
}

/// Most times that the hog grows.
const ROUNDS: u32 = 6;

/// Times that a task reclaimed memory itself, in any zone or cgroup.
fn direct_reclaims() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap();
    let stalls = text.lines().filter_map(|l| {
        let (name, n) = l.split_once(' ')?;
        let counts = name.starts_with("allocstall") || name == "pgscan_direct";
        counts.then(|| n.parse::<u64>().ok())?
    });
    stalls.sum()
}

#[test]
fn a_model_gives_some_back_where_everything_is_short_of_memory() {
    let test = "a_model_gives_some_back_where_everything_is_short_of_memory";
    if !emulated() {
        return skip(
            test,
            "everybody here would starve: `cargo xtask vm` makes it happen",
        );
    }
    let mut talking = Talking::start();
    let mut hog = Hog::start(None);
    let (scope, all, room) = wall();
    let mut cached = fill_page_cache(Path::new(env!("CARGO_TARGET_TMPDIR")), room).unwrap();
    let mut lives = true;
    // kswapd may keep up with a slow hog: then no task waits, and none is to
    // give anything back.
    let mut waits = 0;
    for _ in 0..ROUNDS {
        // What it took from the page cache last time is there again.
        cached.rewind().unwrap();
        std::io::copy(&mut cached, &mut std::io::sink()).unwrap();
        let before = direct_reclaims();
        // All but what the machine itself needs.
        lives &= hog.grow(wall().2.saturating_sub(all / 10));
        std::thread::sleep(Duration::from_millis(300));
        waits += u32::from(direct_reclaims() > before);
        if waits == 3 || !lives {
            break;
        }
    }
    let (well, said) = talking.end();
    drop(hog);
    assert!(lives, "the hog was killed: {said}");
    if waits == 0 {
        return skip(
            test,
            format!(
                "no task had to wait in {ROUNDS} rounds; {}",
                said.replace('\n', " ")
            ),
        );
    }
    check(scope, well, &said);
}
