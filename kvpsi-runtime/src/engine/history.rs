//! How the positions of a session were computed, so that they can be computed
//! again with the same bits.
//!
//! A row's keys and values depend on the shape of its step: attention takes few
//! rows and many by different kernels. So the history is a list of steps. Steps
//! of one row can go together: each is a span of its own. Out of scope: the
//! tokens.

/// So many steps of so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    rows: usize,
    times: usize,
}

/// The steps so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    runs: Vec<Run>,
}

impl History {
    /// One more step.
    pub fn push(&mut self, rows: usize) {
        match self.runs.last_mut() {
            Some(run) if run.rows == rows => run.times += 1,
            _ if rows > 0 => self.runs.push(Run { rows, times: 1 }),
            _ => {}
        }
    }

    /// Positions computed so far; a recomputing that was cut short has fewer in
    /// the pool.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|r| r.rows * r.times).sum()
    }

    /// The last place at or before `position` where a step began that is also
    /// a multiple of `block`.
    pub fn boundary(&self, position: usize, block: usize) -> usize {
        let (mut at, mut best) = (0usize, 0);
        for run in &self.runs {
            for _ in 0..run.times {
                if at > position {
                    return best;
                }
                if at.is_multiple_of(block) {
                    best = at;
                }
                at += run.rows;
            }
        }
        if at <= position && at.is_multiple_of(block) {
            best = at;
        }
        best
    }

    /// The next step from `position`, where one begins: its rows, and how many
    /// steps of so many rows follow one another. `None`: all that is computed.
    pub fn next(&self, position: usize) -> Option<(usize, usize)> {
        let mut at = 0;
        for run in &self.runs {
            let end = at + run.rows * run.times;
            if position < end {
                let done = (position - at) / run.rows;
                return Some((run.rows, run.times - done));
            }
            at = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_history_is_walked_as_it_was_made(steps in prop::collection::vec(1usize..5, 0..40), at in 0usize..200) {
            let steps: Vec<usize> = steps.into_iter().map(|s| [1, 1, 32, 7][s - 1]).collect();
            let mut h = History::default();
            steps.iter().for_each(|rows| h.push(*rows));
            let mut walked = vec![];
            let mut position = 0;
            while let Some((rows, times)) = h.next(position) {
                walked.extend(std::iter::repeat_n(rows, times));
                position += rows * times;
            }
            prop_assert_eq!(&walked, &steps);
            prop_assert_eq!(position, h.len());
            let begins = steps.iter().scan(0, |at, rows| { *at += rows; Some(*at) });
            let want = std::iter::once(0).chain(begins).filter(|b| *b <= at && b % 32 == 0).max();
            prop_assert_eq!(Some(h.boundary(at, 32)), want);
        }
    }
}
