//! A task exits: what is known of it goes.
//!
//! Hooks `trace_sched_process_exit` in `kernel/exit.c`, which runs in the task
//! itself, for every thread. Its argument is not read.

use crate::{here::Here, task};
use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

/// The task stalls no more.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn task_exit(_: RawTracePointContext) -> i32 {
    if let Some(here) = Here::now() {
        task::exit(&here);
    }
    0
}
