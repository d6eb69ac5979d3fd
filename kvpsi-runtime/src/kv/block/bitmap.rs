//! A set of block numbers as atomic bits, with searches from both ends.

use crate::sync::{AtomicU64, SeqCst};

#[derive(Debug)]
pub(super) struct Bitmap(Box<[AtomicU64]>);

impl Bitmap {
    /// A set over `0..n`, empty or full.
    pub fn new(n: usize, full: bool) -> Self {
        let words = (0..n.div_ceil(64)).map(|w| {
            let used = (n - w * 64).min(64);
            AtomicU64::new(if full { u64::MAX >> (64 - used) } else { 0 })
        });
        Self(words.collect())
    }

    pub fn insert(&self, i: usize) {
        let old = self.0[i / 64].fetch_or(1 << (i % 64), SeqCst);
        debug_assert!(old & 1 << (i % 64) == 0, "block {i} was in the set");
    }

    /// Takes `i` out; false if another thread did.
    pub fn remove(&self, i: usize) -> bool {
        self.0[i / 64].fetch_and(!(1 << (i % 64)), SeqCst) & 1 << (i % 64) != 0
    }

    /// Takes the lowest member out.
    pub fn take_low(&self) -> Option<usize> {
        self.0.iter().enumerate().find_map(|(w, bits)| {
            loop {
                let b = bits.load(SeqCst);
                if b == 0 {
                    return None;
                }
                let i = w * 64 + b.trailing_zeros() as usize;
                if self.remove(i) {
                    return Some(i);
                }
            }
        })
    }

    /// Takes the highest member out.
    pub fn take_high(&self) -> Option<usize> {
        self.0.iter().enumerate().rev().find_map(|(w, bits)| {
            loop {
                let b = bits.load(SeqCst);
                if b == 0 {
                    return None;
                }
                let i = w * 64 + 63 - b.leading_zeros() as usize;
                if self.remove(i) {
                    return Some(i);
                }
            }
        })
    }

    /// Members, lowest first; those that come or go meanwhile may be missed.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().enumerate().flat_map(|(w, bits)| {
            let mut left = bits.load(SeqCst);
            std::iter::from_fn(move || {
                let i = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(w * 64 + i)
            })
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0
            .iter()
            .map(|b| b.load(SeqCst).count_ones() as usize)
            .sum()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_bitmap_is_a_set(n in 1usize..300, ops in prop::collection::vec((0u8..4, 0usize..300), 0..200)) {
            let (map, mut set) = (Bitmap::new(n, false), BTreeSet::new());
            for (op, i) in ops {
                let i = i % n;
                match op {
                    0 => if set.insert(i) { map.insert(i) },
                    1 => prop_assert_eq!(map.remove(i), set.remove(&i)),
                    2 => prop_assert_eq!(map.take_high(), set.pop_last()),
                    _ => prop_assert_eq!(map.take_low(), set.pop_first()),
                }
                prop_assert_eq!(map.len(), set.len());
                prop_assert!(map.iter().eq(set.iter().copied()));
            }
            prop_assert_eq!(Bitmap::new(n, true).len(), n);
        }
    }
}
