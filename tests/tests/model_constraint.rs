//! Grammars over the real vocabulary: what they allow, what they cost, and what
//! becomes of those that explode.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::{
    engine::{Constraint, Grammar, Grammars},
    model::{gguf::Gguf, tokenizer::Tokenizer},
};
use kvpsi_tests::{emulated, model};
use serde_json::json;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

fn vocabulary(test: &str) -> Option<(Arc<Tokenizer>, Arc<Grammars>, usize)> {
    let gguf = Gguf::open(&model(test)?).unwrap();
    let vocab = gguf.config().vocab;
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let grammars = Grammars::new(&tokenizer, vocab).unwrap();
    Some((tokenizer, grammars, vocab))
}

/// Tokens that may come next.
fn allowed(constraint: &mut Constraint, vocab: usize) -> Vec<u32> {
    let mut logits = vec![0.0f32; vocab];
    constraint.apply(&mut logits).unwrap();
    let all = (0u32..).zip(&logits).filter(|(_, l)| l.is_finite());
    all.map(|(token, _)| token).collect()
}

#[test]
fn a_text_that_follows_its_schema_is_allowed_token_by_token_and_ends_where_it_must() {
    let test = "a_text_that_follows_its_schema_is_allowed_token_by_token";
    let Some((tokenizer, grammars, vocab)) = vocabulary(test) else {
        return;
    };
    let schema = json!({
        "type": "object", "required": ["name", "sizes"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string"},
            "sizes": {"type": "array", "items": {"type": "integer"}},
        },
    });
    let text = r#"{"name": "Ünïcode 漢字 🦀 and \"quotes\"", "sizes": [1, -20, 300, 4000, 50000]}"#;
    let mut first = grammars
        .compile(vec![Grammar::Schema(schema)], None)
        .unwrap();
    let mut second = first.another();
    for constraint in [&mut first, &mut second] {
        let tokens = tokenizer.encode(text, false).unwrap();
        for (i, token) in tokens.iter().enumerate() {
            let next = allowed(constraint, vocab);
            assert!(
                next.contains(token),
                "{i}: {:?}",
                tokenizer.decode(&[*token])
            );
            // No control token but those that end an answer, and no end before it.
            let ends = |t: &&u32| tokenizer.is_control(**t);
            assert_eq!(next.iter().find(ends), None, "{i}");
            assert_eq!(constraint.allowed(*token).unwrap(), *token);
            let over = constraint.took(*token).unwrap();
            assert_eq!(over, i + 1 == tokens.len());
        }
        let next = allowed(constraint, vocab);
        assert!(next.iter().all(|t| tokenizer.ends(*t)) && !next.is_empty());
    }
}

#[test]
fn the_next_tokens_are_known_long_before_the_model_has_computed_a_step() {
    let test = "the_next_tokens_are_known_long_before_the_model_has_computed_a_step";
    let Some((_, grammars, vocab)) = vocabulary(test) else {
        return;
    };
    let schema = json!({"type": "array", "minItems": 500, "items": {
        "type": "object", "required": ["a", "b"], "additionalProperties": false,
        "properties": {"a": {"type": "string", "maxLength": 40}, "b": {"type": "number"}},
    }});
    let mut constraint = grammars
        .compile(vec![Grammar::Schema(schema)], None)
        .unwrap();
    let mut logits = vec![0.0f32; vocab];
    let mut times = Vec::new();
    for i in 0..400usize {
        let next = allowed(&mut constraint, vocab);
        // Any of them, by numbers that repeat.
        let token = next[(i * 7919) % next.len()];
        let since = Instant::now();
        assert!(!constraint.took(token).unwrap());
        constraint.apply(&mut logits).unwrap();
        times.push(since.elapsed());
    }
    times.sort_unstable();
    let (median, p99) = (times[200], times[395]);
    println!("a grammar's step: {median:?} at the median, {p99:?} of 99 in 100");
    // A token of the smallest model takes 4 ms.
    if !emulated() {
        assert!(median < Duration::from_millis(2), "{median:?}");
    }
}

#[test]
fn grammars_that_explode_are_refused_or_followed_in_bounded_time() {
    let test = "grammars_that_explode_are_refused_or_followed_in_bounded_time";
    let Some((_, grammars, vocab)) = vocabulary(test) else {
        return;
    };
    let mut defs = serde_json::Map::new();
    for i in 0..40 {
        let next = json!({"$ref": format!("#/$defs/d{}", (i + 1) % 40)});
        let both = json!({"type": "array", "prefixItems": [next, next], "minItems": 2});
        defs.insert(format!("d{i}"), both);
    }
    let alternatives: Vec<_> = (0..10)
        .map(|i| json!({"anyOf": (0..8).map(|j| json!({"properties": {format!("a{j}"): {"const": i}}})).collect::<Vec<_>>()}))
        .collect();
    let regexes = [
        "((((x{99}){99}){99}){99}){99}",
        "(a|b)*a(a|b){20}",
        "(a|b)*a(a|b){2000}c",
        "(.*a){20}b",
        r"(\w+\s)*\w+",
        r"[\s\S]{1,1000000}x",
    ];
    let schemas = [
        json!({"$defs": defs, "$ref": "#/$defs/d0"}),
        json!({"allOf": alternatives}),
        json!({"type": "string", "pattern": "^(a|b)*a(a|b){30}$"}),
        json!({"type": "array", "minItems": 100_000, "items": {"type": "integer"}}),
        json!({"enum": (0..9000).map(|i| format!("value {i}")).collect::<Vec<_>>()}),
        json!({"$ref": "#"}),
    ];
    let regexes = regexes.map(|r| Grammar::Regex(r.into()));
    let all = regexes.into_iter().chain(schemas.map(Grammar::Schema));
    let endless = Grammar::Lark("start: start start | \"a\"".into());
    // Each names the next: compiled by recursion.
    let chain = |n: usize, name: &str| {
        let rules: String = (0..n)
            .map(|i| format!("{name}{i}: {name}{}\n", i + 1))
            .collect();
        Grammar::Lark(format!("start: {name}0\n{rules}{name}{n}: \"a\"\n"))
    };
    let chains = [chain(1900, "r"), chain(1900, "T"), chain(9000, "r")];
    let refs = (0..2500).map(|i| {
        (
            format!("d{i}"),
            json!({"$ref": format!("#/$defs/d{}", i + 1)}),
        )
    });
    let mut refs: serde_json::Map<_, _> = refs.collect();
    refs.insert("d2500".into(), json!({"type": "null"}));
    let refs = Grammar::Schema(json!({"$defs": refs, "$ref": "#/$defs/d0"}));
    for grammar in all.chain([endless, refs]).chain(chains) {
        let what = format!("{grammar:?}").chars().take(60).collect::<String>();
        let since = Instant::now();
        if let Ok(mut constraint) = grammars.compile(vec![grammar], None) {
            let mut logits = vec![0.0f32; vocab];
            for i in 0..60usize {
                logits.fill(0.0);
                if constraint.apply(&mut logits).is_err() {
                    break;
                }
                let next = (0u32..).zip(&logits).filter(|(_, l)| l.is_finite());
                let next: Vec<u32> = next.map(|(token, _)| token).collect();
                let token = next[(i * 7919) % next.len()];
                if !matches!(constraint.took(token), Ok(false)) {
                    break;
                }
            }
        }
        println!("{:?} {what}", since.elapsed());
        if !emulated() {
            assert!(since.elapsed() < Duration::from_secs(10), "{what}");
        }
    }
}
