//! The rungs of eBPF: each one that attaches detects a storm, counts what both
//! families of hooks see once, and keeps time as PSI does.

use kvpsi::control::cgroup::OwnedCgroup;
use kvpsi::pressure::{
    PressureSource, SourceConfig,
    accounting::Accounting,
    ebpf::{EbpfSource, EbpfStats},
    programs::Rung,
};
use kvpsi_common::{Counters, Event, Kind, Phase};
use kvpsi_tests::{
    emulated, skip,
    storm::{LIMIT_BYTES, Storm, limited},
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");
const MEMSTALL: [Rung; 2] = [Rung::Kprobe, Rung::Fentry];

/// How long to wait for what must come: emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clocks of the whole system are compared: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn open(test: &str, rung: Rung, trace: Option<u32>) -> Option<EbpfSource> {
    let config = SourceConfig {
        rung,
        trace_ring_bytes: trace,
        ..SourceConfig::default()
    };
    match EbpfSource::open(&config) {
        Ok(source) => {
            assert!(rung == Rung::Auto || source.rung() == rung);
            Some(source)
        }
        Err(why) => {
            skip(&format!("{test}, rung {}", rung.name()), why);
            None
        }
    }
}

/// Runs a storm; `meanwhile` is called again and again.
fn storm(cgroup: &OwnedCgroup, length: Duration, mut meanwhile: impl FnMut()) {
    let child = Storm::start(PRESSURE, Path::new(TMP), cgroup, length, Duration::ZERO);
    wait(child.expect("the child starts"), || {
        meanwhile();
        false
    });
}

/// Reads a file in no order until `enough`.
fn thrash(cgroup: &OwnedCgroup, bytes: usize, enough: impl FnMut() -> bool) {
    let child = Storm::thrash(PRESSURE, Path::new(TMP), cgroup, bytes, PATIENCE);
    wait(child.expect("the child starts"), enough);
}

fn wait(mut storm: Storm, mut enough: impl FnMut() -> bool) {
    while !storm.over().expect("the child runs") && !enough() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Touches more anonymous memory than the cgroup may have, until `enough`.
fn grow(cgroup: &OwnedCgroup, bytes: u64, mut enough: impl FnMut() -> bool) {
    let mut child = Command::new(PRESSURE)
        .arg("grow")
        .arg(bytes.to_string())
        .arg(PATIENCE.as_millis().to_string())
        .args(cgroup.procs())
        .stdin(Stdio::null())
        .spawn()
        .expect("the child starts");
    while child.try_wait().expect("the child runs").is_none() && !enough() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _over = child.kill();
    child.wait().expect("the child ends");
}

/// This thread, and children it starts, on the first CPU alone; and no other
/// CPU at all where the machine is ours. PSI averages over CPUs that are not
/// idle: with one of them it has nothing to average.
struct OneCpu {
    before: CpuSet,
    offline: Vec<PathBuf>,
}

impl OneCpu {
    fn start() -> Self {
        let before = sched_getaffinity(None).expect("affinity");
        let mut one = CpuSet::new();
        one.set(0);
        sched_setaffinity(None, &one).expect("CPU 0 is there");
        let others = (1..64).map(|n| format!("/sys/devices/system/cpu/cpu{n}/online"));
        let offline = others
            .map(PathBuf::from)
            .take_while(|_| emulated())
            .filter(|file| file.exists() && fs::write(file, "0").is_ok());
        Self {
            before,
            offline: offline.collect(),
        }
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        for file in &self.offline {
            fs::write(file, "1").expect("the CPU comes back");
        }
        sched_setaffinity(None, &self.before).expect("as before");
    }
}

fn settled(c: &Counters) -> String {
    Kind::ALL
        .into_iter()
        .filter(|k| c.of(*k).seen + c.of(*k).settled + c.of(*k).nested > 0)
        .map(|k| {
            let k_ = c.of(k);
            format!(
                "{} seen {} nested {} settled {} in {} ms; ",
                k.name(),
                k_.seen,
                k_.nested,
                k_.settled,
                k_.stall_ns / 1_000_000
            )
        })
        .collect()
}

fn stalls(count: impl Fn(Kind) -> u64) -> u64 {
    Kind::ALL
        .into_iter()
        .filter(|k| k.is_stall())
        .map(count)
        .sum()
}

#[test]
fn each_rung_counts_a_stall_once_and_its_books_balance() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    for rung in [Rung::RawTp, Rung::Kprobe, Rung::Fentry] {
        let test = "each_rung_counts_a_stall_once";
        let Some(cgroup) = limited(test, LIMIT_BYTES) else {
            return;
        };
        let Some(mut source) = open(test, rung, None) else {
            continue;
        };
        let stats = source.counters();
        let mut events: Vec<Event> = Vec::new();
        storm(&cgroup, Duration::from_millis(1500), || {
            source.drain(&mut |e| events.push(*e)).unwrap();
        });
        source.drain(&mut |e| events.push(*e)).unwrap();
        let c = stats.counters();
        eprintln!("rung {}: {}", rung.name(), settled(&c));
        eprintln!(
            "rung {}: stalls {} events {} wake-ups {}",
            rung.name(),
            c.total().seen,
            events.len(),
            c.wakeups
        );
        assert!(c.balanced(), "{c:?}");
        assert_eq!(c.total().dropped, 0);
        assert_eq!((c.implausible, c.untracked), (0, 0), "{c:?}");
        assert!(c.lost_ends <= 2, "{c:?}");
        // What began has ended, but for a neighbour's stall under way.
        let (seen, over) = (stalls(|k| c.of(k).seen), stalls(|k| c.of(k).settled));
        assert!(over <= seen + 4 && over + 64 >= seen, "{over} of {seen}");
        let memcg = c.of(Kind::MemcgReclaim);
        let pages: u64 = events.iter().map(|e| e.pages).sum();
        assert!(memcg.settled > 100 && pages > 1000, "{c:?}");
        if rung == Rung::RawTp {
            assert!(memcg.seen > 100);
            assert_eq!(c.of(Kind::Memstall).seen, 0);
        } else {
            // Every reclaim lies inside a stall that PSI's hooks saw first.
            assert!(memcg.seen <= 4 && memcg.nested > 100, "{c:?}");
            assert!(memcg.settled <= memcg.nested + memcg.seen);
            assert!(c.of(Kind::Memstall).seen >= memcg.settled);
            assert_eq!(c.of(Kind::Memstall).settled, 0);
            let onset = events.iter().find(|e| e.phase() == Some(Phase::Onset));
            assert!(onset.is_some());
        }
    }
}

#[test]
fn stall_time_of_the_memstall_rung_is_within_5_percent_of_psi() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let test = "stall_time_is_within_5_percent";
    let Some(cgroup) = limited("stall_time", LIMIT_BYTES) else {
        return;
    };
    let length = Duration::from_secs(5);
    for rung in MEMSTALL {
        compare(test, rung, "reclaim", |_| storm(&cgroup, length, || {}));
        compare(test, rung, "reclaim and refaults", |stats| {
            thrash(&cgroup, 20 << 20, || {
                let refaults = stats.counters().of(Kind::Refault).stall_ns;
                refaults > 700_000_000
            });
        });
    }
}

/// Runs `pressure` under `rung`, and under the base rung, and under PSI.
fn compare(test: &str, rung: Rung, what: &str, pressure: impl FnOnce(&EbpfStats)) {
    let Some(source) = open(test, rung, None) else {
        return;
    };
    let base = open(test, Rung::RawTp, None).expect("the base rung is below every other");
    let one_cpu = OneCpu::start();
    let (stats, base_stats) = (source.counters(), base.counters());
    let (since, base_since) = (Accounting::start(&stats), Accounting::start(&base_stats));
    pressure(&stats);
    let (account, base) = (
        since.read(&stats, true),
        base_since.read(&base_stats, false),
    );
    drop(one_cpu);
    eprintln!("{what}, rung {}: {account}", rung.name());
    eprintln!("{what}, rung raw-tp: {base}");
    let ours = account.memstall.expect("the rung is in use").some_ns;
    assert!(ours > 100_000_000, "the storm was a calm: {account}");
    let Some(psi) = account.psi else {
        return skip(test, "no PSI to compare with: our own clock alone was read");
    };
    let off = |ns: u64| (ns as f64 / psi.some_ns as f64 - 1.0) * 100.0;
    eprintln!(
        "{what}: against PSI rung {} is off by {:+.2} %, rung raw-tp by {:+.2} %",
        rung.name(),
        off(ours),
        off(base.system.some_ns)
    );
    assert!(off(ours).abs() < 5.0, "{:+.2} %", off(ours));
}

#[test]
fn waits_for_evicted_pages_show_as_refaults() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let test = "waits_for_evicted_pages";
    let Some(cgroup) = limited("refault", 8 << 20) else {
        return;
    };
    for rung in MEMSTALL {
        let Some(mut source) = open(test, rung, Some(16 << 20)) else {
            continue;
        };
        let mut ring = source.take_trace().expect("trace mode is on");
        let stats = source.counters();
        let mut ends = 0u64;
        let mut look = |e: &Event| {
            if e.kind() == Some(Kind::Memstall) && e.phase() == Some(Phase::End) && e.count == 1 {
                ends += u64::from(e.detail == Kind::Refault as u64);
            }
        };
        thrash(&cgroup, 12 << 20, || {
            source.drain(&mut |_| {}).unwrap();
            ring.drain(&mut look).unwrap();
            stats.counters().of(Kind::Refault).settled > 100
        });
        ring.drain(&mut look).unwrap();
        let c = stats.counters();
        eprintln!("rung {}: {}", rung.name(), settled(&c));
        assert_eq!(c.trace_dropped, 0);
        assert!(c.of(Kind::Refault).settled > 10, "{}", settled(&c));
        assert!(ends > 10 && ends <= c.of(Kind::Refault).settled);
    }
}

#[test]
fn a_task_that_must_wait_for_memory_high_shows_as_throttled() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let test = "a_task_that_must_wait_for_memory_high";
    let Some(cgroup) = limited("high", 256 << 20) else {
        return;
    };
    // With swap there is something to reclaim, and no task waits.
    let _no_swap = fs::write(cgroup.memory().path.join("memory.swap.max"), "0");
    let high = cgroup.memory().path.join("memory.high");
    if let Err(e) = fs::write(&high, "4194304") {
        return skip(test, format!("memory.high cannot be set: {e}"));
    }
    for rung in MEMSTALL {
        let Some(mut source) = open(test, rung, None) else {
            continue;
        };
        let stats = source.counters();
        grow(&cgroup, 24 << 20, || {
            source.drain(&mut |_| {}).unwrap();
            stats.counters().of(Kind::MemcgThrottle).stall_ns > 10_000_000
        });
        let c = stats.counters();
        eprintln!("rung {}: {}", rung.name(), settled(&c));
        let throttled = c.of(Kind::MemcgThrottle);
        assert!(throttled.settled > 0, "{}", settled(&c));
        assert!(throttled.stall_ns > 10_000_000, "{}", settled(&c));
    }
}

#[test]
fn waits_for_pages_from_swap_show_as_swap_in() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let test = "waits_for_pages_from_swap";
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() < 2 {
        return skip(test, "no swap is on");
    }
    let Some(cgroup) = limited("swap", 8 << 20) else {
        return;
    };
    for rung in MEMSTALL {
        let Some(mut source) = open(test, rung, None) else {
            continue;
        };
        let stats = source.counters();
        grow(&cgroup, 12 << 20, || {
            source.drain(&mut |_| {}).unwrap();
            stats.counters().of(Kind::SwapIn).settled > 100
        });
        let c = stats.counters();
        eprintln!("rung {}: {}", rung.name(), settled(&c));
        assert!(c.of(Kind::SwapIn).settled > 10, "{}", settled(&c));
    }
}
