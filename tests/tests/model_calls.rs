//! Answers that may call functions, over real vocabularies: text is free, and the
//! arguments of a call follow its schema.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::gguf_file::Value as Gg;
use kvpsi::{
    engine::{Constraint, Grammar, Grammars},
    model::{
        chat::{AnswerParser, Part, Style, Tool, ToolFormat, rest_of_thought},
        gguf::Gguf,
        tokenizer::Tokenizer,
    },
};
use kvpsi_tests::{
    model,
    tiny::{Shape, Tiny},
};
use serde_json::{Value, json};
use std::{path::Path, sync::Arc};

struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    grammars: Arc<Grammars>,
    size: usize,
}

impl Vocabulary {
    fn of(file: &Path) -> Self {
        let gguf = Gguf::open(file).unwrap();
        let size = gguf.config().vocab;
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
        let grammars = Grammars::new(&tokenizer, size).unwrap();
        Self {
            tokenizer,
            grammars,
            size,
        }
    }
}

/// SmolLM2's vocabulary, in which the marks of calls are texts; and one of bytes in
/// which they are control tokens.
fn vocabularies(test: &str) -> Vec<Vocabulary> {
    const MARKS: [&str; 9] = [
        "<eos>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|tool_call|>",
        "<|python_tag|>",
        "<think>",
        "</think>",
    ];
    const CONTROL: i32 = 3;
    let mut tiny = Tiny::new(&Shape {
        vocab: 256 + MARKS.len(),
        ..Shape::SMALL
    })
    .unwrap();
    // GPT-2's letters for bytes: those that can be seen are themselves.
    let seen = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut unseen = 0x100u32..;
    let bytes = (0..=u8::MAX).map(|b| match seen(&b) {
        true => char::from(b),
        false => char::from_u32(unseen.next().unwrap()).unwrap(),
    });
    let tokens = bytes.map(String::from).chain(MARKS.map(String::from));
    let tokens = tokens.map(Gg::String).collect();
    let types = [Gg::I32(1)].into_iter().cycle().take(256);
    let types = types.chain(MARKS.map(|_| Gg::I32(CONTROL)));
    for (key, value) in [
        ("model", Gg::String("gpt2".into())),
        ("pre", Gg::String("gpt-2".into())),
        ("tokens", Gg::Array(tokens)),
        ("token_type", Gg::Array(types.collect())),
        ("merges", Gg::Array(vec![])),
        ("eos_token_id", Gg::U32(256)),
    ] {
        tiny.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    tiny.write(&path).unwrap();
    let real = model(test).map(|file| Vocabulary::of(&file));
    let all: Vec<_> = [Vocabulary::of(&path)].into_iter().chain(real).collect();
    let call = all[0].tokenizer.token("<tool_call>").unwrap();
    assert!(all[0].tokenizer.is_control(call));
    all
}

fn tool(name: &str, at: &Value, strict: bool) -> Tool {
    Tool {
        name: name.into(),
        json: Arc::new(
            json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": {
                "type": "object", "properties": {"at": at}, "required": ["at"],
                "additionalProperties": false,
            }}}),
        ),
    }
}

fn tools() -> [Tool; 2] {
    [
        tool("look", &json!({"enum": ["sea", "sky"]}), true),
        tool("find", &json!({"type": "integer"}), false),
    ]
}

impl Vocabulary {
    fn begin(&self, format: ToolFormat, parallel: bool, thinks: bool) -> Constraint {
        let lark = format.free_grammar(&tools(), parallel, thinks, &self.tokenizer);
        let lark = lark.unwrap().unwrap();
        let compiled = self.grammars.compile(vec![Grammar::Lark(lark)], None);
        compiled.unwrap()
    }

    fn allowed(&self, constraint: &mut Constraint) -> Vec<bool> {
        let mut logits = vec![0.0f32; self.size];
        constraint.apply(&mut logits).unwrap();
        logits.iter().map(|l| l.is_finite()).collect()
    }

    /// How much of a text is allowed, and whether the answer may end after all of it.
    fn follow(&self, mut constraint: Constraint, text: &str) -> (String, bool) {
        let mut taken = Vec::new();
        let mut over = false;
        for token in self.tokenizer.encode(text, false).unwrap() {
            if over || !self.allowed(&mut constraint)[token as usize] {
                return (self.tokenizer.decode(&taken).unwrap(), false);
            }
            over = constraint.took(token).unwrap();
            taken.push(token);
        }
        let allowed = self.allowed(&mut constraint);
        let end = |t: &u32| allowed[*t as usize];
        let may_end = over || self.tokenizer.end_tokens().iter().any(end);
        (self.tokenizer.decode(&taken).unwrap(), may_end)
    }
}

/// An answer with a call of `look` at a place, in the form of a family.
fn calling(format: ToolFormat, at: &str) -> String {
    use ToolFormat::*;
    let said = "Let me look: {\"a\": 1}.\n";
    let object = |key: &str| format!(r#"{{"name": "look", "{key}": {{"at": "{at}"}}}}"#);
    match format {
        Hermes => format!("{said}<tool_call>\n{}\n</tool_call>", object("arguments")),
        Xml => format!(
            "{said}<tool_call>\n<function=look>\n<parameter=at>\n{at}\n</parameter>\n</function>\n</tool_call>"
        ),
        Mistral => format!("{said}[TOOL_CALLS][{}]", object("arguments")),
        MistralArgs => format!("{said}[TOOL_CALLS]look[ARGS]{{\"at\": \"{at}\"}}"),
        Marked => format!("{said}<|tool_call|>[{}]", object("arguments")),
        Llama3 => object("parameters"),
        Json => object("arguments"),
        Harmony => unreachable!("it is not held"),
    }
}

const FAMILIES: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::Xml,
    ToolFormat::Mistral,
    ToolFormat::MistralArgs,
    ToolFormat::Marked,
    ToolFormat::Llama3,
    ToolFormat::Json,
];

#[test]
fn a_call_that_a_free_answer_begins_follows_its_schema_in_every_family() {
    let test = "a_call_that_a_free_answer_begins_follows_its_schema_in_every_family";
    for v in vocabularies(test) {
        for format in FAMILIES {
            let good = calling(format, "sky");
            let (taken, ends) = v.follow(v.begin(format, true, false), &good);
            assert_eq!((taken.as_str(), ends), (good.as_str(), true), "{format:?}");
            let style = Style {
                native: true,
                format: Some(format),
                thinks: false,
            };
            let mut parser = AnswerParser::new(style, &tools(), false).unwrap().held();
            let mut parts = parser.push(&good);
            parts.extend(parser.finish());
            let Some(Part::Call { name, arguments }) = parts.last() else {
                panic!("{format:?}: no call in {parts:?}");
            };
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert_eq!((name.as_str(), &arguments["at"]), ("look", &json!("sky")));
            // Another place is none.
            let bad = calling(format, "moon");
            let (taken, _) = v.follow(v.begin(format, true, false), &bad);
            assert!(bad.starts_with(&taken), "{format:?}: {taken}");
            assert!(!taken.contains("moo"), "{format:?}: {taken}");
            // A cut call does not end the answer.
            let cut = &good[..good.find("sky").unwrap()];
            let (taken, ends) = v.follow(v.begin(format, true, false), cut);
            assert_eq!((taken.as_str(), ends), (cut, false), "{format:?}");
        }
    }
}

#[test]
fn an_answer_that_calls_nothing_is_free() {
    let test = "an_answer_that_calls_nothing_is_free";
    for v in vocabularies(test) {
        let text = "No function is needed.\n\n```json\n{\"name\": \"find\", \"at\": [1, 2]}\n```\n";
        for format in FAMILIES {
            let (taken, ends) = v.follow(v.begin(format, true, false), text);
            assert_eq!((taken.as_str(), ends), (text, true), "{format:?}");
        }
        // JSON without the family's mark is a text, and told as one.
        let bare = r#"{"name": "look", "arguments": {"at": "moon"}}"#;
        for format in [ToolFormat::Hermes, ToolFormat::Marked] {
            let (taken, ends) = v.follow(v.begin(format, true, false), bare);
            assert_eq!((taken.as_str(), ends), (bare, true), "{format:?}");
            let style = Style {
                native: true,
                format: Some(format),
                thinks: false,
            };
            let mut parser = AnswerParser::new(style, &tools(), false).unwrap().held();
            let mut parts = parser.push(bare);
            parts.extend(parser.finish());
            assert!(
                parts.iter().all(|p| matches!(p, Part::Text(_))),
                "{format:?}: {parts:?}"
            );
        }
    }
}

#[test]
fn functions_that_are_not_strict_may_get_any_object_and_one_call_stays_one() {
    let test = "functions_that_are_not_strict_may_get_any_object_and_one_call_stays_one";
    for v in vocabularies(test) {
        let call = |name: &str, rest: &str| {
            format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {rest}}}\n</tool_call>")
        };
        let any = call("find", r#"{"anything": [1, "a"]}"#);
        let (taken, ends) = v.follow(v.begin(ToolFormat::Hermes, true, false), &any);
        assert_eq!((taken, ends), (any.clone(), true));
        let both = format!("{any}\n{}", call("look", r#"{"at": "sea"}"#));
        let (taken, ends) = v.follow(v.begin(ToolFormat::Hermes, true, false), &both);
        assert_eq!((taken, ends), (both.clone(), true));
        let (taken, _) = v.follow(v.begin(ToolFormat::Hermes, false, false), &both);
        assert!(taken.len() <= any.len(), "{taken}");
        let unknown = call("jump", "{}");
        let (taken, _) = v.follow(v.begin(ToolFormat::Hermes, true, false), &unknown);
        assert!(!taken.contains("jump"), "{taken}");
    }
}

#[test]
fn a_thought_may_say_what_it_wants_and_the_call_after_it_follows_its_schema() {
    let test = "a_thought_may_say_what_it_wants_and_the_call_after_it_follows_its_schema";
    for v in vocabularies(test) {
        // A mark that is a text may stand in a thought.
        let mark = v.tokenizer.token("<tool_call>");
        let what = mark.map_or("<tool_call>", |_| "call");
        let thought = &format!("<think>\nA {what} of look?\n</think>\n\n");
        let good = format!("{thought}{}", calling(ToolFormat::Hermes, "sky"));
        let (taken, ends) = v.follow(v.begin(ToolFormat::Hermes, true, true), &good);
        assert_eq!((taken.as_str(), ends), (good.as_str(), true));
        let bad = format!("{thought}{}", calling(ToolFormat::Hermes, "moon"));
        let (taken, _) = v.follow(v.begin(ToolFormat::Hermes, true, true), &bad);
        assert!(
            taken.starts_with(thought) && !taken.contains("moo"),
            "{taken}"
        );
        // Without a thought, too.
        let good = calling(ToolFormat::Hermes, "sky");
        let (taken, ends) = v.follow(v.begin(ToolFormat::Hermes, true, true), &good);
        assert_eq!((taken.as_str(), ends), (good.as_str(), true));
    }
}

#[test]
fn an_answer_follows_its_grammar_after_a_thought_that_the_template_began() {
    let test = "an_answer_follows_its_grammar_after_a_thought_that_the_template_began";
    for v in vocabularies(test) {
        let river = || {
            let river = Grammar::Regex("(Nile|Rhine)".into());
            let compiled = v
                .grammars
                .compile(vec![river], Some(&rest_of_thought(&v.tokenizer)));
            compiled.unwrap()
        };
        for (text, whole) in [
            ("hm </think>\n\nNile", true),
            ("</think>Rhine", true),
            ("a <river>", false),
        ] {
            assert_eq!(v.follow(river(), text), (text.to_owned(), whole), "{text}");
        }
        for text in ["hm</think>\n\nMoon", "hm</think>Nile or so"] {
            let (taken, _) = v.follow(river(), text);
            assert!(taken.len() < text.len(), "{text}: {taken}");
        }
        // A call, too.
        let tools = tools();
        let begin = || {
            let lark = ToolFormat::Hermes.free_grammar(&tools, true, false, &v.tokenizer);
            let lark = Grammar::Lark(lark.unwrap().unwrap());
            v.grammars
                .compile(vec![lark], Some(&rest_of_thought(&v.tokenizer)))
                .unwrap()
        };
        let good = format!("a call?</think>\n\n{}", calling(ToolFormat::Hermes, "sky"));
        assert_eq!(v.follow(begin(), &good), (good.clone(), true));
        let (taken, _) = v.follow(begin(), &good.replace("sky", "moon"));
        assert!(!taken.contains("moo"), "{taken}");
    }
}
