use super::*;
use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarWithLexer, TopLevelGrammar},
};
use std::collections::BTreeSet;
use toktrie::ApproximateTokEnv;

fn matcher(factory: &ParserFactory, gbnf: &str) -> Matcher {
    let lark = to_lark(gbnf).unwrap_or_else(|e| panic!("{e}: {gbnf}"));
    let grammar = TopLevelGrammar {
        grammars: vec![GrammarWithLexer::from_lark(lark.clone())],
        max_tokens: None,
    };
    let parser = factory.create_parser(grammar);
    Matcher::new(Ok(parser.unwrap_or_else(|e| panic!("{e}: {lark}"))))
}

fn factory() -> ParserFactory {
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    factory
}

/// Whether llguidance takes a text as a whole, byte by byte.
fn takes(mut matcher: Matcher, text: &str) -> bool {
    for byte in text.bytes() {
        if matcher.is_stopped() || matcher.consume_token(byte.into()).is_err() {
            return false;
        }
    }
    matcher.is_accepting().unwrap()
}

/// Where a node's texts that begin at `at` may end: by trying all.
fn ends(all: &Gbnf, node: &Node, text: &[char], at: usize, depth: usize) -> BTreeSet<usize> {
    let many = |node: &Node, from: &BTreeSet<usize>| -> BTreeSet<usize> {
        let each = from.iter().flat_map(|a| ends(all, node, text, *a, depth));
        each.collect()
    };
    match node {
        _ if depth == 0 => BTreeSet::new(),
        Node::Class { class, .. } => {
            let c = text.get(at).map(|c| u32::from(*c));
            let fits = c.is_some_and(|c| {
                let ranges = &all.classes[*class];
                ranges.iter().any(|(a, b)| (*a..=*b).contains(&c))
            });
            fits.then_some(at + 1).into_iter().collect()
        }
        Node::Rule(rule) => ends(all, &all.rules[*rule], text, at, depth - 1),
        Node::Sequence(nodes) => nodes
            .iter()
            .fold(BTreeSet::from([at]), |from, node| many(node, &from)),
        Node::Either(nodes) => {
            let each = nodes.iter().map(|n| ends(all, n, text, at, depth));
            each.flatten().collect()
        }
        Node::Repeat {
            node, least, most, ..
        } => {
            let mut out = BTreeSet::new();
            let mut from = BTreeSet::from([at]);
            for i in 0..=most.unwrap_or(u32::MAX) {
                if i >= *least {
                    let before = out.len();
                    out.extend(&from);
                    if i > *least && out.len() == before {
                        break;
                    }
                }
                from = many(node, &from);
            }
            out
        }
        Node::Lexeme(_) => unreachable!("none before lexemes are made"),
    }
}

/// A grammar by chance; wide classes, so that lexemes are made of some.
fn chance(rng: &mut fastrand::Rng) -> String {
    fn node(rng: &mut fastrand::Rng, depth: u32) -> String {
        const LEAVES: [&str; 10] = [
            "\"a\"", "\"b\"", "\"c\"", "\"ab\"", "[ab]", "[^a]", "[^c]", ".", "[^ab]", "\"\"",
        ];
        match rng.u32(0..if depth == 0 { 4 } else { 10 }) {
            0..=2 => LEAVES[rng.usize(0..LEAVES.len())].into(),
            3 => ["x", "y"][rng.usize(0..2)].into(),
            4 | 5 => format!("{} {}", node(rng, depth - 1), node(rng, depth - 1)),
            6 => format!("({} | {})", node(rng, depth - 1), node(rng, depth - 1)),
            _ => {
                const OFTEN: [&str; 7] = ["*", "+", "?", "{2}", "{1,2}", "{2,}", "{0,0}"];
                let often = OFTEN[rng.usize(0..OFTEN.len())];
                format!("({}){often}", node(rng, depth - 1))
            }
        }
    }
    // A rule that begins with itself has the reference go round.
    let mut rule = |name: &str| format!("{name} ::= \"a\" {} | {}\n", node(rng, 2), "[bc]");
    let (x, y) = (rule("x"), rule("y"));
    format!("root ::= {}\n{x}{y}", node(rng, 3))
}

#[test]
fn the_lark_grammar_takes_what_the_gbnf_grammar_takes() {
    let factory = factory();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut texts = vec![String::new()];
    for length in 0..5 {
        let longer: Vec<String> = (texts.iter().filter(|t| t.len() == length))
            .flat_map(|t| ["a", "b", "c"].map(|c| format!("{t}{c}")))
            .collect();
        texts.extend(longer);
    }
    let (mut lexemes, mut taken) = (0, 0);
    for _ in 0..150 {
        let gbnf = chance(&mut rng);
        let read = Reader::new(&gbnf).read().unwrap();
        lexemes += usize::from(!lexemes::find(read.clone()).lexemes.is_empty());
        let first = matcher(&factory, &gbnf);
        for text in &texts {
            let chars: Vec<char> = text.chars().collect();
            let root = &read.rules[read.root];
            let want = ends(&read, root, &chars, 0, 12).contains(&chars.len());
            taken += usize::from(want);
            let got = takes(first.deep_clone(), text);
            assert_eq!(got, want, "{text:?} of {gbnf}{}", to_lark(&gbnf).unwrap());
        }
    }
    assert!(lexemes > 20 && taken > 2000, "{lexemes} {taken}");
}

#[test]
fn what_is_not_understood_is_told_with_its_line() {
    for (text, why) in [
        (
            "root ::= \"a\"\nx = b\n",
            "line 2: `::=` must follow the name `x`",
        ),
        ("root ::= x", "line 1: there is no rule `x`"),
        ("x ::= \"a\"", "it has no rule `root`"),
        (
            "root ::= \"a\nb\"",
            "line 2: a literal or a class has no end",
        ),
        ("root ::= (\"a\"\n\n", "line 3: `)` is missing"),
        ("root ::= \"\\q\"", "line 1: there is no escape `\\q`"),
        (
            "root ::= [z-a]",
            "line 1: a range of characters ends before it begins",
        ),
        ("root ::= []", "line 1: a class has no characters"),
        ("root ::= \"a\"{9999}", "line 1: more than 2000 repetitions"),
        (
            "root ::= \"a\"{3,2}",
            "line 1: a repetition ends before it begins",
        ),
        (
            "root ::= \"a\"{x}",
            "line 1: a repetition must be {m}, {m,}, {m,n} or {,n}",
        ),
        (
            "root ::= \"\\ud800\"",
            "line 1: an escape names no character",
        ),
        (
            "root ::= <think>",
            "line 1: tokens by number or name are not taken, only characters",
        ),
        (
            "root ::= \"a\"\nroot ::= \"b\"",
            "line 2: there are two rules `root`",
        ),
        ("root ::= \"a\" = b", "line 1: `=` is not understood here"),
        ("# c\n::= b", "line 2: a rule begins with its name"),
    ] {
        assert_eq!(to_lark(text), Err(why.into()), "{text}");
    }
    let deep = format!("root ::= {}\"a\"", "(".repeat(100_000));
    assert!(to_lark(&deep).unwrap_err().contains("parentheses"));
    let many: String = (0..3000).map(|i| format!("r{i} ::= \"a\"\n")).collect();
    assert!(
        to_lark(&many)
            .unwrap_err()
            .contains("line 1901: there are more than")
    );
}

#[test]
fn the_first_rule_says_whether_a_grammar_is_in_gbnf() {
    for text in ["root ::= a", "# c\n\n  a-b ::= c", "A_b::=c"] {
        assert!(is(text), "{text}");
    }
    for text in [
        "start: \"a ::= b\"",
        "",
        "# root ::= a",
        "start: x\nx ::= y",
        "%ignore /::=/",
    ] {
        assert!(!is(text), "{text}");
    }
}

#[test]
fn a_grammar_with_anything_in_it_is_read_or_refused() {
    let grammar = include_str!("../../../../tests/data/gbnf/json.gbnf");
    let mut rng = fastrand::Rng::with_seed(3);
    let odd = [
        "(", ")*", "{2,}", "[^", "\"", "\\", "::=", "\n", "|", "\u{fffd}", "<a>", "root",
    ];
    let at = |rng: &mut fastrand::Rng| grammar.floor_char_boundary(rng.usize(..grammar.len()));
    let (mut read, mut refused) = (0, 0);
    for _ in 0..400 {
        let (a, b) = (at(&mut rng), at(&mut rng));
        let between = odd[rng.usize(..odd.len())];
        let text = [&grammar[..a.min(b)], between, &grammar[a.max(b)..]].concat();
        match to_lark(&text) {
            Ok(lark) => {
                assert!(lark.starts_with("start: r"), "{text}");
                read += 1;
            }
            Err(why) => {
                assert!(
                    why.starts_with("line ") || why.starts_with("it has no"),
                    "{why}"
                );
                refused += 1;
            }
        }
    }
    assert!(read > 0 && refused > 100, "{read} {refused}");
}
