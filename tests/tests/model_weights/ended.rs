//! A process that is ended, or whose disk gets full, while it makes the file;
//! and one that is told by its environment to make none.

use super::{Home, Mount, complaint, said};
use kvpsi_tests::{model, skip};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Started, and still reading its model: its output is kept.
fn start(home: &Home, cache: &Path, args: &[&str], model: &Path) -> Child {
    let mut c = home.command(args);
    c.args(["--weights-cache", "on", "-m"]).arg(model);
    c.env("XDG_CACHE_HOME", cache);
    c.stdout(Stdio::piped()).stderr(Stdio::piped());
    c.spawn().unwrap()
}

/// What reads a model and keeps it in a file, and whether a signal is an error: a
/// server that is told to stop has done what it was told.
const COMMANDS: [(&[&str], bool); 3] = [
    (&["run", "--signal", "none", "--raw", "-p", "ab"], true),
    (&["bench", "--pp", "9", "--tg", "9"], true),
    (&["serve", "--signal", "none", "--port", "0"], false),
];

/// Each with each signal that asks for an end, and its exit code.
fn endings() -> impl Iterator<Item = (&'static [&'static str], Signal, i32)> {
    let signals = [Signal::INT, Signal::TERM, Signal::HUP];
    COMMANDS.into_iter().flat_map(move |(args, error)| {
        signals.map(|s| (args, s, if error { 128 + s.as_raw() } else { 0 }))
    })
}

/// Waits until `is` holds of a process that has not ended.
fn until(child: &mut Child, is: impl Fn(&Child) -> bool) {
    let began = Instant::now();
    while !is(child) {
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && began.elapsed() < Duration::from_secs(60),
            "{ended:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The signals have handlers.
fn listens(child: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status
        .lines()
        .find_map(|l| l.strip_prefix("SigCgt:"))
        .unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 0b11 == 0b11
}

fn end_by(signal: Signal, child: Child) -> (Output, Duration) {
    kill_process(Pid::from_child(&child), signal).unwrap();
    let sent = Instant::now();
    let done = child.wait_with_output().unwrap();
    (done, sent.elapsed())
}

#[test]
fn a_signal_ends_a_process_that_still_waits_for_the_cache() {
    for (args, signal, code) in endings() {
        let home = Home::new();
        fs::create_dir_all(home.folder()).unwrap();
        // Whoever begins a file waits for this some seconds.
        let folder = File::open(home.folder()).unwrap();
        folder.lock().unwrap();
        let mut child = start(&home, home.dir.path(), args, &home.model);
        until(&mut child, listens);
        let (done, took) = end_by(signal, child);
        assert_eq!(
            done.status.code(),
            Some(code),
            "{args:?}, {signal:?}: {done:?}"
        );
        assert!(took < Duration::from_millis(1500), "{args:?}: {took:?}");
        assert!(home.files("").is_empty());
    }
}

#[test]
fn a_signal_in_the_middle_of_a_file_takes_the_half_file_away() {
    let test = "a_signal_in_the_middle_of_a_file_takes_the_half_file_away";
    let Some(model) = model(test) else { return };
    for (args, signal, code) in endings() {
        let home = Home::new();
        let mut child = start(&home, home.dir.path(), args, &model);
        until(&mut child, |_| {
            home.folder().exists() && !home.files(".tmp").is_empty()
        });
        let (done, took) = end_by(signal, child);
        assert_eq!(
            done.status.code(),
            Some(code),
            "{args:?}, {signal:?}: {done:?}"
        );
        assert!(took < Duration::from_secs(5), "{args:?}: {took:?}");
        assert!(
            home.files(".tmp").is_empty(),
            "{args:?}: {:?}",
            home.files("")
        );
    }
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let test = "a_hangup_that_was_ignored_at_the_start_stays_ignored";
    let Some(model) = model(test) else { return };
    let home = Home::new();
    let mut c = home.command(&[]);
    let program = c.get_program().to_owned();
    c = Command::new("/bin/sh");
    c.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(program);
    c.args(["run", "--signal", "none", "--raw", "-p", "ab", "-n", "9"]);
    c.args(["--weights-cache", "on", "-m"]).arg(&model);
    c.env("XDG_CACHE_HOME", home.dir.path())
        .stdin(Stdio::null());
    c.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = c.spawn().unwrap();
    until(&mut child, |_| {
        home.folder().exists() && !home.files(".tmp").is_empty()
    });
    let (done, _) = end_by(Signal::HUP, child);
    assert!(done.status.success() && !done.stdout.is_empty(), "{done:?}");
    home.only_file();
}

#[test]
fn a_disk_that_gets_full_in_the_middle_of_a_file_is_one_line_and_the_model_loads() {
    let test = "a_disk_that_gets_full_in_the_middle_of_a_file_is_one_line_and_the_model_loads";
    let Some(model) = model(test) else { return };
    let home = Home::new();
    let args = ["run", "--signal", "none", "--raw", "-p", "ab", "-n", "9"];
    // A file that is done before the disk is small has shown nothing.
    for _ in 0..9 {
        let Some(mount) = Mount::new(test, "size=1g,mode=700") else {
            return;
        };
        let folder = mount.0.path().join("kvpsi/weights");
        let files = || -> Vec<_> { fs::read_dir(&folder).into_iter().flatten().collect() };
        let mut child = start(&home, mount.0.path(), &args, &model);
        until(&mut child, |_| !files().is_empty());
        // Not below what it has: the first that the kernel takes.
        let full = (1..12).any(|mib| {
            let mut c = Command::new("mount");
            c.args(["-o", &format!("remount,size={}m", mib * 8)]);
            c.arg(mount.0.path()).output().unwrap().status.success()
        });
        let done = child.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{err}");
        if !full || err.contains("to write, once") {
            continue;
        }
        assert!(complaint(&err).contains("No space left"), "{err}");
        assert!(err.contains("in private memory"), "{err}");
        assert!(files().is_empty(), "{:?}", files());
        assert!(!done.stdout.is_empty());
        return;
    }
    skip(test, "the file is written faster than its disk gets small");
}

#[test]
fn the_environment_turns_the_cache_off_for_every_command_that_has_one() {
    let home = Home::new();
    for (args, _) in &COMMANDS[..2] {
        let mut c = home.command(args);
        c.args(["-m", home.model.to_str().unwrap()]);
        let off = said(c.env("KVPSI_WEIGHTS_CACHE", "off"));
        let all = off.0 + &off.1;
        assert!(all.contains("in private memory"), "{all}");
        assert!(!home.folder().exists());
    }
    // A flag wins; and what it excludes gives way.
    let mut c = home.run_command();
    c.env("KVPSI_WEIGHTS_CACHE", "off");
    let (_, err) = said(c.env("KVPSI_CHAT_TEMPLATE", "chatml"));
    assert!(err.contains("to write, once"), "{err}");
    // A wrong value is told by the variable's name.
    let mut c = home.command(&["bench", "--pp", "9", "--tg", "9"]);
    let out = c.env("KVPSI_WEIGHTS_CACHE_SIZE", "much").output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("KVPSI_WEIGHTS_CACHE_SIZE: "), "{err}");
    // What is another thing there is not the server's.
    let mut c = home.command(&["perplexity", "-f"]);
    c.arg(&home.model).arg("-m").arg(&home.model);
    let out = c.env("KVPSI_KV_BUDGET", "512").output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{err}");
}
