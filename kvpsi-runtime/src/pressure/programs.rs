//! The programs of the object: which hook each belongs to, and what became of
//! it on this kernel.
//!
//! Tries, and does not compare versions: a hook that a kernel lacks shows as a
//! program that could not be attached. The end of a pair is attached before
//! its begin, and neither stays without the other: tasks would seem to stall
//! forever, or ends to come from nowhere.

pub use super::hooks::{HOOKS, Hook, How, Rung};
use super::{
    hooks::{ENTER, LEAVE},
    refusal::{one_line, refusal},
};
use aya::{
    Btf, Ebpf,
    programs::{FEntry, FExit, KProbe, Program, ProgramError, RawTracePoint},
};
use serde::Serialize;
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "why", rename_all = "kebab-case")]
pub enum State {
    /// Loaded and attached.
    Attached,
    /// The kernel refused to load it.
    NotLoaded(String),
    /// Loaded, but the hook is unavailable.
    NotAttached(String),
    /// Not tried, because what it depends on is missing.
    NotTried(String),
    /// Not tried, because another does its work or it was not asked for.
    NotNeeded(String),
}

/// One program's report.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramReport {
    /// Name in the object.
    pub name: &'static str,
    /// What it hooks.
    pub hook: &'static str,
    /// By which means.
    pub by: How,
    /// What became of it.
    #[serde(flatten)]
    pub state: State,
}

impl ProgramReport {
    /// Loaded and attached.
    #[must_use]
    pub fn attached(&self) -> bool {
        self.state == State::Attached
    }

    /// Why it is missing, if it is.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match &self.state {
            State::Attached | State::NotNeeded(_) => None,
            State::NotLoaded(why) | State::NotAttached(why) | State::NotTried(why) => Some(why),
        }
    }
}

/// Loads and attaches every program of `hooks` that it can, up to `rung`.
pub(super) fn attach(ebpf: &mut Ebpf, hooks: &[Hook], rung: Rung) -> Vec<ProgramReport> {
    let mut btf = None;
    let mut reports: Vec<ProgramReport> = Vec::with_capacity(hooks.len());
    for h in hooks {
        let attached = |name: &str| reports.iter().any(|r| r.name == name && r.attached());
        let (hook, state) = if let Some(why) = unwanted(h.how.rung(), rung, reached(&reports)) {
            (h.target, State::NotNeeded(why))
        } else if let Some(first) = h.after.filter(|first| !attached(first)) {
            (h.target, State::NotTried(format!("{first} is missing")))
        } else {
            attach_one(ebpf, h, &mut btf)
        };
        reports.push(ProgramReport {
            name: h.program,
            hook,
            by: h.how,
            state,
        });
    }
    detach_unpaired(ebpf, hooks, &mut reports);
    reports
}

/// Why a program of rung `its` is not for `asked`, if it is not.
fn unwanted(its: Rung, asked: Rung, reached: Rung) -> Option<String> {
    if its == Rung::RawTp {
        return None;
    }
    match asked {
        Rung::Auto if reached != Rung::RawTp && reached != its => {
            Some(format!("{} does it", reached.name()))
        }
        Rung::Auto => None,
        _ if asked == its => None,
        _ => Some(format!("rung {} was asked for", asked.name())),
    }
}

/// The rung that these programs make.
pub(super) fn reached(reports: &[ProgramReport]) -> Rung {
    reports
        .iter()
        .find(|r| r.hook == ENTER && r.attached())
        .map_or(Rung::RawTp, |r| r.by.rung())
}

/// Detaches ends whose begin could not be attached.
fn detach_unpaired(ebpf: &mut Ebpf, hooks: &[Hook], reports: &mut [ProgramReport]) {
    for h in hooks.iter().rev() {
        let missing = |name: &str| reports.iter().any(|r| r.name == name && !r.attached());
        let Some(end) = h.after.filter(|end| {
            missing(h.program) && *end != "memstall_enter" && *end != "memstall_enter_k"
        }) else {
            continue;
        };
        let Some(report) = reports.iter_mut().find(|r| r.name == end && r.attached()) else {
            continue;
        };
        // What cannot be unloaded costs time and counts orphans, no more.
        let unloaded = ebpf.program_mut(end).is_some_and(|p| {
            match p {
                Program::RawTracePoint(p) => p.unload(),
                Program::KProbe(p) => p.unload(),
                Program::FEntry(p) => p.unload(),
                Program::FExit(p) => p.unload(),
                _ => return false,
            }
            .is_ok()
        });
        if unloaded {
            report.state = State::NotAttached(format!("{} is missing", h.program));
        }
    }
}

/// By the first name of the hook that this kernel has.
fn attach_one(
    ebpf: &mut Ebpf,
    h: &Hook,
    btf: &mut Option<Result<Btf, String>>,
) -> (&'static str, State) {
    let mut tried = (h.target, State::NotTried("it has no hook".into()));
    for target in h.names() {
        tried = (target, attach_to(ebpf, h, target, btf));
        if tried.1 == State::Attached {
            break;
        }
    }
    tried
}

fn attach_to(
    ebpf: &mut Ebpf,
    h: &Hook,
    target: &str,
    btf: &mut Option<Result<Btf, String>>,
) -> State {
    let Some(program) = ebpf.program_mut(h.program) else {
        return State::NotLoaded("not in the object".into());
    };
    let loaded = match h.how {
        How::RawTp => <&mut RawTracePoint>::try_from(&mut *program).and_then(RawTracePoint::load),
        How::Kprobe | How::Kretprobe => {
            <&mut KProbe>::try_from(&mut *program).and_then(KProbe::load)
        }
        How::Fentry | How::Fexit => {
            let btf = btf.get_or_insert_with(|| Btf::from_sys_fs().map_err(|e| one_line(&e)));
            let btf = match btf {
                Ok(btf) => btf,
                Err(e) => return State::NotLoaded(format!("no BTF of the kernel: {e}")),
            };
            if h.how == How::Fentry {
                <&mut FEntry>::try_from(&mut *program).and_then(|p| p.load(target, btf))
            } else {
                <&mut FExit>::try_from(&mut *program).and_then(|p| p.load(target, btf))
            }
        }
    };
    match loaded {
        // By another name of its hook.
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(e) => return State::NotLoaded(refusal(h.how, &e)),
    }
    let attached = match h.how {
        How::RawTp => {
            <&mut RawTracePoint>::try_from(program).and_then(|p| p.attach(target).map(drop))
        }
        How::Kprobe | How::Kretprobe => {
            <&mut KProbe>::try_from(program).and_then(|p| p.attach(target, 0).map(drop))
        }
        How::Fentry => <&mut FEntry>::try_from(program).and_then(|p| p.attach().map(drop)),
        How::Fexit => <&mut FExit>::try_from(program).and_then(|p| p.attach().map(drop)),
    };
    match attached {
        Ok(()) => State::Attached,
        Err(e) => State::NotAttached(refusal(h.how, &e)),
    }
}

/// What a program cost since it was loaded, while statistics were on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Times it ran.
    pub runs: u64,
    /// Time it ran, summed.
    pub time: Duration,
}

impl Cost {
    /// What the kernel says of a program by its descriptor, without a
    /// privilege (`bpf_prog_show_fdinfo` in kernel/bpf/syscall.c, Linux 5.1).
    pub(super) fn of(program: &OwnedFd) -> Option<Self> {
        let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
        let text = std::fs::read_to_string(path).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line?.trim().parse().ok()
        };
        Some(Self {
            runs: field("run_cnt:")?,
            time: Duration::from_nanos(field("run_time_ns:")?),
        })
    }

    /// Mean time of a run in ns; `None` if it never ran.
    #[must_use]
    pub fn mean_ns(&self) -> Option<u128> {
        self.time.as_nanos().checked_div(u128::from(self.runs))
    }
}

/// Lets the kernel measure every BPF program until the descriptor is closed.
///
/// # Errors
/// Needs `CAP_SYS_ADMIN` and Linux 5.8.
pub fn enable_statistics() -> io::Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|e| e.io_error)
}

/// A line about the tracepoints that are missing, if any are.
#[must_use]
pub fn missing(reports: &[ProgramReport]) -> Option<String> {
    let base = || reports.iter().filter(|r| r.by == How::RawTp);
    let names: Vec<&str> = base()
        .filter(|r| r.refusal().is_some())
        .map(|r| r.name)
        .collect();
    (!names.is_empty()).then(|| {
        format!(
            "eBPF: {} of {} tracepoints are not attached ({}); `kvpsi doctor` says why",
            names.len(),
            base().count(),
            names.join(", ")
        )
    })
}

/// A line about what the lowest rung does not detect and why it is no higher, if
/// it is the lowest although more was wanted. Many kernels have no more: it is
/// for who asks.
#[must_use]
pub fn undetected(reports: &[ProgramReport]) -> Option<String> {
    let reasons: Vec<String> = reports
        .iter()
        .filter(|r| r.hook == LEAVE || r.hook == ENTER)
        .filter(|r| !matches!(r.state, State::NotTried(_)))
        .filter_map(|r| Some(format!("{}: {}", r.by.name(), r.refusal()?)))
        .collect();
    (reached(reports) == Rung::RawTp && !reasons.is_empty()).then(|| {
        format!(
            "eBPF: detects reclaim, but not refaults and swap-in ({})",
            reasons.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_comes_before_its_begin() {
        for (i, h) in HOOKS.iter().enumerate() {
            if let Some(end) = h.after {
                assert!(HOOKS[..i].iter().any(|e| e.program == end), "{end}");
            }
        }
    }

    fn report(name: &'static str, state: State) -> ProgramReport {
        let h = HOOKS.iter().find(|h| h.program == name).expect(name);
        ProgramReport {
            name,
            hook: h.target,
            by: h.how,
            state,
        }
    }

    #[test]
    fn the_rung_is_the_one_whose_begin_is_attached() {
        let refused = || State::NotLoaded("no".into());
        let mut all = vec![report("memstall_leave", State::Attached)];
        assert_eq!(reached(&all), Rung::RawTp);
        all.push(report("memstall_enter", refused()));
        all.push(report("memstall_enter_k", State::Attached));
        assert_eq!(reached(&all), Rung::Kprobe);
        assert_eq!((missing(&all), undetected(&all)), (None, None));
    }

    #[test]
    fn a_rung_is_tried_only_if_it_is_wanted_and_nothing_better_works() {
        use Rung::{Auto, Fentry, Kprobe, RawTp};
        assert!(unwanted(RawTp, Fentry, RawTp).is_none());
        assert!(unwanted(Fentry, Auto, RawTp).is_none());
        assert!(unwanted(Fentry, Auto, Fentry).is_none());
        assert!(unwanted(Kprobe, Auto, Fentry).is_some());
        assert!(unwanted(Kprobe, Auto, RawTp).is_none());
        assert!(unwanted(Fentry, Kprobe, RawTp).is_some());
        assert!(unwanted(Kprobe, Kprobe, Fentry).is_none());
        assert!(unwanted(Kprobe, RawTp, RawTp).is_some());
    }

    #[test]
    fn a_missing_tracepoint_and_a_missing_rung_take_a_line_each() {
        let no = |w: &str| State::NotLoaded(w.into());
        let reports = [
            report("throttled", no("x")),
            report("memstall_leave", no("lockdown")),
            report(
                "memstall_enter",
                State::NotTried("memstall_leave is missing".into()),
            ),
            report("memstall_leave_k", no("no kprobes")),
        ];
        assert!(missing(&reports).unwrap().contains("(throttled)"));
        let undetected = undetected(&reports).unwrap();
        assert!(undetected.contains("fentry: lockdown; kprobe: no kprobes"));
    }
}
