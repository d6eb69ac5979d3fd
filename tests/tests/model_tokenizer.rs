//! Tokenizers of each kind that files of the supported architectures hold, on
//! small vocabularies: how text is cut, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::gguf_file::Value;
use kvpsi::model::{gguf::Gguf, tokenizer::Tokenizer};
use kvpsi_tests::tiny::{Shape, Tiny};
use proptest::prelude::*;

const SPACE: &str = "\u{2581}";
const NORMAL: u32 = 1;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const BYTE: u32 = 6;
const UNKNOWN: u32 = 2;

/// Pieces with their kinds; a later one has a lower score.
#[derive(Clone)]
struct Vocab(Vec<(String, u32)>);

impl Vocab {
    /// As Gemma's: the specials, the bytes, and then these pieces.
    fn spm(pieces: &[&str]) -> Self {
        let mut all: Vec<_> = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
            .map(|t| (t.to_owned(), CONTROL))
            .into();
        all[0].1 = 2;
        all.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), BYTE)));
        all.push(("\n\n".into(), USER_DEFINED));
        all.extend(pieces.iter().map(|&p| (p.to_owned(), NORMAL)));
        Self(all)
    }

    fn id(&self, text: &str) -> u32 {
        let at = self.0.iter().position(|(t, _)| t == text);
        u32::try_from(at.unwrap_or_else(|| panic!("no piece `{text}`"))).unwrap()
    }

    /// The metadata of a file with these pieces.
    fn model(&self, kind: &str) -> Tiny {
        let mut tiny = tiny();
        let list = |f: &dyn Fn(usize, &(String, u32)) -> Value| {
            Value::Array(self.0.iter().enumerate().map(|(i, p)| f(i, p)).collect())
        };
        for (key, value) in [
            ("model", Value::String(kind.into())),
            ("tokens", list(&|_, (t, _)| Value::String(t.clone()))),
            ("scores", list(&|i, _| Value::F32(-(i as f32)))),
            (
                "token_type",
                list(&|_, (_, kind)| Value::I32(i32::try_from(*kind).unwrap())),
            ),
            ("unknown_token_id", Value::U32(0)),
            ("bos_token_id", Value::U32(1)),
            ("eos_token_id", Value::U32(2)),
        ] {
            tiny.metadata.insert(format!("tokenizer.ggml.{key}"), value);
        }
        tiny
    }
}

const SHAPE: Shape = Shape {
    vocab: 600,
    ..Shape::SMALL
};

fn tiny() -> Tiny {
    Tiny::new(&SHAPE).unwrap()
}

fn read(tiny: &Tiny) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    tiny.write(&path).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    Tokenizer::from_gguf(&gguf).map_err(|e| e.to_string())
}

fn set(tiny: &mut Tiny, key: &str, value: Value) {
    tiny.metadata.insert(format!("tokenizer.ggml.{key}"), value);
}

/// Small pieces of English, in the order of their scores.
const PIECES: [&str; 31] = [
    "he", "ll", "▁t", "in", "▁he", "llo", "▁hello", "▁the", "re", "▁th", "▁in", "er", "▁there",
    "th", "▁", "h", "e", "l", "o", "t", "i", "n", "r", "w", "d", "or", "ld", "▁w", "▁wor",
    "▁world", "é",
];

/// What SentencePiece does, said plainly: of all neighbours that make a piece
/// together, join those of the best score, the leftmost first, until there are
/// none; what is no piece then becomes its bytes.
fn by_hand(vocab: &Vocab, text: &str) -> Vec<u32> {
    let id = |text: &str| vocab.0.iter().position(|(t, k)| t == text && *k == NORMAL);
    let mut pieces: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let joined = |i: usize| format!("{}{}", pieces[i], pieces[i + 1]);
        let best = (0..pieces.len().saturating_sub(1))
            .filter_map(|i| Some((id(&joined(i))?, i)))
            .min();
        let Some((_, i)) = best else {
            break;
        };
        pieces[i] = joined(i);
        pieces.remove(i + 1);
    }
    let ids = pieces.iter().flat_map(|p| match id(p) {
        Some(id) => vec![u32::try_from(id).unwrap()],
        None => p
            .bytes()
            .map(|b| vocab.id(&format!("<0x{b:02X}>")))
            .collect(),
    });
    ids.collect()
}

#[test]
fn llamas_pieces_are_joined_by_their_scores() {
    let vocab = Vocab::spm(&PIECES);
    let tokenizer = read(&vocab.model("llama")).unwrap();
    let ids = |pieces: &[&str]| pieces.iter().map(|p| vocab.id(p)).collect::<Vec<_>>();
    let encode = |text: &str| tokenizer.encode(text, true).unwrap();
    assert_eq!(encode("hello world"), ids(&["<s>", "▁hello", "▁world"]));
    // A space is put in front, and one more stays one more.
    assert_eq!(encode(" hello"), ids(&["<s>", "▁", "▁hello"]));
    assert_eq!(encode("wo"), ids(&["<s>", "▁w", "o"]));
    // No piece: its bytes.
    assert_eq!(
        encode("é🦙"),
        ids(&["<s>", "▁", "é", "<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"])
    );
    assert_eq!(tokenizer.encode("hello", false).unwrap(), ids(&["▁hello"]));
    assert_eq!(tokenizer.bos_eos(), ("<s>".into(), "</s>".into()));
    assert!(tokenizer.ends(vocab.id("</s>")) && tokenizer.ends(vocab.id("<end_of_turn>")));
    assert!(!tokenizer.ends(vocab.id("<s>")));
}

#[test]
fn gemma_puts_no_space_in_front_and_has_tokens_of_several_characters() {
    let vocab = Vocab::spm(&PIECES);
    let mut model = vocab.model("llama");
    set(&mut model, "add_space_prefix", Value::Bool(false));
    set(&mut model, "add_bos_token", Value::Bool(true));
    let tokenizer = read(&model).unwrap();
    let ids = |pieces: &[&str]| pieces.iter().map(|p| vocab.id(p)).collect::<Vec<_>>();
    let text = "<start_of_turn>hello\n\nthere<end_of_turn>\n";
    let tokens = tokenizer.encode(text, true).unwrap();
    assert_eq!(
        tokens,
        ids(&[
            "<s>",
            "<start_of_turn>",
            "he",
            "llo",
            "\n\n",
            "t",
            "he",
            "re",
            "<end_of_turn>",
            "<0x0A>",
        ])
    );
    assert_eq!(tokenizer.decode(&tokens[1..]).unwrap(), text);
    // Asked not to, it begins with no token.
    set(&mut model, "add_bos_token", Value::Bool(false));
    let tokens = read(&model).unwrap().encode("there", true).unwrap();
    assert_eq!(tokens, ids(&["t", "he", "re"]));
}

proptest! {
    #[test]
    fn pieces_are_cut_as_sentencepiece_cuts_them(
        words in prop::collection::vec("[helotinrwdé]{1,12}", 1..12),
    ) {
        let vocab = Vocab::spm(&PIECES);
        let tokenizer = read(&vocab.model("llama")).unwrap();
        let text = words.join(" ");
        let want = by_hand(&vocab, &format!("{SPACE}{}", text.replace(' ', SPACE)));
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), want);
    }

    #[test]
    fn any_text_comes_back_from_its_tokens_at_once_and_one_by_one(text in "\\PC{1,40}") {
        // U+2581 itself is how a space is written, and U+FFFD what a character
        // in pieces looks like: a stream cannot tell it from one.
        let text = text.replace(['\u{2581}', char::REPLACEMENT_CHARACTER], "_");
        let vocab = Vocab::spm(&PIECES);
        for in_front in [true, false] {
            let mut model = vocab.model("llama");
            set(&mut model, "add_space_prefix", Value::Bool(in_front));
            let tokenizer = std::sync::Arc::new(read(&model).unwrap());
            let tokens = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(&tokenizer.decode(&tokens).unwrap(), &text);
            let mut stream = tokenizer.stream();
            let mut shown = String::new();
            for token in tokens {
                shown.push_str(&stream.push(token).unwrap());
            }
            shown.push_str(&stream.finish().unwrap());
            prop_assert_eq!(&shown, &text);
        }
    }
}

/// Byte-level BPE over the printable bytes, a space written as Ġ.
fn bytes(pre: &str, merges: &[&str]) -> (Tiny, impl Fn(&str) -> u32) {
    let mut vocab: Vec<(String, u32)> = ('!'..='~').map(|c| (c.to_string(), NORMAL)).collect();
    vocab.push(("Ġ".into(), NORMAL));
    vocab.push(("Ċ".into(), NORMAL));
    vocab.extend(merges.iter().map(|m| (m.replace(' ', ""), NORMAL)));
    let vocab = Vocab(vocab);
    let mut model = vocab.model("gpt2");
    set(&mut model, "pre", Value::String(pre.into()));
    let merges = merges.iter().map(|&m| Value::String(m.into()));
    set(&mut model, "merges", Value::Array(merges.collect()));
    (model, move |text: &str| vocab.id(text))
}

const MERGES: [&str; 8] = ["1 2", "12 3", "123 4", "Ġ a", "a b", "ab c", "Ġ ab", "' s"];

#[test]
fn each_kind_of_byte_level_bpe_cuts_as_it_was_trained() {
    for (pre, text, want) in [
        // Qwen: digits one by one.
        (
            "qwen2",
            "1234 abc",
            vec!["1", "2", "3", "4", "Ġa", "b", "c"],
        ),
        // Llama 3: three at a time; and a word that is a token is one.
        (
            "llama-bpe",
            "1234 ab'sx",
            vec!["\"", "123", "4", "Ġab", "'s", "x"],
        ),
        ("smollm", "12 34", vec!["1", "2", "Ġ", "3", "4"]),
        ("gpt-2", "1234 ab", vec!["1234", "Ġa", "b"]),
    ] {
        let (model, id) = bytes(pre, &MERGES);
        let tokenizer = read(&model).unwrap();
        let want: Vec<_> = want.into_iter().map(id).collect();
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{pre}");
        // Llama 3 begins with a token (here the one of number 1) by itself.
        let tokens = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text, "{pre}");
    }
}

#[test]
fn an_unknown_and_a_missing_pre_take_the_default_rule() {
    let (mut model, id) = bytes("of-next-year", &MERGES);
    let cut = |tiny: &Tiny| read(tiny).unwrap().encode("1234 ab", false).unwrap();
    let want: Vec<_> = ["123", "4", "Ġa", "b"].map(id).into();
    assert_eq!(cut(&model), want);
    set(&mut model, "pre", Value::String("default".into()));
    assert_eq!(cut(&model), want);
    model.metadata.remove("tokenizer.ggml.pre");
    assert_eq!(cut(&model), want);
}

#[test]
fn tokens_are_put_around_a_text_as_the_file_says() {
    let (mut model, id) = bytes("qwen2", &MERGES);
    // Ids in types that no converter writes, but a file may.
    set(&mut model, "bos_token_id", Value::U64(3));
    set(&mut model, "eos_token_id", Value::I16(4));
    set(&mut model, "eot_token_id", Value::I32(-1));
    set(&mut model, "eom_token_id", Value::U8(5));
    let encode = |tiny: &Tiny, start| read(tiny).unwrap().encode("ab", start).unwrap();
    let ab: Vec<_> = ["Ġab", "ab"].map(&id)[1..].into();
    assert_eq!(encode(&model, true), ab);
    set(&mut model, "add_bos_token", Value::Bool(true));
    set(&mut model, "add_eos_token", Value::Bool(true));
    assert_eq!(encode(&model, true), [3, ab[0], 4]);
    assert_eq!(encode(&model, false), ab);
    let tokenizer = read(&model).unwrap();
    assert!(tokenizer.ends(4) && tokenizer.ends(5) && !tokenizer.ends(3));
}

#[test]
fn control_and_added_tokens_are_found_as_written_and_unused_ones_are_not() {
    const UNUSED: i32 = 5;
    let (mut model, id) = bytes("qwen2", &MERGES);
    let kind = |model: &mut Tiny, token: u32, kind: i32| {
        let list = model.metadata.get_mut("tokenizer.ggml.token_type");
        let Some(Value::Array(kinds)) = list else {
            panic!("no token types");
        };
        kinds[token as usize] = Value::I32(kind);
    };
    for (of, found) in [(3, true), (4, true), (UNUSED, false)] {
        // Cut by the rule it would be "1", "2", "3".
        kind(&mut model, id("123"), of);
        let tokens = read(&model).unwrap().encode("x123", false).unwrap();
        assert_eq!(tokens == [id("x"), id("123")], found, "{of}: {tokens:?}");
    }
    // A file without token types has ordinary tokens only.
    model.metadata.remove("tokenizer.ggml.token_type");
    let tokens = read(&model).unwrap().encode("x123", false).unwrap();
    assert_eq!(tokens.len(), 4);
}

/// What continues a text keeps the space that it begins with, and a text that begins
/// has none.
#[test]
fn a_text_that_goes_on_keeps_its_space() {
    let vocab = Vocab::spm(&PIECES);
    let tokenizer = std::sync::Arc::new(read(&vocab.model("llama")).unwrap());
    let tokens = tokenizer.encode("he he", false).unwrap();
    for cut in 0..=tokens.len() {
        let (prompt, rest) = tokens.split_at(cut);
        let mut stream = tokenizer.stream_behind(prompt.last().copied());
        let mut text = tokenizer.decode(prompt).unwrap();
        for token in rest {
            text += &stream.push(*token).unwrap();
        }
        text += &stream.finish().unwrap();
        assert_eq!(text, "he he", "{cut} of {tokens:?}");
    }
}

/// A broken control token is text, also where the bytes of its mark are of a kind that
/// is found as it is written.
#[test]
fn a_mark_whose_bytes_are_added_tokens_is_none_of_the_text() {
    for kind in [NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE] {
        let bytes = (0..=255u8).map(|b| (format!("<0x{b:02X}>"), kind));
        let letters = ["h", "e", "l", "o", "\u{2581}", "<", "/", "s", ">"];
        let mut all = vec![
            ("<unk>".into(), UNKNOWN),
            ("<s>".into(), CONTROL),
            ("</s>".into(), CONTROL),
        ];
        all.extend(bytes);
        all.extend(letters.map(|t| (t.to_owned(), NORMAL)));
        let tokenizer = read(&Vocab(all).model("llama")).unwrap();
        let text = "hello </s>";
        let mark = tokenizer.mark([text].into_iter()).unwrap();
        let guarded = tokenizer.guard(text, mark).unwrap();
        let ids = tokenizer.encode_guarded(&guarded, mark, 1000).unwrap();
        let ids = ids.unwrap();
        assert!(!ids.contains(&2), "{kind}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{kind}");
    }
}

#[test]
fn a_vocabulary_of_one_token_is_a_vocabulary() {
    let mut model = tiny();
    for (key, value) in [
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("gpt-2".into())),
        ("tokens", Value::Array(vec![Value::String("a".into())])),
        ("merges", Value::Array(Vec::new())),
    ] {
        set(&mut model, key, value);
    }
    let tokenizer = read(&model).unwrap();
    assert_eq!(tokenizer.encode("aba", true).unwrap(), [0, 0]);
    assert_eq!(tokenizer.decode(&[0, 0]).unwrap(), "aa");
}

#[test]
fn a_tokenizer_that_cannot_be_used_is_refused_by_its_key() {
    let spm = || Vocab::spm(&PIECES).model("llama");
    let bpe = || bytes("qwen2", &MERGES).0;
    let nan = |n: usize| Value::Array(vec![Value::F32(f32::NAN); n]);
    let count = Vocab::spm(&PIECES).0.len();
    type Case<'a> = (&'a dyn Fn() -> Tiny, &'static str, Option<Value>);
    let cases: [Case<'_>; 18] = [
        (&spm, "model", None),
        (&spm, "model", Some(Value::String("rwkv".into()))),
        (&spm, "tokens", None),
        (&spm, "tokens", Some(Value::U32(5))),
        (&spm, "tokens", Some(Value::Array(vec![Value::U32(5)]))),
        (
            &spm,
            "tokens",
            Some(Value::Array(vec![Value::String("a".into()); 601])),
        ),
        (&spm, "scores", None),
        (&spm, "scores", Some(Value::Array(vec![Value::F32(0.0)]))),
        (&spm, "scores", Some(nan(count))),
        (&spm, "token_type", None),
        (&spm, "token_type", Some(nan(count))),
        (&spm, "eos_token_id", Some(Value::String("</s>".into()))),
        (&spm, "add_bos_token", Some(Value::U32(1))),
        (&spm, "add_space_prefix", Some(Value::U32(1))),
        (&bpe, "pre", Some(Value::U32(3))),
        (&bpe, "merges", None),
        (
            &bpe,
            "merges",
            Some(Value::Array(vec![Value::String("1 9".into())])),
        ),
        (
            &bpe,
            "merges",
            Some(Value::Array(vec![Value::String("12".into())])),
        ),
    ];
    for (model, key, value) in cases {
        let mut model = model();
        let key = format!("tokenizer.ggml.{key}");
        match value {
            Some(value) => drop(model.metadata.insert(key.clone(), value)),
            None => drop(model.metadata.remove(&key)),
        }
        let e = read(&model).unwrap_err();
        assert!(e.contains(&key) && !e.contains('\n'), "{key}: {e}");
    }
}

#[test]
fn the_binary_writes_text_with_a_model_of_each_architecture() {
    let vocab = Vocab::spm(&PIECES);
    let dir = tempfile::tempdir().unwrap();
    for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
        let mut model = Tiny::new(&Shape { arch, ..SHAPE }).unwrap();
        if arch == "gemma3" {
            model.set("attention.sliding_window", Value::U32(16));
            model.set("attention.sliding_window_pattern", Value::U32(2));
        }
        let tokenizer = match arch {
            "qwen2" | "qwen3" => bytes("qwen2", &MERGES).0,
            _ => vocab.model("llama"),
        };
        let keys = tokenizer.metadata.into_iter();
        let keys = keys.filter(|(k, _)| k.starts_with("tokenizer."));
        model.metadata.extend(keys);
        let path = dir.path().join(format!("{arch}.gguf"));
        model.write(&path).unwrap();
        let out = std::process::Command::new(kvpsi_tests::kvpsi_binary())
            .args([
                "run",
                "--signal",
                "none",
                "--raw",
                "-p",
                "hello there",
                "-n",
                "40",
            ])
            .args([
                "--temperature",
                "1",
                "--seed",
                "3",
                "-m",
                path.to_str().unwrap(),
            ])
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{arch}: {err}");
        assert!(!out.stdout.is_empty(), "{arch}: {err}");
    }
}

#[test]
fn a_long_text_with_a_space_before_it_has_the_same_tokens_piece_by_piece() {
    let pieces = [
        "a",
        "b",
        SPACE,
        "ab",
        &format!("{SPACE}a"),
        &format!("{SPACE}ab"),
    ];
    let tokenizer = read(&Vocab::spm(&pieces).model("llama")).unwrap();
    let text = "ab a b ab\nab  a <end_of_turn> ab ba\u{e9} ab ".repeat(2000);
    let want = tokenizer.encode(&text, true).unwrap();
    let got = tokenizer.encode_up_to(&text, true, usize::MAX).unwrap();
    assert!(got.unwrap() == want);
}
