//! A model file by an unknown author: header, tensors, tokenizer, template,
//! weights, in the order in which a program reads them.

#![no_main]

use kvpsi::model::{
    chat::{ChatTemplate, Message, Role},
    decoder::Decoder,
    tokenizer::Tokenizer,
};
use libfuzzer_sys::{Corpus, fuzz_target};
use std::{hint::black_box, sync::Arc};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(gguf) = kvpsi_fuzz::as_model(bytes) else {
        // What is refused early is worth keeping too, for what it reached.
        return Corpus::Keep;
    };
    for (name, _, shape) in gguf.tensors() {
        let shape: Vec<usize> = shape.iter().filter_map(|&n| n.try_into().ok()).collect();
        if let Ok(data) = gguf.data(name, &shape) {
            black_box(data.bytes.iter().fold(0u8, |sum, b| sum ^ b));
        }
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf).map(Arc::new) {
        let (bos, eos) = tokenizer.bos_eos();
        if let Ok(tokens) = tokenizer.encode("Hi <s>\u{e9}\u{4e2d} 12\n\n x", true) {
            let mut stream = tokenizer.stream();
            for token in &tokens {
                assert!(
                    (*token as usize) < gguf.config().vocab,
                    "{token} is no token"
                );
                black_box(stream.push(*token).ok());
            }
            black_box(stream.finish().ok());
            black_box(tokenizer.decode(&tokens).ok());
        }
        if let Some(template) = ChatTemplate::from_gguf(&gguf, bos, eos) {
            let messages = [Message::new(Role::User, "hi")];
            black_box(template.render(&messages, true).ok());
        }
    }
    black_box(Decoder::load(&gguf).ok());
    Corpus::Keep
});
