//! The thread behind the reactor: re-encodes and thins, on the reactor's order.
//!
//! Owns the order and the thread's life. An order is a number of bytes; a newer
//! one replaces it if it is larger, and none is lost: one that is placed while
//! the worker finds nothing left to take is looked at again. After every block
//! the reactor may have given what is missing itself, or stalls may be over:
//! the reactor lowers the order then. Told to stop, the worker ends after the step it is at.
//! Out of scope: how much is missing.

use super::{
    reactor::Shared,
    record::{Trigger, TrimRecord},
};
use crate::{
    clock::monotonic_ns,
    kv::{Ladder, Reclaimed, Trimmed},
    units::Bytes,
};
use kvpsi_common::Kind;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::{Errno, read, write},
};
use std::sync::{
    Arc,
    atomic::{
        AtomicU16, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};

/// What the reactor wants of the worker.
#[derive(Debug)]
pub(super) struct Order {
    bytes: AtomicU64,
    /// Counts the orders placed, each before its bytes.
    placed: AtomicU64,
    /// When the order was placed, or when a part of it was last given.
    since_ns: AtomicU64,
    onset_ns: AtomicU64,
    kind: AtomicU16,
    /// An eventfd that wakes the worker.
    wake: OwnedFd,
}

impl Order {
    pub fn new(wake: OwnedFd) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            placed: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            onset_ns: AtomicU64::new(0),
            kind: AtomicU16::new(0),
            wake,
        }
    }

    /// Asks for so many bytes; does not wait.
    pub fn place(&self, bytes: Bytes, kind: Kind, onset_ns: u64) {
        self.onset_ns.store(onset_ns, Relaxed);
        self.kind.store(kind as u16, Relaxed);
        self.placed.fetch_add(1, SeqCst);
        if self.bytes.fetch_max(bytes.0, SeqCst) == 0 {
            self.since_ns.store(monotonic_ns(), SeqCst);
        }
        // An eventfd is full after 2^64 orders; then the worker is awake.
        let _ = write(&self.wake, &1u64.to_ne_bytes());
    }

    /// No more than this is missing now: the rest of the order is not carried
    /// out.
    pub fn lower(&self, missing: Bytes) {
        self.bytes.fetch_min(missing.0, SeqCst);
    }

    /// How many orders were placed so far; read before a step.
    fn turn(&self) -> u64 {
        self.placed.load(SeqCst)
    }

    /// No step had anything to give: drops what is owed. False if an order came
    /// since `turn`, which may find something: it stands.
    fn nothing_left(&self, turn: u64) -> bool {
        let dropped = self.bytes.swap(0, SeqCst);
        // An order counts before its bytes are there: one that is not counted
        // yet has not been dropped.
        if self.placed.load(SeqCst) == turn {
            return true;
        }
        self.bytes.fetch_max(dropped, SeqCst);
        false
    }

    /// What was asked for and is not given yet.
    pub fn owed(&self) -> Bytes {
        Bytes(self.bytes.load(SeqCst))
    }

    /// Since when something is owed of which nothing was given.
    pub fn owed_since(&self) -> Option<u64> {
        (self.owed() > Bytes::ZERO).then(|| self.since_ns.load(SeqCst))
    }
}

pub(super) struct Worker {
    pub ladder: Arc<Ladder>,
    pub order: Arc<Order>,
    pub shared: Arc<Shared>,
    /// Readable: stop.
    pub stop: OwnedFd,
}

impl Worker {
    /// Runs until told to stop.
    pub fn run(&self) {
        loop {
            let mut fds = [
                PollFd::new(&self.stop, PollFlags::IN),
                PollFd::new(&self.order.wake, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            let mut count = [0u8; 8];
            let _ = read(&self.order.wake, &mut count);
            self.carry_out();
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
            let turn = self.order.turn();
            let left = self.order.bytes.load(SeqCst);
            if left == 0 || self.told_to_stop() {
                break;
            }
            // As they are now: a newer order may come while the step is taken.
            let started_ns = monotonic_ns();
            let onset_ns = self.order.onset_ns.load(Relaxed);
            let Some(done) = self.ladder.step(Bytes(left), allowed) else {
                if self.order.nothing_left(turn) {
                    break;
                }
                continue;
            };
            freed = true;
            self.order.since_ns.store(monotonic_ns(), SeqCst);
            let less = |b: u64| Some(b.saturating_sub(done.bytes.0.max(1)));
            let _ = self.order.bytes.fetch_update(SeqCst, SeqCst, less);
            self.tell(&done, Bytes(left), onset_ns, started_ns);
        }
        if freed {
            let pool = self.ladder.pool();
            let a = pool.account();
            let most = a.resident.max(a.floor);
            if pool.budget() > most {
                pool.set_budget(most);
            }
        }
    }

    fn tell(&self, done: &Reclaimed, wanted: Bytes, onset_ns: u64, started_ns: u64) {
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
        let kind = Kind::from_raw(self.order.kind.load(Relaxed)).unwrap_or(Kind::DirectReclaim);
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn order() -> Order {
        Order::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
    }

    #[test]
    fn an_order_placed_while_nothing_was_found_is_not_lost() {
        let order = order();
        order.place(Bytes(100), Kind::MemcgReclaim, 1);
        let turn = order.turn();
        // The step finds nothing; meanwhile there is something, and it is asked
        // for: the same bytes, so that only the count tells.
        order.place(Bytes(100), Kind::MemcgReclaim, 2);
        assert!(!order.nothing_left(turn));
        assert_eq!(order.owed(), Bytes(100));
        order.lower(Bytes(40));
        assert_eq!(order.owed(), Bytes(40));
        assert!(order.nothing_left(order.turn()));
        assert_eq!(order.owed(), Bytes::ZERO);
    }
}
