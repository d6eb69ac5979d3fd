//! What may befall the way from the kernel to a running server: its reader
//! stands still, or its programs are detached.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{
    model,
    served::Served,
    skip,
    storm::{LIMIT_BYTES, Storm, limited},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// A server that listens by eBPF, or a skip.
fn hearing(test: &str) -> Option<Served> {
    if let Err(e) = kvpsi::pressure::ebpf::EbpfSource::open(&Default::default()) {
        skip(test, e);
        return None;
    }
    Some(Served::start(&model(test)?, &["--signal", "ebpf"], None))
}

fn answers(s: &Served) -> u16 {
    let body: Value = json!({"prompt": "A lamp", "max_tokens": 3});
    s.post("/v1/completions", &body).0
}

fn storm(test: &str, length: Duration) -> Option<Storm> {
    let cgroup = limited(test, LIMIT_BYTES)?;
    let pause = Duration::from_millis(1);
    let mut storm = Storm::start(PRESSURE, Path::new(TMP), &cgroup, length, pause).unwrap();
    while !storm.over().unwrap() {
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(storm)
}

#[test]
fn events_that_a_reader_which_stands_still_misses_are_counted_and_it_goes_on() {
    let test = "events_that_a_reader_which_stands_still_misses_are_counted_and_it_goes_on";
    let Some(s) = hearing(test) else { return };
    s.signal(Signal::STOP);
    // At most one event a millisecond: the ring buffer has room for two seconds.
    let stormed = storm(test, Duration::from_secs(8));
    s.signal(Signal::CONT);
    if stormed.is_none() {
        return;
    }
    let at_rest = s.status().stalls;
    assert!(at_rest.dropped > 0, "nothing was dropped: {at_rest:?}");
    assert_eq!(
        at_rest.seen,
        at_rest.delivered + at_rest.coalesced + at_rest.dropped
    );
    let (_, text) = s.get("/metrics");
    let line = format!("kvpsi_events_total{{fate=\"dropped\"}} {}", at_rest.dropped);
    assert!(text.contains(&line), "{line}: {text}");
    // Events arrive again, and nothing is dropped any more.
    storm(test, Duration::from_secs(1));
    let after = s.status().stalls;
    assert!(after.delivered > at_rest.delivered, "{after:?}");
    assert_eq!(after.dropped, at_rest.dropped);
    assert_eq!(answers(&s), 200);
}

/// Commands of bpf(2), as include/uapi/linux/bpf.h numbers them.
const BPF_LINK_GET_FD_BY_ID: i64 = 30;
const BPF_LINK_DETACH: i64 = 34;

/// The first words of its argument: all that these commands look at.
#[repr(C, align(8))]
struct Attr([u32; 4]);

fn bpf(command: i64, attr: &mut Attr) -> std::io::Result<i64> {
    // SAFETY: the argument outlives the call, and its size is given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<Attr>()) };
    if done < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(done)
}

/// The links that a process has, by the descriptors it holds (`bpf_link_show_fdinfo`
/// in kernel/bpf/syscall.c).
fn links_of(pid: u32) -> Vec<u32> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let texts = files.filter_map(|f| std::fs::read_to_string(f.ok()?.path()).ok());
    let id = |text: String| {
        let line = text.lines().find_map(|l| l.strip_prefix("link_id:"));
        line?.trim().parse().ok()
    };
    texts.filter_map(id).collect()
}

/// `bpftool link detach` of each: how many were taken away, and how many the
/// kernel would not.
fn detach(links: &[u32]) -> (u32, u32) {
    let (mut taken, mut kept) = (0, 0);
    for id in links {
        let fd = bpf(BPF_LINK_GET_FD_BY_ID, &mut Attr([*id, 0, 0, 0])).unwrap();
        // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        let number = u32::try_from(fd.as_raw_fd()).unwrap();
        match bpf(BPF_LINK_DETACH, &mut Attr([number, 0, 0, 0])) {
            Ok(_) => taken += 1,
            Err(_) => kept += 1,
        }
    }
    (taken, kept)
}

#[test]
fn programs_that_are_detached_do_not_leave_it_without_events() {
    let test = "programs_that_are_detached_do_not_leave_it_without_events";
    let Some(s) = hearing(test) else { return };
    let (taken, kept) = detach(&links_of(s.pid()));
    assert!(taken + kept > 5, "no links are to be seen: {taken} {kept}");
    eprintln!("{taken} links were taken away, {kept} the kernel would not let go");
    let before = s.status().stalls;
    if storm(test, Duration::from_secs(6)).is_none() {
        return;
    }
    let status = s.status();
    // Links of tracepoints the kernel does not let go; where it does, another
    // server falls back to another source, and says so.
    let reported = status.stalls.seen > before.seen;
    assert!(reported, "{taken} taken, {kept} kept: {status:?}");
    assert!(
        taken == 0 || status.note.is_some(),
        "{taken} taken: {status:?}"
    );
    assert_eq!(answers(&s), 200);
}
