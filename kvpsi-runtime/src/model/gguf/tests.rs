//! Bad files: each gives an error that names what is wrong.

use super::*;
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use proptest::prelude::*;

/// Metadata of a tiny but complete model, by key.
fn metadata() -> Vec<(String, Value)> {
    let u = |k: &str, n| (format!("llama.{k}"), Value::U32(n));
    vec![
        ("general.architecture".into(), Value::String("llama".into())),
        u("block_count", 1),
        u("context_length", 64),
        u("embedding_length", 32),
        u("feed_forward_length", 32),
        u("attention.head_count", 2),
        u("attention.head_count_kv", 1),
        (
            "llama.attention.layer_norm_rms_epsilon".into(),
            Value::F32(1e-5),
        ),
    ]
}

fn file_with(entries: &[(String, Value)]) -> Vec<u8> {
    let zeros = |shape: &[usize]| {
        let t = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        QTensor::quantize(&t, GgmlDType::Q8_0).unwrap()
    };
    let (embed, q) = (zeros(&[8, 32]), zeros(&[32, 32]));
    let entries: Vec<_> = entries.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = std::io::Cursor::new(Vec::new());
    let tensors = [("token_embd.weight", &embed), ("blk.0.attn_q.weight", &q)];
    gguf_file::write(&mut out, &entries, &tensors).unwrap();
    out.into_inner()
}

fn open(bytes: &[u8]) -> Result<Gguf, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn error(bytes: &[u8]) -> String {
    let e = open(bytes).unwrap_err().to_string();
    assert!(!e.contains('\n'), "more than one line: {e}");
    e
}

fn with(key: &str, value: Value) -> Vec<u8> {
    let mut m = metadata();
    m.retain(|(k, _)| k != key);
    m.push((key.into(), value));
    file_with(&m)
}

#[test]
fn a_complete_file_opens_and_a_tensor_of_the_right_shape_can_be_read() {
    let gguf = open(&file_with(&metadata())).unwrap();
    assert_eq!(gguf.config().head_dim, 16);
    assert_eq!(gguf.config().vocab, 8);
    assert_eq!(gguf.config().rope.base, 10_000.0);
    gguf.data("blk.0.attn_q.weight", &[32, 32]).unwrap();
    let e = gguf.data("blk.0.attn_q.weight", &[32, 16]).unwrap_err();
    assert!(e.to_string().contains("blk.0.attn_q.weight"), "{e}");
    let e = gguf.data("blk.1.attn_q.weight", &[32, 32]).unwrap_err();
    assert!(e.to_string().contains("missing"), "{e}");
}

#[test]
fn a_missing_an_empty_and_a_foreign_file_are_distinguished() {
    let e = Gguf::open(Path::new("/nonexistent/m.gguf"))
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("/nonexistent/m.gguf") && e.contains("cargo xtask model"),
        "{e}"
    );
    assert!(error(b"").contains("empty"));
    assert!(error(b"PK\x03\x04 a zip file, not a model").contains("not a GGUF file"));
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("m.gguf");
    let mkfifo = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(mkfifo.unwrap().success());
    for path in [Path::new("/"), Path::new("/dev/zero"), &pipe] {
        let e = Gguf::open(path).unwrap_err().to_string();
        assert!(
            e.contains("not a regular file") && !e.contains("xtask"),
            "{e}"
        );
    }
    let part = dir.path().join("m-00001-of-00002.gguf");
    let e = Gguf::open(&part).unwrap_err().to_string();
    assert!(e.contains("has 2 parts") && !e.contains("xtask"), "{e}");
}

#[test]
fn a_metadata_number_out_of_range_is_named() {
    for (key, value) in [
        ("llama.attention.head_count", Value::U32(0)),
        ("llama.attention.head_count_kv", Value::U32(0)),
        ("llama.attention.head_count_kv", Value::U32(3)),
        ("llama.context_length", Value::U64(1 << 40)),
        ("llama.context_length", Value::U32(0)),
        ("llama.block_count", Value::U32(u32::MAX)),
        ("llama.embedding_length", Value::String("big".into())),
        ("llama.embedding_length", Value::U64(u64::MAX)),
        ("llama.feed_forward_length", Value::I32(-1)),
        ("llama.rope.dimension_count", Value::U32(7)),
        ("llama.rope.freq_base", Value::F32(f32::NAN)),
        ("llama.rope.scaling.type", Value::String("su".into())),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        ("llama.expert_count", Value::U32(1 << 31)),
        ("general.alignment", Value::U32(0)),
    ] {
        let shown = format!("{value:?}");
        let e = error(&with(key, value));
        assert!(e.contains(key), "{key} = {shown}: {e}");
    }
}

#[test]
fn numbers_that_old_and_odd_converters_write_are_understood() {
    let mut m = metadata();
    m.retain(|(k, _)| !k.ends_with("rms_epsilon"));
    assert_eq!(open(&file_with(&m)).unwrap().config().rms_eps, 1e-6);
    // One number for each layer, in whatever type.
    let list = |a, b| Value::Array(vec![Value::I32(a), Value::I32(b)]);
    let key = "llama.attention.head_count_kv";
    let gguf = open(&with(key, list(2, 2))).unwrap();
    assert_eq!(gguf.config().kv_heads, 2);
    for value in [list(2, 1), Value::Array(Vec::new())] {
        assert!(error(&with(key, value)).contains(key));
    }
}

/// Of another architecture, by the same numbers.
fn of(arch: &str, more: &[(&str, Value)]) -> Vec<u8> {
    let own = |key: &str| format!("{arch}.{key}");
    let mut m = metadata();
    m.retain(|(k, _)| !k.ends_with("rms_epsilon"));
    for (key, _) in &mut m {
        *key = key.replace("llama.", &own(""));
    }
    m[0].1 = Value::String(arch.into());
    m.extend(more.iter().map(|(key, value)| (own(key), value.clone())));
    file_with(&m)
}

#[test]
fn a_missing_epsilon_is_that_of_transformers() {
    for (arch, eps) in [
        ("qwen2", 1e-6),
        ("gemma2", 1e-6),
        ("mistral3", 1e-5),
        ("phi3", 1e-5),
        ("olmo2", 1e-5),
    ] {
        assert_eq!(
            open(&of(arch, &[])).unwrap().config().rms_eps,
            eps,
            "{arch}"
        );
    }
}

#[test]
fn a_soft_cap_of_0_is_none_and_one_that_is_missing_is_the_familys() {
    let caps = |more: &[(&str, Value)]| {
        let gguf = open(&of("gemma2", more)).unwrap();
        [gguf.config().score_cap, gguf.config().logit_cap]
    };
    let [scores, logits] = ["attn_logit_softcapping", "final_logit_softcapping"];
    assert_eq!(caps(&[]), [Some(50.0), Some(30.0)]);
    let off = Value::F32(0.0);
    assert_eq!(caps(&[(scores, off.clone())]), [None, Some(30.0)]);
    assert_eq!(caps(&[(logits, off)]), [Some(50.0), None]);
    assert_eq!(caps(&[(scores, Value::F32(7.0))]), [Some(7.0), Some(30.0)]);
}

#[test]
fn a_big_endian_file_is_refused_by_name() {
    let mut bytes = file_with(&metadata());
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert!(error(&bytes).contains("big-endian"));
}

#[test]
fn versions_2_and_3_open_and_others_are_named() {
    for (version, opens) in [(1u32, false), (2, true), (3, true), (4, false)] {
        let mut bytes = file_with(&metadata());
        bytes[4..8].copy_from_slice(&version.to_le_bytes());
        match open(&bytes) {
            Ok(_) => assert!(opens, "{version}"),
            Err(e) => assert!(
                !opens && e.to_string().contains("version"),
                "{version}: {e}"
            ),
        }
    }
}

#[test]
fn a_missing_key_is_named() {
    for (key, _) in metadata() {
        // Optional: as many as query heads, and 1e-6.
        if key.ends_with("head_count_kv") || key.ends_with("rms_epsilon") {
            continue;
        }
        let mut m = metadata();
        m.retain(|(k, _)| *k != key);
        let e = error(&file_with(&m));
        assert!(e.contains(&key), "{key}: {e}");
    }
}

/// `bytes` where `from` is, once, `to`.
fn put(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    let at = bytes.windows(from.len()).position(|w| w == from);
    let at = at.unwrap_or_else(|| panic!("no {from:?}"));
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn what_is_there_twice_is_named() {
    let mut keys = metadata();
    keys.push(("llama.block_dount".into(), Value::U32(2)));
    let mut bytes = file_with(&keys);
    put(&mut bytes, b"block_dount", b"block_count");
    let e = error(&bytes);
    assert!(e.contains("`llama.block_count` is there twice"), "{e}");
    let zeros = Tensor::zeros((8, 32), candle_core::DType::F32, &Device::Cpu).unwrap();
    let zeros = QTensor::quantize(&zeros, GgmlDType::Q8_0).unwrap();
    let keys = metadata();
    let entries: Vec<_> = keys.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut out = std::io::Cursor::new(Vec::new());
    let tensors = [("token_embd.weight", &zeros), ("token_embd.weighs", &zeros)];
    gguf_file::write(&mut out, &entries, &tensors).unwrap();
    let mut bytes = out.into_inner();
    put(&mut bytes, b"token_embd.weighs", b"token_embd.weight");
    let e = error(&bytes);
    assert!(e.contains("`token_embd.weight` is there twice"), "{e}");
}

#[test]
fn a_tensor_that_lies_over_another_is_named_with_it() {
    let whole = file_with(&metadata());
    let name = b"blk.0.attn_q.weight";
    let at = whole.windows(name.len()).position(|w| w == name).unwrap();
    // Behind the name: the rank, two dimensions, the type.
    let offset = at + name.len() + 4 + 16 + 4;
    // The other has 8 rows of 34 bytes, and begins at 0.
    for to in [0, 256u64] {
        let mut bytes = whole.clone();
        bytes[offset..offset + 8].copy_from_slice(&to.to_le_bytes());
        let e = error(&bytes);
        assert!(
            ["lies over", "blk.0.attn_q.weight", "token_embd.weight"]
                .iter()
                .all(|says| e.contains(says)),
            "{to}: {e}"
        );
    }
}

#[test]
fn an_unknown_architecture_says_what_is_supported() {
    let e = error(&with("general.architecture", Value::String("mamba".into())));
    assert!(
        e.contains("`mamba`") && e.contains("supported: llama"),
        "{e}"
    );
}

#[test]
fn a_tensor_beyond_the_file_is_named() {
    let whole = file_with(&metadata());
    let e = error(&whole[..whole.len() - 64]);
    assert!(
        e.contains("blk.0.attn_q.weight") && e.contains("incomplete"),
        "{e}"
    );
}

#[test]
fn huge_counts_in_the_header_allocate_nothing() {
    let whole = file_with(&metadata());
    for at in [8, 16] {
        for n in [u64::MAX, 1 << 40, 60_000] {
            let mut bad = whole.clone();
            bad[at..at + 8].copy_from_slice(&n.to_le_bytes());
            error(&bad);
        }
    }
    // A string of 2^60 bytes, and an array of 2^40 strings.
    let header = |kind: u32, rest: &[u8]| {
        let mut b = b"GGUF\x03\0\0\0".to_vec();
        b.extend(0u64.to_le_bytes());
        b.extend(1u64.to_le_bytes());
        b.extend(3u64.to_le_bytes());
        b.extend(b"key");
        b.extend(kind.to_le_bytes());
        b.extend(rest);
        b
    };
    assert!(error(&header(8, &(1u64 << 60).to_le_bytes())).contains("key"));
    let mut array = 8u32.to_le_bytes().to_vec();
    array.extend((1u64 << 40).to_le_bytes());
    assert!(error(&header(9, &array)).contains("`key`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_truncated_file_is_an_error_wherever_it_ends(cut in 0.0f64..1.0) {
        let whole = file_with(&metadata());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "an offset below the file's few KiB")]
        let at = (whole.len() as f64 * cut) as usize;
        // The last tensor is padded to 32 bytes: what is cut there is not missed.
        let e = open(&whole[..at]);
        prop_assert!(e.is_err() || whole.len() - at < 32);
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..700, 0u8..8), 1..6)) {
        let mut bytes = file_with(&metadata());
        for (at, bit) in flips {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Ok(gguf) = open(&bytes) {
            // What is accepted must also be readable or refused, not panic.
            let _ = gguf.data("blk.0.attn_q.weight", &[32, 32]);
            let _ = gguf.data("token_embd.weight", &[8, 32]);
        }
    }
}
