//! Repacked weights kept in a file: the same text from it, shared by processes,
//! and whatever happens to the file the model loads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "model_weights/ended.rs"]
mod ended;
#[path = "model_weights/kept.rs"]
mod kept;
#[path = "model_weights/served.rs"]
mod served;

use candle_core::quantized::gguf_file::Value;
use kvpsi::{
    model::{
        decoder::Decoder,
        gguf::Gguf,
        weights::{
            Folder, Place, Weights,
            file::{HEAD_BYTES, parse},
        },
    },
    units::Bytes,
};
use kvpsi_tests::{
    kvpsi_binary, skip,
    tiny::{Shape, Tiny},
};
use std::{
    fs::{self, File, FileTimes, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

/// A model that can write: the printable bytes are its tokens.
fn tiny(seed: u64) -> Tiny {
    let shape = Shape {
        seed,
        ..Shape::SMALL
    };
    let mut tiny = Tiny::new(&shape).unwrap();
    let tokens = ('!'..='~')
        .map(String::from)
        .chain(["Ġ".into(), "Ċ".into()]);
    for (key, value) in [
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("gpt-2".into())),
        ("tokens", Value::Array(tokens.map(Value::String).collect())),
        ("merges", Value::Array(Vec::new())),
    ] {
        tiny.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    }
    tiny
}

/// A model, and a cache of its own.
struct Home {
    dir: TempDir,
    model: PathBuf,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.gguf");
        tiny(1).write(&model).unwrap();
        Self { dir, model }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("kvpsi/weights")
    }

    /// Loads as the binary does, by the library.
    fn load(&self, model: &Path, most: Bytes) -> Place {
        self.decoder(model, most).place()
    }

    fn decoder(&self, model: &Path, most: Bytes) -> Decoder {
        let folder = Folder::make(&self.folder(), None).unwrap();
        let files = vec![File::open(model).unwrap()];
        let weights = Weights::hold(folder, most, model, files).unwrap();
        let gguf = Gguf::open(model).unwrap();
        Decoder::load_kept(&gguf, &weights, &mut |_, _| ()).unwrap()
    }

    /// The cache's files by their suffix.
    fn files(&self, end: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.folder()).unwrap();
        let all = all.map(|e| e.unwrap().path());
        all.filter(|p| p.to_str().unwrap().ends_with(end)).collect()
    }

    fn only_file(&self) -> PathBuf {
        let [file] = &self.files("")[..] else {
            panic!("{:?}", self.files(""));
        };
        file.clone()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(kvpsi_binary());
        c.args(args)
            .env("XDG_CACHE_HOME", self.dir.path())
            .env_remove("CACHE_DIRECTORY")
            .env_remove("KVPSI_LOG")
            .stdin(Stdio::null());
        c
    }

    fn run_command(&self) -> Command {
        self.run_with("on")
    }

    fn run_with(&self, when: &str) -> Command {
        let mut c = self.command(&[
            "run", "--signal", "none", "--raw", "-p", "ab", "-n", "9", "--seed", "1",
        ]);
        c.args(["--weights-cache", when, "-m"]).arg(&self.model);
        c
    }
}

const PLENTY: Bytes = Bytes::mib(1024);

/// Text and what was said of a command that succeeds.
fn said(command: &mut Command) -> (String, String) {
    let out = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{stdout}{stderr}");
    (stdout, stderr)
}

/// The line that says why the cache is not used: one.
fn complaint(stderr: &str) -> &str {
    let lines: Vec<_> = stderr
        .lines()
        .filter(|l| l.contains("weights cache: "))
        .collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    lines[0]
}

#[test]
fn the_text_is_the_same_from_private_memory_from_a_new_file_and_from_one_that_is_there() {
    let home = Home::new();
    let off = said(&mut home.run_with("off"));
    assert!(off.1.contains("in private memory"), "{}", off.1);
    assert!(!home.folder().exists());
    let made = said(&mut home.run_command());
    assert!(made.1.contains("to write, once"), "{}", made.1);
    let mapped = said(&mut home.run_command());
    assert!(
        mapped.1.contains("mapped from the weights cache\n"),
        "{}",
        mapped.1
    );
    assert!(off.0.len() > 3, "{}", off.0);
    assert_eq!([&made.0, &mapped.0], [&off.0; 2]);
}

#[test]
fn a_file_that_was_cut_anywhere_is_refused_and_made_anew() {
    let home = Home::new();
    assert!(matches!(home.load(&home.model, PLENTY), Place::Made(_)));
    let file = home.only_file();
    let whole = fs::read(&file).unwrap();
    parse(&whole).unwrap();
    for len in 0..whole.len() {
        parse(&whole[..len]).unwrap_err();
    }
    // And longer than it was.
    parse(&[&whole[..], &[0]].concat()).unwrap_err();
    for len in [0, 1, HEAD_BYTES, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..len]).unwrap();
        let place = home.load(&home.model, PLENTY);
        assert!(matches!(place, Place::Made(_)), "{len}: {place:?}");
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
    assert_eq!(home.load(&home.model, PLENTY), Place::Mapped);
}

#[test]
fn a_bit_that_flipped_anywhere_is_noticed() {
    let home = Home::new();
    home.load(&home.model, PLENTY);
    let file = home.only_file();
    let whole = fs::read(&file).unwrap();
    for at in (0..HEAD_BYTES).chain((HEAD_BYTES..whole.len()).step_by(97)) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&file, &flipped).unwrap();
        let place = home.load(&home.model, PLENTY);
        assert!(matches!(place, Place::Made(_)), "byte {at}: {place:?}");
        assert_eq!(fs::read(&file).unwrap(), whole, "byte {at}");
    }
}

#[test]
fn weights_of_a_model_that_was_replaced_are_not_used_and_go() {
    let home = Home::new();
    let before = said(&mut home.run_command()).0;
    let old = home.only_file();
    let times = fs::metadata(&home.model).unwrap();
    // As large as the other, written over it, and with its time.
    let mut other = tiny(2);
    other.metadata = tiny(1).metadata;
    other.write(&home.model).unwrap();
    let times = FileTimes::new().set_modified(times.modified().unwrap());
    let model = File::options().write(true).open(&home.model).unwrap();
    model.set_times(times).unwrap();
    let (text, err) = said(&mut home.run_command());
    assert!(err.contains("to write, once"), "{err}");
    assert_ne!(text, before);
    let off = said(&mut home.run_with("off"));
    assert_eq!(text, off.0);
    assert_ne!(home.only_file(), old);
}

#[test]
fn processes_that_start_at_once_all_answer_and_leave_one_file() {
    let home = Home::new();
    let all: Vec<_> = (0..6)
        .map(|_| {
            let mut c = home.run_command();
            c.stdout(Stdio::piped()).stderr(Stdio::piped());
            c.spawn().unwrap()
        })
        .collect();
    let texts: Vec<_> = all
        .into_iter()
        .map(|child| {
            let out = child.wait_with_output().unwrap();
            let err = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{err}");
            assert!(err.contains("mapped from the weights cache"), "{err}");
            out.stdout
        })
        .collect();
    assert!(texts.iter().all(|t| *t == texts[0]));
    home.only_file();
    let (_, err) = said(&mut home.run_command());
    assert!(err.contains("mapped from the weights cache\n"), "{err}");
}

#[test]
fn all_who_make_a_file_at_once_map_the_same_pages() {
    let home = Home::new();
    let decoders: Vec<_> = std::thread::scope(|s| {
        let load = || home.decoder(&home.model, PLENTY);
        let all: Vec<_> = (0..6).map(|_| s.spawn(load)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(decoders.iter().all(|d| d.place() != Place::Private));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let folder = home.folder();
    let ours = maps
        .lines()
        .filter(|l| l.contains(folder.to_str().unwrap()));
    let inodes: Vec<_> = ours.map(|l| l.split_whitespace().nth(4)).collect();
    assert_eq!(inodes.len(), 6, "{maps}");
    assert!(inodes.iter().all(|i| *i == inodes[0]), "{inodes:?}");
}

#[test]
fn a_file_that_may_not_grow_is_given_up_and_the_model_loads() {
    let home = Home::new();
    let run = home.run_command();
    let mut limited = Command::new("sh");
    // In blocks of 512 bytes: less than the weights have.
    limited
        .args(["-c", "ulimit -f 8; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(run.get_args())
        .env("XDG_CACHE_HOME", home.dir.path())
        .stdin(Stdio::null());
    let (_, err) = said(&mut limited);
    assert!(complaint(&err).contains("too large"), "{err}");
    assert!(err.contains("in private memory"), "{err}");
    assert!(home.files("").is_empty());
}

#[test]
fn what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not() {
    let home = Home::new();
    home.load(&home.model, PLENTY);
    let [dead, living] = ["dead", "living"].map(|n| home.folder().join(format!(".{n}.tmp")));
    fs::write(&dead, "half").unwrap();
    fs::write(&living, "half").unwrap();
    let [pipe, link] = ["pipe", "link"].map(|n| home.folder().join(format!(".{n}.tmp")));
    said(Command::new("mkfifo").arg(&pipe));
    symlink(&home.model, &link).unwrap();
    let lock = File::open(&living).unwrap();
    lock.try_lock().unwrap();
    let other = home.dir.path().join("other.gguf");
    tiny(2).write(&other).unwrap();
    home.load(&other, PLENTY);
    for gone in [dead, pipe, link] {
        assert!(fs::symlink_metadata(&gone).is_err(), "{}", gone.display());
    }
    assert!(living.exists() && home.model.exists());
}

#[test]
fn files_used_longest_ago_go_when_there_are_too_many() {
    let home = Home::new();
    let models: Vec<_> = (1..4)
        .map(|seed| {
            let path = home.dir.path().join(format!("{seed}.gguf"));
            tiny(seed).write(&path).unwrap();
            path
        })
        .collect();
    home.load(&models[0], PLENTY);
    let first = home.only_file();
    let two = Bytes(fs::metadata(&first).unwrap().len() * 5 / 2)
        .0
        .next_multiple_of(4096);
    home.load(&models[1], PLENTY);
    let second: Vec<_> = home.files("").into_iter().filter(|f| *f != first).collect();
    // The first is used again, the second was long ago.
    let long_ago = SystemTime::now() - Duration::from_secs(1000);
    for file in [&first, &second[0]] {
        File::open(file).unwrap().set_modified(long_ago).unwrap();
    }
    assert_eq!(home.load(&models[0], PLENTY), Place::Mapped);
    assert!(matches!(home.load(&models[2], Bytes(two)), Place::Made(_)));
    let left = home.files("");
    assert!(left.contains(&first) && !left.contains(&second[0]) && left.len() == 2);
    // One that is larger than all may be is not made.
    assert_eq!(home.load(&models[1], Bytes(1000)), Place::Private);
    assert_eq!(home.files("").len(), 2);
}

#[test]
fn a_file_or_folder_that_others_may_write_to_is_not_used() {
    let home = Home::new();
    said(&mut home.run_command());
    let file = home.only_file();
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for (path, mode, good) in [(&file, 0o660, 0o600), (&home.folder(), 0o757, 0o700)] {
        set(path, mode);
        let (_, err) = said(&mut home.run_command());
        assert!(complaint(&err).contains("written by others"), "{err}");
        assert!(err.contains("in private memory"), "{err}");
        set(path, good);
    }
    // A link is not followed, whoever owns what it names.
    let elsewhere = home.dir.path().join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    let (_, err) = said(&mut home.run_command());
    complaint(&err);
    assert!(err.contains("in private memory"), "{err}");
}

/// A tmpfs that is gone with the test.
struct Mount(TempDir);

impl Mount {
    fn new(test: &str, options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut c = Command::new("mount");
        c.args(["-t", "tmpfs", "-o", options, "kvpsi-test"]);
        match c.arg(dir.path()).output() {
            Ok(out) if out.status.success() => Some(Self(dir)),
            _ => {
                skip(test, "a tmpfs cannot be mounted: run it as root");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_home_that_is_read_only_or_full_is_one_line_and_the_model_loads() {
    let test = "a_home_that_is_read_only_or_full_is_one_line_and_the_model_loads";
    let home = Home::new();
    for (options, why) in [("ro", "Read-only"), ("size=64k", "the disk has")] {
        let Some(mount) = Mount::new(test, options) else {
            return;
        };
        let mut run = home.run_command();
        let (text, err) = said(run.env("XDG_CACHE_HOME", mount.0.path()));
        assert!(complaint(&err).contains(why), "{err}");
        assert!(err.contains("in private memory"), "{err}");
        assert!(text.starts_with("ab"), "{text}");
        // Memory is no disk: by itself the cache does not take it.
        let mut auto = home.run_with("auto");
        let (_, err) = said(auto.env("XDG_CACHE_HOME", mount.0.path()));
        assert!(err.contains("in private memory"), "{err}");
    }
}

#[test]
fn the_command_lists_and_clears_and_doctor_says_how_much_there_is() {
    let home = Home::new();
    let command = |args: &[&str]| said(&mut home.command(args)).0;
    assert!(command(&["cache"]).contains("0 files"));
    assert!(command(&["doctor"]).contains("weights: empty"));
    said(&mut home.run_command());
    let list = command(&["cache"]);
    assert!(
        list.contains("1 files") && list.contains("m.gguf"),
        "{list}"
    );
    let odd = home.folder().join("\u{1b}[2J\n.weights");
    fs::write(&odd, "").unwrap();
    let list = command(&["cache"]);
    assert!(list.contains("\\u{1b}[2J\\n.weights: not used"), "{list}");
    assert!(
        !list.contains('\u{1b}') && list.lines().count() == 3,
        "{list}"
    );
    fs::remove_file(&odd).unwrap();
    let json: serde_json::Value = serde_json::from_str(&command(&["cache", "--json"])).unwrap();
    assert!(json["files"][0]["bytes"].as_u64().unwrap() > 4096, "{json}");
    assert!(command(&["doctor"]).contains("weights: 1 files"));
    assert!(command(&["cache", "clear"]).starts_with("1 files removed"));
    assert!(home.files("").is_empty());
    assert!(command(&["cache", "clear"]).starts_with("0 files"));
}

#[test]
fn files_that_cannot_be_removed_are_an_error() {
    let test = "files_that_cannot_be_removed_are_an_error";
    let home = Home::new();
    let Some(mount) = Mount::new(test, "size=9m") else {
        return;
    };
    let at = mount.0.path();
    fs::create_dir_all(at.join("kvpsi/weights")).unwrap();
    home.load(&home.model, PLENTY);
    fs::copy(home.only_file(), at.join("kvpsi/weights/a.weights")).unwrap();
    let mut mounts = Command::new("mount");
    said(mounts.args(["-o", "remount,ro"]).arg(at));
    let mut clear = home.command(&["cache", "clear"]);
    let out = clear.env("XDG_CACHE_HOME", at).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(
        err.contains("a.weights: cannot be removed: Read-only"),
        "{err}"
    );
}
