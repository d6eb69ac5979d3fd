//! Whose stall it is, which limit it hits and whether it does harm: a
//! server in cgroups of its own, and neighbours of each kind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{control::cgroup::OwnedCgroup, units::Bytes};
use kvpsi_tests::{
    figure,
    hog::Hog,
    kvpsi_binary, model,
    served::Served,
    skip,
    storm::{drop_page_cache, limited},
};
use rustix::process::geteuid;
use serde_json::{Value, json};
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

#[path = "field/faults.rs"]
mod faults;

const MIB: u64 = 1 << 20;

/// A server in a cgroup without a limit, or a skip of `test`.
fn served(test: &str) -> Option<(OwnedCgroup, Served)> {
    served_with(test, &[], &[])
}

fn served_with(
    test: &str,
    args: &[&str],
    variables: &[(&str, &str)],
) -> Option<(OwnedCgroup, Served)> {
    let model = model(test)?;
    if !geteuid().is_root() {
        skip(test, "needs root for a memory cgroup");
        return None;
    }
    let cgroup = limited(test, 1 << 40)?;
    // Out here: page cache is charged to who reads it first.
    for file in [&model, &kvpsi_binary()] {
        std::fs::read(file).unwrap();
    }
    let s = Served::start_with(&model, args, Some(&cgroup), variables);
    Some((cgroup, s))
}

/// Tokens of the conversation that were dropped while it was answered.
fn ask(s: &Served, topic: &str, tokens: u32) -> u64 {
    let prompt = format!("Tell me a long story about {topic}. ").repeat(120);
    let body = json!({
        "messages": [{ "role": "user", "content": prompt }],
        "max_tokens": tokens, "temperature": 0,
    });
    let (status, answer) = s.post("/v1/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    answer["usage"]["kvpsi"]["tokens_dropped"].as_u64().unwrap()
}

/// Fills the cache with conversations that ended.
fn talk(s: &Served, topics: &[&str]) {
    for topic in topics {
        ask(s, topic, 40);
    }
}

fn tell(case: &str, more: Value) {
    figure(&json!({ "what": "field", "case": case, "figures": more }));
}

/// A limit that is set while the server runs, and a neighbour that needs more
/// than is left: for several sizes, one after the other.
#[test]
fn a_limit_set_after_the_start_is_a_wall() {
    let Some((cgroup, s)) = served("later") else {
        return;
    };
    let mut hog = Hog::start(Some(&cgroup));
    for (room, demand) in [(12, 22), (4, 12), (20, 24)] {
        talk(&s, &["a lighthouse", "the tides", "old bread"]);
        let before = s.status().trims;
        let used = cgroup.memory().usage().unwrap().0;
        cgroup.set_limit(Bytes(used + room * MIB)).unwrap();
        let lived = hog.grow(demand * MIB);
        let after = s.status().trims;
        let returned = after.bytes.0 - before.bytes.0;
        let missing = (demand - room) * MIB;
        tell(
            "limit_later",
            json!({ "missing": missing, "returned": returned, "trims": after.count - before.count }),
        );
        assert!(lived && cgroup.memory().oom_kills() == 0);
        assert!(after.count > before.count, "nothing was trimmed");
        cgroup.set_limit(Bytes(1 << 40)).unwrap();
    }
}

/// One conversation runs and nothing else is left to give: rather than be killed
/// it goes back to its tokens, and goes on when there is room.
#[test]
fn the_only_conversation_gives_way_before_the_kernel_kills() {
    let Some((cgroup, s)) = served("only-one") else {
        return;
    };
    let mut preempted = 0;
    for (room, left) in [(8, 3), (4, 2), (16, 1)] {
        let prompt = "Tell me a long story about a lighthouse. ".repeat(100);
        let body = json!({
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": 600, "temperature": 0, "ignore_eos": true,
        });
        std::thread::scope(|scope| {
            let talking = scope.spawn(|| s.post("/v1/chat/completions", &body));
            while s.status().sequences.first().is_none_or(|q| q.tokens < 20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let used = cgroup.memory().usage().unwrap().0;
            cgroup.set_limit(Bytes(used + room * MIB)).unwrap();
            let mut hog = Hog::start(Some(&cgroup));
            let kv = s.status().kv.resident.0;
            // As fast as a control loop or a camera allocates. At a GiB a second
            // 2 MiB are gone in 2 ms, and the race with the OOM killer is not
            // won each time (decision 0058).
            let lived = hog.grow_at(room * MIB + kv - left * MIB, 100);
            assert!(lived && cgroup.memory().oom_kills() == 0);
            drop(hog);
            cgroup.set_limit(Bytes(1 << 40)).unwrap();
            let (status, answer) = talking.join().unwrap();
            assert_eq!(status, 200, "{answer}");
            assert_eq!(answer["usage"]["completion_tokens"], 600);
            tell("only_one", answer["usage"]["kvpsi"].clone());
            // What a conversation always keeps has 2 MiB once it is packed, for which
            // there is not always time.
            preempted += answer["usage"]["kvpsi"]["preemptions"].as_u64().unwrap();
        });
    }
    assert!(preempted >= 1, "all of it was needed, and none went");
}

/// A neighbour grows again and again in a cgroup without a clean page, where the
/// kernel kills 100 us after a charge fails: each growth is seen before it reaches the
/// limit, however long the calm before it was; the first too, though nothing happened
/// since the limit was set.
#[test]
fn growth_after_growth_is_answered_before_it_reaches_the_limit() {
    let Some((cgroup, s)) = served("again") else {
        return;
    };
    talk(&s, &["a lighthouse", "the tides", "old bread"]);
    let mut hog = Hog::start(Some(&cgroup));
    drop_page_cache(&cgroup);
    let used = cgroup.memory().usage().unwrap().0;
    cgroup.set_limit(Bytes(used + 8 * MIB)).unwrap();
    let mut hits = Vec::new();
    for (calm_ms, demand, rate) in [
        (1500, 12, 100),
        (500, 20, 100),
        (3000, 28, 500),
        (1500, 36, 100),
        (5000, 44, 300),
    ] {
        std::thread::sleep(Duration::from_millis(calm_ms));
        if !hits.is_empty() {
            drop_page_cache(&cgroup);
        }
        let before = cgroup.memory().hits().unwrap();
        let lived = hog.grow_bare_at(demand * MIB, rate);
        assert!(lived && cgroup.memory().oom_kills() == 0, "at {demand} MiB");
        hits.push(cgroup.memory().hits().unwrap() - before);
    }
    tell("growth_after_growth", json!({ "hits": hits }));
    assert!(s.status().trims.bytes.0 >= 30 * MIB);
    // One may be missed by a machine that runs nothing for some milliseconds.
    let missed = hits.iter().filter(|h| **h > 0).count();
    assert!(missed <= 1, "{hits:?}");
}

/// Whoever reads a file from end to end needs none of our memory, however often:
/// no page of it is in use when it is evicted.
#[test]
fn a_streaming_read_in_our_cgroup_drops_no_token() {
    let Some((cgroup, s)) = served("stream") else {
        return;
    };
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (room, file, times) in [(64u64, 300u64, 1), (48, 400, 2), (96, 500, 2)] {
        let used = cgroup.memory().usage().unwrap().0;
        // Room for the conversation; the file does not fit.
        cgroup.set_limit(Bytes(used + room * MIB)).unwrap();
        let mut cold = tempfile::NamedTempFile::new_in(dir).unwrap();
        let block = vec![7u8; 1 << 20];
        for _ in 0..file {
            cold.write_all(&block).unwrap();
        }
        cold.as_file().sync_all().unwrap();
        rustix::fs::fadvise(cold.as_file(), 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let (dropped, read) = std::thread::scope(|scope| {
            let talking = scope.spawn(|| ask(&s, "a lighthouse", 200));
            let begun = Instant::now();
            let read = (0..times).all(|_| {
                let mut cat = inside(&cgroup, "cat");
                let cat = cat.arg(cold.path()).stdout(Stdio::null());
                cat.status().unwrap().success()
            });
            tell(
                "streaming_read",
                json!({ "mib": file, "s": begun.elapsed().as_secs_f64() }),
            );
            (talking.join().unwrap(), read)
        });
        assert!(read);
        assert_eq!(dropped, 0, "a file of {file} MiB");
        cgroup.set_limit(Bytes(1 << 40)).unwrap();
    }
}

/// A working set that does not fit is read again and again: it gets the room that
/// conversations which ended have.
#[test]
fn a_working_set_in_our_cgroup_gets_room() {
    let Some((cgroup, s)) = served("working-set") else {
        return;
    };
    talk(&s, &["a lighthouse", "the tides", "old bread"]);
    let mut hog = Hog::start(Some(&cgroup));
    for (room, set) in [(24, 48), (40, 60)] {
        let before = s.status().trims;
        let used = cgroup.memory().anonymous().unwrap().0;
        cgroup.set_limit(Bytes(used + room * MIB)).unwrap();
        // As often as it takes: on a busy machine the neighbour reads slowly.
        let mut returned = 0;
        for _ in 0..30 {
            assert!(hog.read_for(set * MIB, 2500));
            returned = s.status().trims.bytes.0 - before.bytes.0;
            if returned >= (set - room) * MIB / 4 {
                break;
            }
        }
        tell(
            "working_set",
            json!({ "missing": (set - room) * MIB, "returned": returned }),
        );
        assert!(returned >= (set - room) * MIB / 4, "{returned}");
        cgroup.set_limit(Bytes(1 << 40)).unwrap();
    }
}

/// Below another cgroup's limit our memory is of no use, though our cgroup is
/// full of page cache.
#[test]
fn a_neighbour_that_thrashes_below_a_limit_of_its_own_costs_nothing() {
    let Some((cgroup, s)) = served("foreign") else {
        return;
    };
    let Some(theirs) = limited("foreign-theirs", 24 * MIB) else {
        return;
    };
    talk(&s, &["a lighthouse", "the tides"]);
    let used = cgroup.memory().usage().unwrap().0;
    cgroup.set_limit(Bytes(used + 48 * MIB)).unwrap();
    let mut hog = Hog::start(Some(&cgroup));
    // Page cache up to our limit, and over.
    hog.read(96 * MIB);
    std::thread::sleep(Duration::from_secs(2));
    let before = s.status();
    let mut other = Hog::start(Some(&theirs));
    for mib in [64, 40, 96] {
        other.read(mib * MIB);
    }
    let after = s.status();
    tell(
        "foreign_stall",
        json!({ "ignored": s.metric("kvpsi_stalls_ignored_total") }),
    );
    assert_eq!(after.trims.count, before.trims.count);
    assert_eq!(after.kv.resident, before.kv.resident);
    let judged = after.stalls.verdicts.since(&before.stalls.verdicts);
    assert!(judged.foreign > 0 && judged.answered() == 0, "{judged}");
    let ours = &after.walls[0];
    assert_eq!(ours.max.map(|b| b.0), Some(used / 4096 * 4096 + 48 * MIB));
    assert!(
        ours.hits > Some(0) && ours.anonymous < Some(ours.usage),
        "{ours:?}"
    );
    assert_eq!(after.walls.last().unwrap().level, "system");
}

/// Demand comes and goes; a new prompt has the room again.
#[test]
fn room_that_is_there_again_is_used_at_once() {
    let Some((cgroup, s)) = served("recovery") else {
        return;
    };
    let mut hog = Hog::start(Some(&cgroup));
    for demand in [90, 40, 120] {
        talk(&s, &["a lighthouse", "the tides", "old bread"]);
        let used = cgroup.memory().anonymous().unwrap().0;
        cgroup.set_limit(Bytes(used + 60 * MIB)).unwrap();
        // It may lose the race with the OOM killer; that is not this test's.
        hog.grow(demand.min(60 + 20) * MIB);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(ask(&s, "how a ship is built", 60), 0, "after {demand} MiB");
        cgroup.set_limit(Bytes(1 << 40)).unwrap();
    }
}

/// A command that is born into the cgroup.
fn inside(cgroup: &OwnedCgroup, program: &str) -> Command {
    let mut c = Command::new("sh");
    c.args([
        "-c",
        "while [ \"$1\" != -- ]; do echo 0 > \"$1\"; shift; done; shift; exec \"$@\"",
        "sh",
    ]);
    c.args(cgroup.procs()).arg("--").arg(program);
    c
}
