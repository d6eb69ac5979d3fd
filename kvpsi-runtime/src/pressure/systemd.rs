//! Pressure as a service manager hands it out: the file, pipe or socket that
//! `MEMORY_PRESSURE_WATCH` names, after what `MEMORY_PRESSURE_WRITE` says was
//! written to it (systemd.io/MEMORY_PRESSURE, systemd 254).
//!
//! Owns the open descriptor. A regular file is PSI's, and tells of pressure by
//! `POLLPRI`; a pipe or a socket by bytes, which mean nothing and are read and
//! let go. What comes tells neither who stalls nor for how long. Draining does
//! not allocate.

use crate::clock::monotonic_ns;
use crate::pressure::{
    EventTotals, PressureSource, Readiness, SignalError, SourceConfig, SourceStats,
    burst::Burst,
    plain,
    psi::{self, PsiFile},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::{
    event::PollFlags,
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    env::VarError,
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileTypeExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

const NAME: &str = "systemd";
const WATCH: &str = "MEMORY_PRESSURE_WATCH";
const WRITE: &str = "MEMORY_PRESSURE_WRITE";
/// The name that says: do not watch.
const OFF: &str = "/dev/null";
/// systemd's own window where the administrator set none.
const WINDOW: Duration = Duration::from_secs(2);

/// What the service manager asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Not to watch memory pressure at all.
    Off,
    /// To watch this.
    Watch(Watch),
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    path: PathBuf,
    write: Vec<u8>,
}

fn refused(path: impl Into<PathBuf>, why: impl Into<String>) -> SignalError {
    SignalError::File {
        name: NAME,
        path: path.into(),
        why: why.into(),
    }
}

/// Reads the environment.
///
/// # Errors
/// The variables are set, and make no sense.
pub fn asked() -> Result<Asked, SignalError> {
    let Some(watch) = std::env::var_os(WATCH).filter(|w| !w.is_empty()) else {
        return Ok(Asked::Nothing);
    };
    match std::env::var(WRITE) {
        Ok(write) => parse(&watch, &write),
        Err(VarError::NotPresent) => parse(&watch, ""),
        Err(VarError::NotUnicode(_)) => Err(refused(WRITE, "it is not Base64")),
    }
}

pub(crate) fn parse(watch: &OsStr, write: &str) -> Result<Asked, SignalError> {
    if watch == OFF {
        return Ok(Asked::Off);
    }
    let path = PathBuf::from(watch);
    if !path.is_absolute() {
        return Err(refused(
            path,
            format!("{WATCH} must name an absolute path (unset it to do without)"),
        ));
    }
    let write = STANDARD
        .decode(write)
        .map_err(|e| refused(&path, format!("{WRITE} is not Base64: {e}")))?;
    Ok(Asked::Watch(Watch { path, write }))
}

/// What the descriptor is.
#[derive(Debug)]
enum From {
    Psi(PsiFile),
    Bytes(OwnedFd, Burst, Arc<Delivered>),
}

/// Times that bytes came, readable from any thread.
#[derive(Debug, Default)]
struct Delivered(AtomicU64);

impl SourceStats for Delivered {
    fn totals(&self) -> EventTotals {
        let n = self.0.load(Relaxed);
        EventTotals {
            seen: n,
            delivered: n,
            ..EventTotals::default()
        }
    }

    fn some_ns(&self) -> Option<u64> {
        None
    }
}

/// Waits for the service manager's word.
#[derive(Debug)]
pub struct Systemd {
    from: From,
}

impl Systemd {
    /// Opens what the environment names.
    ///
    /// # Errors
    /// It names nothing, or it cannot be opened, written or read.
    pub fn open(config: &SourceConfig) -> Result<Self, SignalError> {
        match asked()? {
            Asked::Watch(watch) => Self::watch(&watch, config),
            Asked::Nothing => Err(refused(
                WATCH,
                "it is not set; a service manager sets it (MemoryPressureWatch= of systemd)",
            )),
            Asked::Off => Err(refused(OFF, format!("{WATCH} says not to watch"))),
        }
    }

    /// Opens `watch`.
    ///
    /// # Errors
    /// As [`Systemd::open`].
    pub fn watch(watch: &Watch, config: &SourceConfig) -> Result<Self, SignalError> {
        let no = |e: &io::Error| refused(&watch.path, plain(e));
        let kind = fs::metadata(&watch.path).map_err(|e| no(&e))?.file_type();
        let from = if kind.is_file() {
            let file = fs::OpenOptions::new()
                .read(true)
                .write(!watch.write.is_empty())
                .open(&watch.path)
                .map_err(|e| no(&e))?;
            write_all(&file, &watch.write).map_err(|e| no(&e))?;
            From::Psi(PsiFile::over(file, WINDOW * 2, config).map_err(|e| no(&e))?)
        } else {
            let fd = if kind.is_socket() {
                connect(&watch.path)
            } else if kind.is_fifo() {
                // Open for writing too: it never comes to its end.
                rustix::fs::open(
                    &watch.path,
                    OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                )
            } else {
                return Err(refused(
                    &watch.path,
                    "neither a file nor a pipe nor a socket",
                ));
            }
            .map_err(|e| no(&e.into()))?;
            write_all(&fd, &watch.write).map_err(|e| no(&e))?;
            From::Bytes(fd, Burst::new(WINDOW * 2), Arc::default())
        };
        Ok(Self { from })
    }
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    rustix::net::connect(&fd, &address)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// In one piece: PSI takes a trigger by one write only.
fn write_all(fd: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    match rustix::io::write(fd, bytes)? {
        n if n == bytes.len() => Ok(()),
        n => Err(io::Error::other(format!(
            "took {n} bytes of {} in {WRITE}",
            bytes.len()
        ))),
    }
}

impl PressureSource for Systemd {
    fn name(&self) -> &'static str {
        NAME
    }

    fn readiness(&self) -> Readiness<'_> {
        let fd: (_, PollFlags) = match &self.from {
            From::Psi(psi) => (psi.file().as_fd(), PollFlags::PRI),
            From::Bytes(fd, ..) => (fd.as_fd(), PollFlags::IN),
        };
        Readiness {
            fd: Some(fd),
            interval: None,
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&kvpsi_common::Event)) -> io::Result<()> {
        let (fd, burst, delivered) = match &mut self.from {
            From::Psi(psi) => return psi.drain(sink),
            From::Bytes(fd, burst, delivered) => (fd, burst, delivered),
        };
        let mut told = false;
        let mut bytes = [0u8; 256];
        loop {
            match rustix::io::read(&*fd, &mut bytes) {
                // The other end closed: no further event comes.
                Ok(0) => return Err(Errno::PIPE.into()),
                Ok(_) => told = true,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if told {
            delivered.0.fetch_add(1, Relaxed);
            let now = monotonic_ns();
            sink(&psi::event(now, 0, 0, burst.stall(now)));
        }
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        match &self.from {
            From::Psi(psi) => psi.stats.clone(),
            From::Bytes(_, _, delivered) => delivered.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pressure::{vmstat::Vmstat, watchdog::Watched};
    use kvpsi_common::{Kind, Phase};
    use std::{io::Write, os::unix::net::UnixListener};

    fn config() -> SourceConfig {
        SourceConfig::default()
    }

    fn phases(source: &mut Systemd) -> Vec<u16> {
        let mut all = Vec::new();
        source
            .drain(&mut |e| {
                assert_eq!(e.kind(), Some(Kind::Memstall));
                all.push(e.phase);
            })
            .unwrap();
        all
    }

    #[test]
    fn the_variables_are_an_absolute_path_and_base64() {
        let parse = |watch: &str, write: &str| parse(OsStr::new(watch), write);
        assert_eq!(parse("/dev/null", "").unwrap(), Asked::Off);
        let want = Watch {
            path: "/run/x".into(),
            write: b"some 1 2\0".to_vec(),
        };
        assert_eq!(parse("/run/x", "c29tZSAxIDIA").unwrap(), Asked::Watch(want));
        for (watch, write) in [("run/x", ""), ("/run/x", "not base64!")] {
            let why = parse(watch, write).unwrap_err().to_string();
            assert!(
                why.starts_with("systemd: ") && why.contains("MEMORY_PRESSURE_W"),
                "{why}"
            );
        }
    }

    #[test]
    fn bytes_in_a_pipe_are_one_event_however_many_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from(0o600),
            0,
        )
        .unwrap();
        let watch = Watch {
            path: path.clone(),
            write: Vec::new(),
        };
        let mut source = Systemd::watch(&watch, &config()).unwrap();
        assert!(phases(&mut source).is_empty());
        let mut pipe = fs::OpenOptions::new().write(true).open(&path).unwrap();
        pipe.write_all(&[1; 700]).unwrap();
        assert_eq!(phases(&mut source), [Phase::Onset as u16]);
        assert!(phases(&mut source).is_empty());
        pipe.write_all(&[1]).unwrap();
        assert_eq!(phases(&mut source), [Phase::Summary as u16]);
        assert_eq!(source.stats().totals().delivered, 2);
    }

    #[test]
    fn a_socket_gets_what_is_to_be_written_and_its_end_breaks_the_source() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let watch = Watch {
            path,
            write: b"hello".to_vec(),
        };
        let mut source = Systemd::watch(&watch, &config()).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        let mut got = [0u8; 5];
        io::Read::read_exact(&mut other, &mut got).unwrap();
        assert_eq!(&got, b"hello");
        other.write_all(b"!").unwrap();
        assert_eq!(phases(&mut source).len(), 1);
        drop(other);
        let broken = source.drain(&mut |_| {}).unwrap_err();
        assert_eq!(broken.raw_os_error(), Some(Errno::PIPE.raw_os_error()));
    }

    #[test]
    fn of_two_sources_the_one_that_is_left_is_listened_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let watch = Watch {
            path,
            write: Vec::new(),
        };
        let gone = || {
            let source = Systemd::watch(&watch, &config()).unwrap();
            drop(listener.accept().unwrap());
            Box::new(source)
        };
        let works = || Box::new(Vmstat::open(&config()).unwrap());
        let mut without_account = Watched::new(works(), gone());
        let mut without_first = Watched::new(gone(), works());
        // Until the other account is looked at.
        std::thread::sleep(Duration::from_millis(1100));
        without_account.drain(&mut |_| {}).unwrap();
        assert_eq!(without_account.stats().note(), None);
        without_first.drain(&mut |_| {}).unwrap();
        let note = without_first.stats().note().unwrap();
        assert!(
            note.contains("falling back to vmstat (higher latency)"),
            "{note}"
        );
        assert!(without_first.readiness().fd.is_none());
    }

    #[test]
    fn what_is_no_pressure_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes");
        fs::write(&file, "").unwrap();
        for path in [file, dir.path().join("nowhere"), dir.path().into()] {
            let watch = Watch {
                path: path.clone(),
                write: Vec::new(),
            };
            let why = Systemd::watch(&watch, &config()).unwrap_err().to_string();
            assert!(why.contains(&*path.to_string_lossy()), "{why}");
        }
    }
}
