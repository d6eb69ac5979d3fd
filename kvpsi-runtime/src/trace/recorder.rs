//! Writes a recording: bounded, and readable whatever happens.
//!
//! Owns the file and its turns. Entries are gathered in memory and written in
//! whole ones; when a write fails (a full disk) the file is cut back to its
//! last whole entry and the recording ends, and nothing else does. With a limit
//! of bytes a file that has half of them becomes FILE.1 and a new one begins.

use super::{
    Sample,
    recording::{Entry, Head, Trim, prefix},
};
use crate::{
    clock::monotonic_ns,
    control::{Tap, Tapped, TrimRecord},
    kv::KvPool,
};
use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

/// An open recording.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: File,
    head: Head,
    /// Whole entries that are not in the file yet.
    pending: Vec<u8>,
    /// Bytes of whole entries in the file.
    whole: u64,
    /// Bytes after which another file is begun; 0: never.
    turn: u64,
    entries: u64,
    turns: u64,
}

impl Recorder {
    /// Begins FILE. `most` bytes are kept, in FILE and FILE.1; 0: all.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(path: &Path, head: Head, most: u64) -> io::Result<Self> {
        Self::over(path, File::create(path)?, head, most)
    }

    /// The same over a file that is open, and empty.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn over(path: &Path, file: File, head: Head, most: u64) -> io::Result<Self> {
        let mut new = Self {
            path: path.to_owned(),
            file,
            head,
            pending: Vec::new(),
            whole: 0,
            turn: most / 2,
            entries: 0,
            turns: 0,
        };
        new.begin();
        new.flush().inspect_err(|_| {
            // A full disk takes the file and nothing of what is in it.
            let empty = |m: Metadata| m.is_file() && m.len() == 0;
            if fs::metadata(path).is_ok_and(empty) {
                let _ = fs::remove_file(path);
            }
        })?;
        Ok(new)
    }

    fn begin(&mut self) {
        let mut begin = prefix();
        Entry::Head(self.head.clone()).write(&mut begin);
        begin.append(&mut self.pending);
        self.pending = begin;
        self.whole = 0;
    }

    /// Entries so far, those written and those pending.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Files that were begun after the first.
    #[must_use]
    pub const fn turns(&self) -> u64 {
        self.turns
    }

    /// Takes an entry.
    pub fn put(&mut self, entry: &Entry) {
        entry.write(&mut self.pending);
        self.entries += 1;
    }

    /// Where older entries go when their file is full.
    #[must_use]
    pub fn older(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".1");
        name.into()
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// It cannot be written: the file has been cut back to whole entries, what
    /// was pending is gone, and nothing more should be put.
    pub fn flush(&mut self) -> io::Result<()> {
        let length = self.pending.len() as u64;
        if self.turn > 0 && self.whole > 0 && self.whole + length > self.turn {
            std::fs::rename(&self.path, Self::older(&self.path))?;
            self.file = File::create(&self.path)?;
            self.turns += 1;
            self.begin();
        }
        let written = self.file.write_all(&self.pending);
        if written.is_ok() {
            self.whole += self.pending.len() as u64;
        } else {
            // Part of an entry would be read as damage.
            let _ = self.file.set_len(self.whole);
        }
        self.pending.clear();
        written
    }
}

/// Where the entries of a running kvpsi go.
pub trait Sink: Send {
    /// Takes an entry.
    fn put(&mut self, entry: &Entry);

    /// Hands on what is pending.
    ///
    /// # Errors
    /// It cannot: this sink gets no more.
    fn flush(&mut self) -> io::Result<()>;
}

impl Sink for Recorder {
    fn put(&mut self, entry: &Entry) {
        Self::put(self, entry);
    }

    fn flush(&mut self) -> io::Result<()> {
        let path = self.path.display().to_string();
        // A full disk ends the recording, not the model.
        Self::flush(self).map_err(|e| {
            let what = format!("the recording ended: {path}: {e}; it is whole up to there");
            io::Error::new(e.kind(), what)
        })
    }
}

/// How often a running kvpsi's recorder looks.
const EVERY: Duration = Duration::from_millis(20);
/// And how many times before it reads PSI and the pool.
const SAMPLED: u32 = 5;

/// Hands on what the reactor lets out, by a thread of its own until dropped.
#[derive(Debug)]
pub struct Background {
    stop: mpsc::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Begins to hand on what the reactor lets out, and how the pool is.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(sinks: Vec<Box<dyn Sink>>, tap: Arc<Tap>, pool: Arc<KvPool>) -> io::Result<Self> {
        let (stop, told) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("kvpsi-record".into())
            .spawn(move || hand_on(sinks, &tap, &pool, &told))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the recorder panicked");
        }
    }
}

fn hand_on(mut sinks: Vec<Box<dyn Sink>>, tap: &Tap, pool: &KvPool, told: &mpsc::Receiver<()>) {
    let (mut lost, mut looks) = (0, 0u32);
    loop {
        let last = told.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout);
        let mut put = |entry: &Entry| sinks.iter_mut().for_each(|s| s.put(entry));
        let now = tap.lost();
        if now > lost {
            put(&Entry::Lost(now - lost));
            lost = now;
        }
        while let Some(tapped) = tap.pop() {
            put(&match tapped {
                Tapped::Event(e) => Entry::Event((&e).into()),
                Tapped::Levels { ts_ns, levels } => Entry::Levels { ts_ns, levels },
                Tapped::Trim(t) => Entry::Trim((&t).into()),
            });
        }
        if looks.is_multiple_of(SAMPLED) || last {
            put(&kv(pool));
            if let Some(sample) = Sample::now() {
                put(&Entry::Psi(sample));
            }
        }
        looks = looks.wrapping_add(1);
        sinks.retain_mut(|sink| match sink.flush() {
            Ok(()) => true,
            Err(e) => {
                tracing::warn!("{e}");
                false
            }
        });
        if last {
            return;
        }
    }
}

/// How the pool is now.
fn kv(pool: &KvPool) -> Entry {
    let a = pool.account();
    Entry::Kv {
        ts_ns: monotonic_ns(),
        resident: a.resident,
        in_use: a.in_use,
        cached: a.cached,
        floor: a.floor,
        budget: pool.budget(),
        tokens: a.live_tokens,
    }
}

impl From<&TrimRecord> for Trim {
    fn from(t: &TrimRecord) -> Self {
        Self {
            trigger: t.trigger.name().into(),
            kind: t.trigger.kind().map_or(0, |k| k as u16),
            onset_ns: t.onset_ns,
            noticed_ns: t.noticed_ns,
            returned_ns: t.trimmed.returned_ns,
            wanted: t.wanted,
            by_step: t.trimmed.by_step.to_vec(),
            tokens: t.trimmed.tokens,
            mass_dropped: t.trimmed.mass_dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::recording::Recording;

    #[test]
    fn a_recording_keeps_to_its_limit_and_both_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let mut r = Recorder::create(&path, Head::default(), 4096).unwrap();
        for i in 0..2000 {
            r.put(&Entry::Lost(i));
            if i % 7 == 0 {
                r.flush().unwrap();
            }
        }
        r.flush().unwrap();
        assert!(r.turns() > 2 && r.entries() == 2000);
        let size = |p: &Path| std::fs::metadata(p).unwrap().len();
        let older = Recorder::older(&path);
        assert!(size(&path) + size(&older) <= 4096);
        let mut read = Recording::open(&older).unwrap();
        read.append(Recording::open(&path).unwrap());
        assert_eq!(read.damage, None);
        let numbers = |e: &Entry| match e {
            Entry::Lost(n) => *n,
            other => panic!("{other:?}"),
        };
        let numbers: Vec<u64> = read.entries.iter().map(numbers).collect();
        let first = numbers[0];
        assert!(
            numbers.iter().copied().eq(first..2000),
            "no gap between the files"
        );
    }

    #[test]
    fn a_write_that_fails_leaves_whole_entries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let mut r = Recorder::create(&path, Head::default(), 0).unwrap();
        r.put(&Entry::Lost(1));
        r.flush().unwrap();
        r.put(&Entry::Lost(2));
        // No disk to fill here: a file that is open for reading refuses too.
        r.file = File::open(&path).unwrap();
        assert!(r.flush().is_err());
        let read = Recording::open(&path).unwrap();
        assert_eq!((read.entries, read.damage), (vec![Entry::Lost(1)], None));
    }
}
