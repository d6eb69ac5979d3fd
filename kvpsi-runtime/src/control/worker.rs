//! The thread behind the reactor: re-encodes and thins, on the reactor's order.
//!
//! Owns the thread's life. After every block the reactor may have given what is
//! missing itself, or stalls may be over: the reactor lowers the order then. Told
//! to stop, the worker ends after the step it is at. Owns also the cushion's
//! filling, which waits for a quarter of a second without a trim, and for room; and
//! says when blocks in swap are counted.
//! Out of scope: how much is missing.

use super::{
    order::Order,
    reactor::Shared,
    record::{Trigger, TrimRecord},
    room::obtainable,
    swap::SwapWatch,
    system::SystemGauge,
    wall::Depth,
};
use crate::{
    clock::monotonic_ns,
    kv::{KvPool, Ladder, Reclaimed, Trimmed},
    units::Bytes,
};
use kvpsi_common::Kind;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

pub(super) struct Worker {
    pub ladder: Arc<Ladder>,
    pub order: Arc<Order>,
    pub shared: Arc<Shared>,
    /// The whole system, where it counts.
    pub system: Option<SystemGauge>,
    pub swap: SwapWatch,
    /// Readable: stop.
    pub stop: OwnedFd,
}

/// Between two looks at the cushion.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};
/// Free blocks that are kept resident: a trim returns them before it looks at
/// anything. What grows at 2 GiB/s takes 2 ms for them.
const CUSHION: Bytes = Bytes::mib(4);
/// Nor more than this share of the cache: one sixteenth.
const CUSHION_SHARE: u64 = 16;

impl Worker {
    /// Runs until told to stop.
    pub fn run(mut self) {
        let pool = Arc::clone(self.ladder.pool());
        pool.set_cushion(CUSHION.min(Bytes(pool.capacity().0 / CUSHION_SHARE)));
        let mut trims = 0;
        loop {
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(self.order.wakes(), PollFlags::IN),
            ];
            let woken = poll(&mut fds, Some(&TICK));
            self.swap.look(monotonic_ns(), &pool);
            match woken {
                Ok(0) => {
                    let before = std::mem::replace(&mut trims, self.shared.trims.load(Relaxed));
                    if trims == before {
                        self.fill_cushion(&pool);
                    }
                    continue;
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            self.order.woken();
            self.carry_out();
        }
    }

    /// Where there is room for it twice.
    fn fill_cushion(&mut self, pool: &KvPool) {
        if !pool.lacks_cushion() || self.shared.paused.load(Relaxed) {
            return;
        }
        let system = self.system.as_mut().map(|s| s.level(Depth::Near));
        let free = system.map_or(Bytes(u64::MAX), |s| s.free.saturating_sub(s.tight));
        if free.min(obtainable()).0 >= 2 * CUSHION.0 {
            // Before and after: it may take longer than a hit is ours.
            self.shared.filled_ns.store(monotonic_ns(), Relaxed);
            pool.fill_cushion();
            self.shared.filled_ns.store(monotonic_ns(), Relaxed);
        }
    }

    fn told_to_stop(&self) -> bool {
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
    }

    fn carry_out(&self) {
        let allowed = self.ladder.profile().steps(false);
        let mut freed = false;
        loop {
            let turn = self.order.owed.turn();
            let left = self.order.owed();
            if left == Bytes::ZERO || self.told_to_stop() {
                break;
            }
            // As they are now: a newer order may come while the step is taken.
            let started_ns = monotonic_ns();
            let (kind, onset_ns) = self.order.cause();
            let Some(done) = self.ladder.step(left, allowed) else {
                if self.order.owed.nothing_left(turn) {
                    break;
                }
                continue;
            };
            freed = true;
            self.order.gave(done.bytes);
            self.tell(&done, left, kind, onset_ns, started_ns);
        }
        if freed {
            let pool = self.ladder.pool();
            let a = pool.account();
            let most = pool.resident().max(a.floor);
            if pool.budget() > most {
                pool.set_budget(most);
            }
        }
    }

    fn tell(&self, done: &Reclaimed, wanted: Bytes, kind: Kind, onset_ns: u64, started_ns: u64) {
        let after = self.ladder.pool().account().live_tokens;
        let mut trimmed = Trimmed {
            tokens: done.tokens,
            mass_dropped: done.mass_dropped,
            started_ns,
            returned_ns: monotonic_ns(),
            kv_tokens_before: after + done.tokens,
            kv_tokens_after: after,
            ..Trimmed::default()
        };
        trimmed.add(done.step, done.bytes);
        self.shared.tell(TrimRecord {
            trigger: Trigger::Background(kind),
            onset_ns,
            noticed_ns: started_ns,
            wanted,
            trimmed,
            // Trims beside it would be counted in.
            rss_before: None,
            rss_after: None,
        });
    }
}
