use super::{super::Gguf, *};
use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use std::path::PathBuf;

/// A part: its place, count and number of tensors as its header says, and the
/// tensors that it holds.
struct Written<'a> {
    no: u16,
    count: u16,
    total: i32,
    tensors: &'a [&'a str],
}

fn write(path: &Path, part: &Written<'_>, seed: f32) {
    let mut keys = vec![
        ("split.no".to_owned(), Value::U16(part.no)),
        ("split.count".to_owned(), Value::U16(part.count)),
        ("split.tensors.count".to_owned(), Value::I32(part.total)),
    ];
    if part.no == 0 {
        let u32s = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
        ];
        keys.extend(u32s.map(|(k, n)| (format!("llama.{k}"), Value::U32(n))));
        let arch = Value::String("llama".into());
        keys.push(("general.architecture".to_owned(), arch));
    }
    let tensors: Vec<_> = part
        .tensors
        .iter()
        .zip(1u16..)
        .map(|(name, i)| {
            let value = seed + f32::from(i);
            let t = Tensor::full(value, (8, 32), &Device::Cpu).unwrap();
            (*name, QTensor::quantize(&t, GgmlDType::F32).unwrap())
        })
        .collect();
    let keys: Vec<_> = keys.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(n, t)| (*n, t)).collect();
    let mut out = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut out, &keys, &tensors).unwrap();
    std::fs::write(path, out.into_inner()).unwrap();
}

fn paths(dir: &Path) -> [PathBuf; 3] {
    [1, 2, 3].map(|i| dir.join(format!("my-model-{i:05}-of-00003.gguf")))
}

const TENSORS: [&[&str]; 3] = [&["token_embd.weight"], &["b", "c"], &["d"]];

/// A whole model of three parts.
fn whole(dir: &Path) -> [PathBuf; 3] {
    let paths = paths(dir);
    for (no, (path, tensors)) in (0..).zip(paths.iter().zip(TENSORS)) {
        let part = Written {
            no,
            count: 3,
            total: 4,
            tensors,
        };
        write(path, &part, f32::from(no) * 10.0);
    }
    paths
}

#[test]
fn any_part_finds_the_others_and_tensors_come_from_their_own() {
    let dir = tempfile::tempdir().unwrap();
    for path in whole(dir.path()) {
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.tensors().count(), 4);
        for (name, want) in [
            ("token_embd.weight", 1.0),
            ("b", 11.0),
            ("c", 12.0),
            ("d", 21.0),
        ] {
            let want: f32 = want;
            let bytes = gguf.data(name, &[8, 32]).unwrap().bytes;
            assert_eq!(bytes.len(), 8 * 32 * 4, "{name}");
            for value in [&bytes[..4], &bytes[bytes.len() - 4..]] {
                assert_eq!(value, want.to_le_bytes(), "{name}");
            }
            gguf.let_go(name);
        }
    }
}

fn error(path: &Path) -> String {
    let e = Gguf::open(path).unwrap_err().to_string();
    assert!(!e.contains('\n'), "{e}");
    e
}

/// As the target takes it apart: the length of each part, and the part.
#[test]
fn the_seed_of_the_fuzz_target_is_a_model_in_parts() {
    let mut seed = &include_bytes!("../../../../../fuzz/seeds/splits/three")[..];
    let dir = tempfile::tempdir().unwrap();
    for path in paths(dir.path()) {
        let (len, rest) = seed.split_first_chunk().unwrap();
        let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)));
        std::fs::write(path, part).unwrap();
        seed = rest;
    }
    assert!(seed.is_empty());
    let gguf = Gguf::open(&paths(dir.path())[1]).unwrap();
    assert_eq!(gguf.tensors().count(), 3);
}

#[test]
fn a_part_that_is_missing_doubled_renamed_or_foreign_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = whole(dir.path());
    std::fs::remove_file(&second).unwrap();
    let e = error(&first);
    assert!(e.contains("my-model-00002-of-00003.gguf is missing"), "{e}");
    assert!(error(&second).contains("00002-of-00003"));
    // The third twice.
    std::fs::copy(&third, &second).unwrap();
    let e = error(&first);
    assert!(e.contains("00002-of-00003") && e.contains("doubled"), "{e}");
    // Parts of others: of another cut, of another size, with a tensor that is
    // elsewhere already, and with one too few.
    for (count, total, tensors, says) in [
        (2, 4, &["b", "c"][..], "another model"),
        (3, 5, &["b", "c"][..], "another model"),
        (3, 4, &["b", "d"][..], "two parts"),
        (3, 4, &["b"][..], "another model"),
    ] {
        let part = Written {
            no: 1,
            count,
            total,
            tensors,
        };
        write(&second, &part, 0.0);
        let e = error(&third);
        assert!(e.contains(says), "{e}");
    }
    std::fs::write(&second, "GGUF").unwrap();
    assert!(error(&first).contains("00002-of-00003"));
}

#[test]
fn a_part_under_another_name_and_an_absurd_count_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let [first, ..] = whole(dir.path());
    let alone = dir.path().join("alone.gguf");
    std::fs::copy(&first, &alone).unwrap();
    assert!(error(&alone).contains("one of 3 parts"));
    for name in [
        "m-00001-of-99999.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-00001-of-00000.gguf",
    ] {
        let e = error(&dir.path().join(name));
        assert!(e.contains("at most 1000"), "{name}: {e}");
    }
    for name in ["m-1-of-3.gguf", "m-00001-of-00003", "00001-of-00003.gguf"] {
        let path = dir.path().join(name);
        assert_eq!(parts(&path).unwrap(), [path]);
    }
}
