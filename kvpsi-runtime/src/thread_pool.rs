//! The threads that compute: one pool for products and attention.
//!
//! Owns the workers, and how a job's pieces are shared out among them and the
//! thread that asks. Pieces are taken one by one, so a worker that the kernel
//! has put aside for another program costs the piece it holds and not the
//! job: no thread waits for a worker that never came. That is what this exists
//! for; candle's own pool gives every worker a fixed share, and on a machine
//! with two busy neighbours on two cores a token took 40 times as long.
//!
//! Invariants: a job is over when [`ThreadPool::spread`] returns, however it
//! returns; no thread allocates for a job; a job from within a job, or beside
//! another one, runs on the thread that asks. Out of scope: what is computed.

use rustix::thread::futex;
use std::{
    cell::UnsafeCell,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicIsize, AtomicU32, Ordering},
    },
    thread::{self, Thread},
};

/// Looks at the next job before a worker goes to sleep: 0.3 ms on a Zen 3,
/// longer than a model takes from one job to the next within a token.
const LOOKS: u32 = 10_000;
/// Looks at the last pieces before the asking thread sleeps until they are
/// done: their worker was put aside, perhaps on this very processor. It does
/// not yield: a thread that yields goes behind its neighbours' whole slices
/// (64 tokens/s for 77, beside two busy loops).
const LOOKS_AT_END: u32 = 4000;
/// Pieces for each thread that a job of some microseconds is cut into: each
/// one is a trip of a cache line from core to core.
pub const FEW: usize = 3;
/// Pieces for each thread of a long job.
pub const MANY: usize = 8;

/// Values below which rows are done sooner than another thread is there.
const LEAST_VALUES: usize = 1 << 14;

/// Where parts begin whose rows threads share out.
struct Starts<const N: usize>([*mut f32; N]);
// SAFETY: `ThreadPool::spread_rows` hands each row to one thread.
unsafe impl<const N: usize> Sync for Starts<N> {}
impl<const N: usize> Starts<N> {
    /// By method, so that closures capture the wrapper, not the pointers.
    fn get(&self) -> [*mut f32; N] {
        self.0
    }
}

/// What is to be done: a closure, by its address.
struct Job {
    run: unsafe fn(*const (), usize),
    closure: *const (),
}

/// A cache line of its own: all threads write to it, and what travels from core
/// to core is what a small job costs.
#[repr(align(128))]
struct Line<T>(T);

/// What a worker looks at for a job.
struct Board {
    /// Pieces that no thread has taken yet; 0 and below: none.
    left: AtomicIsize,
    /// Written only while no piece is left or being worked on.
    job: UnsafeCell<Job>,
}

struct Shared {
    board: Line<Board>,
    /// Pieces that are done, those of the asking thread left out.
    done: Line<AtomicU32>,
    /// The asking thread sleeps on `done`.
    waiting: AtomicBool,
    panicked: AtomicBool,
    /// By worker: it is asleep, or about to be.
    asleep: Box<[Line<AtomicBool>]>,
}

// SAFETY: `Board::job` is written by the thread that holds `ThreadPool::busy`, before
// `left` becomes more than 0 (release), and read only after a piece was taken
// (acquire); it is not written again until all taken pieces are done.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is of a closure that may be shared.
unsafe impl Send for Shared {}

impl Shared {
    fn left(&self) -> isize {
        self.board.0.left.load(Ordering::Relaxed)
    }

    /// Takes a piece, if one is left.
    fn take(&self) -> Option<usize> {
        if self.left() <= 0 {
            return None;
        }
        // By now it may be of a later job: what counts is that one is left.
        let left = self.board.0.left.fetch_sub(1, Ordering::Acquire);
        usize::try_from(left - 1).ok()
    }

    /// Does a piece.
    ///
    /// # Safety
    /// It was taken, and is not yet counted as done.
    unsafe fn work(&self, piece: usize) {
        // SAFETY: the job stands until all taken pieces are done, and its
        // closure lives as long: `spread` waits.
        let done = catch_unwind(AssertUnwindSafe(|| unsafe {
            let Job { run, closure } = *self.board.0.job.get();
            run(closure, piece);
        }));
        if done.is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Takes pieces and does them until none is left; returns how many.
    fn work_off(&self) -> u32 {
        let mut count = 0;
        while let Some(piece) = self.take() {
            // SAFETY: it was taken just now, and the caller counts it later.
            unsafe { self.work(piece) };
            count += 1;
        }
        count
    }

    /// Counts a worker's pieces as done.
    fn report(&self, pieces: u32) {
        if pieces > 0 {
            self.done.0.fetch_add(pieces, Ordering::SeqCst);
            // The waiting thread looks at `done` after `waiting`.
            if self.waiting.load(Ordering::SeqCst) {
                let _ = futex::wake(&self.done.0, futex::Flags::PRIVATE, 1);
            }
        }
    }

    /// Waits until workers have done so many pieces.
    fn wait_for(&self, pieces: u32) {
        let mut looks = 0;
        while self.done.0.load(Ordering::Acquire) < pieces {
            if looks < LOOKS_AT_END {
                looks += 1;
                std::hint::spin_loop();
                continue;
            }
            self.waiting.store(true, Ordering::SeqCst);
            let done = self.done.0.load(Ordering::SeqCst);
            if done < pieces {
                let _ = futex::wait(&self.done.0, futex::Flags::PRIVATE, done, None);
            }
            self.waiting.store(false, Ordering::SeqCst);
        }
    }

    fn serve(&self, worker: usize) {
        let asleep = &self.asleep[worker].0;
        loop {
            self.report(self.work_off());
            let mut looks = 0;
            while looks < LOOKS && self.left() <= 0 {
                std::hint::spin_loop();
                looks += 1;
            }
            if looks < LOOKS {
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            // The thread that brings a job looks at `asleep` after `left`.
            while asleep.load(Ordering::SeqCst) && self.board.0.left.load(Ordering::SeqCst) <= 0 {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// Workers, and the thread that asks.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Box<[Thread]>,
    busy: Mutex<()>,
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ThreadPool of {}", self.threads())
    }
}

/// The pool of the process, as large as `RAYON_NUM_THREADS` says (which
/// candle's own operations go by), else one thread a core. Workers are started
/// on the first call; where the system refuses them there are fewer.
pub fn thread_pool() -> &'static ThreadPool {
    static POOL: OnceLock<ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let asked = std::env::var("RAYON_NUM_THREADS").ok();
        let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = asked.and_then(|n| n.parse().ok()).filter(|&n| n > 0);
        ThreadPool::new(threads.unwrap_or_else(cores))
    })
}

impl ThreadPool {
    /// So many threads, the one that asks included. Workers end with the
    /// process.
    fn new(threads: usize) -> Self {
        let idle = Job {
            run: |_, _| (),
            closure: std::ptr::null(),
        };
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            board: Line(Board {
                left: AtomicIsize::new(0),
                job: UnsafeCell::new(idle),
            }),
            done: Line(AtomicU32::new(0)),
            waiting: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            asleep: (0..workers).map(|_| Line(AtomicBool::new(false))).collect(),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            let name = format!("kvpsi-compute-{i}");
            let spawned = thread::Builder::new().name(name).spawn(move || {
                shared.report(1);
                shared.serve(i);
            });
            match spawned {
                Ok(handle) => Some(handle.thread().clone()),
                Err(e) => {
                    tracing::warn!(%e, "one compute thread less");
                    None
                }
            }
        };
        let workers: Box<[Thread]> = (0..workers).map_while(spawn).collect();
        // A thread allocates before it comes to its work, and nothing after.
        shared.wait_for(u32::try_from(workers.len()).unwrap_or(u32::MAX));
        Self {
            shared,
            workers,
            busy: Mutex::new(()),
        }
    }

    /// Threads that compute, the one that asks included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f` for every piece, last ones first, on all threads. Panics if a
    /// piece did.
    pub fn spread<F: Fn(usize) + Sync>(&self, pieces: usize, f: F) {
        unsafe fn call<F: Fn(usize)>(closure: *const (), piece: usize) {
            // SAFETY: `closure` is the `F` of the job.
            unsafe { (*closure.cast::<F>())(piece) }
        }
        let free = self.busy.try_lock();
        let alone = free.is_err() || self.workers.is_empty();
        let count = u32::try_from(pieces).ok().zip(isize::try_from(pieces).ok());
        let (Some((count, left)), false) = (count, alone || pieces < 2) else {
            (0..pieces).for_each(f);
            return;
        };
        let shared = &*self.shared;
        // SAFETY: we hold `busy`, and the last holder left when all of its
        // pieces were done: no thread reads the job.
        unsafe {
            *shared.board.0.job.get() = Job {
                run: call::<F>,
                closure: (&raw const f).cast(),
            };
        }
        shared.done.0.store(0, Ordering::Relaxed);
        // The first one is taken already.
        shared.board.0.left.store(left - 1, Ordering::SeqCst);
        let asleep = self.workers.iter().zip(&shared.asleep);
        for (worker, asleep) in asleep.take(pieces - 1) {
            if asleep.0.load(Ordering::SeqCst) && asleep.0.swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        // SAFETY: no other thread takes the first piece.
        unsafe { shared.work(pieces - 1) };
        let own = 1 + shared.work_off();
        shared.wait_for(count - own);
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a piece of a job panicked"
        );
    }

    /// Runs `f` for stretches of `rows` that make up all of them, on all
    /// threads where there is enough to do: it gets the first row, and the
    /// rows of each of `parts`, which are so many rows of any width.
    pub fn spread_rows<const N: usize>(
        &self,
        rows: usize,
        parts: [&mut [f32]; N],
        f: impl Fn(usize, [&mut [f32]; N]) + Sync,
    ) {
        let widths = parts.each_ref().map(|part| part.len() / rows.max(1));
        if rows < 2 || rows * widths.iter().sum::<usize>() < LEAST_VALUES {
            return f(0, parts);
        }
        for (part, width) in parts.iter().zip(widths) {
            assert_eq!(part.len(), rows * width, "whole rows");
        }
        let parts = Starts(parts.map(<[f32]>::as_mut_ptr));
        self.spread_range(rows, FEW, |range| {
            let mut parts = parts.get().into_iter().zip(widths);
            let own = std::array::from_fn(|_| match parts.next() {
                // SAFETY: the rows lie within the part, which is borrowed for
                // the call, and no two ranges have a row in common.
                Some((start, width)) => unsafe {
                    std::slice::from_raw_parts_mut(
                        start.add(range.start * width),
                        range.len() * width,
                    )
                },
                None => &mut [],
            });
            f(range.start, own);
        });
    }

    /// Runs `f` for stretches that make up `0..n`, on all threads, in so many
    /// pieces for each: [`FEW`] or [`MANY`].
    pub fn spread_range<F: Fn(std::ops::Range<usize>) + Sync>(&self, n: usize, each: usize, f: F) {
        let pieces = n.min(self.threads() * each);
        self.spread(pieces, |i| f(i * n / pieces..(i + 1) * n / pieces));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicUsize;

    fn four() -> &'static ThreadPool {
        static FOUR: OnceLock<ThreadPool> = OnceLock::new();
        FOUR.get_or_init(|| ThreadPool::new(4))
    }

    proptest! {
        #[test]
        fn every_piece_is_done_once_job_after_job(jobs in prop::collection::vec(0usize..40, 1..60)) {
            for n in jobs {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                four().spread(n, |i| { counts[i].fetch_add(1, Ordering::Relaxed); });
                prop_assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
                let seen = AtomicUsize::new(0);
                four().spread_range(n * 7, FEW, |r| { seen.fetch_add(r.len(), Ordering::Relaxed); });
                prop_assert_eq!(seen.load(Ordering::Relaxed), n * 7);
            }
        }
    }

    #[test]
    fn workers_that_went_to_sleep_come_back() {
        // Its own: where tests share a process, another one may keep a pool busy.
        let pool = ThreadPool::new(4);
        for _ in 0..20 {
            thread::sleep(std::time::Duration::from_millis(3));
            let who = Mutex::new(std::collections::HashSet::new());
            pool.spread(64, |_| {
                thread::sleep(std::time::Duration::from_micros(200));
                who.lock().unwrap().insert(thread::current().id());
            });
            assert!(who.lock().unwrap().len() > 1);
        }
    }

    #[test]
    fn a_nested_or_concurrent_job_is_run_by_its_caller() {
        let sum = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..200 {
                        four().spread(8, |_| {
                            four().spread(5, |i| {
                                sum.fetch_add(i, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * 200 * 8 * 10);
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_goes_on() {
        let caught = catch_unwind(|| four().spread(16, |i| assert!(i != 7)));
        assert!(caught.is_err());
        let done = AtomicUsize::new(0);
        four().spread(16, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 16);
    }
}
