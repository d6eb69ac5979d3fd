//! How soon user space knows of a stall: every source at once, in the same
//! storms, eBPF beside the privileged PSI triggers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::clock::monotonic_ns;
use kvpsi::pressure::{
    PressureSource, SourceConfig, ebpf::EbpfSource, programs::Rung, psi_poll::PsiPoll,
    psi_trigger::PsiTrigger,
};
use kvpsi_common::{Event, Kind};
use kvpsi_tests::{
    figure, skip,
    storm::{Awake, LIMIT_BYTES, Storm, limited},
};
use rustix::event::{PollFd, Timespec, poll};
use serde_json::json;
use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// One storm after another, for so long.
const LENGTH: Duration = Duration::from_secs(16);
/// Between two of them; longer than the longest window: a trigger fires once
/// a window.
const PAUSE: Duration = Duration::from_millis(1200);

/// Stall time and window of the triggers, in ms: what oomd, lmkd and their
/// like may ask for with privilege.
const TRIGGERS: [(u64, u64); 4] = [(10, 500), (10, 1000), (70, 500), (70, 1000)];

/// What a source said, and when.
#[derive(Clone, Copy)]
struct Said {
    read_ns: u64,
    begun_ns: u64,
}

struct Listener {
    name: String,
    ebpf: bool,
    source: Box<dyn PressureSource>,
}

/// Every source that detects stalls here.
fn listeners(test: &str) -> Vec<Listener> {
    let mut all = Vec::new();
    for rung in [Rung::RawTp, Rung::Kprobe, Rung::Fentry] {
        let config = SourceConfig {
            rung,
            ..SourceConfig::default()
        };
        let name = format!("ebpf {}", rung.name());
        match EbpfSource::open(&config) {
            Ok(source) => all.push(Listener {
                name,
                ebpf: true,
                source: Box::new(source),
            }),
            Err(e) => skip(&format!("{test}, {name}"), e),
        }
    }
    for (stall, window) in TRIGGERS {
        let config = SourceConfig {
            trigger_stall: Duration::from_millis(stall),
            trigger_window: Duration::from_millis(window),
            ..SourceConfig::default()
        };
        let name = format!("psi-trigger {stall} ms in {window} ms");
        match PsiTrigger::open(&config) {
            Ok((source, None)) => all.push(Listener {
                name,
                ebpf: false,
                source: Box::new(source),
            }),
            Ok((_, Some(note))) => skip(&format!("{test}, {name}"), note),
            Err(e) => skip(&format!("{test}, {name}"), e),
        }
    }
    let config = SourceConfig {
        poll_interval: Duration::from_millis(10),
        poll_calm: Duration::from_millis(10),
        ..SourceConfig::default()
    };
    match PsiPoll::open(&config) {
        Ok(source) => all.push(Listener {
            name: "psi-poll every 10 ms".into(),
            ebpf: false,
            source: Box::new(source),
        }),
        Err(e) => skip(&format!("{test}, psi-poll"), e),
    }
    all
}

fn is_stall(e: &Event) -> bool {
    e.kind().is_some_and(Kind::is_stall)
}

/// Listens until told otherwise.
fn listen(source: &mut dyn PressureSource, over: &AtomicBool) -> Vec<Said> {
    let mut said = Vec::with_capacity(1 << 16);
    while !over.load(Relaxed) {
        let readiness = source.readiness();
        let timeout = readiness.interval.unwrap_or(Duration::from_millis(50));
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let woken = match readiness.fd {
            Some((fd, flags)) => poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)),
            None => poll(&mut [], Some(&timeout)),
        };
        let read_ns = monotonic_ns();
        // Only a trigger that fired counts, not what its file would tell at
        // any time; the others are asked as their interval says.
        if woken.unwrap() > 0 || readiness.interval.is_some() {
            source
                .drain(&mut |e| {
                    if is_stall(e) {
                        said.push(Said {
                            read_ns,
                            begun_ns: e.ts_ns,
                        });
                    }
                })
                .unwrap();
        }
    }
    said
}

/// When each storm's first stall began, by whichever program saw it first, and
/// when the next one began.
fn onsets(reports: &[(String, bool, Vec<Said>)]) -> Vec<(u64, u64)> {
    let mut stalls: Vec<u64> = reports
        .iter()
        .filter(|(_, ebpf, _)| *ebpf)
        .flat_map(|(_, _, said)| said.iter().map(|s| s.begun_ns))
        .collect();
    stalls.sort_unstable();
    let calm = u64::try_from(PAUSE.as_nanos() / 2).unwrap();
    let mut firsts = vec![];
    let mut last = 0;
    for at in stalls {
        if at > last + calm {
            firsts.push(at);
        }
        last = at;
    }
    let nexts = firsts.iter().skip(1).copied().chain([u64::MAX]);
    firsts.iter().copied().zip(nexts).collect()
}

fn percentile(sorted: &[u64], p: usize) -> u64 {
    sorted[(sorted.len() - 1) * p / 100]
}

#[test]
fn ebpf_reports_an_onset_before_the_best_psi_trigger() {
    let test = "ebpf_reports_an_onset_before_the_best_psi_trigger";
    let Some(cgroup) = limited(test, LIMIT_BYTES) else {
        return;
    };
    let mut listeners = listeners(test);
    if !listeners.iter().any(|l| l.ebpf) {
        // Named above; the onset's own time is unknown without.
        return;
    }
    let _awake = Awake::start();
    let over = AtomicBool::new(false);
    let reports: Vec<(String, bool, Vec<Said>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = listeners
            .drain(..)
            .map(|mut l| {
                let over = &over;
                scope.spawn(move || {
                    let said = listen(l.source.as_mut(), over);
                    (l.name, l.ebpf, said)
                })
            })
            .collect();
        let storm = Storm::start(PRESSURE, Path::new(TMP), &cgroup, LENGTH, PAUSE);
        let mut storm = storm.expect("the child starts");
        while !storm.over().unwrap() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(PAUSE);
        over.store(true, Relaxed);
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });

    let onsets = onsets(&reports);
    assert!(onsets.len() >= 3, "{} onsets", onsets.len());

    let mut best: [Option<(u64, String)>; 2] = [None, None];
    for (name, ebpf, said) in &reports {
        let mut late: Vec<u64> = onsets
            .iter()
            .filter_map(|(onset, next)| {
                let first = said.iter().find(|s| (*onset..*next).contains(&s.read_ns))?;
                Some((first.read_ns - onset) / 1000)
            })
            .collect();
        late.sort_unstable();
        let missed = onsets.len() - late.len();
        let (p50, p99) = match late.is_empty() {
            true => (None, None),
            false => (Some(percentile(&late, 50)), Some(percentile(&late, 99))),
        };
        figure(&json!({
            "figure": "latency", "source": name, "onsets": onsets.len(), "missed": missed,
            "p50_us": p50, "p99_us": p99,
        }));
        let best = &mut best[usize::from(*ebpf)];
        // A trigger that misses storms is no peer.
        if let Some(p50) = p50.filter(|_| missed * 2 < onsets.len())
            && best.as_ref().is_none_or(|(b, _)| p50 < *b)
            && (*ebpf || name.starts_with("psi-trigger"))
        {
            *best = Some((p50, name.clone()));
        }
    }
    let [trigger, ebpf] = best;
    let (ours, rung) = ebpf.expect("eBPF detects most storms");
    let Some((theirs, peer)) = trigger else {
        return skip(test, "no privileged PSI trigger to compare with");
    };
    figure(&json!({
        "figure": "factor", "source": rung, "peer": peer, "p50_us": ours, "peer_p50_us": theirs,
        "factor": theirs.checked_div(ours.max(1)),
    }));
    assert!(ours < theirs, "{rung} {ours} us, {peer} {theirs} us");
}
