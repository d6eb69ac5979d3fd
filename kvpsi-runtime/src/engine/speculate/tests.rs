//! Guesses, their odds, and what they are worth.

use super::*;
use proptest::prelude::*;

fn measured(rows: &[(usize, u64)]) -> StepCosts {
    let mut costs = StepCosts::default();
    for _ in 0..20 {
        for &(rows, us) in rows {
            costs.note(rows, Duration::from_micros(us));
        }
    }
    costs
}

#[test]
fn the_longest_match_is_found_and_of_several_the_last() {
    //           0  1  2  3  4  5  6  7  8  9 10 11
    let text = [1, 2, 3, 9, 2, 3, 8, 2, 3, 7, 2, 3];
    assert_eq!(longest_match(&text), Some((9, 2)));
    let text = [1, 2, 3, 9, 2, 3, 8, 5, 1, 2, 3];
    assert_eq!(longest_match(&text), Some((3, 3)));
    assert_eq!(longest_match(&[1, 2, 3, 4, 3]), None, "one token is none");
    assert_eq!(longest_match(&[]), None);
    assert_eq!(longest_match(&[7]), None);
    assert_eq!(longest_match(&[7, 7]), None);
    assert_eq!(longest_match(&[7, 7, 7]), Some((2, 2)));
}

#[test]
fn a_guess_goes_on_where_the_match_reaches_the_end() {
    let mut drafts = Drafts::default();
    let text = [4, 1, 2, 3, 1, 2, 3];
    assert_eq!(drafts.look_up(&text, 9).len(), MOST_DRAFTS);
    assert_eq!(drafts.next(), [1, 2, 3, 1, 2, 3, 1]);
    assert_eq!(drafts.look_up(&text, 2).len(), 2);
    assert!(drafts.look_up(&[1, 2, 3], 9).is_empty() && drafts.next().is_empty());
    assert!(!drafts.judge(0, Some(1)), "there is no guess");
}

#[test]
fn drafts_are_computed_where_they_are_right_and_not_where_they_fail() {
    let costs = measured(&[(1, 1000), (8, 2400)]);
    let mut drafts = Drafts::default();
    let text: Vec<u32> = (0..20).chain(0..12).collect();
    let chances = |drafts: &mut Drafts| vec![drafts.look_up(&text, MOST_DRAFTS)];
    for _ in 0..10 {
        let _ = chances(&mut drafts);
        assert!(drafts.judge(0, Some(12)));
    }
    assert!(choose(&costs, &chances(&mut drafts), MOST_ROWS)[0] >= 4);
    for _ in 0..30 {
        let _ = chances(&mut drafts);
        assert!(!drafts.judge(0, Some(99)));
    }
    assert_eq!(choose(&costs, &chances(&mut drafts), MOST_ROWS), [0]);
    // None where nothing is known yet, either.
    let mut fresh = Drafts::default();
    let first = chances(&mut fresh);
    assert_eq!(choose(&measured(&[(1, 1000), (8, 6600)]), &first, 8), [0]);
}

#[test]
fn a_row_that_costs_a_step_is_worth_nothing() {
    let sure = vec![vec![0.97; MOST_DRAFTS]];
    assert_eq!(choose(&measured(&[(1, 1000), (8, 8000)]), &sure, 8), [0]);
    assert_eq!(choose(&measured(&[(1, 1000), (8, 1100)]), &sure, 8), [7]);
}

#[test]
fn nobody_in_a_batch_is_slowed_down_for_anothers_drafts() {
    let costs = measured(&[(4, 2000), (8, 3000)]);
    let sure = vec![0.97; MOST_DRAFTS];
    let some = [sure.clone(), vec![], vec![], vec![]];
    assert_eq!(choose(&costs, &some, 8), [0; 4]);
    let all = [sure.clone(), sure.clone(), sure.clone(), sure];
    assert_eq!(choose(&costs, &all, 8), [1; 4]);
    assert_eq!(choose(&costs, &all, 4), [0; 4], "no room");
    assert!(choose(&costs, &[], 8).is_empty());
}

#[test]
fn costs_follow_what_is_measured_and_no_single_step() {
    let mut costs = measured(&[(1, 1000), (5, 2000)]);
    assert!((costs.of_a_row() - 0.25).abs() < 0.02, "{costs:?}");
    costs.note(1, Duration::from_secs(9));
    assert!(costs.ratio(1, 8) > 1.5, "{costs:?}");
    // What was measured long ago is not known any more.
    let mut old = measured(&[(1, 1000), (8, 8000)]);
    for _ in 0..400 {
        old.note(1, Duration::from_micros(1000));
    }
    assert!((old.of_a_row() - ROW).abs() < 0.05, "{old:?}");
}

proptest! {
    #[test]
    fn a_guess_is_what_followed_the_match(text in prop::collection::vec(0u32..4, 0..60)) {
        let mut drafts = Drafts::default();
        let chances = drafts.look_up(&text, MOST_DRAFTS);
        prop_assert_eq!(chances.len(), drafts.next().len());
        prop_assert!(chances.iter().all(|c| (0.0..=1.0).contains(c)));
        if let Some((at, matched)) = longest_match(&text) {
            prop_assert_eq!(&text[at - matched..at], &text[text.len() - matched..]);
            let known = &text[at..];
            let n = known.len().min(MOST_DRAFTS);
            prop_assert_eq!(&drafts.next()[..n], &known[..n]);
        } else {
            prop_assert!(!text.windows(2).rev().skip(1).any(|w| w == &text[text.len() - 2..]));
        }
    }

    #[test]
    fn a_step_has_no_more_rows_than_there_is_room(
        chances in prop::collection::vec(prop::collection::vec(0f32..=1.0, 0..9), 1..6),
        most in 1usize..12,
        us in 1u64..4000,
    ) {
        let costs = measured(&[(chances.len(), 1000), (chances.len() + 3, us)]);
        let taken = choose(&costs, &chances, most);
        prop_assert_eq!(taken.len(), chances.len());
        prop_assert!(taken.iter().zip(&chances).all(|(n, c)| *n <= c.len()));
        let rows = taken.iter().sum::<usize>() + chances.len();
        prop_assert!(rows <= most.max(chances.len()));
    }
}
