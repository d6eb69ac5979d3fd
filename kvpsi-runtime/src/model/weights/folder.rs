//! The folder of the cache.
//!
//! Owns where it is, who may have written in it, how full it may be, and what
//! goes first. Invariants: everything is opened relative to one open folder, so
//! that nobody can put another in its place; a link is never followed; a file
//! belongs to us or to root, and no other user may write to it or to the
//! folder. Out of scope: what files hold.

use super::{
    Key, WeightsError,
    file::{self, ENDING},
};
use crate::units::Bytes;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
    process::geteuid,
};
use std::{
    fs::{File, Metadata, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// Who may write but the owner: group and others.
const OTHERS_WRITE: u32 = 0o022;
/// Stays free on the file system: a full one breaks other programs.
const STAYS_FREE: Bytes = Bytes::mib(256);
/// How the names of files that are being written end.
const TEMPORARY: &str = ".tmp";
/// File systems that are memory, and those that another machine may change or
/// take away: linux/magic.h.
const UNSUITED: [(u64, &str); 12] = [
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "a shared folder of VirtualBox"),
];

/// Between two tries for the folder's lock, and how many there are.
const TRY_EVERY: Duration = Duration::from_millis(10);
const TRIES: u32 = 200;

/// An open folder of files of weights.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: File,
    /// Who may have written its files, beside root and us.
    owner: u32,
}

/// A file of the folder.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// On disk.
    pub bytes: Bytes,
    /// When a process last mapped it.
    pub used: SystemTime,
    /// The model, or what is wrong with the file.
    pub model: Result<String, String>,
}

/// Makes a folder and those above it that are not there, all of them `user`'s.
/// Each is opened in the one above it, which that user may have changed meanwhile.
fn make_all(path: &Path, user: Option<u32>) -> io::Result<()> {
    let missing = path.ancestors().take_while(|above| !above.exists());
    let missing: Vec<_> = missing.collect();
    let there = path.ancestors().nth(missing.len()).unwrap_or(path);
    let mut at = File::open(there)?;
    for name in missing.iter().rev().filter_map(|folder| folder.file_name()) {
        let made = rustix::fs::mkdirat(&at, name, Mode::RWXU);
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match made {
            Ok(()) | Err(Errno::EXIST) => {
                at = File::from(rustix::fs::openat(&at, name, flags, Mode::empty())?);
            }
            Err(e) => return Err(e.into()),
        }
        if made.is_ok() {
            fchown(&at, user, None)?;
        }
    }
    Ok(())
}

impl Folder {
    /// Where the cache is: `weights` in systemd's `CACHE_DIRECTORY`, else in
    /// `kvpsi` below `XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// There is no home directory.
    pub fn usual() -> Result<PathBuf, WeightsError> {
        let set = |name| std::env::var_os(name).filter(|d| !d.is_empty());
        // Several are separated by colons.
        let service = set("CACHE_DIRECTORY").and_then(|all| std::env::split_paths(&all).next());
        let users = || {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
            Some(cache.join("kvpsi"))
        };
        let folder = service.or_else(users).filter(|f| f.is_absolute());
        Ok(folder.ok_or(WeightsError::NoFolder)?.join("weights"))
    }

    /// Opens the folder to use its files, and makes it where it is not there. It
    /// is of the user that this process will run as: `user`, or the one that it
    /// runs as now.
    ///
    /// # Errors
    /// It cannot be made or opened, or others could write in it.
    pub fn make(path: &Path, user: Option<u32>) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.into(),
            what: "cannot be made",
            source,
        };
        make_all(path, user).map_err(io)?;
        let folder = Self::open(path)?;
        let owner = user.unwrap_or_else(|| geteuid().as_raw());
        let folder = Self { owner, ..folder };
        let meta = folder.fd.metadata().map_err(io)?;
        folder.trusted(path, &meta)?;
        Ok(folder)
    }

    /// Opens the folder to list or remove its files, whoever it belongs to.
    ///
    /// # Errors
    /// It is not there or cannot be opened.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.into(),
            what: "cannot be opened as a folder (links are not followed)",
            source,
        };
        let fd = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(path)
            .map_err(io)?;
        let owner = fd.metadata().map_err(io)?.uid();
        Ok(Self {
            path: path.into(),
            fd,
            owner,
        })
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system on which a mapped file would not be what it should, by
    /// its name: memory, or another machine's disk.
    #[must_use]
    pub fn unsuited(&self) -> Option<&'static str> {
        let kind = rustix::fs::fstatfs(&self.fd).ok()?.f_type;
        let kind = u64::try_from(kind).ok()?;
        let found = UNSUITED.iter().find(|(magic, _)| *magic == kind);
        found.map(|(_, name)| *name)
    }

    fn bad(&self, name: &str, what: &'static str, source: impl Into<io::Error>) -> WeightsError {
        WeightsError::Io {
            path: self.path.join(name),
            what,
            source: source.into(),
        }
    }

    /// Opens a file of the folder to read.
    ///
    /// # Errors
    /// It is not there, or others could have written it.
    pub fn open_file(&self, name: &str) -> Result<File, WeightsError> {
        let io = |source| self.bad(name, "cannot be opened", source);
        // A pipe of that name would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let file = File::from(fd.map_err(|e| io(e.into()))?);
        let meta = file.metadata().map_err(io)?;
        let path = self.path.join(name);
        if !meta.is_file() {
            return Err(WeightsError::Trust {
                path,
                what: "is no regular file".into(),
            });
        }
        self.trusted(&path, &meta)?;
        Ok(file)
    }

    /// Remembers that a file was used now; in vain where it is root's.
    pub(super) fn used(&self, file: &File) {
        if let Err(e) = file.set_modified(SystemTime::now()) {
            tracing::debug!(%e, "a file of weights keeps the time of its last use");
        }
    }

    /// A new file that nobody reads, and its name.
    pub(super) fn temporary(&self, key: &Key) -> Result<(File, String), WeightsError> {
        let io = |source| self.bad("", "cannot be written to", source);
        let _alone = self.alone().map_err(io)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut n = 0;
        loop {
            let name = format!(".{}.{n}{TEMPORARY}", key.file_name());
            match rustix::fs::openat(&self.fd, &name, flags, Mode::RUSR | Mode::WUSR) {
                // Another process makes the same file, or has died over it.
                Err(Errno::EXIST) => n += 1,
                made => {
                    let file = File::from(made.map_err(|e| io(e.into()))?);
                    file.lock().map_err(io)?;
                    return Ok((file, name));
                }
            }
        }
    }

    /// Until the guard goes no other process begins a file or removes one that
    /// was left: between its making and its lock a file looks like one of the
    /// dead. Held for microseconds.
    fn alone(&self) -> io::Result<impl Drop> {
        struct Alone<'a>(&'a File);
        impl Drop for Alone<'_> {
            fn drop(&mut self) {
                // Only a file that is not open cannot be unlocked.
                let _ = self.0.unlock();
            }
        }
        for _ in 0..TRIES {
            match self.fd.try_lock() {
                Ok(()) => return Ok(Alone(&self.fd)),
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_EVERY),
            }
        }
        let held = "another process holds the folder's lock";
        Err(io::Error::new(io::ErrorKind::TimedOut, held))
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to)?;
        self.fd.sync_all()
    }

    /// The same where there is no file of that name yet. False where there is
    /// one, or the file system cannot tell.
    pub(super) fn rename_to_new(&self, from: &str, to: &str) -> io::Result<bool> {
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.fd, from, &self.fd, to, flags) {
            Ok(()) => self.fd.sync_all().map(|()| true),
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes a file. Who has it mapped keeps it. One that is not there is
    /// removed.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => {
                tracing::debug!(%e, name, "a file of weights stays");
                Err(e.into())
            }
        }
    }

    /// Names of all files of the cache, and of those that are being written.
    fn names(&self) -> Vec<String> {
        let Ok(all) = Dir::read_from(&self.fd) else {
            return Vec::new();
        };
        let names = all.filter_map(Result::ok);
        let names = names.filter_map(|e| e.file_name().to_str().ok().map(str::to_owned));
        let ours = |n: &String| n.ends_with(ENDING) || n.ends_with(TEMPORARY);
        names.filter(ours).collect()
    }

    /// All files, those used last first. Files that may not be trusted or are not
    /// finished are among them, and say so.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let names = self.names().into_iter();
        let mut all: Vec<_> = names.filter_map(|name| self.entry(name)).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        all
    }

    fn entry(&self, name: String) -> Option<Entry> {
        let (meta, model) = match self.open_file(&name) {
            Ok(file) if name.ends_with(TEMPORARY) => {
                let why = "not finished: it is being written, or the next start removes it";
                (file.metadata().ok()?, Err(why.to_owned()))
            }
            Ok(file) => {
                let model = file::describe(&file).map(|(_, table)| table.model);
                (file.metadata().ok()?, model.map_err(|e| e.to_string()))
            }
            Err(e) => {
                let meta = std::fs::symlink_metadata(self.path.join(&name)).ok()?;
                (meta, Err(e.to_string()))
            }
        };
        Some(Entry {
            name,
            bytes: Bytes(meta.blocks() * 512),
            used: meta.modified().ok()?,
            model,
        })
    }

    /// Removes every file, also such as a crash has left. Returns how many, and
    /// their bytes, and why others stay.
    pub fn clear(&self) -> (usize, Bytes, Option<WeightsError>) {
        let (mut count, mut bytes, mut failed) = (0, Bytes::ZERO, None);
        for entry in self.entries() {
            if entry.name.ends_with(TEMPORARY) {
                continue;
            }
            match self.remove(&entry.name) {
                Ok(()) => {
                    count += 1;
                    bytes.0 += entry.bytes.0;
                }
                Err(e) => failed = Some(self.bad(&entry.name, "cannot be removed", e)),
            }
        }
        self.clean_temporary();
        (count, bytes, failed)
    }

    /// Removes what a crash has left, and the weights of what `model` was
    /// before it was replaced.
    pub(super) fn clean(&self, model: &Path, key: &Key) {
        self.clean_temporary();
        for name in self.names() {
            if !name.ends_with(ENDING) || name == key.file_name() {
                continue;
            }
            let described = self.open_file(&name).ok();
            let described = described.and_then(|file| file::describe(&file).ok());
            if described.is_some_and(|(_, table)| table.model == model.to_string_lossy()) {
                // One that stays is only not used.
                let _ = self.remove(&name);
            }
        }
    }

    /// Whether what has this name is a pipe, a link or the like, which no process of
    /// kvpsi makes.
    fn is_no_file(&self, name: &str) -> bool {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) != FileType::RegularFile)
    }

    pub(super) fn clean_temporary(&self) {
        let Ok(_alone) = self.alone() else { return };
        let names = self.names().into_iter();
        for name in names.filter(|n| n.ends_with(TEMPORARY)) {
            let left = match self.open_file(&name) {
                // Who writes it holds a lock.
                Ok(file) => file.try_lock().is_ok(),
                Err(_) => self.is_no_file(&name),
            };
            if left {
                let _ = self.remove(&name);
            }
        }
    }

    /// Removes files, those first that were not used for longest, until `more`
    /// bytes fit below `most`.
    pub(super) fn make_room(&self, more: Bytes, most: Bytes) -> Result<(), WeightsError> {
        if more > most {
            return Err(WeightsError::Room {
                path: self.path.clone(),
                what: format!(
                    "the weights would take {more}, and --weights-cache-size allows {most}"
                ),
            });
        }
        let mut entries = self.entries();
        let mut sum: u64 = entries.iter().map(|e| e.bytes.0).sum();
        while sum > most.0 - more.0
            && let Some(oldest) = entries.pop()
        {
            // What others are writing is theirs.
            if oldest.name.ends_with(TEMPORARY) {
                continue;
            }
            if self.remove(&oldest.name).is_ok() {
                tracing::info!("{}: removed, to make room", oldest.name);
                sum -= oldest.bytes.0;
            }
        }
        Ok(())
    }

    /// Whether nobody but the folder's user, ours and root can have written it.
    fn trusted(&self, path: &Path, meta: &Metadata) -> Result<(), WeightsError> {
        let what = if ![0, geteuid().as_raw(), self.owner].contains(&meta.uid()) {
            let uid = meta.uid();
            format!("belongs to user {uid}, who could change it; `chown` or remove it")
        } else if meta.mode() & OTHERS_WRITE != 0 {
            let mode = meta.mode() & 0o7777;
            format!("may be written by others (mode {mode:o}); `chmod go-w` it")
        } else {
            return Ok(());
        };
        Err(WeightsError::Trust {
            path: path.into(),
            what,
        })
    }

    /// Whether the disk has room for so many bytes.
    pub(super) fn has_room(&self, bytes: Bytes) -> Result<(), WeightsError> {
        let disk = rustix::fs::fstatvfs(&self.fd).map_err(|e| self.bad("", "is not told of", e))?;
        let free = Bytes(disk.f_bavail.saturating_mul(disk.f_frsize));
        if free.saturating_sub(STAYS_FREE) >= bytes {
            return Ok(());
        }
        Err(WeightsError::Room {
            path: self.path.clone(),
            what: format!(
                "the weights would take {bytes} and the disk has {free}, of which {STAYS_FREE} stay free"
            ),
        })
    }
}
