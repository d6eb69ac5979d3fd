//! What each source detects on this kernel: the same shortages, every source at
//! once. Its figures make the table in docs/KERNELS.md.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::control::cgroup::OwnedCgroup;
use kvpsi::pressure::{
    PressureSource, SourceConfig,
    ebpf::EbpfSource,
    programs::{Rung, State},
    psi_poll::PsiPoll,
    psi_trigger::PsiTrigger,
    vmstat::Vmstat,
};
use kvpsi_common::{Counters, Kind, KindCounters};
use kvpsi_tests::{
    emulated, figure, skip,
    storm::{LIMIT_BYTES, Storm, fill_page_cache, limited, meminfo},
};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A source without programs; it cannot tell one cause from another.
struct Plain {
    name: &'static str,
    source: Box<dyn PressureSource>,
    events: [u64; 3],
}

fn plain(test: &str) -> Vec<Plain> {
    let config = SourceConfig::default();
    let opened: [(&str, Result<Box<dyn PressureSource>, _>); 3] = [
        (
            "psi-trigger",
            PsiTrigger::open(&config).map(|(s, _)| Box::new(s) as Box<dyn PressureSource>),
        ),
        (
            "psi-poll",
            PsiPoll::open(&config).map(|s| Box::new(s) as Box<dyn PressureSource>),
        ),
        (
            "vmstat",
            Vmstat::open(&config).map(|s| Box::new(s) as Box<dyn PressureSource>),
        ),
    ];
    let mut all = Vec::new();
    for (name, source) in opened {
        match source {
            Ok(source) => all.push(Plain {
                name,
                source,
                events: [0; 3],
            }),
            Err(e) => refused(test, name, &e.to_string()),
        }
    }
    all
}

fn refused(test: &str, source: &str, why: &str) {
    skip(&format!("{test}, {source}"), why);
    figure(&json!({ "figure": "events", "source": source, "refused": why }));
}

/// Waits for a child, also one that is killed.
fn wait(mut child: Child) {
    child.wait().unwrap();
}

fn grow(bytes: u64, ms: u64, cgroup: Option<&OwnedCgroup>) -> Child {
    Command::new(PRESSURE)
        .args(["grow", &bytes.to_string(), &ms.to_string()])
        .args(cgroup.iter().flat_map(|c| c.procs()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// One task after another reclaims at its cgroup's limit.
fn short_cgroup(cgroup: &OwnedCgroup) {
    let length = Duration::from_millis(if emulated() { 5000 } else { 1500 });
    let storm = Storm::start(PRESSURE, Path::new(TMP), cgroup, length, Duration::ZERO);
    let mut storm = storm.unwrap();
    while !storm.over().unwrap() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// More anonymous memory than the cgroup may have, and nothing to reclaim.
fn out_of_memory(cgroup: &OwnedCgroup) {
    // Where there is swap it would only be slow; v1 has no such file.
    let swap = cgroup.memory().path.join("memory.swap.max");
    if swap.exists() {
        fs::write(swap, "0").unwrap();
    }
    wait(grow(4 * LIMIT_BYTES, 2000, Some(cgroup)));
}

/// The whole machine is full of page cache, and two tasks grow.
fn short_machine() {
    let (free, total) = (meminfo("MemAvailable:"), meminfo("MemTotal:"));
    let _cached = fill_page_cache(Path::new(TMP), free).unwrap();
    // All but what the machine itself needs.
    let each = free.saturating_sub(total / 10) / 2;
    for child in [grow(each, 2000, None), grow(each, 2000, None)] {
        wait(child);
    }
}

/// What of a cause a source with programs counted. With programs on
/// psi_memstall_enter the hooks of reclaim fire inside a stall, which only
/// then is known for what it is.
fn row(c: &Counters, before: &Counters, kinds: &[Kind]) -> u64 {
    let since = |of: fn(&KindCounters) -> u64| -> u64 {
        kinds.iter().map(|k| of(c.of(*k)) - of(before.of(*k))).sum()
    };
    since(|k| k.seen)
        .max(since(|k| k.nested))
        .max(since(|k| k.settled))
}

/// As PSI sees it: what programs on psi_memstall_enter settled it as.
const MEMSTALL: [Kind; 4] = [
    Kind::Memstall,
    Kind::Refault,
    Kind::SwapIn,
    Kind::MemcgThrottle,
];

/// The lowest rung, or a skip of `test`.
fn tracepoints(test: &str) -> Option<EbpfSource> {
    let config = SourceConfig {
        rung: Rung::RawTp,
        ..SourceConfig::default()
    };
    EbpfSource::open(&config).map_err(|e| skip(test, e)).ok()
}

/// Of each kernel thread by its name, whatever it waits for: here it is a process that
/// has the name.
#[test]
fn work_of_kernel_threads_is_counted_and_is_no_stall() {
    let test = "work_of_kernel_threads";
    let Some(cgroup) = limited(test, LIMIT_BYTES) else {
        return;
    };
    let dir = tempfile::tempdir_in(TMP).unwrap();
    for name in ["khugepaged", "kswapd0", "ksmd", "khug"] {
        let Some(mut source) = tracepoints(test) else {
            return;
        };
        let program = dir.path().join(name);
        fs::copy(PRESSURE, &program).unwrap();
        let length = Duration::from_millis(if emulated() { 5000 } else { 700 });
        let program = program.to_str().unwrap();
        let storm = Storm::start(program, Path::new(TMP), &cgroup, length, Duration::ZERO);
        let mut storm = storm.unwrap();
        let mut stalls = 0;
        while !storm.over().unwrap() {
            std::thread::sleep(Duration::from_millis(10));
            source
                .drain(&mut |e| stalls += u64::from(e.comm_str() == name))
                .unwrap();
        }
        let background = source.counters().counters().background;
        figure(&json!({
            "figure": "background", "name": name, "background": background, "stalls": stalls,
        }));
        if name == "khug" {
            assert!(stalls > 0, "a process of that name does stall");
        } else {
            assert!(
                background > 20 && stalls == 0,
                "{name}: {background}, {stalls}"
            );
        }
    }
}

/// `sched_process_exit` comes before a task has left its memory: where it waits for
/// reclaim after that, nobody would take its entry away.
#[test]
fn tasks_that_stall_on_their_way_out_leave_no_entry() {
    let test = "tasks_that_stall_on_their_way_out";
    // Room for threads that are on their way out and hold their kernel stacks.
    let Some(cgroup) = limited(test, 2 * LIMIT_BYTES) else {
        return;
    };
    let Some(mut source) = tracepoints(test) else {
        return;
    };
    let mut stalls = 0;
    for _ in 0..3 {
        let length = Duration::from_secs(2);
        let storm = Storm::start(PRESSURE, Path::new(TMP), &cgroup, length, Duration::ZERO);
        let mut storm = storm.unwrap();
        let mut exits = Command::new(PRESSURE)
            .args(["exits", "1500"])
            .args(cgroup.procs())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        while exits.try_wait().unwrap().is_none() || !storm.over().unwrap() {
            std::thread::sleep(Duration::from_millis(1));
            source
                .drain(&mut |e| stalls += u64::from(e.comm_str() == "exit"))
                .unwrap();
        }
    }
    // Threads of others exit meanwhile: an entry that is left stays.
    let dead = |followed: &[u32]| -> Vec<u32> {
        let lives = |tid: &u32| Path::new(&format!("/proc/{tid}")).exists();
        followed.iter().copied().filter(|tid| !lives(tid)).collect()
    };
    let first = dead(&source.followed().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let followed = source.followed().unwrap();
    let last = dead(&followed);
    let dead = last.iter().filter(|tid| first.contains(tid)).count();
    figure(&json!({
        "figure": "exits", "stalls": stalls, "followed": followed.len(), "dead": dead,
    }));
    assert_eq!(dead, 0, "of {} entries, {stalls} events", followed.len());
    if stalls == 0 {
        skip(
            test,
            "no task stalled on its way out (this kernel tells of exits later)",
        );
    }
}

#[test]
fn every_source_detects_stalls_the_shortages_that_it_is_there_for() {
    let test = "every_source_detects_stalls";
    let Some(cgroup) = limited(test, LIMIT_BYTES) else {
        return;
    };
    let mut sources: Vec<(Rung, EbpfSource)> = Vec::new();
    for rung in [Rung::RawTp, Rung::Kprobe, Rung::Fentry] {
        let config = SourceConfig {
            rung,
            ..SourceConfig::default()
        };
        match EbpfSource::open(&config) {
            Ok(s) => sources.push((rung, s)),
            Err(e) => refused(test, &format!("ebpf {}", rung.name()), &e.to_string()),
        }
    }
    let mut others = plain(test);
    let counters = |s: &[(Rung, EbpfSource)]| -> Vec<Counters> {
        s.iter().map(|(_, s)| s.counters().counters()).collect()
    };
    let mut listen = |sources: &mut Vec<(Rung, EbpfSource)>, which: usize| {
        // What is waiting in the ring buffers is of no interest: the counters
        // have it.
        for (_, s) in sources {
            s.drain(&mut |_| {}).unwrap();
        }
        for o in &mut others {
            // A trigger's file reports stalls at any time; it has reported
            // one if it fired.
            let fired = match o.source.readiness().fd {
                Some((fd, flags)) => {
                    poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&AT_ONCE)).unwrap() > 0
                }
                None => true,
            };
            if fired {
                let mut stalls = 0;
                o.source
                    .drain(&mut |e| stalls += u64::from(e.kind().is_some_and(Kind::is_stall)))
                    .unwrap();
                o.events[which] += stalls;
            }
        }
    };
    let start = counters(&sources);
    short_cgroup(&cgroup);
    listen(&mut sources, 0);
    let after_cgroup = counters(&sources);
    out_of_memory(&cgroup);
    listen(&mut sources, 1);
    let after_oom = counters(&sources);
    if emulated() {
        short_machine();
    } else {
        skip(
            &format!("{test}, direct reclaim and kswapd"),
            "everybody here would starve: `cargo xtask vm` makes it happen",
        );
    }
    listen(&mut sources, 2);
    let end = counters(&sources);

    for (i, (rung, source)) in sources.iter().enumerate() {
        let cgroup = row(&after_cgroup[i], &start[i], &[Kind::MemcgReclaim]);
        let oom = row(&after_oom[i], &after_cgroup[i], &[Kind::OomVictim]);
        let direct = row(&end[i], &after_oom[i], &[Kind::DirectReclaim]);
        let kswapd = row(&end[i], &after_oom[i], &[Kind::KswapdWake]);
        // Whatever it settled as.
        let memstall = row(&end[i], &start[i], &MEMSTALL);
        let (mut loaded, mut attached, mut not) = (0, 0, Vec::new());
        for p in source.programs() {
            match &p.state {
                State::Attached => {
                    loaded += 1;
                    attached += 1;
                }
                State::NotAttached(why) => {
                    loaded += 1;
                    not.push(format!("{}: {why}", p.name));
                }
                State::NotLoaded(why) => not.push(format!("{}: {why}", p.name)),
                State::NotTried(_) | State::NotNeeded(_) => {}
            }
        }
        let tried = emulated();
        figure(&json!({
            "figure": "events", "source": format!("ebpf {}", rung.name()),
            "loaded": loaded, "attached": attached, "not": not,
            "memcg": cgroup, "oom": oom, "memstall": memstall,
            "direct": tried.then_some(direct), "kswapd": tried.then_some(kswapd),
        }));
        assert!(cgroup > 0, "{rung:?} does not detect reclaim in a cgroup");
        assert!(oom > 0, "{rung:?} does not detect the OOM killer");
        assert!(
            !tried || direct > 0,
            "{rung:?} does not detect direct reclaim"
        );
        assert!(!tried || kswapd > 0, "{rung:?} does not detect kswapd");
        assert!(*rung == Rung::RawTp || memstall > 0, "{rung:?}: memstall");
    }
    for o in &others {
        let direct = emulated().then_some(o.events[2]);
        figure(&json!({
            "figure": "events", "source": o.name, "memcg": o.events[0], "direct": direct,
            "kswapd": Value::Null, "oom": Value::Null,
        }));
    }
}
