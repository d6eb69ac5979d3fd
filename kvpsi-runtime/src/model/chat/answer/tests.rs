use super::*;
use proptest::prelude::*;
use serde_json::json;

fn tool(name: &str) -> Tool {
    Tool {
        name: name.into(),
        json: Arc::new(json!({"type": "function", "function": {"name": name}})),
    }
}

fn style(format: ToolFormat, thinks: bool) -> Style {
    Style {
        native: true,
        format: Some(format),
        thinks,
    }
}

/// The parts of an answer that comes in `pieces`, neighbours of a kind joined.
fn parts(style: Style, thinking: bool, pieces: &[&str]) -> Vec<Part> {
    let mut parser = AnswerParser::new(style, &[tool("look"), tool("find")], thinking).unwrap();
    let mut all: Vec<Part> = pieces.iter().flat_map(|p| parser.push(p)).collect();
    all.extend(parser.finish());
    let mut joined: Vec<Part> = Vec::new();
    for part in all {
        match (joined.last_mut(), part) {
            (Some(Part::Text(a)), Part::Text(b)) | (Some(Part::Thought(a)), Part::Thought(b)) => {
                a.push_str(&b);
            }
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn text(t: &str) -> Part {
    Part::Text(t.into())
}

fn thought(t: &str) -> Part {
    Part::Thought(t.into())
}

fn call(name: &str, arguments: &str) -> Part {
    Part::Call {
        name: name.into(),
        arguments: arguments.into(),
    }
}

/// Answers of every family and what they are.
fn answers() -> Vec<(Style, bool, &'static str, Vec<Part>)> {
    use ToolFormat::*;
    let look = || call("look", r#"{"at":"x"}"#);
    let find = || call("find", "{}");
    vec![
        (
            style(Hermes, false),
            false,
            "Just words. ",
            vec![text("Just words. ")],
        ),
        (
            style(Hermes, false),
            false,
            "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"x\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"find\", \"arguments\": {}}\n</tool_call>",
            vec![text("I look."), look(), find()],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>no JSON</tool_call> and <b>",
            vec![text("<tool_call>no JSON</tool_call> and <b>")],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"a lo",
            vec![call("look", "{\"at\": \"a lo")],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>\n{\"name\": \"find\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n",
            vec![find()],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>\n{\"name\": \"find\", \"arguments\": {}}\n</tool_call>\n<tool",
            vec![find()],
        ),
        (
            style(Hermes, true),
            false,
            "<think>\nHm, a <b>.\n</think>\n\nYes.",
            vec![thought("Hm, a <b>."), text("Yes.")],
        ),
        (
            style(Hermes, true),
            true,
            "Hm.\n</think>\n\n<tool_call>{\"name\": \"find\"}</tool_call>",
            vec![thought("Hm."), find()],
        ),
        (
            style(Hermes, true),
            true,
            "Hm, cut",
            vec![thought("Hm, cut")],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>\n{\"name\": \"look\", \"",
            vec![call("look", "")],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>{\"name\": \"find\"}</tool_call>\n<tool_call>\n{\"na",
            vec![find()],
        ),
        (
            style(Hermes, false),
            false,
            "<tool_call>{\"name\": \"find\"}\n</tool_c",
            vec![find()],
        ),
        (
            style(Xml, false),
            false,
            "I look.\n<tool_call>\n<function=look>\n<parameter=at>\nx\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=find>\n</function>\n</tool_call>",
            vec![text("I look."), look(), find()],
        ),
        (
            style(Xml, false),
            false,
            "<tool_call>\n<function=look>\n<parameter=at>\na \"b\"\nc\n</parameter>\n<parameter=far>\n12",
            vec![call("look", r#"{"at":"a \"b\"\nc","far":"12"#)],
        ),
        (
            style(Xml, false),
            false,
            "<tool_call>\n<function=find>\n<para",
            vec![call("find", "{")],
        ),
        (
            style(Xml, false),
            false,
            "<tool_call>{\"name\": \"find\"}</tool_call>.",
            vec![text("<tool_call>{\"name\": \"find\"}</tool_call>.")],
        ),
        (
            style(Llama3, false),
            false,
            "{\"name\": \"look\", \"parameters\": {\"at\": \"x\"}}",
            vec![look()],
        ),
        (
            style(Llama3, false),
            false,
            "<|python_tag|>{\"name\": \"look\", \"parameters\": {\"at\": \"x\"}}; {\"name\": \"find\", \"parameters\": {}}",
            vec![look(), find()],
        ),
        (
            style(Llama3, false),
            false,
            "{\"name\": \"other\", \"parameters\": {}}",
            vec![text("{\"name\": \"other\", \"parameters\": {}}")],
        ),
        (
            style(Llama3, false),
            false,
            "{\"answer\": 42} is it.",
            vec![text("{\"answer\": 42} is it.")],
        ),
        (
            style(Mistral, false),
            false,
            "[TOOL_CALLS] [{\"name\": \"look\", \"arguments\": {\"at\": \"x\"}}, {\"name\": \"find\", \"arguments\": {}}]",
            vec![look(), find()],
        ),
        (
            style(MistralArgs, false),
            false,
            "[TOOL_CALLS]look[ARGS]{\"at\":\"x\"}[TOOL_CALLS]find[ARGS]{}",
            vec![look(), find()],
        ),
        (
            style(Marked, false),
            false,
            "<|tool_call|>[{\"name\": \"look\", \"arguments\": {\"at\": \"x\"}}]",
            vec![look()],
        ),
        (
            style(Json, false),
            false,
            "{\"name\": \"find\", \"arguments\": {}}",
            vec![find()],
        ),
        (
            style(Harmony, false),
            false,
            "<|channel|>analysis<|message|>I must.<|end|><|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{\"at\":\"x\"}",
            vec![thought("I must."), look()],
        ),
        (
            style(Harmony, false),
            false,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            vec![thought("Hm."), text("Yes.")],
        ),
        (style(Harmony, false), false, "Bare.", vec![text("Bare.")]),
    ]
}

#[test]
fn each_familys_answers_are_taken_apart_whole_and_byte_by_byte() {
    for (style, thinking, answer, want) in answers() {
        assert_eq!(parts(style, thinking, &[answer]), want, "{answer}");
        let chars: Vec<String> = answer.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(parts(style, thinking, &chars), want, "{answer}");
    }
}

#[test]
fn an_answer_of_text_alone_needs_no_parser() {
    let plain = style(ToolFormat::Hermes, false);
    assert!(AnswerParser::new(plain, &[], false).is_none());
    assert!(AnswerParser::new(style(ToolFormat::Hermes, true), &[], false).is_some());
}

#[test]
fn text_is_not_held_longer_than_it_may_begin_a_call() {
    let mut p =
        AnswerParser::new(style(ToolFormat::Hermes, false), &[tool("look")], false).unwrap();
    assert_eq!(p.push("One"), [text("One")]);
    assert_eq!(p.push(" <tool"), []);
    assert_eq!(p.push("box>"), [text(" <toolbox>")]);
}

proptest! {
    #[test]
    fn the_parts_do_not_depend_on_how_the_text_is_cut(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "{\"name\": \"look\"", ", \"arguments\": {}}", "}", " ",
            "\n", "words", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>", "final",
            "<|message|>", "<|end|>", "<|python_tag|>", "<function=look>", "<parameter=at>",
            "</parameter>", "</function>", "<", "ä",
        ]), 0..12),
        format in prop::sample::select(vec![
            ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral, ToolFormat::MistralArgs,
            ToolFormat::Marked, ToolFormat::Json, ToolFormat::Harmony, ToolFormat::Xml,
        ]),
        thinking: bool,
    ) {
        let whole = pieces.concat();
        let chars: Vec<String> = whole.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        let style = style(format, true);
        prop_assert_eq!(parts(style, thinking, &[&whole]), parts(style, thinking, &chars));
    }
}

#[test]
fn a_mark_within_an_argument_ends_no_call() {
    let inside = r#"{"name": "look", "arguments": {"at": "a </tool_call> \" b"}}"#;
    let arguments = r#"{"at":"a </tool_call> \" b"}"#;
    let one = format!("<tool_call>\n{inside}\n</tool_call>");
    let hermes = style(ToolFormat::Hermes, false);
    let want = vec![call("look", arguments), text("End.")];
    for cut in 0..one.len() {
        let pieces = [&one[..cut], &one[cut..], "End."];
        assert_eq!(parts(hermes, false, &pieces), want, "{cut}");
    }
    let two = format!("{one}\n{one}");
    let calls = vec![call("look", arguments); 2];
    assert_eq!(parts(hermes, false, &[&two]), calls);
    // A text without its end: the first mark ends the call.
    let open = r#"<tool_call>{"name": "look", "arguments": {"at": "x}}</tool_call> Well."#;
    let told = parts(hermes, false, &[open]);
    assert!(
        matches!(told.last(), Some(Part::Text(t)) if t.ends_with("Well.")),
        "{told:?}"
    );

    let xml = style(ToolFormat::Xml, false);
    let one = "<tool_call>\n<function=look>\n<parameter=at>\na </tool_call> b\n</parameter>\n</function>\n</tool_call>End.";
    let want = vec![call("look", r#"{"at":"a </tool_call> b"}"#), text("End.")];
    assert_eq!(parts(xml, false, &[one]), want);
}
