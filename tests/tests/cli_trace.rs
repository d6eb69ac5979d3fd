//! `kvpsi trace-dump`, `record` and `replay` on the stalls of a real cgroup.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{
    kvpsi_binary, perfetto, quiet, skip,
    storm::{LIMIT_BYTES, Storm, limited},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    ffi::CString,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

fn kvpsi(args: &[&str]) -> Output {
    let mut c = quiet(Command::new(kvpsi_binary()));
    c.args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that ends by itself while a child stalls in a cgroup, or
/// skips: without eBPF there are no events to look at.
fn beside_a_storm(test: &str, args: &[&str]) -> Option<Output> {
    if let Err(e) = kvpsi::pressure::ebpf::EbpfSource::open(&Default::default()) {
        skip(test, e);
        return None;
    }
    let cgroup = limited(test, LIMIT_BYTES)?;
    let pause = Duration::from_millis(20);
    let length = Duration::from_secs(8);
    let storm = Storm::start(PRESSURE, Path::new(TMP), &cgroup, length, pause).unwrap();
    let out = kvpsi(args);
    drop(storm);
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{err}");
    Some(out)
}

/// Number of an asynchronous slice within its process.
#[derive(Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(deny_unknown_fields)]
struct Local {
    local: String,
}

/// An entry of the Trace Event Format: what each phase must have.
#[derive(Debug, Deserialize)]
#[serde(tag = "ph", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "that a field is there, and of its type, is the test"
)]
enum Traced {
    X {
        name: String,
        cat: String,
        pid: u32,
        tid: u32,
        ts: f64,
        dur: f64,
        args: Value,
    },
    #[serde(rename = "b")]
    Begin {
        name: String,
        cat: String,
        id2: Local,
        pid: u32,
        tid: u32,
        ts: f64,
        #[serde(default)]
        args: Value,
    },
    #[serde(rename = "e")]
    End {
        name: String,
        cat: String,
        id2: Local,
        pid: u32,
        tid: u32,
        ts: f64,
        #[serde(default)]
        args: Value,
    },
    #[serde(rename = "i")]
    Instant {
        name: String,
        cat: String,
        pid: u32,
        tid: u32,
        ts: f64,
        s: String,
        args: Value,
    },
    C {
        name: String,
        pid: u32,
        ts: f64,
        args: HashMap<String, f64>,
    },
    M {
        name: String,
        pid: u32,
        tid: u32,
        args: HashMap<String, String>,
    },
}

#[test]
fn stalls_become_a_trace_that_keeps_to_the_format() {
    let test = "stalls_become_a_trace_that_keeps_to_the_format";
    let args = ["trace-dump", "--format", "perfetto", "--duration", "2"];
    let Some(out) = beside_a_storm(test, &args) else {
        return;
    };
    let all: Vec<Traced> = serde_json::from_slice(&out.stdout).unwrap();
    let (mut slices, mut open) = (HashMap::<_, Vec<(f64, f64)>>::new(), HashMap::new());
    let (mut counters, mut named) = (0, 0);
    for entry in &all {
        match entry {
            Traced::X {
                pid, tid, ts, dur, ..
            } => slices.entry((pid, tid)).or_default().push((*ts, ts + dur)),
            Traced::Begin {
                id2, name, pid, ts, ..
            } => {
                assert!(open.insert((name, pid, id2), ts).is_none());
            }
            Traced::End {
                id2, name, pid, ts, ..
            } => assert!(open.remove(&(name, pid, id2)).unwrap() <= ts),
            Traced::C { args, .. } => {
                counters += 1;
                assert!(args.values().all(|v| v.is_finite() && *v >= 0.0));
            }
            Traced::M { name, args, .. } => {
                named += 1;
                assert!(name.ends_with("_name") && args.contains_key("name"));
            }
            Traced::Instant { s, .. } => assert!(["g", "p", "t"].contains(&s.as_str())),
        }
    }
    assert!(!slices.is_empty() && counters > 10 && named > 2, "{all:?}");
    assert!(open.len() <= 1, "kswapd at most: {open:?}");
    // Slices of one track lie side by side or within each other; a nanosecond
    // is a thousandth.
    for track in slices.values_mut() {
        track.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut within: Vec<f64> = vec![];
        for (begin, end) in track {
            within.retain(|outer| *outer > *begin + 0.001);
            if let Some(outer) = within.last() {
                assert!(*end <= outer + 0.001, "{begin} to {end} ends after {outer}");
            }
            within.push(*end);
        }
    }
}

#[test]
fn perfetto_loads_a_trace_and_finds_tracks_slices_and_counters_in_it() {
    let test = "perfetto_loads_a_trace_and_finds_tracks_slices_and_counters_in_it";
    let Some(engine) = perfetto::engine(test) else {
        return;
    };
    let args = ["trace-dump", "--format", "perfetto", "--duration", "2"];
    let Some(out) = beside_a_storm(test, &args) else {
        return;
    };
    let answers = engine.ask(
        &out.stdout,
        &[
            "select thread.name, count(*) n, min(dur) least, max(dur) most from slice join thread_track on thread_track.id = track_id join thread using (utid) where slice.name = 'memcg_reclaim' group by 1",
            "select process.name, count(*) n from slice join process_track on process_track.id = track_id join process using (upid) where process.name glob 'CPU [0-9]*' and slice.name glob '* memcg_reclaim' group by 1",
            "select t.name, count(*) n, max(value) most from counter c join counter_track t on t.id = c.track_id group by 1",
        ],
    );
    let [by_thread, by_cpu, counters] = &answers[..] else {
        panic!("{answers:?}");
    };
    // A stall of a task lies on its own track and on its processor's; one inside
    // another, as kernels have them that tell of refaults, only on its own.
    let sum = |rows: &[Value]| rows.iter().filter_map(|r| r["n"].as_u64()).sum::<u64>();
    assert!(sum(by_thread) >= 10, "{by_thread:?}");
    let (tasks, cpus) = (sum(by_thread), sum(by_cpu));
    assert!(
        cpus <= tasks && 2 * cpus >= tasks,
        "{by_thread:?} {by_cpu:?}"
    );
    let lasting = |r: &Value| r["least"].as_i64() >= Some(0) && r["most"].as_i64() > Some(0);
    assert!(by_thread.iter().all(lasting), "{by_thread:?}");
    for name in ["PSI memory, % some", "stalled tasks tasks"] {
        let found = counters.iter().find(|c| c["name"] == name);
        let found = found.unwrap_or_else(|| panic!("no {name} in {counters:?}"));
        assert!(found["n"].as_u64() > Some(3), "{found}");
    }
}

#[test]
fn a_summary_names_the_stalled_tasks_and_a_filter_shows_no_other() {
    let test = "a_summary_names_the_stalled_tasks_and_a_filter_shows_no_other";
    let args = ["trace-dump", "--summary", "--duration", "1.5"];
    let Some(out) = beside_a_storm(test, &args) else {
        return;
    };
    let text = String::from_utf8_lossy(&out.stdout);
    let line = |start: &str| text.lines().find(|l| l.starts_with(start));
    let reclaim = line("memcg_reclaim ").unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<&str> = reclaim.split_whitespace().collect();
    let number = |i: usize| cells[i].parse::<f64>().unwrap();
    assert!(number(1) >= 10.0, "{text}");
    assert!(
        number(3) > 0.0 && number(3) <= number(4) && number(4) <= number(5) * 1.01,
        "{text}"
    );
    assert!(line("pressure ").is_some() && text.contains('#'), "{text}");
    let args = ["--comm", "pressure", "--min-us", "5", "--duration", "1.5"];
    let args = [&["trace-dump", "--format", "jsonl"][..], &args].concat();
    let out = beside_a_storm(test, &args).unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.lines().count() > 5, "{text}");
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["comm"], "pressure");
        assert!(event["stall_ns"].as_u64().unwrap() >= 5000, "{event}");
    }
}

#[test]
fn a_cgroup_that_no_event_names_is_refused_with_what_to_give() {
    let test = "a_cgroup_that_no_event_names_is_refused_with_what_to_give";
    let dump = |path: &str| kvpsi(&["trace-dump", "--cgroup", path, "--duration", "0"]);
    let refused = |path: &str, says: &str| {
        let out = dump(path);
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{err}");
        for says in [path, says, "v2"] {
            assert!(err.contains(says), "`{says}` is not in: {err}");
        }
    };
    refused("/proc", "is no cgroup of v2");
    match kvpsi::control::cgroup::MemoryCgroup::of_self() {
        Ok(own) if own.version == kvpsi::control::cgroup::Version::V1 => {
            refused(own.path.to_str().unwrap(), "is a cgroup of v1");
        }
        // Where it is v2 its folder is taken.
        Ok(own) => {
            let err = dump(own.path.to_str().unwrap()).stderr;
            let err = String::from_utf8_lossy(&err).into_owned();
            assert!(!err.contains("--cgroup"), "{err}");
        }
        Err(e) => skip(test, e),
    }
}

/// A replay said no more than what a recording of no model lacks.
fn whole(replayed: &Output) {
    let err = String::from_utf8_lossy(&replayed.stderr);
    assert!(
        replayed.status.success() && !err.contains(".rec: "),
        "{err}"
    );
    assert!(err.contains("holds no cache"), "{err}");
}

#[test]
fn what_is_recorded_is_replayed_the_same_twice_and_damage_is_reported() {
    let test = "what_is_recorded_is_replayed_the_same_twice_and_damage_is_reported";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("box.rec");
    let name = file.to_str().unwrap();
    let args = ["record", "-o", name, "--duration", "2"];
    if beside_a_storm(test, &args).is_none() {
        return;
    }
    let replay = |file: &str| kvpsi(&["replay", file, "--json"]);
    let first = replay(name);
    whole(&first);
    assert_eq!(first.stdout, replay(name).stdout);
    let all: Value = serde_json::from_slice(&first.stdout).unwrap();
    let rows = all["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    let delivered = &rows[0]["outcome"]["events"]["delivered"];
    assert!(delivered.as_u64().unwrap() > 0, "{all}");
    let table = kvpsi(&["replay", name]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(
        table.contains("balanced, keydiff") && table.contains("given back"),
        "{table}"
    );

    let bytes = std::fs::read(&file).unwrap();
    let other = dir.path().join("other.rec");
    let other_name = other.to_str().unwrap();
    std::fs::write(&other, &bytes[..bytes.len() - 3]).unwrap();
    let out = replay(other_name);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.success() && err.contains("cut off at byte"),
        "{err}"
    );
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    std::fs::write(&other, flipped).unwrap();
    let err = String::from_utf8_lossy(&replay(other_name).stderr).into_owned();
    assert!(err.contains("bytes from there on are left out"), "{err}");
    std::fs::write(&other, b"GGUF, or anything else").unwrap();
    let out = replay(other_name);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(
        err.contains("other.rec") && err.contains("is no recording"),
        "{err}"
    );
}

/// A file system of one page, gone with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> rustix::io::Result<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let size = CString::new("size=4k").unwrap();
        mount(
            "tmpfs",
            &at,
            "tmpfs",
            MountFlags::empty(),
            Some(size.as_c_str()),
        )?;
        Ok(Self(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::empty());
    }
}

#[test]
fn a_full_disk_ends_a_recording_that_can_be_read() {
    let test = "a_full_disk_ends_a_recording_that_can_be_read";
    let dir = tempfile::tempdir().unwrap();
    let small = match Small::mount(dir.path().join("small")) {
        Ok(small) => small,
        Err(e) => return skip(test, format!("no file system can be mounted: {e}")),
    };
    let file = small.0.join("r");
    let name = file.to_str().unwrap();
    // Levels and PSI fill it by themselves, at any source.
    let args = ["record", "-o", name, "--max-size", "0", "--duration", "60"];
    let out = kvpsi(&args);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(
        err.contains("is whole up to there") && err.contains("No space left"),
        "{err}"
    );
    whole(&kvpsi(&["replay", name]));
    assert!(std::fs::metadata(&file).unwrap().len() > 1024);
}
