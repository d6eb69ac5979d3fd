//! Plots over time of block characters: one column is a stretch of time.
//!
//! Owns the columns, scales and glyphs. All of it is in integers: what is
//! counted stays exact until it becomes an eighth of a cell. Out of scope:
//! what is plotted.

use ratatui::{buffer::Buffer, layout::Rect, style::Color};

const EIGHTHS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// A value is carried over a gap in time of at most so many ms.
const CARRIED_MS: u64 = 3000;

/// Which stretch of time each column is. The grid stands still while time goes
/// on: a bar does not change its height because it moved.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    first: u64,
    column_ms: u64,
    width: usize,
}

impl Grid {
    /// The last `window_ms` until `now_ms`, in `width` columns.
    pub fn new(now_ms: u64, window_ms: u64, width: u16) -> Self {
        let width = u64::from(width.max(1));
        let column_ms = window_ms.div_ceil(width).max(1);
        Self {
            first: (now_ms / column_ms).saturating_sub(width - 1),
            column_ms,
            width: usize::try_from(width).unwrap_or(usize::MAX),
        }
    }

    /// The column of a time.
    pub fn column(&self, t_ms: u64) -> Option<usize> {
        let column = (t_ms / self.column_ms).checked_sub(self.first)?;
        usize::try_from(column).ok().filter(|c| *c < self.width)
    }

    /// The largest value of each column; none where there is none.
    pub fn largest(&self, points: impl Iterator<Item = (u64, u64)>) -> Vec<Option<u64>> {
        let mut out = vec![None; self.width];
        for (t, v) in points {
            if let Some(c) = self.column(t) {
                out[c] = Some(out[c].unwrap_or(0).max(v));
            }
        }
        out
    }

    /// The last value of each column, carried over columns that are shorter
    /// than the time between two points.
    pub fn latest(&self, points: impl Iterator<Item = (u64, u64)>) -> Vec<Option<u64>> {
        let mut out = vec![None; self.width];
        for (t, v) in points {
            if let Some(c) = self.column(t) {
                out[c] = Some(v);
            }
        }
        let most = CARRIED_MS / self.column_ms;
        let (mut known, mut carried) = (None, 0);
        for value in &mut out {
            if value.is_some() {
                (known, carried) = (*value, 0);
            } else if carried < most {
                carried += 1;
                *value = known;
            }
        }
        out
    }
}

/// The next of 1, 2, 5 times a power of ten.
pub fn decimal_top(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for head in [1, 2, 5] {
            match power.checked_mul(head) {
                Some(top) if top >= most => return top,
                Some(_) => {}
                None => return u64::MAX,
            }
        }
        let Some(next) = power.checked_mul(10) else {
            return u64::MAX;
        };
        power = next;
    }
}

/// The next power of two, or one and a half of one.
pub fn binary_top(most: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        if power >= most {
            return power;
        }
        let half = power + power / 2;
        if half >= most {
            return half;
        }
        let Some(next) = power.checked_mul(2) else {
            return u64::MAX;
        };
        power = next;
    }
}

/// Eighths of a cell from the ground up, of a plot of so many rows.
fn height(value: u64, top: u64, rows: u16) -> u64 {
    let all = u64::from(rows) * 8;
    let scaled = u128::from(value.min(top)) * u128::from(all) / u128::from(top.max(1));
    // What is there is seen, however little.
    u64::try_from(scaled)
        .unwrap_or(all)
        .max(u64::from(value > 0))
}

/// Draws columns as filled bars, from the left of `area`.
pub fn bars(buffer: &mut Buffer, area: Rect, values: &[Option<u64>], top: u64, color: Color) {
    for (x, value) in (area.left()..area.right()).zip(values) {
        let mut left = height(value.unwrap_or(0), top, area.height);
        for y in (area.top()..area.bottom()).rev() {
            let filled = left.min(8);
            left -= filled;
            if filled > 0 {
                let glyph = EIGHTHS[usize::try_from(filled).unwrap_or(8)];
                buffer[(x, y)].set_symbol(glyph).set_fg(color);
            }
        }
    }
}

/// Draws columns as a line, over what is there already; where that fills the
/// cell it stays as the ground.
pub fn line(buffer: &mut Buffer, area: Rect, values: &[Option<u64>], top: u64, color: Color) {
    for (x, value) in (area.left()..area.right()).zip(values) {
        let Some(value) = value else { continue };
        let at = height(*value, top, area.height).saturating_sub(1);
        let Ok(row) = u16::try_from(at / 8) else {
            continue;
        };
        if row >= area.height {
            continue;
        }
        let cell = &mut buffer[(x, area.bottom() - 1 - row)];
        let glyph = match at % 8 {
            0..=2 => "▁",
            3..=4 => "─",
            _ => "▔",
        };
        if ["▅", "▆", "▇", "█"].contains(&cell.symbol()) {
            cell.set_bg(cell.fg);
        }
        cell.set_symbol(glyph).set_fg(color);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tops_are_round_and_not_below_what_they_must_hold() {
        assert_eq!([1, 3, 6, 4_300].map(decimal_top), [1, 5, 10, 5_000]);
        assert_eq!([1, 3, 5, 60 << 20].map(binary_top), [1, 3, 6, 64 << 20]);
        assert_eq!(binary_top(40 << 20), 48 << 20);
        for top in [decimal_top, binary_top] {
            assert_eq!(top(u64::MAX), u64::MAX);
        }
    }

    #[test]
    fn a_column_shows_the_largest_of_its_time() {
        let grid = Grid::new(10_000, 10_000, 10);
        let points = [(1_000, 5), (1_900, 9), (2_000, 1), (10_999, 7), (11_000, 8)];
        let columns = grid.largest(points.into_iter());
        assert_eq!(columns[0], Some(9));
        assert_eq!(columns[1], Some(1));
        assert_eq!(columns[9], Some(7));
        assert_eq!(columns.iter().flatten().count(), 3);
    }

    #[test]
    fn a_level_is_carried_over_short_gaps_alone() {
        let grid = Grid::new(9_999, 10_000, 20);
        let columns = grid.latest([(0, 4), (5_000, 6)].into_iter());
        assert_eq!(columns[..7], [Some(4); 7]);
        assert_eq!(columns[7], None);
        assert_eq!(columns[10..17], [Some(6); 7]);
        assert_eq!(columns[17], None);
    }

    #[test]
    fn a_bar_is_as_high_as_its_value_and_never_hides_a_little_one() {
        let area = Rect::new(0, 0, 4, 2);
        let mut buffer = Buffer::empty(area);
        let values = [Some(0), Some(1), Some(500), Some(1000)];
        bars(&mut buffer, area, &values, 1000, Color::Red);
        let row = |y| -> String { (0..4).map(|x| buffer[(x, y)].symbol()).collect() };
        assert_eq!(row(0), "   █");
        assert_eq!(row(1), " ▁██");
    }

    #[test]
    fn a_line_stands_at_its_value_above_a_bar_and_within_one() {
        let area = Rect::new(0, 0, 2, 2);
        let mut buffer = Buffer::empty(area);
        bars(
            &mut buffer,
            area,
            &[Some(200), Some(1000)],
            1000,
            Color::Blue,
        );
        line(
            &mut buffer,
            area,
            &[Some(1000), Some(500)],
            1000,
            Color::Yellow,
        );
        assert_eq!(buffer[(0, 0)].symbol(), "▔");
        assert_eq!(buffer[(0, 1)].fg, Color::Blue);
        assert_eq!(buffer[(1, 1)].symbol(), "▔");
        assert_eq!(buffer[(1, 1)].bg, Color::Blue);
        assert_eq!(buffer[(1, 1)].fg, Color::Yellow);
    }

    proptest! {
        #[test]
        fn any_values_fit_any_area(
            width in 0_u16..40, rows in 0_u16..12, now: u64, window: u64, top: u64,
            points in prop::collection::vec(any::<(u64, u64)>(), 0..50),
        ) {
            let area = Rect::new(3, 2, width, rows);
            let mut buffer = Buffer::empty(Rect::new(0, 0, 50, 20));
            let grid = Grid::new(now, window, width);
            bars(&mut buffer, area, &grid.largest(points.iter().copied()), top, Color::Red);
            line(&mut buffer, area, &grid.latest(points.iter().copied()), top, Color::Blue);
            for y in 0..20 {
                for x in 0..50 {
                    let outside = !area.contains((x, y).into());
                    prop_assert!(!outside || buffer[(x, y)].symbol() == " ");
                }
            }
            prop_assert!(decimal_top(top) >= top && binary_top(top) >= top);
        }
    }
}
