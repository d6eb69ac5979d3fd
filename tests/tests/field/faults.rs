//! What goes wrong around a server: its signal breaks, it is moved, its cgroup is
//! removed, it is stopped.

use super::{MIB, served, served_with, talk, tell};
use kvpsi::units::Bytes;
use kvpsi_tests::{
    hog::Hog,
    served::Served,
    storm::{drop_page_cache, limited},
};
use rustix::process::Signal;
use serde_json::json;
use std::{
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

fn wait_for(s: &Served, what: &str, mut there: impl FnMut() -> bool) {
    let since = Instant::now();
    while !there() {
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "{what}: {}",
            s.said()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A signal that breaks takes the events away, and no more: limits are watched.
#[test]
fn a_signal_that_breaks_leaves_the_limits_watched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pressure");
    let manager = UnixListener::bind(&path).unwrap();
    let watch = [("MEMORY_PRESSURE_WATCH", path.to_str().unwrap())];
    let signal = ["--signal", "systemd"];
    let Some((cgroup, s)) = served_with("broken-signal", &signal, &watch) else {
        return;
    };
    talk(&s, &["a lighthouse"]);
    drop(manager.accept().unwrap());
    let broke = |s: &Served| s.status().note.is_some_and(|n| n.contains("signal broke"));
    let since = Instant::now();
    while !broke(&s) {
        assert!(since.elapsed() < Duration::from_secs(5), "{}", s.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut hog = Hog::start(Some(&cgroup));
    drop_page_cache(&cgroup);
    let used = cgroup.memory().usage().unwrap().0;
    cgroup.set_limit(Bytes(used + 8 * MIB)).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let lived = hog.grow_bare_at(24 * MIB, 100);
    assert!(lived && cgroup.memory().oom_kills() == 0);
    let trims = s.status().trims;
    tell(
        "broken_signal",
        json!({ "returned": trims.bytes, "trims": trims.count }),
    );
    assert!(trims.bytes.0 >= 14 * MIB, "{}", trims.bytes.0);
}

/// A server is moved to a cgroup with a limit while it trims, and the old one is
/// removed: its walls are the new one's, and it answers on.
#[test]
fn a_server_that_is_moved_while_it_trims_has_the_new_cgroups_walls() {
    let (Some((old, s)), Some(new)) = (served("moved-from"), limited("moved-to", 1 << 40)) else {
        return;
    };
    talk(&s, &["a lighthouse"]);
    let used = old.memory().usage().unwrap().0;
    old.set_limit(Bytes(used + 8 * MIB)).unwrap();
    let mut hog = Hog::start(Some(&old));
    let pid = s.pid().to_string();
    std::thread::scope(|scope| {
        let grows = scope.spawn(|| hog.grow_at(24 * MIB, 100));
        wait_for(&s, "a trim", || s.status().trims.count > 0);
        for procs in new.procs() {
            std::fs::write(procs, &pid).unwrap();
        }
        let lived = grows.join().unwrap();
        tell(
            "moved",
            json!({ "lived": lived, "trims": s.status().trims.count }),
        );
    });
    drop(hog);
    // What it had stays charged to the old one, which is gone for who looks.
    drop(old);
    let level = new.memory().path.display().to_string();
    let moved = || s.status().walls.first().is_some_and(|w| w.level == level);
    wait_for(&s, "the new walls", moved);
    new.set_limit(Bytes::mib(64)).unwrap();
    let before = s.status();
    let mut hog = Hog::start(Some(&new));
    hog.read(96 * MIB);
    // It is looked at for people once a second.
    wait_for(&s, "the new limit's hits", || {
        let wall = &s.status().walls[0];
        wall.max == Some(Bytes::mib(64)) && wall.hits > before.walls[0].hits
    });
    talk(&s, &["how a ship is built"]);
    // Before the cgroup they are in.
    drop((hog, s));
}

/// While it is stopped it returns nothing; when it goes on, what is missing by then.
#[test]
fn a_server_that_was_stopped_returns_what_is_missing_when_it_goes_on() {
    let Some((cgroup, s)) = served("stopped") else {
        return;
    };
    talk(&s, &["a lighthouse"]);
    drop_page_cache(&cgroup);
    let mut hog = Hog::start(Some(&cgroup));
    let used = cgroup.memory().usage().unwrap().0;
    cgroup.set_limit(Bytes(used + 16 * MIB)).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    s.signal(Signal::STOP);
    // Into the headroom, and no further: nobody could help.
    assert!(hog.grow_bare_at(15 * MIB, 100));
    std::thread::sleep(Duration::from_secs(2));
    s.signal(Signal::CONT);
    let lived = hog.grow_bare_at(32 * MIB, 20);
    assert!(lived && cgroup.memory().oom_kills() == 0);
    assert!(s.status().trims.bytes.0 >= 14 * MIB);
    talk(&s, &["how a ship is built"]);
}
