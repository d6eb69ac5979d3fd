//! Texts that end an answer.
//!
//! Owns what is held back because it may be the beginning of one. Invariant:
//! what leaves is the text up to the first stop text, whatever pieces it comes
//! in. Out of scope: tokens.

/// Looks for stop texts in a text that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Stops {
    stops: Vec<String>,
    held: String,
}

impl Stops {
    /// Empty texts would end everything, and are never looked for.
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.to_vec(),
            held: String::new(),
        }
    }

    /// Takes a piece: what can be shown now, and which stop text came, by its
    /// place; of several at one place the longest.
    pub fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        if self.stops.is_empty() {
            return (piece.to_owned(), None);
        }
        self.held.push_str(piece);
        let stops = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let found = stops.filter_map(|(i, s)| Some((self.held.find(s)?, s.len(), i)));
        if let Some((at, _, which)) = found.min_by_key(|(at, len, _)| (*at, usize::MAX - len)) {
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, Some(which));
        }
        let held = self.begins();
        let rest = self.held.split_off(self.held.len() - held);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What was held back, once no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that a stop text may begin with.
    fn begins(&self) -> usize {
        let longest = |stop: &String| {
            let mut ends = stop.char_indices().map(|(at, _)| at).rev();
            ends.find(|n| self.held.ends_with(&stop[..*n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The shown text, and how many pieces were taken.
    fn run(stops: &[String], pieces: &[String]) -> (String, bool) {
        let mut s = Stops::new(stops);
        let mut shown = String::new();
        for piece in pieces {
            let (more, hit) = s.push(piece);
            shown.push_str(&more);
            if let Some(which) = hit {
                // What ends it is what came.
                assert!(pieces.concat()[shown.len()..].starts_with(&stops[which]));
                return (shown, true);
            }
        }
        shown.push_str(&s.finish());
        (shown, false)
    }

    proptest! {
        #[test]
        fn what_leaves_ends_before_the_first_stop_text_however_it_was_cut(
            stops in prop::collection::vec("[abä]{1,3}", 0..4),
            pieces in prop::collection::vec("[abäc]{0,3}", 0..12),
        ) {
            let all = pieces.concat();
            // The earliest end of a stop text decides: it is seen first.
            let ends = (0..=all.len()).filter(|end| all.is_char_boundary(*end));
            let hit = ends
                .filter_map(|end| stops.iter().filter(|s| all[..end].ends_with(*s)).map(|s| end - s.len()).min())
                .next();
            let (shown, stopped) = run(&stops, &pieces);
            prop_assert_eq!(stopped, hit.is_some());
            if let Some(at) = hit {
                // A piece may end later than the first stop text does: then an
                // earlier beginning may be found in it.
                prop_assert!(shown.len() <= at && all.starts_with(&shown));
                prop_assert!(stops.iter().all(|s| !shown.contains(s)));
            } else {
                prop_assert_eq!(shown, all);
            }
        }
    }

    #[test]
    fn only_what_may_begin_a_stop_text_is_held() {
        let mut s = Stops::new(&["\n\nUser:".into()]);
        assert_eq!(s.push("one\n"), ("one".into(), None));
        assert_eq!(s.push("two\n\nUs"), ("\ntwo".into(), None));
        assert_eq!(s.push("ed"), ("\n\nUsed".into(), None));
        assert_eq!(s.push("x\n\nUser: y"), ("x".into(), Some(0)));
    }
}
