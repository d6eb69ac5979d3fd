//! What the reactor asked of the slow steps and has not got yet.
//!
//! Owns the order and its wake-up. A newer order replaces it if it is larger, and
//! none is lost: one that is placed while the worker finds nothing left to take is
//! looked at again. Out of scope: the steps ([`super::worker`]).

use crate::{
    clock::monotonic_ns,
    sync::{AtomicU16, AtomicU64, Relaxed, SeqCst},
    units::Bytes,
};
use kvpsi_common::Kind;
use rustix::{
    fd::OwnedFd,
    io::{read, write},
};

/// What the reactor wants of the worker.
#[derive(Debug)]
pub(super) struct Order {
    pub owed: Owed,
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
            owed: Owed::new(),
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
        if self.owed.place(bytes) {
            self.since_ns.store(monotonic_ns(), SeqCst);
        }
        // An eventfd is full after 2^64 orders; then the worker is awake.
        let _ = write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Readable: something was ordered.
    pub fn wakes(&self) -> &OwnedFd {
        &self.wake
    }

    /// The wake-up was seen.
    pub fn woken(&self) {
        let _ = read(&self.wake, &mut [0u8; 8]);
    }

    /// Why the last order was placed, and when its stall began.
    pub fn cause(&self) -> (Kind, u64) {
        let kind = Kind::from_raw(self.kind.load(Relaxed)).unwrap_or(Kind::DirectReclaim);
        (kind, self.onset_ns.load(Relaxed))
    }

    /// A step gave so much of it.
    pub fn gave(&self, bytes: Bytes) {
        self.since_ns.store(monotonic_ns(), SeqCst);
        self.owed.gave(bytes);
    }

    /// No more than this is missing now: the rest of the order is not carried
    /// out.
    pub fn lower(&self, missing: Bytes) {
        self.owed.lower(missing);
    }

    /// What was asked for and is not given yet.
    pub fn owed(&self) -> Bytes {
        self.owed.bytes()
    }

    /// Since when something is owed of which nothing was given.
    pub fn owed_since(&self) -> Option<u64> {
        (self.owed() > Bytes::ZERO).then(|| self.since_ns.load(SeqCst))
    }
}

#[derive(Debug)]
pub(super) struct Owed {
    bytes: AtomicU64,
    /// Counts the orders placed, each before its bytes.
    placed: AtomicU64,
}

impl Owed {
    pub fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            placed: AtomicU64::new(0),
        }
    }

    /// Asks for so many bytes; whether none were owed.
    pub fn place(&self, bytes: Bytes) -> bool {
        self.placed.fetch_add(1, SeqCst);
        self.bytes.fetch_max(bytes.0, SeqCst) == 0
    }

    /// No more than this is missing now.
    pub fn lower(&self, missing: Bytes) {
        self.bytes.fetch_min(missing.0, SeqCst);
    }

    /// So much was given; a step that gives nothing counts as one byte, so that
    /// steps end.
    pub fn gave(&self, bytes: Bytes) {
        let less = |owed: u64| Some(owed.saturating_sub(bytes.0.max(1)));
        let _ = self.bytes.fetch_update(SeqCst, SeqCst, less);
    }

    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes.load(SeqCst))
    }

    /// How many orders were placed so far; read before a step.
    pub fn turn(&self) -> u64 {
        self.placed.load(SeqCst)
    }

    /// No step had anything to give: drops what is owed. False if an order came
    /// since `turn`, which may find something: it stands.
    pub fn nothing_left(&self, turn: u64) -> bool {
        let dropped = self.bytes.swap(0, SeqCst);
        // An order counts before its bytes are there: one that is not counted
        // yet has not been dropped.
        if self.placed.load(SeqCst) == turn {
            return true;
        }
        self.bytes.fetch_max(dropped, SeqCst);
        false
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn an_order_placed_while_nothing_was_found_is_not_lost() {
        let owed = Owed::new();
        assert!(owed.place(Bytes(100)));
        let turn = owed.turn();
        // The step finds nothing; meanwhile there is something, and it is asked
        // for: the same bytes, so that only the count tells.
        assert!(!owed.place(Bytes(100)));
        assert!(!owed.nothing_left(turn));
        assert_eq!(owed.bytes(), Bytes(100));
        owed.lower(Bytes(40));
        assert_eq!(owed.bytes(), Bytes(40));
        assert!(owed.nothing_left(owed.turn()));
        assert_eq!(owed.bytes(), Bytes::ZERO);
    }
}

#[cfg(test)]
#[cfg(loom)]
mod loom_tests {
    use super::*;
    use crate::sync::AtomicBool;
    use loom::{sync::Arc, thread};

    /// The worker's turn after it was woken.
    fn carry_out(owed: &Owed, there: &AtomicBool) -> u64 {
        let mut given = 0;
        loop {
            let turn = owed.turn();
            let left = owed.bytes();
            if left == Bytes::ZERO {
                return given;
            }
            if there.load(SeqCst) {
                owed.gave(left);
                given += left.0;
            } else if owed.nothing_left(turn) {
                return given;
            }
        }
    }

    /// Fault f: the worker found nothing and dropped the order that came just
    /// then, for something that is there by now.
    #[test]
    fn an_order_for_what_is_there_is_carried_out() {
        loom::model(|| {
            let shared = Arc::new((Owed::new(), AtomicBool::new(false)));
            shared.0.place(Bytes(1));
            let of_reactor = shared.clone();
            let reactor = thread::spawn(move || {
                let (owed, there) = &*of_reactor;
                there.store(true, SeqCst);
                owed.place(Bytes(2));
            });
            let (owed, there) = &*shared;
            let first = carry_out(owed, there);
            reactor.join().expect("no panic");
            // Each order wakes the worker once more.
            let second = carry_out(owed, there);
            assert!(first + second >= 2, "{first} + {second}");
            assert_eq!(owed.bytes(), Bytes::ZERO);
        });
    }
}
