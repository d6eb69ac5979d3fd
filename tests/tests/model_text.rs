//! Tokenizer and chat template of the real model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::model::{
    chat::{ChatTemplate, Message, Role},
    gguf::Gguf,
    tokenizer::Tokenizer,
};
use std::path::Path;

fn tokenizer(path: &Path) -> (Gguf, std::sync::Arc<Tokenizer>) {
    let gguf = Gguf::open(path).unwrap();
    let t = std::sync::Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    (gguf, t)
}

#[test]
fn text_survives_the_way_to_tokens_and_back_with_digits_one_by_one() {
    let Some(path) = kvpsi_tests::model("text_survives_the_way_to_tokens_and_back") else {
        return;
    };
    let (_, t) = tokenizer(&path);
    for text in [
        "Hello",
        " leading space",
        "naïve café 東京 🦀 x²",
        "a\n\n\tb",
        "fn main() { println!(\"{}\", 1 << 3); }",
    ] {
        let tokens = t.encode(text, false).unwrap();
        assert_eq!(t.decode(&tokens).unwrap(), text);
    }
    assert_eq!(t.encode("1687", false).unwrap().len(), 4);
    // No space was put in front.
    let first = t.encode("Hello there", false).unwrap()[0];
    assert_eq!(t.decode(&[first]).unwrap(), "Hello");
}

#[test]
fn a_stream_of_tokens_only_shows_whole_characters() {
    let Some(path) = kvpsi_tests::model("a_stream_of_tokens_only_shows_whole_characters") else {
        return;
    };
    let (_, t) = tokenizer(&path);
    let text = "crab 🦀, 東京, family 👨‍👩‍👧, naïve; the end 🎉";
    let tokens = t.encode(text, false).unwrap();
    let mut stream = t.stream();
    let mut shown = String::new();
    let mut waits = 0;
    for token in &tokens {
        let piece = stream.push(*token).unwrap();
        assert!(!piece.contains('\u{fffd}'), "{piece:?}");
        waits += usize::from(piece.is_empty());
        shown += &piece;
    }
    shown += &stream.finish().unwrap();
    assert_eq!(shown, text);
    assert!(waits > 0, "no character of this text is in pieces");

    // The first byte of a crab and nothing after it.
    let crab = t.encode("🦀", false).unwrap();
    let mut stream = t.stream();
    assert_eq!(stream.push(crab[0]).unwrap(), "");
    assert!(stream.finish().unwrap().contains('\u{fffd}'));
}

#[test]
fn the_models_template_marks_turns_and_its_end_tokens_end_them() {
    let Some(path) = kvpsi_tests::model("the_models_template_marks_turns") else {
        return;
    };
    let (gguf, t) = tokenizer(&path);
    let (bos, eos) = t.bos_eos();
    assert_eq!((bos.as_str(), eos.as_str()), ("<|im_start|>", "<|im_end|>"));
    let chat = ChatTemplate::from_gguf(&gguf, bos, eos).unwrap();
    let messages = [
        Message::new(Role::System, "Be brief."),
        Message::new(Role::User, "Hi"),
    ];
    let text = chat.render(&messages, true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let tokens = t.encode(&text, false).unwrap();
    assert_eq!(tokens.iter().filter(|&&x| t.ends(x)).count(), 2);
    assert!(!t.ends(tokens[0]));
}
