//! Whose stall it is, which limit it hits and whether it does harm, on whatever
//! kernel and cgroup version this runs: with a tiny model, also in emulated
//! machines. The same with a real model and a server: `field.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    control::{
        cgroup::{OwnedCgroup, Version},
        wall::Walls,
    },
    units::Bytes,
};
use kvpsi_tests::{
    figure,
    hog::Hog,
    skip,
    storm::{fill_page_cache, limited},
    talker,
    talking::{Ended, Talking, within},
};
use rustix::fs::{Advice, fadvise};
use serde_json::json;
use std::{
    fs,
    io::Seek,
    path::Path,
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const NONE: u64 = 1 << 40;

fn end(mut talking: Talking, case: &str) -> Ended {
    let ended = talking.end();
    eprintln!("{}", ended.said);
    assert!(ended.well, "{}", ended.said);
    figure(&json!({
        "figure": "field", "case": case, "trims": ended.trims, "gave_back": ended.gave_back,
    }));
    ended
}

/// So much more than is used, in whole MiB.
fn above_use(cgroup: &OwnedCgroup, room: u64) -> Bytes {
    let used = cgroup.memory().anonymous().unwrap().0;
    Bytes((used + room * MIB).next_multiple_of(MIB))
}

/// Grows up to 1 MiB above what is to stay free below a limit, and stays until the
/// conversation has grown by 3 MiB: it fits if it gives some back for itself. That a
/// race with the OOM killer is won is `field.rs`'s to show, on a machine that is not
/// emulated.
fn grow(hog: &mut Hog, cgroup: &OwnedCgroup, limit: Bytes, talking: &mut Talking) {
    let ms = talking.ms_for(3 * MIB / talker::TOKEN_BYTES);
    // The kernel's own memory counts, clean page cache does not.
    let level = Walls::open(cgroup.memory()).each()[0];
    let kept = level.usage.saturating_sub(level.file.unwrap_or_default());
    let fits = limit.0 - kept.0 - level.headroom().0 - MIB;
    if !hog.grow_for(fits, ms) {
        let said = talking.end().said;
        panic!("{level:?}: the hog was killed: {said}");
    }
}

#[test]
fn a_limit_that_is_set_later_is_a_wall() {
    let Some(cgroup) = limited("later", NONE) else {
        return;
    };
    let mut talking = Talking::start(Some(&cgroup));
    let mut hog = Hog::start(Some(&cgroup));
    for room in [40, 24] {
        let limit = above_use(&cgroup, room);
        cgroup.set_limit(limit).unwrap();
        grow(&mut hog, &cgroup, limit, &mut talking);
        cgroup.set_limit(Bytes(NONE)).unwrap();
    }
    let ended = end(talking, "limit_later");
    assert_eq!(cgroup.memory().oom_kills(), 0);
    assert!(ended.trims >= 1, "nothing was given back");
}

/// Over `memory.high` nobody is killed: whoever charges is put to sleep until
/// enough was given back.
#[test]
fn memory_high_that_is_set_later_is_a_wall() {
    let test = "memory_high_that_is_set_later_is_a_wall";
    let Some(cgroup) = limited("high", NONE) else {
        return;
    };
    if cgroup.memory().version == Version::V1 {
        return skip(test, "cgroup v1 has no memory.high");
    }
    let talking = Talking::start(Some(&cgroup));
    let mut hog = Hog::start(Some(&cgroup));
    let mut took = Vec::new();
    for (room, over) in [(32, 1), (24, 2)] {
        let high = above_use(&cgroup, room);
        fs::write(cgroup.memory().path.join("memory.high"), high.0.to_string()).unwrap();
        let since = Instant::now();
        let used = cgroup.memory().anonymous().unwrap().0;
        assert!(hog.grow(high.0 - used + over * MIB));
        took.push(since.elapsed().as_secs_f64());
        fs::write(cgroup.memory().path.join("memory.high"), "max").unwrap();
    }
    let ended = end(talking, "memory_high");
    assert!(cgroup.memory().hits() > Some(0), "it was never over");
    assert!(ended.trims >= 1, "nothing was given back in {took:?} s");
    // Throttled for ever is what a runtime that looks at memory.max alone is.
    assert!(took.iter().all(|s| *s < 60.0), "{took:?} s");
}

/// Ours has the lower limit and room below it; the one above is full.
#[test]
fn a_full_cgroup_above_ours_is_a_wall() {
    let Some(outer) = limited("outer", NONE) else {
        return;
    };
    let name = outer
        .memory()
        .path
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    if outer.memory().version == Version::V2 {
        fs::write(
            outer.memory().path.join("cgroup.subtree_control"),
            "+memory",
        )
        .unwrap();
    }
    // On v2 processes are in leaves only.
    let ours = OwnedCgroup::create(&format!("{name}/ours")).unwrap();
    let theirs = OwnedCgroup::create(&format!("{name}/theirs")).unwrap();
    let mut talking = Talking::start(Some(&ours));
    let used = ours.memory().anonymous().unwrap().0;
    ours.set_limit(Bytes((used + 64 * MIB).next_multiple_of(MIB)))
        .unwrap();
    let mut hog = Hog::start(Some(&theirs));
    for room in [80, 48] {
        let limit = above_use(&outer, room);
        outer.set_limit(limit).unwrap();
        grow(&mut hog, &outer, limit, &mut talking);
        outer.set_limit(Bytes(NONE)).unwrap();
    }
    drop(hog);
    let ended = end(talking, "ancestor_full");
    assert_eq!(outer.memory().oom_kills(), 0);
    assert!(ended.trims >= 1, "nothing was given back");
}

#[test]
fn a_file_read_from_end_to_end_costs_no_token() {
    let Some(cgroup) = limited("stream", NONE) else {
        return;
    };
    let talking = Talking::start(Some(&cgroup));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (room, file, times) in [(32, 64, 1), (24, 96, 2)] {
        let mut cold = fill_page_cache(dir, file * MIB).unwrap();
        fadvise(&cold, 0, None, Advice::DontNeed).unwrap();
        cgroup.set_limit(above_use(&cgroup, room)).unwrap();
        within(&cgroup, || {
            for _ in 0..times {
                cold.rewind().unwrap();
                std::io::copy(&mut cold, &mut std::io::sink()).unwrap();
            }
        });
        assert!(cgroup.memory().hits() > Some(0), "the limit was never hit");
        cgroup.set_limit(Bytes(NONE)).unwrap();
    }
    let ended = end(talking, "streaming_read");
    assert_eq!(ended.dropped, 0);
}

#[test]
fn a_neighbour_below_a_limit_of_its_own_costs_nothing() {
    let (Some(cgroup), Some(theirs)) = (limited("mine", NONE), limited("theirs", 24 * MIB)) else {
        return;
    };
    let talking = Talking::start(Some(&cgroup));
    cgroup.set_limit(above_use(&cgroup, 64)).unwrap();
    let mut other = Hog::start(Some(&theirs));
    for mib in [40, 64] {
        assert!(other.read(mib * MIB));
    }
    std::thread::sleep(Duration::from_millis(300));
    let ended = end(talking, "foreign_stall");
    assert!(theirs.memory().hits() > Some(0), "nobody stalled");
    assert_eq!((ended.trims, ended.dropped), (0, 0));
}
