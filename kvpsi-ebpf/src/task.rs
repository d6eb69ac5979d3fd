//! What is known of a task that stalls, or stalled before.
//!
//! Invariant: an entry is written by its own task only, in its own context. It
//! stays until the task exits, or until a stall on its way out ends: to insert and
//! to delete one costs more than all the rest of a stall, and tasks that stall once
//! stall again.

use crate::here::{Here, bump};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap},
};
use kvpsi_common::{
    Kind,
    shared::{CGROUP, MEMSTALL, SYSTEM},
};

/// Flag of [`Task::flags`]: a kernel thread that works in the background.
pub const BACKGROUND: u8 = 1;
/// Flag: in `do_swap_page`.
pub const SWAPS_IN: u8 = 2;
/// Flag: in `mem_cgroup_handle_over_high`.
pub const OVER_HIGH: u8 = 4;
/// Flag: the task has exited as far as `sched_process_exit` goes, and stalls on its
/// way out: its entry goes with the stall.
const EXITED: u8 = 8;

/// A task, by thread id.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Task {
    /// When the outermost stall began, in ns.
    pub begin_ns: u64,
    /// When the latest nested stall began, in ns.
    pub nested_ns: u64,
    /// Where the outermost `psi_memstall_enter` keeps its flags, 0 outside.
    /// Never followed: a nested one keeps its own further down the stack, so
    /// the address alone tells which leave belongs to it.
    pub memstall_at: u64,
    /// Bit set of the kinds begun and not ended, by number. A bit and not a
    /// depth: should an end ever be missed, the next pair repairs it.
    pub open: u32,
    /// Number of the kind of the outermost stall.
    pub outer: u8,
    /// Number of the first kind inside it, 0 for none.
    pub inner: u8,
    /// The task entered the cgroup's scope.
    pub watched: u8,
    /// [`BACKGROUND`] and the rest.
    pub flags: u8,
}

impl Task {
    /// What the outermost stall was, now that it ends.
    #[inline(always)]
    pub fn settle(&self) -> usize {
        let kind = if self.outer != Kind::Memstall as u8 {
            self.outer
        } else if self.inner != 0 {
            self.inner
        } else if self.flags & OVER_HIGH != 0 {
            Kind::MemcgThrottle as u8
        } else if self.flags & SWAPS_IN != 0 {
            Kind::SwapIn as u8
        } else {
            Kind::Refault as u8
        };
        // For the verifier, which forgets what was stored.
        usize::from(kind & 15)
    }

    /// Leaves every scope the task is in.
    #[inline(always)]
    pub fn leave(&self, here: &Here) {
        here.shared.scopes[SYSTEM].leave(here.now, here.cpus);
        if self.watched != 0 {
            here.shared.scopes[CGROUP].leave(here.now, here.cpus);
        }
    }
}

/// Tasks by thread id. Preallocated: nothing may be allocated in reclaim.
#[map]
static TASKS: HashMap<u32, Task> = HashMap::with_max_entries(8192, 0);

/// The entry of this task, if there is one.
#[inline(always)]
pub fn find(tid: u32) -> Option<*mut Task> {
    TASKS.get_ptr_mut(tid)
}

/// Thread ids that exited last, each in the place of its lowest bits. A task goes on
/// after `sched_process_exit`: it closes files and, since Linux 6.16, drops its memory.
#[map]
static EXITS: Array<u32> = Array::with_max_entries(PLACES, 0);
const PLACES: u32 = 1024;

/// Makes an entry; false if there is no room.
#[inline(always)]
pub fn insert(tid: u32, task: &Task) -> bool {
    // A living thread that has the id anew is slower, and no worse.
    let exited = EXITS.get(tid % PLACES).is_some_and(|last| *last == tid);
    let task = Task {
        flags: task.flags | if exited { EXITED } else { 0 },
        ..*task
    };
    TASKS.insert(tid, task, u64::from(BPF_NOEXIST)).is_ok()
}

/// A stall is over: nothing more will be told of a task that has exited.
#[inline(always)]
pub fn forget_exited(tid: u32, task: &Task, open: u32, memstall_at: u64) {
    if task.flags & EXITED != 0 && open == 0 && memstall_at == 0 {
        let _gone = TASKS.remove(tid);
    }
}

/// The task is gone.
#[inline(always)]
pub fn exit(here: &Here) {
    if let Some(place) = EXITS.get_ptr_mut(here.tid() % PLACES) {
        // SAFETY: the pointer comes from the map lookup; programs that race write whole
        // numbers.
        unsafe { *place = here.tid() };
    }
    let Some(at) = find(here.tid()) else { return };
    // SAFETY: the entry belongs to the current task, which is here.
    let task = unsafe { *at };
    if task.open != 0 {
        bump!(here.counters, lost_ends);
        task.leave(here);
    }
    if task.memstall_at != 0 {
        here.shared.scopes[MEMSTALL].leave(here.now, here.cpus);
    }
    let _gone = TASKS.remove(here.tid());
}
