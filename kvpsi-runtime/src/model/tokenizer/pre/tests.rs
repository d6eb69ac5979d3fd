//! What each rule leaves of a text, and in what time.

use super::*;
use rustix::time::{ClockId, clock_gettime};
use std::{collections::HashSet, time::Duration};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior,
    pre_tokenizers::split::{Split, SplitPattern},
};

fn pieces(name: &str, text: &str) -> Vec<String> {
    let cutter = super::super::bpe::cutter(rule(name).unwrap()).unwrap();
    let mut cut = PreTokenizedString::from(text);
    cutter.pre_tokenize(&mut cut).unwrap();
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits
        .into_iter()
        .map(|(_, (a, b), _)| text[a..b].to_owned())
        .collect()
}

#[test]
fn every_name_has_one_rule_and_every_rule_compiles() {
    let mut seen = HashSet::new();
    for rule in RULES.iter().chain(&[DEFAULT]) {
        assert!(!rule.names.is_empty());
        for name in rule.names {
            assert!(seen.insert(*name), "{name} twice");
            let text = "It's 12345678 m² — Ünïcode, 漢字かな한국어 हिन्दी\n\n  x\t!";
            assert_eq!(pieces(name, text).concat(), text, "{name}");
        }
    }
    assert!(seen.len() >= 91, "{} names", seen.len());
}

#[test]
fn digits_are_cut_as_each_rule_says() {
    for (name, want) in [
        ("gpt-2", vec!["1234567"]),
        ("smollm", vec!["1", "2", "3", "4", "5", "6", "7"]),
        ("qwen2", vec!["1", "2", "3", "4", "5", "6", "7"]),
        ("llama-bpe", vec!["123", "456", "7"]),
        ("gpt-4o", vec!["123", "456", "7"]),
        ("deepseek-v3", vec!["123", "456", "7"]),
        ("default", vec!["123", "456", "7"]),
        // From the right.
        ("superbpe", vec!["1", "234", "567"]),
        ("afmoe", vec!["1", "234", "567"]),
        ("tiny_aya", vec!["1", "234", "567"]),
    ] {
        assert_eq!(pieces(name, "1234567"), want, "{name}");
    }
}

/// Texts that make an engine of backtracking look at what it has seen.
fn long_texts(chars: usize) -> Vec<(&'static str, String)> {
    let of = |cycle: &str| cycle.chars().cycle().take(chars).collect::<String>();
    vec![
        ("digits", of("1234567890")),
        ("digits before a letter", of("1234567890") + "a"),
        ("digits of another script", of("١٢٣٤٥٦٧٨٩")),
        ("numbers that are no digits", of("½Ⅷ²")),
        ("digits and a sign", of("1234567,")),
        ("letters", of("abcdefgh")),
        ("letters in capitals", of("ABCDEFGH")),
        ("both", of("aBcDE")),
        ("letters without a case", of("漢字かな한국어हिन्दी")),
        ("marks", of("\u{301}\u{93f}")),
        ("spaces", of(" ")),
        ("spaces before a letter", of(" ") + "a"),
        ("spaces of several kinds", of(" \t\u{a0}\u{3000}")),
        ("spaces before the end of a line", of(" ") + "\n"),
        ("ends of lines", of("\n")),
        ("ends of lines before a letter", of("\r\n") + "a"),
        ("spaces and ends of lines", of("  \n")),
        (
            "spaces after an end of a line",
            "\n".to_owned() + &of(" ") + "a",
        ),
        ("signs", of("!?-.")),
        ("apostrophes", of("'")),
        ("slashes", of("/\n")),
        ("letters and spaces", of("a ")),
        ("digits and letters", of("1a")),
        ("scripts", of("aЯ漢1 한ب\u{301}!É\n2हि 🙂")),
        ("pictures", of("🙂👩\u{200d}👧")),
    ]
}

/// Lengths of the pieces that expressions leave of a text, in bytes.
fn lengths(cuts: &[Split], text: &str) -> Vec<usize> {
    let mut left = vec![text];
    for cut in cuts {
        let mut next = Vec::new();
        for piece in left {
            let mut at = 0;
            for (from, to) in cut.regex.find_iter(piece) {
                next.extend([&piece[at..from], &piece[from..to]]);
                at = to;
            }
            next.push(&piece[at..]);
        }
        next.retain(|piece| !piece.is_empty());
        left = next;
    }
    left.into_iter().map(str::len).collect()
}

fn splits(cuts: &[&str]) -> Vec<Split> {
    let split = |cut: &&str| {
        let pattern = SplitPattern::Regex((*cut).into());
        Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap()
    };
    cuts.iter().map(split).collect()
}

#[test]
fn no_rule_looks_at_a_long_run_again_for_each_of_its_pieces() {
    // What other processes take does not count.
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let texts = long_texts(200_000);
    for rule in RULES.iter().chain(&[DEFAULT]) {
        let (name, cuts) = (rule.names[0], splits(rule.cuts));
        for (what, text) in &texts {
            let began = now();
            let pieces = lengths(&cuts, text);
            let took = now().saturating_sub(began);
            assert!(!pieces.is_empty());
            assert!(took < Duration::from_secs(1), "{name}, {what}: {took:?}");
        }
    }
}

#[test]
fn a_search_is_not_given_up_in_the_longest_piece() {
    for name in ["tiny_aya", "superbpe", "afmoe", "jais-2"] {
        let cuts = splits(rule(name).unwrap().cuts);
        let kinds = [
            "digits",
            "digits before a letter",
            "letters",
            "spaces",
            "signs",
        ];
        let texts = long_texts(520_000).into_iter();
        for (what, text) in texts.filter(|(what, _)| kinds.contains(what)) {
            // What is behind it is cut as it is alone: a search that was
            // given up would leave all of it.
            let text = text + "\n1234 x";
            let alone = lengths(&cuts, "\n1234 x");
            let tail = &alone[1..];
            assert!(lengths(&cuts, &text).ends_with(tail), "{name}, {what}");
        }
    }
}

#[test]
fn expressions_that_look_once_cut_as_those_of_the_models_do() {
    let spaces = |rule: &Rule| rule.cuts[0].replace(r"(?<![^\S\r\n])", "");
    let jais = rule("jais-2").unwrap();
    assert_ne!(spaces(jais), jais.cuts[0]);
    let sets = [
        "1234567890",
        "123½²Ⅷ",
        "123a",
        "12 a",
        "12½²٣",
        "123,. a\n",
        "  \n \ta!",
        "      a\n",
        "1_٣½ Ⅷa\u{301}",
        "\r\n  !x1",
        "12a½,",
        "\u{1}a 1_",
    ];
    for (name, cut, was) in [
        ("tiny_aya", 0, r"\d{1,3}(?=(?:\d{3})*\b)"),
        ("superbpe", 1, r"(?=(\d{3})+(?!\d))"),
        ("afmoe", 0, r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"),
        ("jais-2", 0, &spaces(jais)),
    ] {
        let rule = rule(name).unwrap();
        let mut before = rule.cuts.to_vec();
        before[cut] = was;
        let (before, after) = (splits(&before), splits(rule.cuts));
        let mut random = fastrand::Rng::with_seed(7);
        for set in sets {
            let chars: Vec<char> = set.chars().collect();
            for i in 0..400 {
                let most = if i % 100 == 0 { 1600 } else { 24 };
                let len = random.usize(1..most);
                let text: String = (0..len).filter_map(|_| random.choice(&chars)).collect();
                let spaces = if i % 50 == 1 {
                    random.usize(1..1600)
                } else {
                    0
                };
                let text = " ".repeat(spaces) + &text;
                assert_eq!(
                    lengths(&before, &text),
                    lengths(&after, &text),
                    "{name}: {text:?}"
                );
            }
        }
    }
}
