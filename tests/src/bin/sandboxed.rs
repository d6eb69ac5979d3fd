//! A child of the test `sandbox`: has threads, attaches eBPF where it may,
//! confines itself, then tries what a server must still do and what it must
//! not. It says what came of each; the test judges.
//!
//! Lines: `error TEXT` and no more, or `report JSON`, `thread JSON` for each
//! thread as /proc tells of it, `try NAME OUTCOME` (`ok`, `errno NUMBER` or
//! words), and with --events `ready`, then `events NUMBER`.

use anyhow::Result;
use clap::Parser;
use kvpsi::{
    cli::governor,
    control::GovernorConfig,
    pressure::{Choice, PressureSource, SourceConfig, ebpf::EbpfSource, privilege, programs::Rung},
    sandbox::{Confinement, Report, User},
};
use rustix::{io::Errno, net::AddressFamily};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    user: Option<User>,
    #[arg(long)]
    read: Vec<PathBuf>,
    /// A folder.
    #[arg(long)]
    write: Vec<PathBuf>,
    #[arg(long)]
    port: Option<u16>,
    #[arg(long)]
    landlock: bool,
    #[arg(long)]
    seccomp: bool,
    /// Another thread keeps what it has.
    #[arg(long)]
    loose: bool,
    /// The way of `kvpsi serve`, with the reactor's own thread.
    #[arg(long)]
    listen: bool,
    /// eBPF programs are attached before, and listened to after.
    #[arg(long)]
    events: bool,
    /// A file to read that was not declared.
    #[arg(long, overrides_with = "secret")]
    secret: PathBuf,
    /// A folder to write in that was not declared.
    #[arg(long)]
    elsewhere: PathBuf,
}

/// How long to wait for a stall.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let args = Args::parse();
    let map = Map::create().ok();
    let mut source = args.events.then(open_source).transpose()?;
    match confine(&args) {
        Err(e) => println!("error {e:#}"),
        Ok(report) => {
            println!("report {}", serde_json::to_string(&report)?);
            tell_threads()?;
            for (name, outcome) in attempts(&args, map.as_ref()) {
                println!("try {name} {}", said(outcome));
            }
            if let Some(source) = &mut source {
                listen(source)?;
            }
        }
    }
    Ok(())
}

fn said(outcome: Outcome) -> String {
    match outcome {
        Ok(()) => "ok".into(),
        Err(e) => e
            .raw_os_error()
            .map_or_else(|| e.to_string(), |n| format!("errno {n}")),
    }
}

fn open_source() -> Result<EbpfSource> {
    let config = SourceConfig {
        rung: Rung::RawTp,
        ..SourceConfig::default()
    };
    Ok(EbpfSource::open(&config)?)
}

fn confine(args: &Args) -> Result<Report> {
    let confinement = Confinement {
        user: args.user.clone(),
        read: args.read.clone(),
        write: args.write.clone(),
        sockets: Vec::new(),
        port: args.port,
        landlock: args.landlock,
        seccomp: args.seccomp,
        ..Confinement::default()
    };
    if args.listen {
        let config = GovernorConfig::default();
        let (listening, report) =
            governor::listen_confined(Choice::Auto, Rung::Auto, config, &confinement)?;
        // Its thread goes on waiting for a pool.
        std::mem::forget(listening);
        return Ok(report);
    }
    let fenced = confinement.fence();
    for n in 0..3 {
        let ids = confinement.ids().cloned();
        thread(&format!("left-{n}"), move || {
            // One that cannot is found.
            let _ = privilege::leave(ids.as_ref());
        })?;
    }
    if args.loose {
        thread("loose", || ())?;
    }
    Ok(fenced.leave()?)
}

/// A thread that does `f` and then stays; `f` is done when this returns.
fn thread(name: &str, f: impl FnOnce() + Send + 'static) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let body = move || {
        f();
        let _ = tell.send(());
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(body)?;
    Ok(told.recv()?)
}

fn tell_threads() -> Result<()> {
    for entry in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(entry?.path().join("status"))?;
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k, v.trim()))
            .collect();
        println!("thread {}", json!(fields));
    }
    Ok(())
}

fn listen(source: &mut EbpfSource) -> Result<()> {
    println!("ready");
    let (start, mut events) = (Instant::now(), 0);
    while events == 0 && start.elapsed() < PATIENCE {
        source.drain(&mut |_| events += 1)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("events {events}");
    Ok(())
}

type Outcome = io::Result<()>;

/// Every attempt, with its name. None has an effect that outlasts it.
fn attempts(args: &Args, map: Option<&Map>) -> Vec<(&'static str, Outcome)> {
    let [folder, elsewhere] = [args.write.first(), Some(&args.elsewhere)];
    let mut all = vec![
        // What goes on.
        ("thread", threads_can_be_made()),
        ("trim", pages_can_be_returned()),
        ("map-lookup", map.map_or(Ok(()), Map::lookup)),
        ("statm", fs::read("/proc/self/statm").map(drop)),
        (
            "read-named",
            args.read.iter().try_for_each(|f| fs::read(f).map(drop)),
        ),
        ("write-named", folder.map_or(Ok(()), |f| rotate(f))),
        (
            "null",
            OpenOptions::new().write(true).open("/dev/null").map(drop),
        ),
        ("port", listen_on(args.port.unwrap_or(0))),
        ("unix-socket", UnixStream::pair().map(drop)),
        // What does not.
        ("other-port", listen_on(args.port.map_or(0, |p| p ^ 1))),
        ("connect", connect(1)),
        ("read-secret", fs::read(&args.secret).map(drop)),
        ("write-elsewhere", elsewhere.map_or(Ok(()), |f| rotate(f))),
        ("other-processes", fs::read("/proc/1/environ").map(drop)),
        ("packet-socket", socket(AddressFamily::PACKET)),
        ("netlink-socket", socket(AddressFamily::NETLINK)),
        ("exec", Err(Command::new("/nonexistent/program").exec())),
        ("spawn", spawn()),
    ];
    all.extend(
        CALLS
            .iter()
            .map(|(name, nr, arguments)| (*name, call(*nr, *arguments).map(drop))),
    );
    #[cfg(target_arch = "x86_64")]
    all.push((
        "short-pointers",
        call(0x4000_0000 | libc::SYS_getpid, [0; 5]).map(drop),
    ));
    all
}

/// Calls that do nothing, or fail, with these arguments; -1 is no descriptor.
const CALLS: &[(&str, libc::c_long, [usize; 5])] = &[
    ("bpf-map-create", libc::SYS_bpf, [0; 5]),
    ("bpf-prog-load", libc::SYS_bpf, [5, 0, 0, 0, 0]),
    ("bpf-link-create", libc::SYS_bpf, [28, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 5]),
    ("unshare", libc::SYS_unshare, [0; 5]),
    ("setns", libc::SYS_setns, [usize::MAX, 0, 0, 0, 0]),
    (
        "personality",
        libc::SYS_personality,
        [0xffff_ffff, 0, 0, 0, 0],
    ),
    // PTRACE_PEEKTEXT of no process.
    ("ptrace", libc::SYS_ptrace, [1, 0, 0, 0, 0]),
    ("process-vm-readv", libc::SYS_process_vm_readv, [0; 5]),
    ("perf-event-open", libc::SYS_perf_event_open, [0; 5]),
    (
        "userfaultfd",
        libc::SYS_userfaultfd,
        [usize::MAX, 0, 0, 0, 0],
    ),
    ("keyctl", libc::SYS_keyctl, [usize::MAX, 0, 0, 0, 0]),
    ("io-uring", libc::SYS_io_uring_setup, [0; 5]),
    ("mount", libc::SYS_mount, [0; 5]),
    ("setgroups", libc::SYS_setgroups, [usize::MAX, 0, 0, 0, 0]),
    (
        "finit-module",
        libc::SYS_finit_module,
        [usize::MAX, 0, 0, 0, 0],
    ),
    ("reboot", libc::SYS_reboot, [0; 5]),
    ("swapon", libc::SYS_swapon, [0; 5]),
];

fn call(nr: libc::c_long, a: [usize; 5]) -> io::Result<i64> {
    // SAFETY: with arguments such as CALLS has, and a map's own, the kernel
    // reads and writes nothing of ours that is not meant to be.
    let r = unsafe { libc::syscall(nr, a[0], a[1], a[2], a[3], a[4]) };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(r)
}

/// A BPF map of one entry, as bpf(2) makes it.
struct Map {
    fd: usize,
}

impl Map {
    const VALUE: u64 = 7;

    fn create() -> io::Result<Self> {
        // `union bpf_attr` of linux/bpf.h: BPF_MAP_TYPE_ARRAY, bytes of a key
        // and of a value, entries.
        let attr: [u32; 4] = [2, 4, 8, 1];
        let made = call(libc::SYS_bpf, [0, address(&attr), size_of_val(&attr), 0, 0])?;
        let map = Self {
            fd: usize::try_from(made).map_err(io::Error::other)?,
        };
        map.element(2, &mut Self::VALUE.clone())?;
        Ok(map)
    }

    fn lookup(&self) -> Outcome {
        let mut value = 0;
        self.element(1, &mut value)?;
        if value == Self::VALUE {
            Ok(())
        } else {
            Err(io::Error::other(format!("it holds {value}")))
        }
    }

    fn element(&self, command: usize, value: &mut u64) -> Outcome {
        let key = 0u32;
        let attr = [
            self.fd as u64,
            address(&key) as u64,
            address(value) as u64,
            0,
        ];
        call(
            libc::SYS_bpf,
            [command, address(&attr), size_of_val(&attr), 0, 0],
        )
        .map(drop)
    }
}

fn address<T>(of: &T) -> usize {
    std::ptr::from_ref(of).expose_provenance()
}

fn threads_can_be_made() -> Outcome {
    let made = std::thread::Builder::new().spawn(|| {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        text.contains("CapEff:\t0000000000000000")
    })?;
    match made.join() {
        Ok(true) => Ok(()),
        _ => Err(io::Error::other("it has capabilities")),
    }
}

fn pages_can_be_returned() -> Outcome {
    const BYTES: usize = 16 << 20;
    let resident = || -> io::Result<usize> {
        let text = fs::read_to_string("/proc/self/statm")?;
        let pages = text.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok());
        Ok(pages.unwrap_or(0) * rustix::param::page_size())
    };
    let mut map = memmap2::MmapMut::map_anon(BYTES)?;
    map.fill(1);
    let before = resident()?;
    // SAFETY: the pages are zero after, and there is no reference to them.
    unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed)? };
    let lost = before.saturating_sub(resident()?);
    if lost < BYTES / 2 {
        return Err(io::Error::other(format!("{lost} of {BYTES} bytes went")));
    }
    Ok(())
}

/// Refused by who is not there is as good as let through.
fn connect(port: u16) -> Outcome {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }
}

fn listen_on(port: u16) -> Outcome {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop)
}

/// What a recorder does.
fn rotate(folder: &Path) -> Outcome {
    let [file, old] = ["a.rec", "a.rec.1"].map(|n| folder.join(n));
    fs::write(&file, "x")?;
    fs::rename(&file, &old)?;
    File::create(&file)?;
    fs::remove_file(&file)?;
    fs::remove_file(&old)
}

fn socket(family: AddressFamily) -> Outcome {
    use rustix::net::{SocketType, socket};
    Ok(socket(family, SocketType::DGRAM, None).map(drop)?)
}

fn spawn() -> Outcome {
    match Command::new("/nonexistent/program").spawn() {
        Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other.map(drop),
    }
}
