//! Pressure from the kernel's own tracepoints.
//!
//! Owns the loaded programs, both ring buffers and the maps' counters.
//! Invariants: the object's ABI version is checked before anything is loaded;
//! draining does not allocate; dropping the source detaches every program.
//! Out of scope: what an event means.

use crate::clock::monotonic_ns;
use crate::pressure::{
    EventTotals, PressureSource, Readiness, SignalError, SourceConfig, SourceStats,
    mapped::MappedArray,
    plain,
    programs::{self, Cost, HOOKS, Hook, ProgramReport, Rung},
    refusal::{one_line, os_error},
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, RingBuf},
};
use bytemuck::{Pod, Zeroable};
use kvpsi_common::{
    ABI_VERSION, Counters, Event, Kind, Phase, SharedReading, counters::KindCounters, shared,
};
use object::{Object, ObjectSection, ObjectSymbol};
use rustix::event::PollFlags;
use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::Duration,
};

#[cfg(kvpsi_bpf_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KVPSI_BPF_OBJECT_PATH"));

/// The embedded object, if this binary was built with one.
#[must_use]
pub const fn object() -> Option<&'static [u8]> {
    #[cfg(kvpsi_bpf_object)]
    return Some(OBJECT);
    #[cfg(not(kvpsi_bpf_object))]
    None
}

/// The maps' counters, read from memory: no system call, no capability.
pub struct EbpfStats {
    counters: MappedArray<Counters>,
    shared: MappedArray<SharedReading>,
    /// Programs that are loaded later refer to the maps by descriptor.
    _maps: [MapData; 2],
    attached: OnceLock<Attached>,
}

/// What is known once the programs are attached.
struct Attached {
    rung: Rung,
    programs: Vec<(String, OwnedFd)>,
}

impl fmt::Debug for EbpfStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EbpfStats").finish_non_exhaustive()
    }
}

impl EbpfStats {
    /// Every counter, summed over CPUs. A program may be running meanwhile;
    /// a few readings are tried for one in which the books balance.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::zeroed();
        for _ in 0..8 {
            sum = Counters::zeroed();
            for cpu in self.counters.iter() {
                sum.add(&cpu);
            }
            if sum.balanced() {
                break;
            }
        }
        sum
    }

    /// Clocks of the scopes.
    #[must_use]
    pub fn shared(&self) -> SharedReading {
        self.shared.get(0).unwrap_or_else(SharedReading::zeroed)
    }

    /// Nanoseconds in which at least one task of the watched cgroup stalled;
    /// 0 where none is watched.
    #[must_use]
    pub fn cgroup_some_ns(&self) -> u64 {
        self.shared().scopes[shared::CGROUP].some_ns(monotonic_ns())
    }
}

impl SourceStats for EbpfStats {
    fn totals(&self) -> EventTotals {
        let t = self.counters().total();
        EventTotals {
            seen: t.seen,
            delivered: t.delivered,
            coalesced: t.coalesced,
            dropped: t.dropped,
        }
    }

    fn some_ns(&self) -> Option<u64> {
        Some(self.shared().scopes[shared::SYSTEM].some_ns(monotonic_ns()))
    }

    fn rung(&self) -> Option<Rung> {
        self.attached.get().map(|a| a.rung)
    }

    fn background(&self) -> u64 {
        self.counters().background
    }

    fn kinds(&self) -> Vec<(Kind, KindCounters)> {
        let counters = self.counters();
        Kind::ALL.map(|k| (k, *counters.of(k))).to_vec()
    }

    fn costs(&self) -> Vec<(String, Cost)> {
        let programs = self.attached.get().map_or(&[][..], |a| &a.programs);
        let cost = |(name, fd): &(String, OwnedFd)| Some((name.clone(), Cost::of(fd)?));
        programs.iter().filter_map(cost).collect()
    }

    fn note(&self) -> Option<String> {
        let n = self.counters().implausible;
        (n > 0).then(|| {
            format!("{n} arguments of hooks cannot be what they were taken for, and were not believed: this kernel passes others (please report `kvpsi doctor`)")
        })
    }
}

/// A ring buffer of [`Event`]s.
pub struct EventRing(RingBuf<MapData>);

impl fmt::Debug for EventRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl EventRing {
    /// Hands every waiting event to `sink`. Does not allocate or block.
    ///
    /// # Errors
    /// An entry is not an event: the object is not ours.
    pub fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        while let Some(entry) = self.0.next() {
            // The kernel aligns entries to 8 bytes, as `Event` wants.
            let event = bytemuck::try_from_bytes::<Event>(&entry)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            sink(event);
        }
        Ok(())
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for EventRing {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// The programs, attached.
pub struct EbpfSource {
    events: EventRing,
    trace: Option<EventRing>,
    stats: Arc<EbpfStats>,
    programs: Vec<ProgramReport>,
    interval: Duration,
    quiet_ns: u64,
    /// Until then summaries come without a wake-up, and we look by ourselves.
    listen_until_ns: u64,
    /// Holds the programs and their links: they go when it goes.
    ebpf: Ebpf,
}

impl fmt::Debug for EbpfSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EbpfSource")
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

impl EbpfSource {
    /// Loads the embedded object and attaches what this kernel takes.
    ///
    /// # Errors
    /// There is no object, its ABI differs, the kernel refuses BPF, or
    /// no program that detects stalls could be attached.
    pub fn open(config: &SourceConfig) -> Result<Self, SignalError> {
        Self::open_object(object().ok_or(SignalError::NoObject)?, &HOOKS, config)
    }

    /// [`EbpfSource::open`] for an object from elsewhere, attached to other
    /// hooks.
    ///
    /// # Errors
    /// As [`EbpfSource::open`].
    pub fn open_object(
        object: &[u8],
        hooks: &[Hook],
        config: &SourceConfig,
    ) -> Result<Self, SignalError> {
        check_abi(object)?;
        let mut ebpf = load(object, config)?;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| SignalError::BadObject(format!("it has no map {name}")))
        };
        let bad = |e: aya::maps::MapError| SignalError::Refused(one_line(&e));
        let events = EventRing(take("EVENTS")?.try_into().map_err(bad)?);
        // Otherwise the map stays where it is: the programs refer to it.
        let trace = match config.trace_ring_bytes {
            Some(_) => Some(EventRing(take("TRACE")?.try_into().map_err(bad)?)),
            None => None,
        };
        let maps = [array(take("COUNTERS")?)?, array(take("SHARED")?)?];
        let stats = Arc::new(EbpfStats {
            counters: mapped(&maps[0], cpus()?)?,
            shared: mapped(&maps[1], 1)?,
            _maps: maps,
            attached: OnceLock::new(),
        });
        let programs = programs::attach(&mut ebpf, hooks, config.rung);
        check_hearing(&programs, config.rung)?;
        let fds = ebpf.programs().filter_map(|(name, program)| {
            let fd = program.fd().ok()?.as_fd().try_clone_to_owned().ok()?;
            Some((name.to_owned(), fd))
        });
        let _ = stats.attached.set(Attached {
            rung: programs::reached(&programs),
            programs: fds.collect(),
        });
        Ok(Self {
            events,
            trace,
            stats,
            programs,
            interval: config.interval,
            quiet_ns: u64::try_from(config.quiet.max(config.interval).as_nanos())
                .unwrap_or(u64::MAX),
            listen_until_ns: 0,
            ebpf,
        })
    }

    /// What became of each program.
    #[must_use]
    pub fn programs(&self) -> &[ProgramReport] {
        &self.programs
    }

    /// The rung in use: never [`Rung::Auto`].
    #[must_use]
    pub fn rung(&self) -> Rung {
        programs::reached(&self.programs)
    }

    /// What a program cost since it was loaded, while statistics were on
    /// ([`programs::enable_statistics`]). `None` if it is not loaded.
    #[must_use]
    pub fn cost(&self, program: &str) -> Option<Cost> {
        let info = self.ebpf.program(program)?.info().ok()?;
        Some(Cost {
            runs: info.run_count(),
            time: info.run_time(),
        })
    }

    /// Thread ids that the programs have an entry of. Takes the right to read a map, which
    /// is given up after the start.
    ///
    /// # Errors
    /// The map is missing, or the kernel refuses to read it.
    pub fn followed(&self) -> io::Result<Vec<u32>> {
        let map = self.ebpf.map("TASKS").ok_or(io::ErrorKind::NotFound)?;
        let tasks: HashMap<_, u32, [u8; 32]> = map.try_into().map_err(io::Error::other)?;
        tasks
            .keys()
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)
    }

    /// The ring buffer of trace mode, once.
    pub fn take_trace(&mut self) -> Option<EventRing> {
        self.trace.take()
    }

    /// The counters in full.
    #[must_use]
    pub fn counters(&self) -> Arc<EbpfStats> {
        self.stats.clone()
    }

    /// The programs' own diagnostics, if asked for in the configuration. They
    /// go to `logger` at each `flush`.
    ///
    /// # Errors
    /// The object has no log, or it was taken already.
    pub fn log<L: log::Log>(
        &mut self,
        logger: L,
    ) -> Result<aya_log::EbpfLogger<L>, aya_log::Error> {
        aya_log::EbpfLogger::init_with_logger(&mut self.ebpf, logger)
    }
}

impl PressureSource for EbpfSource {
    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness {
            fd: Some((self.events.as_fd(), PollFlags::IN)),
            interval: (monotonic_ns() < self.listen_until_ns).then_some(self.interval),
        }
    }

    fn drain(&mut self, sink: &mut dyn FnMut(&Event)) -> io::Result<()> {
        let mut stalls = false;
        self.events.drain(&mut |e| {
            stalls |= e.phase == Phase::Onset as u16 || e.phase == Phase::Summary as u16;
            sink(e);
        })?;
        if stalls {
            self.listen_until_ns = monotonic_ns().saturating_add(self.quiet_ns);
        }
        Ok(())
    }

    fn stats(&self) -> Arc<dyn SourceStats> {
        self.stats.clone()
    }
}

/// A program detects stalls, and the requested rung is available.
fn check_hearing(programs: &[ProgramReport], asked: Rung) -> Result<(), SignalError> {
    let reached = programs::reached(programs);
    if asked != Rung::Auto && asked != reached {
        let why: Vec<String> = programs
            .iter()
            .filter(|p| p.by != programs::How::RawTp)
            .filter_map(|p| Some(format!("{} on {}: {}", p.by.name(), p.hook, p.refusal()?)))
            .take(2)
            .collect();
        return Err(SignalError::Refused(format!(
            "rung {} is unavailable on this kernel ({}); --rung auto takes {}",
            asked.name(),
            why.join("; "),
            reached.name()
        )));
    }
    let attached = |name| programs.iter().any(|p| p.name == name && p.attached());
    if reached == Rung::RawTp && !attached("direct_begin") && !attached("memcg_begin") {
        let why = programs
            .iter()
            .find_map(|p| Some(format!("{}: {}", p.name, p.refusal()?)))
            .unwrap_or_default();
        return Err(SignalError::Refused(format!(
            "no program that detects stalls could be attached: {why}"
        )));
    }
    Ok(())
}

/// CPUs that may ever be there: a CPU's number is below it.
fn cpus() -> Result<usize, SignalError> {
    aya::util::nr_cpus()
        .map_err(|(file, e)| SignalError::Refused(format!("{file} cannot be read: {}", plain(&e))))
}

fn array(map: Map) -> Result<MapData, SignalError> {
    match map {
        Map::Array(data) => Ok(data),
        _ => Err(SignalError::BadObject("a map is not an array".into())),
    }
}

fn mapped<T: Pod>(map: &MapData, entries: usize) -> Result<MappedArray<T>, SignalError> {
    MappedArray::new(map.fd(), entries)
        .map_err(|e| SignalError::Refused(format!("a map cannot be mapped: {}", plain(&e))))
}

fn load(object: &[u8], config: &SourceConfig) -> Result<Ebpf, SignalError> {
    let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    let ring = config.ring_bytes.max(page).next_power_of_two();
    let trace = config
        .trace_ring_bytes
        .map_or(page, |b| b.max(page).next_power_of_two());
    let cpus = u32::try_from(cpus()?).unwrap_or(1);
    let (interval, quiet) = (ns(config.interval), ns(config.quiet));
    let scope_id = config.cgroup.as_ref().map_or(0, |c| c.id);
    let scope_level = config
        .cgroup
        .as_ref()
        .and_then(|c| c.level)
        .and_then(|l| i32::try_from(l).ok())
        .unwrap_or(-1);
    let (events_full, trace_full) = (u64::from(ring / 2), u64::from(trace / 4));
    let trace_on = u8::from(config.trace_ring_bytes.is_some());
    // More are there than this process may use, perhaps.
    let online = aya::util::online_cpus().map_or(1, |cpus| cpus.len().max(1)) as u64;
    let is_x86 = u8::from(cfg!(target_arch = "x86_64"));
    // The levels of `aya_log_common::Level`: 0 is none, 4 is debug.
    let log_level: u8 = if config.program_log { 4 } else { 0 };
    let log_bytes = if config.program_log { 128 << 10 } else { page };
    // aya raises RLIMIT_MEMLOCK by itself where a kernel before 5.11 needs it.
    EbpfLoader::new()
        // The programs follow no kernel struct: nothing is relocated.
        .btf(None)
        .override_global("CPUS", &online, true)
        .override_global("IS_X86", &is_x86, true)
        .override_global("INTERVAL_NS", &interval, true)
        .override_global("QUIET_NS", &quiet, true)
        .override_global("SCOPE_ID", &scope_id, true)
        .override_global("SCOPE_LEVEL", &scope_level, true)
        .override_global("EVENTS_FULL", &events_full, true)
        .override_global("TRACE_FULL", &trace_full, true)
        .override_global("TRACE_ON", &trace_on, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries("COUNTERS", cpus)
        .map_max_entries("EVENTS", ring)
        .map_max_entries("TRACE", trace)
        .map_max_entries("AYA_LOGS", log_bytes)
        .load(object)
        .map_err(|e| match os_error(&e) {
            Some(1 | 13) => SignalError::Refused(
                "the kernel refuses BPF: Operation not permitted (run as root, or with CAP_BPF and CAP_PERFMON)"
                    .into(),
            ),
            Some(38) => SignalError::Refused(
                "this kernel has no BPF (CONFIG_BPF_SYSCALL is off)".into(),
            ),
            _ => SignalError::Refused(one_line(&e)),
        })
}

/// Compares the version in the object's `.rodata` with ours.
fn check_abi(object: &[u8]) -> Result<(), SignalError> {
    let bad = |e: &str| SignalError::BadObject(e.to_owned());
    let file = object::File::parse(object).map_err(|e| bad(&e.to_string()))?;
    let symbol = file
        .symbols()
        .find(|s| s.name() == Ok("KVPSI_ABI"))
        .ok_or_else(|| bad("it has no ABI version"))?;
    let found = symbol
        .section_index()
        .and_then(|i| file.section_by_index(i).ok())
        .and_then(|s| s.data_range(symbol.address(), 4).ok().flatten())
        .and_then(|b| <[u8; 4]>::try_from(b).ok())
        .map(u32::from_le_bytes)
        .ok_or_else(|| bad("its ABI version cannot be read"))?;
    if found == ABI_VERSION {
        Ok(())
    } else {
        Err(SignalError::Abi {
            found,
            expected: ABI_VERSION,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_object_are_refused_with_what_to_do() {
        for bytes in [&b""[..], b"\x7fELF", &[0u8; 64]] {
            let text = check_abi(bytes).expect_err("not an object").to_string();
            assert!(text.contains("xtask build-ebpf"), "{text}");
        }
    }
}
