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

    /// A place, or how many are before.
    pub fn take(self: &Arc<Self>) -> Result<AdmissionPermit, usize> {
        let more = |n| (n < self.all).then_some(n + 1);
        self.taken
            .fetch_update(SeqCst, SeqCst, more)
            .map(|_| AdmissionPermit(self.clone()))
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
        let first = permits.take().unwrap();
        let second = permits.take().unwrap();
        assert_eq!(permits.take().unwrap_err(), 2);
        drop(first);
        let third = permits.take().unwrap();
        assert_eq!(permits.taken(), 2);
        drop((second, third));
        assert_eq!(permits.taken(), 0);
    }
}
