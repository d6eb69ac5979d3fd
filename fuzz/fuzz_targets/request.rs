//! The body of an untrusted request.

#![no_main]

use kvpsi::{
    engine::{Grammar, gbnf},
    server::api::{Prompt, Request, parse_chat, parse_completion},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    for parse in [parse_chat, parse_completion] {
        match parse(body) {
            Ok(request) => check(&request),
            // One that a client can read.
            Err(e) => {
                assert!(e.status.is_client_error(), "{e:?}");
                assert!(!e.message.is_empty() && e.message.len() < 1000, "{e:?}");
            }
        }
    }
});

/// What the engine takes on trust.
fn check(r: &Request) {
    let s = &r.sampling;
    assert!((0.0..=2.0).contains(&s.temperature), "{s:?}");
    assert!(s.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "{s:?}");
    assert!(s.top_k != Some(0) && r.choices > 0, "{s:?}");
    assert!(
        s.repeat_penalty > 0.0 && s.repeat_penalty.is_finite(),
        "{s:?}"
    );
    for penalty in [s.presence_penalty, s.frequency_penalty] {
        assert!((-2.0..=2.0).contains(&penalty), "{s:?}");
    }
    assert!(s.stops.iter().all(|t| !t.is_empty()), "{s:?}");
    assert!(r.stream || !r.include_usage, "{r:?}");
    if let Some((_, Grammar::Gbnf(text))) = &r.grammar
        && let Err(why) = gbnf::to_lark(text)
    {
        assert!(!why.is_empty() && why.len() < 1000, "{why}");
    }
    if let Prompt::Chat(conversation) = &r.prompt {
        assert!(!conversation.messages.is_empty());
    }
}
