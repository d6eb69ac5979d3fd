//! Files that do not hold what they say: every one is refused by the name of
//! the key or tensor, and none is believed before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "model_bad/families.rs"]
mod families;

use candle_core::{
    Device,
    quantized::{
        GgmlDType,
        gguf_file::{Content, Value},
    },
};
use kvpsi::model::{
    decoder::Decoder,
    gguf::{Gguf, ModelError},
};
use kvpsi_tests::tiny::{Shape, Tiny};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Cursor,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

/// The largest piece of memory that was ever asked for. The files here are
/// smaller than 200 KB, and a reader's buffer has 1 MiB.
static LARGEST: AtomicUsize = AtomicUsize::new(0);
const ENOUGH: usize = 2 << 20;

struct Watching;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn tiny(arch: &'static str, types: &'static [GgmlDType]) -> Tiny {
    let mut tiny = Tiny::new(&Shape {
        arch,
        layers: 2,
        hidden: 64,
        feed_forward: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 40,
        tied: false,
        types,
        seed: 5,
    })
    .unwrap();
    if arch == "gemma3" {
        tiny.set("attention.sliding_window", Value::U32(16));
        tiny.set("attention.sliding_window_pattern", Value::U32(2));
    }
    tiny
}

const Q8: &[GgmlDType] = &[GgmlDType::Q8_0];

fn load_file(path: &Path) -> Result<Decoder, ModelError> {
    let loaded = Gguf::open(path).and_then(|gguf| Decoder::load(&gguf));
    let largest = LARGEST.load(Relaxed);
    assert!(largest < ENOUGH, "{largest} bytes were asked for");
    loaded
}

fn load_bytes(bytes: &[u8]) -> Result<Decoder, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    load_file(&path)
}

fn bytes(tiny: &Tiny) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    tiny.write(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// The one line of the error that names `culprit`.
fn refused(tiny: &Tiny, culprit: &str) -> String {
    named(load_bytes(&bytes(tiny)), culprit)
}

fn named(loaded: Result<Decoder, ModelError>, culprit: &str) -> String {
    let Err(e) = loaded else {
        panic!("accepted, whatever is wrong with {culprit}");
    };
    let e = e.to_string();
    assert!(e.contains(culprit) && !e.contains('\n'), "{culprit}: {e}");
    e
}

#[test]
fn whole_files_are_accepted() {
    for arch in ARCHITECTURES {
        load_bytes(&bytes(&tiny(arch, Q8))).unwrap();
    }
}

fn absurd() -> [Value; 11] {
    [
        Value::U32(0),
        Value::U32(u32::MAX),
        Value::U64(1 << 40),
        Value::U64(u64::MAX),
        Value::I32(-1),
        Value::F32(f32::NAN),
        Value::F32(f32::NEG_INFINITY),
        Value::F64(1.0),
        Value::Bool(true),
        Value::String("4".into()),
        Value::Array(vec![Value::U32(4), Value::U32(0)]),
    ]
}

#[test]
fn each_number_that_is_absurd_or_of_another_type_is_named() {
    for arch in ARCHITECTURES {
        let keys: Vec<_> = tiny(arch, Q8).metadata.into_keys().collect();
        for key in keys.iter().filter(|k| k.starts_with(arch)) {
            for value in &absurd() {
                let mut tiny = tiny(arch, Q8);
                tiny.metadata.insert(key.clone(), value.clone());
                refused(&tiny, key);
            }
        }
    }
}

#[test]
fn each_key_that_contradicts_the_tensors_is_seen() {
    for arch in ARCHITECTURES {
        for (key, n) in [
            ("attention.head_count", 8),
            ("attention.head_count", 1024),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 1024),
            ("embedding_length", 131_072),
            ("feed_forward_length", 1 << 20),
            ("block_count", 1024),
            ("block_count", 1),
        ] {
            let mut tiny = tiny(arch, Q8);
            tiny.set(key, Value::U32(n));
            // Of a key that another contradicts, either may be named.
            refused(&tiny, "`");
        }
    }
}

#[test]
fn options_out_of_their_range_are_named() {
    let yarn = ("rope.scaling.type", Value::String("yarn".into()));
    let four = ("rope.scaling.factor", Value::F32(4.0));
    type Entry = (&'static str, Value);
    let cases: [(&str, Vec<Entry>, Entry); 19] = [
        (
            "llama",
            vec![],
            ("rope.scaling.type", Value::String("su".into())),
        ),
        ("llama", vec![], ("rope.scaling.type", Value::U32(1))),
        ("llama", vec![], ("rope.scaling.factor", Value::F32(-1.0))),
        ("llama", vec![], ("rope.scale_linear", Value::F32(-1.0))),
        (
            "qwen2",
            vec![yarn.clone()],
            ("rope.scaling.factor", Value::F32(0.5)),
        ),
        (
            "qwen2",
            vec![yarn.clone()],
            ("rope.scaling.factor", Value::F32(f32::INFINITY)),
        ),
        (
            "qwen2",
            vec![yarn.clone(), four.clone()],
            ("rope.scaling.original_context_length", Value::U64(1 << 40)),
        ),
        (
            "qwen3",
            vec![yarn.clone(), four.clone()],
            ("rope.scaling.yarn_beta_fast", Value::F32(f32::NAN)),
        ),
        (
            "qwen3",
            vec![yarn.clone(), four.clone()],
            ("rope.scaling.yarn_ext_factor", Value::F32(2.0)),
        ),
        (
            "qwen3",
            vec![yarn, four],
            ("rope.scaling.attn_factor", Value::F32(0.0)),
        ),
        (
            "llama",
            vec![],
            ("attention.sliding_window", Value::I32(-1)),
        ),
        (
            "llama",
            vec![],
            ("attention.scale", Value::F32(f32::INFINITY)),
        ),
        ("gemma3", vec![], ("rope.local_freq_base", Value::F32(1.0))),
        (
            "gemma3",
            vec![],
            ("rope.freq_base_swa", Value::F32(f32::NAN)),
        ),
        (
            "gemma3",
            vec![],
            ("final_logit_softcapping", Value::F32(-30.0)),
        ),
        (
            "gemma3",
            vec![],
            ("attn_logit_softcapping", Value::F32(f32::NAN)),
        ),
        ("qwen3", vec![], ("expert_count", Value::U32(128))),
        (
            "qwen3",
            vec![],
            ("expert_count", Value::String("many".into())),
        ),
        ("gemma3", vec![], ("attention.causal", Value::Bool(false))),
    ];
    for (arch, others, (key, value)) in cases {
        let mut tiny = tiny(arch, Q8);
        for (key, value) in others {
            tiny.set(key, value);
        }
        tiny.set(key, value);
        refused(&tiny, &format!("`{arch}.{key}`"));
    }
}

#[test]
fn a_rope_factor_of_0_is_none_as_for_llama_cpp() {
    for (arch, kind) in [("llama", "linear"), ("qwen2", "yarn")] {
        let mut tiny = tiny(arch, Q8);
        tiny.set("rope.scaling.type", Value::String(kind.into()));
        tiny.set("rope.scaling.factor", Value::F32(0.0));
        load_bytes(&bytes(&tiny)).unwrap();
    }
}

#[test]
fn a_pattern_of_windows_is_a_number_or_one_for_each_layer() {
    let windowed = |pattern: Value| {
        let mut tiny = tiny("gemma3", Q8);
        tiny.set("attention.sliding_window_pattern", pattern);
        let decoder = load_bytes(&bytes(&tiny)).unwrap();
        [0, 1].map(|i| decoder.config().windowed(i).is_some())
    };
    assert_eq!(windowed(Value::U32(2)), [true, false]);
    let bools = |each: [bool; 2]| Value::Array(each.map(Value::Bool).into());
    let ints = |each: [u32; 2]| Value::Array(each.map(Value::U32).into());
    for each in [[true, false], [false, true], [true, true], [false, false]] {
        assert_eq!(windowed(bools(each)), each);
        assert_eq!(windowed(ints(each.map(u32::from))), each);
    }
}

#[test]
fn what_an_option_needs_besides_is_named() {
    let mut yarn = tiny("qwen2", Q8);
    yarn.set("rope.scaling.type", Value::String("yarn".into()));
    refused(&yarn, "`qwen2.rope.scaling.factor`");
    let mut gemma = tiny("gemma3", Q8);
    gemma.metadata.remove("gemma3.attention.sliding_window");
    refused(&gemma, "`gemma3.attention.sliding_window`");
}

#[test]
fn each_tensor_that_is_missing_is_named() {
    for arch in ARCHITECTURES {
        let names: Vec<_> = tiny(arch, Q8).tensors.into_keys().collect();
        for name in names.iter().filter(|n| *n != "output.weight") {
            let mut tiny = tiny(arch, Q8);
            tiny.tensors.remove(name);
            refused(&tiny, name);
        }
    }
}

#[test]
fn each_tensor_of_another_shape_is_named() {
    for arch in ARCHITECTURES {
        let names: Vec<_> = tiny(arch, Q8).tensors.into_keys().collect();
        for name in names {
            let mut tiny = tiny(arch, Q8);
            let dims = tiny.tensors[&name].shape().dims().to_vec();
            let wrong: Vec<Vec<usize>> = match dims[..] {
                [n] => vec![vec![n + 32], vec![1, n]],
                [n, k] => vec![vec![n, k + 32], vec![n * k], vec![n, 1, k]],
                _ => unreachable!("vectors and matrices only"),
            };
            for shape in wrong {
                let values = vec![0.5; shape.iter().product()];
                tiny.insert(&name, &values, &shape, GgmlDType::F32).unwrap();
                refused(&tiny, &name);
            }
        }
    }
}

#[test]
fn a_tensor_that_has_no_place_is_named_instead_of_being_left_out() {
    for (arch, name) in [
        ("llama", "blk.0.ffn_up.bias"),
        ("llama", "blk.0.attn_q_norm.weight"),
        ("qwen2", "blk.1.ffn_gate.bias"),
        ("qwen3", "blk.1.post_ffw_norm.weight"),
        ("gemma3", "blk.0.ffn_gate_inp.weight"),
    ] {
        let mut tiny = tiny(arch, Q8);
        tiny.insert(name, &[0.0; 64], &[64], GgmlDType::F32)
            .unwrap();
        let e = refused(&tiny, name);
        assert!(e.contains(arch), "{e}");
    }
    // Half of the biases are none.
    let mut tiny = tiny("llama", Q8);
    tiny.insert("blk.0.attn_q.bias", &[0.0; 64], &[64], GgmlDType::F32)
        .unwrap();
    refused(&tiny, "blk.0.attn_k.bias");
}

#[test]
fn vectors_that_are_no_numbers_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (arch, name) in [
            ("llama", "output_norm.weight"),
            ("llama", "blk.1.ffn_norm.weight"),
            ("qwen2", "blk.0.attn_k.bias"),
            ("qwen3", "blk.1.attn_q_norm.weight"),
            ("gemma3", "blk.1.post_ffw_norm.weight"),
        ] {
            let mut tiny = tiny(arch, Q8);
            let n = tiny.tensors[name].shape().elem_count();
            let mut values = vec![1.0; n];
            values[n - 1] = bad;
            tiny.insert(name, &values, &[n], GgmlDType::F32).unwrap();
            refused(&tiny, name);
        }
    }
    for bad in [0.0, -1.0, f32::NAN] {
        let mut tiny = tiny("llama", Q8);
        let mut factors = [1.0; 8];
        factors[3] = bad;
        tiny.insert("rope_freqs.weight", &factors, &[8], GgmlDType::F32)
            .unwrap();
        refused(&tiny, "rope_freqs.weight");
    }
}

#[test]
fn a_scale_that_is_no_number_is_named_in_every_quantization() {
    // Where a block holds its half-precision scales, from ggml's block structs.
    let types: [(&'static [GgmlDType], usize); 10] = [
        (&[GgmlDType::Q4_0], 0),
        (&[GgmlDType::Q4_1], 2),
        (&[GgmlDType::Q5_0], 0),
        (&[GgmlDType::Q5_1], 2),
        (&[GgmlDType::Q8_0], 0),
        (&[GgmlDType::Q2K], 80),
        (&[GgmlDType::Q3K], 108),
        (&[GgmlDType::Q4K], 0),
        (&[GgmlDType::Q5K], 2),
        (&[GgmlDType::Q6K], 208),
    ];
    for (types, at) in types {
        for name in [
            "token_embd.weight",
            "blk.1.ffn_down.weight",
            "output.weight",
        ] {
            let mut tiny = Tiny::new(&Shape {
                arch: "llama",
                layers: 2,
                hidden: 256,
                feed_forward: 256,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocab: 40,
                tied: false,
                types,
                seed: 6,
            })
            .unwrap();
            tiny.set("context_length", Value::U32(64));
            let mut bytes = bytes(&tiny);
            load_bytes(&bytes).unwrap();
            let content = Content::read(&mut Cursor::new(&bytes)).unwrap();
            let info = &content.tensor_infos[name];
            assert_eq!(info.ggml_dtype, types[0]);
            let start = usize::try_from(content.tensor_data_offset + info.offset).unwrap();
            // Some block in the middle.
            let block = start + 7 * types[0].type_size() + at;
            for scale in [0x7e00u16, 0x7c00, 0xfc00] {
                bytes[block..block + 2].copy_from_slice(&scale.to_le_bytes());
                let e = named(load_bytes(&bytes), name);
                assert!(e.contains("not finite"), "{e}");
            }
            let t = content.tensor(&mut Cursor::new(&bytes), name, &Device::Cpu);
            assert!(t.is_ok(), "only the scale is wrong");
        }
    }
}

#[test]
fn an_unknown_quantization_is_named() {
    let tiny = tiny("qwen3", Q8);
    let bytes = bytes(&tiny);
    let name = b"blk.1.attn_v.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    // After the name: 4 bytes of rank, 8 for each of two dimensions, the type.
    let at = at + name.len() + 4 + 16;
    assert_eq!(bytes[at..at + 4], 8u32.to_le_bytes(), "Q8_0 stands there");
    // IQ2_XXS, Q4_0_4_4, NVFP4, and what never was.
    for kind in [16u32, 31, 40, 4, 99, u32::MAX] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        let e = named(load_bytes(&bytes), "blk.1.attn_v.weight");
        assert!(e.contains(&kind.to_string()), "{e}");
    }
}
