//! A process that confines itself: what it can no longer do, what it still
//! can, and that events go on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi_tests::{
    skip,
    storm::{LIMIT_BYTES, Storm, limited},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

const CONFINED: &str = env!("CARGO_BIN_EXE_sandboxed");
const PRESSURE: &str = env!("CARGO_BIN_EXE_pressure");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");
/// Debian's user `nobody`, by number: no name is looked up.
const NOBODY: u32 = 65534;

const OK: &str = "ok";
const EPERM: &str = "errno 1";
const EACCES: &str = "errno 13";
const ENOSYS: &str = "errno 38";

/// What seccomp refuses, and what it would come to without.
const CALLS: [(&str, &str); 20] = [
    ("packet-socket", EPERM),
    ("netlink-socket", EPERM),
    ("exec", EPERM),
    ("spawn", EPERM),
    ("bpf-map-create", EPERM),
    ("bpf-prog-load", EPERM),
    ("bpf-link-create", EPERM),
    ("clone3", ENOSYS),
    ("unshare", EPERM),
    ("setns", EPERM),
    ("personality", EPERM),
    ("ptrace", EPERM),
    ("process-vm-readv", EPERM),
    ("perf-event-open", EPERM),
    ("userfaultfd", EPERM),
    ("keyctl", EPERM),
    ("io-uring", EPERM),
    ("mount", EPERM),
    ("setgroups", EPERM),
    ("finit-module", EPERM),
];
/// Of these what any process may do, so that a refusal is seccomp's.
const ANYBODYS: [&str; 8] = [
    "netlink-socket",
    "exec",
    "spawn",
    "clone3",
    "unshare",
    "setns",
    "personality",
    "process-vm-readv",
];
/// What a server goes on doing.
const GOES_ON: [&str; 9] = [
    "thread",
    "trim",
    "map-lookup",
    "statm",
    "read-named",
    "write-named",
    "null",
    "port",
    "unix-socket",
];
/// What Landlock holds back, and since which version of its interface.
const FENCED: [(&str, u8); 4] = [
    ("read-secret", 1),
    ("write-elsewhere", 1),
    ("other-port", 4),
    ("connect", 4),
];

/// Folders and files that the child is told of, or not.
struct Place {
    dir: tempfile::TempDir,
    port: u16,
}

impl Place {
    /// World-writable; only what the child is to be kept from by other
    /// means than a file's mode is worth a test.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Free a moment ago.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let place = Self { dir, port };
        let mode = |p: &Path, m| fs::set_permissions(p, fs::Permissions::from_mode(m)).unwrap();
        mode(place.dir.path(), 0o755);
        for folder in ["written", "elsewhere"] {
            fs::create_dir(place.at(folder)).unwrap();
            mode(&place.at(folder), 0o777);
        }
        for file in ["read", "secret"] {
            fs::write(place.at(file), "x").unwrap();
            mode(&place.at(file), 0o644);
        }
        let program = place.at("sandboxed");
        fs::copy(CONFINED, &program).unwrap();
        mode(&program, 0o755);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut c = Command::new(self.at("sandboxed"));
        for (flag, name) in [
            ("--read", "read"),
            ("--write", "written"),
            ("--secret", "secret"),
            ("--elsewhere", "elsewhere"),
        ] {
            c.arg(flag).arg(self.at(name));
        }
        c.args(["--port", &self.port.to_string()]).args(more);
        c.env_remove("NOTIFY_SOCKET").current_dir("/");
        c.stdin(Stdio::null()).stdout(Stdio::piped());
        c
    }

    fn run(&self, more: &[&str]) -> Said {
        Said::of(self.command(more))
    }
}

/// What a child said.
#[derive(Debug, Default)]
struct Said {
    error: Option<String>,
    report: Value,
    threads: Vec<Value>,
    tries: BTreeMap<String, String>,
    rest: Vec<String>,
}

impl Said {
    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut said = Self::default();
        while said.line(&mut lines).is_some() {}
        assert!(child.wait().unwrap().success());
        said
    }

    /// Takes the next line, and says what it begins with.
    fn line(&mut self, from: &mut BufReader<ChildStdout>) -> Option<String> {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        let (word, value) = line
            .trim_end()
            .split_once(' ')
            .unwrap_or((line.trim_end(), ""));
        match word {
            "error" => self.error = Some(value.into()),
            "report" => self.report = serde_json::from_str(value).unwrap(),
            "thread" => self.threads.push(serde_json::from_str(value).unwrap()),
            "try" => {
                let (name, outcome) = value.split_once(' ').unwrap();
                self.tries.insert(name.into(), outcome.into());
            }
            "" => return None,
            _ => self.rest.push(line.trim_end().into()),
        }
        Some(word.into())
    }

    fn part(&self, name: &str) -> (&str, &str) {
        let text = |key: &str| self.report[name][key].as_str().unwrap();
        (text("holds"), text("note"))
    }

    /// Of Landlock's interface; the newest where all of it holds.
    fn landlock_abi(&self) -> u8 {
        let (holds, note) = self.part("landlock");
        let told = note
            .split_once("(ABI ")
            .and_then(|(_, n)| n.split_once(')'));
        match (holds, told) {
            ("full", _) => u8::MAX,
            (_, Some((n, _))) => n.parse().unwrap(),
            _ => 0,
        }
    }

    fn assert_each(&self, names: &[&str], outcome: &str) {
        for name in names {
            assert_eq!(self.tries[*name], outcome, "{name}: {self:#?}");
        }
    }

    /// No thread has a capability, all work for `id`, and all are filtered if
    /// the kernel can.
    fn assert_left(&self, id: u32, filtered: bool) {
        assert_eq!(self.error, None);
        assert!(self.threads.len() > 1, "{self:#?}");
        for t in &self.threads {
            let field = |key: &str| t[key].as_str().unwrap_or_default();
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(field(set), "0000000000000000", "{set} of {t:#}");
            }
            for ids in ["Uid", "Gid"] {
                let all = field(ids).split_whitespace();
                assert!(
                    all.clone().count() == 4 && all.clone().all(|n| n == id.to_string()),
                    "{t:#}"
                );
            }
            assert_eq!(field("NoNewPrivs"), "1", "{t:#}");
            assert_eq!(field("Seccomp"), if filtered { "2" } else { "0" }, "{t:#}");
        }
        let holds = ["capabilities", "no_new_privs"].map(|p| self.part(p).0);
        assert_eq!(holds, ["full", "full"], "{}", self.report);
    }

    /// Whether the kernel filters, or a skip.
    fn seccomp(&self, test: &str) -> bool {
        let (holds, note) = self.part("seccomp");
        if holds != "full" {
            skip(&format!("{test}, seccomp"), note);
        }
        holds == "full"
    }

    /// What the kernel's Landlock knows, with a skip for the rest.
    fn fenced(&self, test: &str) {
        let abi = self.landlock_abi();
        for (name, since) in FENCED {
            if abi >= since {
                assert_eq!(self.tries[name], EACCES, "{name}: {self:#?}");
            } else {
                skip(&format!("{test}, {name}"), self.part("landlock").1);
            }
        }
    }
}

fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root, which is what the sandbox drops");
    }
    root
}

#[test]
fn a_confined_process_serves_on_and_does_nothing_else() {
    let test = "a_confined_process_serves_on";
    if !root(test) {
        return;
    }
    let place = Place::new();
    let said = place.run(&["--user", "65534:65534", "--landlock", "--seccomp"]);
    let filtered = said.seccomp(test);
    said.assert_left(NOBODY, filtered);
    said.assert_each(&GOES_ON, OK);
    said.fenced(test);
    assert_eq!(said.tries["other-processes"], EACCES);
    for (name, refused) in CALLS.iter().filter(|_| filtered) {
        assert_eq!(said.tries[*name], *refused, "{name}: {said:#?}");
    }
    assert_eq!(said.part("user"), ("full", "65534:65534 (65534:65534)"));
}

#[test]
fn each_refusal_is_the_work_of_what_was_asked_for() {
    let test = "each_refusal_is_the_work";
    if !root(test) {
        return;
    }
    let place = Place::new();
    let said = place.run(&[]);
    said.assert_left(0, false);
    said.assert_each(&GOES_ON, OK);
    said.assert_each(&FENCED.map(|(name, _)| name), OK);
    for name in ANYBODYS {
        assert_ne!(said.tries[name], EPERM, "{name}: {said:#?}");
    }
    assert_ne!(said.tries["clone3"], ENOSYS);
    assert_eq!(said.part("landlock").0, "unasked");

    let said = place.run(&["--seccomp"]);
    if said.seccomp(test) {
        said.assert_left(0, true);
        said.assert_each(&GOES_ON, OK);
        said.assert_each(&FENCED.map(|(name, _)| name), OK);
        for (name, refused) in CALLS {
            assert_eq!(said.tries[name], refused, "{name}: {said:#?}");
        }
        if let Some(said) = said.tries.get("short-pointers") {
            assert_eq!(said, EPERM);
        }
    }

    let said = place.run(&["--landlock"]);
    said.assert_left(0, false);
    said.assert_each(&GOES_ON, OK);
    said.fenced(test);
    for name in ANYBODYS {
        assert_ne!(said.tries[name], EPERM, "{name}: {said:#?}");
    }
}

#[test]
fn the_superuser_without_capabilities_cannot_read_what_it_owns() {
    let test = "the_superuser_without_capabilities";
    let secret = Path::new("/etc/shadow");
    if !root(test) {
        return;
    }
    if !secret.exists() {
        return skip(test, "there is no /etc/shadow");
    }
    let place = Place::new();
    for (flag, want) in [(None, OK), (Some("--landlock"), EACCES)] {
        let mut c = place.command(flag.as_slice());
        c.arg("--secret").arg(secret);
        let said = Said::of(c);
        if flag.is_some() && said.landlock_abi() == 0 {
            return skip(test, said.part("landlock").1);
        }
        assert_eq!(said.tries["read-secret"], want, "{flag:?}");
    }
}

#[test]
fn a_thread_that_keeps_its_capabilities_is_an_error_that_names_it() {
    if !root("a_thread_that_keeps_its_capabilities") {
        return;
    }
    for user in [&[][..], &["--user", "65534:65534"]] {
        let said = Place::new().run(&[&["--loose"], user].concat());
        let e = said.error.unwrap();
        assert!(e.contains("loose") && e.contains("capabilities"), "{e}");
    }
}

#[test]
fn the_reactors_thread_gives_up_as_much() {
    let test = "the_reactors_thread_gives_up";
    if !root(test) {
        return;
    }
    let place = Place::new();
    let said = place.run(&[
        "--listen",
        "--user",
        "65534:65534",
        "--landlock",
        "--seccomp",
    ]);
    let filtered = said.seccomp(test);
    said.assert_left(NOBODY, filtered);
    assert!(
        said.threads.iter().any(|t| t["Name"] == "kvpsi-reactor"),
        "{said:#?}"
    );
    said.assert_each(&GOES_ON, OK);
}

#[test]
fn without_privileges_what_can_be_held_is_held_and_another_user_is_refused() {
    let test = "without_privileges";
    let place = Place::new();
    let unprivileged = |more: &[&str]| {
        let mut c = place.command(more);
        if rustix::process::geteuid().is_root() {
            c.uid(NOBODY).gid(NOBODY);
        }
        Said::of(c)
    };
    let said = unprivileged(&["--landlock", "--seccomp"]);
    assert_eq!(said.error, None);
    said.assert_each(&GOES_ON, OK);
    said.fenced(test);
    if said.seccomp(test) {
        said.assert_each(&["exec", "spawn", "bpf-prog-load"], EPERM);
    }
    let e = unprivileged(&["--user", "12345:12345"]).error.unwrap();
    assert!(e.contains("setgroups") && e.contains("wants root"), "{e}");
}

#[test]
fn events_still_flow_into_a_confined_process() {
    let test = "events_still_flow";
    if !root(test) {
        return;
    }
    let Some(cgroup) = limited(test, LIMIT_BYTES) else {
        return;
    };
    let place = Place::new();
    let mut c = place.command(&[
        "--events",
        "--user",
        "65534:65534",
        "--landlock",
        "--seccomp",
    ]);
    let mut child = Reaped(c.stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    let mut said = Said::default();
    while said.line(&mut lines).is_some_and(|word| word != "ready") {}
    if said.rest != ["ready"] {
        // No object in this binary, or no BPF here.
        let mut why = String::new();
        BufReader::new(child.0.stderr.take().unwrap())
            .read_line(&mut why)
            .unwrap();
        assert!(why.contains("eBPF"), "{why}");
        return skip(test, why.trim_end());
    }
    said.assert_left(NOBODY, said.part("seccomp").0 == "full");
    let storm = Storm::start(
        PRESSURE,
        Path::new(TMP),
        &cgroup,
        Duration::from_secs(5),
        Duration::ZERO,
    );
    let _storm = storm.unwrap();
    said.line(&mut lines).unwrap();
    let events = said.rest[1].strip_prefix("events ").map(str::parse::<u64>);
    assert!(events.is_some_and(|n| n.unwrap() > 0), "{said:#?}");
}

/// Killed and reaped on drop.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
