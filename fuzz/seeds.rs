//! Writes fuzz/seeds anew: small files that are good, so that chance begins
//! where files are read and not where they are refused.
//!
//!     cargo run --manifest-path fuzz/Cargo.toml --example seeds

use kvpsi::{
    control::{gauge::Levels, system::SystemLevel, wall::CgroupLevel},
    trace::{
        Sample,
        recording::{Entry, Head, Recorded, Trim, prefix},
    },
    units::Bytes,
};
use kvpsi_fuzz::Writer;
use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let write = |name: &str, bytes: &[u8]| {
        let file = dir.join(name);
        fs::create_dir_all(file.parent().unwrap_or(&dir))?;
        fs::write(file, bytes)
    };
    for arch in ["llama", "qwen2", "qwen3", "gemma3"] {
        for kind in ["gpt2", "llama"] {
            write(&format!("gguf/{arch}-{kind}"), &model(arch, kind))?;
        }
    }
    // Nine lines of tiles, and a table of one matrix `w` of Q8_0, [16, 32], at 128.
    write("weights/one", &[9, 0, 1, 1, b'w', 8, 16, 32, 128, 1, 0])?;
    let entries = entries();
    let mut file = prefix();
    entries.iter().for_each(|e| e.write(&mut file));
    write("recording/file", &file)?;
    // As the target takes entries apart: a byte of length, and the payload.
    let payloads: Vec<u8> = entries.iter().flat_map(framed).collect();
    write("recording/entries", &payloads)?;
    for (name, text) in TEXTS {
        write(&format!("proc_text/{name}"), text.as_bytes())?;
    }
    for (name, text) in REQUESTS {
        write(&format!("request/{name}"), text.as_bytes())?;
    }
    write("splits/three", &parts())?;
    let hex = "5a".repeat(32);
    write("ollama/manifest", MANIFEST.replace("HEX", &hex).as_bytes())?;
    write("ollama/name", b"registry.ollama.ai/library/qwen3:0.6b")?;
    for (name, text) in TEMPLATES {
        write(&format!("chat_template/{name}"), text.as_bytes())?;
    }
    Ok(())
}

/// A complete model of one layer and 8 tokens, and a tokenizer of that kind.
fn model(arch: &str, kind: &str) -> Vec<u8> {
    const HIDDEN: u32 = 8;
    const TOKENS: [&str; 8] = ["<unk>", "<s>", "</s>", "H", "i", "Hi", "\u{2581}", "x"];
    let mut w = Writer::default();
    w.text("general.architecture", arch.as_bytes());
    let key = |name: &str| format!("{arch}.{name}");
    for (name, n) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", HIDDEN),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
    ] {
        w.number(&key(name), n);
    }
    w.float(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    w.float(&key("rope.freq_base"), 1e4);
    match arch {
        "gemma3" => w.number(&key("attention.sliding_window"), 16),
        "llama" => {
            w.text(&key("rope.scaling.type"), b"yarn");
            w.float(&key("rope.scaling.factor"), 4.0);
        }
        _ => {}
    }
    w.text("tokenizer.ggml.model", kind.as_bytes());
    w.texts("tokenizer.ggml.tokens", &TOKENS);
    w.numbers("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1]);
    if kind == "gpt2" {
        w.text("tokenizer.ggml.pre", b"smollm");
        w.texts("tokenizer.ggml.merges", &["H i"]);
    } else {
        w.floats(
            "tokenizer.ggml.scores",
            &[0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0],
        );
        w.number("tokenizer.ggml.unknown_token_id", 0);
        w.flag("tokenizer.ggml.add_space_prefix", true);
    }
    w.number("tokenizer.ggml.bos_token_id", 1);
    w.number("tokenizer.ggml.eos_token_id", 2);
    w.flag("tokenizer.ggml.add_bos_token", true);
    w.text(
        "tokenizer.chat_template",
        b"{% for m in messages %}{{ m.content }}{% endfor %}",
    );
    let square = [HIDDEN, HIDDEN];
    w.tensor("token_embd.weight", &square, 0.5);
    w.tensor("output_norm.weight", &[HIDDEN], 1.0);
    for name in [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        w.tensor(&format!("blk.0.{name}.weight"), &square, 0.25);
    }
    let mut vectors = vec!["attn_norm.weight", "ffn_norm.weight"];
    match arch {
        "qwen2" => vectors.extend(["attn_q.bias", "attn_k.bias", "attn_v.bias"]),
        "qwen3" => vectors.extend(["attn_q_norm.weight", "attn_k_norm.weight"]),
        "gemma3" => vectors.extend([
            "attn_q_norm.weight",
            "attn_k_norm.weight",
            "post_attention_norm.weight",
            "post_ffw_norm.weight",
        ]),
        _ => {}
    }
    for name in vectors {
        w.tensor(&format!("blk.0.{name}"), &[HIDDEN], 1.0);
    }
    w.bytes()
}

/// Three parts of a model, each behind its length.
fn parts() -> Vec<u8> {
    let mut out = Vec::new();
    for (no, tensor) in (0..).zip(["token_embd.weight", "output_norm.weight", "other"]) {
        let mut w = Writer::default();
        w.number("split.no", no);
        w.number("split.count", 3);
        w.number("split.tensors.count", 3);
        if no == 0 {
            w.text("general.architecture", b"llama");
            for (key, n) in [
                ("block_count", 1),
                ("context_length", 64),
                ("embedding_length", 8),
                ("feed_forward_length", 8),
                ("attention.head_count", 1),
            ] {
                w.number(&format!("llama.{key}"), n);
            }
        }
        w.tensor(tensor, &[8, 8], 0.5);
        let part = w.bytes();
        out.extend(u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(part);
    }
    out
}

/// One of each, of a burst in a cgroup at its limit.
fn entries() -> Vec<Entry> {
    let at = |ms: u64| 1_000_000_000 + ms * 1_000_000;
    let event = |ms, phase| {
        Entry::Event(Recorded {
            ts_ns: at(ms),
            stall_ns: 90_000,
            count: 1,
            pages: 32,
            cgroup_id: 77,
            tgid: 1,
            tid: 1,
            cpu: 0,
            stalled_now: 1,
            order: 0,
            node: 0,
            kind: 2,
            phase,
            comm: *b"hog\0\0\0\0\0\0\0\0\0\0\0\0\0",
            detail: 0,
        })
    };
    let levels = |ms, usage| Entry::Levels {
        ts_ns: at(ms),
        levels: Levels {
            cgroup: Some(CgroupLevel {
                usage: Bytes::mib(usage),
                limit: Bytes::mib(100),
                file: Some(Bytes::mib(3)),
                hits: Some(1),
                ..CgroupLevel::default()
            }),
            system: Some(SystemLevel {
                free: Bytes::mib(500),
                high: Bytes::mib(40),
                tight: Bytes::mib(60),
                ..SystemLevel::default()
            }),
        },
    };
    vec![
        Entry::Head(Head {
            page_bytes: 4096,
            began_ns: at(0),
            ..Head::default()
        }),
        Entry::Kv {
            ts_ns: at(1),
            resident: Bytes::mib(32),
            in_use: Bytes::mib(30),
            cached: Bytes::mib(1),
            floor: Bytes::mib(4),
            budget: Bytes::mib(64),
            tokens: 1000,
        },
        event(2, 1),
        levels(2, 99),
        event(4, 2),
        levels(4, 98),
        Entry::Psi(Sample {
            ts_ns: at(5),
            some_us: 100,
            full_us: 50,
        }),
        Entry::Trim(Trim {
            trigger: "onset".into(),
            kind: 2,
            onset_ns: at(2),
            noticed_ns: at(2),
            returned_ns: at(3),
            wanted: Bytes::mib(2),
            by_step: vec![Bytes::mib(1); 6],
            tokens: 64,
            mass_dropped: 0.25,
        }),
        Entry::Lost(3),
    ]
}

fn framed(entry: &Entry) -> Vec<u8> {
    let payload = postcard::to_stdvec(entry).unwrap_or_default();
    let mut out = vec![u8::try_from(payload.len()).unwrap_or(u8::MAX)];
    out.extend(payload);
    out
}

const TEXTS: [(&str, &str); 6] = [
    (
        "pressure",
        "some avg10=1.50 avg60=0.00 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=99\n",
    ),
    (
        "vmstat",
        "allocstall_normal 3\nallocstall_movable 4\npgscan_direct 9\npgsteal_direct 5\npgscan_kswapd 7\n",
    ),
    (
        "zoneinfo",
        "Node 0, zone DMA\n  pages free 100\n  high     3\n managed  3840\n  protection: (0, 2932)\n",
    ),
    (
        "mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    ),
    (
        "cgroup",
        "4:memory:/user.slice\n0::/user.slice/user-0.slice\n",
    ),
    (
        "status",
        "Name:\tkvpsi\nUid:\t7\t7\t7\t7\nGroups:\t8 44 \nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n",
    ),
];

/// As Ollama writes them, without sizes.
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"digest":"sha256:HEX"},"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:HEX","size":1},{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:HEX"}]}"#;

const TEMPLATES: [(&str, &str); 3] = [
    (
        "chatml",
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "namespace",
        "{%- set ns = namespace(more=true, last=messages|length - 1) %}{%- for m in messages[::-1] %}{%- set at = (messages|length - 1) - loop.index0 %}{%- if ns.more and m.role == 'user' %}{%- set ns.last = at %}{%- endif %}{%- endfor %}{{ ns.last }}",
    ),
    (
        "macro",
        "{{- bos_token }}{%- macro say(m) %}{{ m.content.strip().split('</think>')[-1] | trim }}{%- endmacro %}{%- for m in messages if m.role != 'system' %}{{ say(m) }}{%- if loop.last %}{{ raise_exception('no') }}{% endif %}{%- endfor %}",
    ),
];

const REQUESTS: [(&str, &str); 3] = [
    (
        "chat",
        r#"{"model":"m","messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":2}"#,
    ),
    (
        "sampling",
        r#"{"messages":[{"role":"user","content":"hi \ud83d\ude00"}],"max_completion_tokens":64.0,"temperature":0.5,"top_p":0,"top_k":-1,"seed":-7,"stop":["a","b"],"presence_penalty":-1.5,"frequency_penalty":2,"repetition_penalty":1.1,"n":1,"response_format":{"type":"text"},"tools":[],"ignore_eos":true}"#,
    ),
    (
        "completion",
        r#"{"prompt":[1,2,3],"max_tokens":3,"logprobs":1,"stop":"x","echo":false,"suffix":null}"#,
    ),
];
