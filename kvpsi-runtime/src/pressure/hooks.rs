//! Where programs attach: the table of hooks, and the rungs they make up.
//!
//! Owns names and order alone. Out of scope: whether a kernel has a hook.

use serde::Serialize;

/// By which means a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// A raw tracepoint.
    RawTp,
    /// The entry of a kernel function, by a trampoline.
    Fentry,
    /// Its return, by the same.
    Fexit,
    /// The entry of a kernel function, by a breakpoint or ftrace.
    Kprobe,
    /// Its return, by the same.
    Kretprobe,
}

impl How {
    /// Name in text and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RawTp => "raw_tp",
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
        }
    }

    pub(super) const fn rung(self) -> Rung {
        match self {
            Self::RawTp => Rung::RawTp,
            Self::Fentry | Self::Fexit => Rung::Fentry,
            Self::Kprobe | Self::Kretprobe => Rung::Kprobe,
        }
    }
}

/// How far up the ladder eBPF goes, as `--rung` takes it. The tracepoints are
/// always there; a rung is what comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Rung {
    /// The highest that this kernel takes
    #[default]
    Auto,
    /// Raw tracepoints alone: reclaim, compaction, kswapd, OOM
    RawTp,
    /// And psi_memstall_enter/leave by kprobe: refault waits, swap-in, throttling
    Kprobe,
    /// And the same by fentry, which costs less
    Fentry,
}

impl Rung {
    /// Name in text and JSON, and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::RawTp => "raw-tp",
            Self::Kprobe => "kprobe",
            Self::Fentry => "fentry",
        }
    }
}

/// A program and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// By which means.
    pub how: How,
    /// Name of the tracepoint or function.
    pub target: &'static str,
    /// Its name on older kernels, where it had another.
    pub before: Option<&'static str>,
    /// Program that must be attached first.
    pub after: Option<&'static str>,
}

const fn hook(program: &'static str, how: How, target: &'static str) -> Hook {
    Hook {
        program,
        how,
        target,
        before: None,
        after: None,
    }
}

const fn tp(program: &'static str, tracepoint: &'static str) -> Hook {
    hook(program, How::RawTp, tracepoint)
}

const fn begin(program: &'static str, tracepoint: &'static str, end: &'static str) -> Hook {
    hook(program, How::RawTp, tracepoint).after(end)
}

const fn over_high(program: &'static str, how: How) -> Hook {
    Hook {
        before: Some("mem_cgroup_handle_over_high"),
        ..hook(program, how, "__mem_cgroup_handle_over_high")
    }
}

impl Hook {
    /// The names of its target, the newest first.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.target].into_iter().chain(self.before)
    }

    const fn after(self, first: &'static str) -> Self {
        Self {
            after: Some(first),
            ..self
        }
    }
}

/// The function that begins a stall as PSI counts it.
pub(super) const ENTER: &str = "psi_memstall_enter";
/// The function that ends it.
pub(super) const LEAVE: &str = "psi_memstall_leave";
const SWAP_IN: &str = "do_swap_page";

/// Every program, ends before begins, the better rung first.
pub const HOOKS: [Hook; 28] = [
    tp("task_exit", "sched_process_exit"),
    tp("direct_end", "mm_vmscan_direct_reclaim_end"),
    begin(
        "direct_begin",
        "mm_vmscan_direct_reclaim_begin",
        "direct_end",
    ),
    tp("memcg_end", "mm_vmscan_memcg_reclaim_end"),
    begin("memcg_begin", "mm_vmscan_memcg_reclaim_begin", "memcg_end"),
    tp("soft_end", "mm_vmscan_memcg_softlimit_reclaim_end"),
    begin(
        "soft_begin",
        "mm_vmscan_memcg_softlimit_reclaim_begin",
        "soft_end",
    ),
    tp("node_end", "mm_vmscan_node_reclaim_end"),
    begin("node_begin", "mm_vmscan_node_reclaim_begin", "node_end"),
    tp("kswapd_wake", "mm_vmscan_kswapd_wake"),
    tp("kswapd_sleep", "mm_vmscan_kswapd_sleep"),
    tp("kswapd_asked", "mm_vmscan_wakeup_kswapd"),
    tp("throttled", "mm_vmscan_throttled"),
    tp("compact_end", "mm_compaction_end"),
    begin("compact_begin", "mm_compaction_begin", "compact_end"),
    tp("oom_victim", "mark_victim"),
    hook("memstall_leave", How::Fentry, LEAVE),
    hook("memstall_enter", How::Fentry, ENTER).after("memstall_leave"),
    hook("swap_in_done", How::Fexit, SWAP_IN).after("memstall_enter"),
    hook("swap_in", How::Fentry, SWAP_IN).after("swap_in_done"),
    over_high("over_high_done", How::Fexit).after("memstall_enter"),
    over_high("over_high", How::Fentry).after("over_high_done"),
    hook("memstall_leave_k", How::Kprobe, LEAVE),
    hook("memstall_enter_k", How::Kprobe, ENTER).after("memstall_leave_k"),
    hook("swap_in_done_k", How::Kretprobe, SWAP_IN).after("memstall_enter_k"),
    hook("swap_in_k", How::Kprobe, SWAP_IN).after("swap_in_done_k"),
    over_high("over_high_done_k", How::Kretprobe).after("memstall_enter_k"),
    over_high("over_high_k", How::Kprobe).after("over_high_done_k"),
];
