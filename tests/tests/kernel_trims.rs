//! Trims on this kernel, with a tiny model: in a cgroup that is short of
//! memory, and where everything is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::control::cgroup::MemoryCgroup;
use kvpsi_tests::{
    emulated, figure,
    hog::Hog,
    skip,
    storm::{fill_page_cache, limited, meminfo},
    talking::{Ended, Talking},
};
use serde_json::json;
use std::{fs, io::Seek, path::Path, time::Duration};

fn check(scope: &str, ended: &Ended) {
    let (well, said) = (ended.well, &ended.said);
    eprintln!("{said}");
    assert!(well, "{said}");
    figure(&json!({
        "figure": "trims", "scope": scope, "trims": ended.trims, "gave_back": ended.gave_back,
    }));
    assert!(ended.trims >= 1, "nothing was given back: {said}");
}

#[test]
fn a_model_in_a_cgroup_gives_some_back_to_a_neighbour_in_it() {
    let Some(cgroup) = limited("trims", 512 << 20) else {
        return;
    };
    let mut talking = Talking::start(Some(&cgroup));
    let mut hog = Hog::start(Some(&cgroup));
    let lives = hog.press(&cgroup);
    let ended = talking.end();
    let said = &ended.said;
    drop(hog);
    assert!(lives, "the hog was killed: {said}");
    assert_eq!(cgroup.memory().oom_kills(), 0, "{said}");
    check("cgroup", &ended);
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
    let mut talking = Talking::start(None);
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
    let ended = talking.end();
    let said = &ended.said;
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
    check(scope, &ended);
}
