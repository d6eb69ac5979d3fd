//! A Jinja program from a model file, and what it makes of a conversation.

#![no_main]

use kvpsi::model::chat::{ChatTemplate, Message, Role};
use libfuzzer_sys::fuzz_target;
use std::hint::black_box;

fuzz_target!(|source: String| {
    let Ok(template) = ChatTemplate::compile(&source, "<s>".into(), "</s>".into()) else {
        return;
    };
    let messages = [
        Message::new(Role::System, "be brief"),
        Message::new(Role::User, " hi \u{1f600} "),
        Message::new(Role::Assistant, "<think>\nhm\n</think>\n\nhello\n"),
        Message::new(Role::User, "{{ bye }}"),
    ];
    for prompt in [true, false] {
        black_box(template.render(&messages, prompt).ok());
    }
    for variables in [
        r#"{"messages": [{"role": "user", "content": null, "tool_calls": [{"type": "function",
        "function": {"name": "f", "arguments": {"b": 1.5, "a": [true, null]}}}]}], "tools": [{"a": "\u00e9"}]}"#,
        source.as_str(),
    ] {
        black_box(template.render_json(variables).ok());
    }
});
