//! Places for requests: so many computed, so many waiting, and no more.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// The places of a server.
#[derive(Debug)]
pub(super) struct AdmissionPermits {
    taken: AtomicUsize,
    all: usize,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct AdmissionPermit(Arc<AdmissionPermits>);

impl AdmissionPermits {
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            all,
        })
    }

    /// So many places, or how many are taken.
    pub fn take(self: &Arc<Self>, many: usize) -> Result<Vec<AdmissionPermit>, usize> {
        let more = |n: usize| n.checked_add(many).filter(|n| *n <= self.all);
        self.taken
            .fetch_update(SeqCst, SeqCst, more)
            .map(|_| (0..many).map(|_| AdmissionPermit(self.clone())).collect())
    }

    /// All places.
    pub fn all(&self) -> usize {
        self.all
    }

    /// Whether there is a place, or how many are before.
    pub fn free(&self) -> Result<(), usize> {
        let taken = self.taken();
        if taken < self.all { Ok(()) } else { Err(taken) }
    }

    pub fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }
}

impl Drop for AdmissionPermit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_free_again_when_it_is_dropped_and_there_are_no_more() {
        let permits = AdmissionPermits::new(2);
        let first = permits.take(1).unwrap();
        assert_eq!(permits.take(2).unwrap_err(), 1);
        let second = permits.take(1).unwrap();
        assert_eq!(permits.take(1).unwrap_err(), 2);
        drop(first);
        let third = permits.take(1).unwrap();
        assert_eq!(permits.take(usize::MAX).unwrap_err(), 2);
        assert_eq!(permits.taken(), 2);
        drop((second, third));
        assert_eq!(permits.taken(), 0);
    }
}
