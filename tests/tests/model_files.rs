//! Files as people have them, by the binary: Ollama's store, parts of a model,
//! and chat templates that are missing, broken or given.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{Content, Value},
};
use kvpsi::model::{decoder::Decoder, gguf::Gguf};
use kvpsi_tests::{
    ours::Ours,
    served::Served,
    skip,
    tiny::{Shape, Tiny},
};
use serde_json::json;
use std::{io::Cursor, path::Path, process::Command};

/// A model that can write: the printable bytes are its tokens.
fn model(template: Option<&str>) -> Tiny {
    let mut tiny = Tiny::new(&Shape::SMALL).unwrap();
    let tokens = ('!'..='~')
        .map(String::from)
        .chain(["Ġ".into(), "Ċ".into()]);
    let tokens = tokens.map(Value::String).collect();
    for (key, value) in [
        ("ggml.model", Value::String("gpt2".into())),
        ("ggml.pre", Value::String("gpt-2".into())),
        ("ggml.tokens", Value::Array(tokens)),
        ("ggml.merges", Value::Array(Vec::new())),
    ] {
        tiny.metadata.insert(format!("tokenizer.{key}"), value);
    }
    if let Some(source) = template {
        let value = Value::String(source.into());
        tiny.metadata
            .insert("tokenizer.chat_template".into(), value);
    }
    tiny
}

/// Whether it succeeded, its text and what it said.
fn run(model: &str, store: &Path, args: &[&str]) -> (bool, String, String) {
    let out = Command::new(kvpsi_tests::kvpsi_binary())
        .args(["run", "--signal", "none", "-n", "5", "-m", model])
        .args(args)
        .env("OLLAMA_MODELS", store)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (out.status.success(), text(&out.stdout), text(&out.stderr))
}

#[test]
fn a_model_of_ollamas_store_runs_by_its_name() {
    let store = tempfile::tempdir().unwrap();
    let hex = "5a".repeat(32);
    let manifests = store
        .path()
        .join("manifests/registry.ollama.ai/library/tiny");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::create_dir(store.path().join("blobs")).unwrap();
    let manifest = format!(
        r#"{{"schemaVersion": 2, "layers": [{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{hex}", "size": 1}}]}}"#
    );
    std::fs::write(manifests.join("latest"), manifest).unwrap();
    let blob = store.path().join(format!("blobs/sha256-{hex}"));
    model(None).write(&blob).unwrap();
    let (ok, out, err) = run("ollama:tiny", store.path(), &["--raw", "-p", "ab"]);
    assert!(ok && out.starts_with("ab"), "{out}: {err}");
    let (ok, _, err) = run("ollama:other", store.path(), &["--raw", "-p", "ab"]);
    assert!(
        !ok && err.contains("ollama:other") && err.contains("ollama pull other"),
        "{err}"
    );
}

#[test]
fn without_a_template_a_prompt_is_continued_and_a_broken_one_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let name = path.to_str().unwrap();
    let run = |args: &[&str]| run(name, dir.path(), args);

    model(None).write(&path).unwrap();
    let (ok, out, err) = run(&["-p", "ab"]);
    assert!(ok && out.starts_with("ab"), "{out}: {err}");
    assert!(err.contains("no chat template"), "{err}");
    let (ok, _, err) = run(&["-p", "ab", "--chat-template", "chatml"]);
    assert!(ok && !err.contains("no chat template"), "{err}");

    // It does not compile, or calls what is not there.
    for source in ["{% for %}", "{{ of_next_year() }}"] {
        model(Some(source)).write(&path).unwrap();
        let (ok, out, err) = run(&["--raw", "-p", "ab"]);
        assert!(ok && out.starts_with("ab"), "{source}: {err}");
        let (ok, _, err) = run(&["-p", "ab"]);
        let told = err.contains("chat template: ") && err.contains("--raw");
        assert!(!ok && told, "{source}: {err}");
        let file = dir.path().join("t.jinja");
        std::fs::write(&file, "{{ messages[0].content }}").unwrap();
        let (ok, _, err) = run(&["-p", "ab", "--chat-template", file.to_str().unwrap()]);
        assert!(ok, "{source}: {err}");
    }
    let (ok, _, err) = run(&["-p", "ab", "--chat-template", "of-next-year"]);
    assert!(
        !ok && err.contains("of-next-year") && err.contains("chatml"),
        "{err}"
    );
}

#[test]
fn a_server_of_a_broken_template_completes_and_says_what_else_can_be_done() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model(Some("{% for %}")).write(&path).unwrap();
    let server = Served::start(&path, &["--signal", "none"], None);
    let asked = json!({"prompt": "ab", "max_tokens": 3});
    assert_eq!(server.post("/v1/completions", &asked).0, 200);
    let asked = json!({"messages": [{"role": "user", "content": "ab"}]});
    let (status, answer) = server.post("/v1/chat/completions", &asked);
    let told = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400, "{told}");
    for part in ["chat template: ", "/v1/completions", "--chat-template"] {
        assert!(told.contains(part), "{told}");
    }
    // `kvpsi serve` has no such flag.
    assert!(!told.contains("--raw"), "{told}");
}

/// functionary's: a call's arguments are added to a text.
#[test]
fn a_template_that_adds_arguments_to_a_text_gets_them_as_a_text() {
    let source = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}\
                  {{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}{{ tools }}";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model(Some(source)).write(&path).unwrap();
    let server = Served::start(&path, &["--signal", "none"], None);
    let call = json!({"name": "f", "arguments": "{\"a\":1}"});
    let asked = json!({"max_tokens": 3, "messages": [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]});
    let (status, answer) = server.post("/v1/chat/completions", &asked);
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn tensors_of_pictures_and_sound_are_skipped_and_other_unknown_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for (tensor, runs) in [
        ("v.blk.0.attn_q.weight", true),
        ("mm.mm_input_projection.weight", true),
        ("a.conv1d.1.weight", true),
        ("blk.0.of_next_year.weight", false),
    ] {
        let mut tiny = model(None);
        tiny.insert(tensor, &[0.5; 32], &[32], GgmlDType::F32)
            .unwrap();
        tiny.write(&path).unwrap();
        let (ok, _, err) = run(path.to_str().unwrap(), dir.path(), &["--raw", "-p", "ab"]);
        assert_eq!(ok, runs, "{tensor}: {err}");
        assert!(runs || err.contains(tensor), "{err}");
    }
}

/// Where the entry of a tensor has the length of its rows, and its offset.
fn entry(file: &[u8], name: &str) -> (usize, usize) {
    let at = file.windows(name.len()).position(|w| w == name.as_bytes());
    let at = at.unwrap() + name.len();
    let dims = usize::from(file[at]);
    (at + 4, at + 4 + 8 * dims + 4)
}

#[test]
fn a_tensor_that_is_not_aligned_is_read_and_an_empty_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model(None).write(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let content = Content::read(&mut Cursor::new(&whole)).unwrap();
    let tokens: Vec<u32> = (0..20).collect();
    let want = Ours::load(&path, 64).after(&tokens, 20);
    for name in ["blk.0.attn_v.weight", "blk.0.attn_norm.weight"] {
        let info = &content.tensor_infos[name];
        let bytes = info.shape.elem_count() / info.ggml_dtype.block_size();
        let bytes = bytes * info.ggml_dtype.type_size();
        let from = usize::try_from(content.tensor_data_offset + info.offset).unwrap();
        let (rows, offset) = entry(&whole, name);
        for by in [1, 2, 3, 31] {
            // Behind all others, at no multiple of anything.
            let mut file = whole.clone();
            file.resize(whole.len().next_multiple_of(32) + by, 0);
            let at = file.len() as u64 - content.tensor_data_offset;
            file.extend(&whole[from..from + bytes]);
            file[offset..offset + 8].copy_from_slice(&at.to_le_bytes());
            std::fs::write(&path, &file).unwrap();
            assert_eq!(Ours::load(&path, 64).after(&tokens, 20), want, "{name}");
        }
        let mut file = whole.clone();
        file[rows..rows + 8].fill(0);
        std::fs::write(&path, &file).unwrap();
        let loaded = Gguf::open(&path).and_then(|gguf| Decoder::load(&gguf));
        let e = loaded.err().unwrap().to_string();
        assert!(e.contains(name) && e.contains("dimension of 0"), "{e}");
    }
}

#[test]
fn weights_that_do_not_fit_into_memory_are_refused_before_any_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model(None).write(&path).unwrap();
    let mut file = std::fs::read(&path).unwrap();
    // A vocabulary of four times this machine's memory, in holes of the file.
    let info = rustix::system::sysinfo();
    let all = (info.totalram as u64 + info.totalswap as u64) * u64::from(info.mem_unit.max(1));
    let (columns, offset) = entry(&file, "token_embd.weight");
    let rows = all * 4 / 34;
    file[columns + 8..columns + 16].copy_from_slice(&rows.to_le_bytes());
    let content = Content::read(&mut Cursor::new(&file)).unwrap();
    let at = (file.len() as u64).next_multiple_of(32);
    file[offset..offset + 8].copy_from_slice(&(at - content.tensor_data_offset).to_le_bytes());
    std::fs::write(&path, &file).unwrap();
    let sparse = std::fs::File::options().write(true).open(&path).unwrap();
    if let Err(e) = sparse.set_len(at + rows * 34) {
        let test = "weights_that_do_not_fit_into_memory_are_refused_before_any_is_read";
        skip(test, format!("no file of {} bytes here: {e}", rows * 34));
        return;
    }
    let cases: [&[&str]; 2] = [&["off"], &["on", "--weights-cache-size", "1"]];
    for when in cases {
        let mut args = vec!["--raw", "-p", "ab", "--weights-cache"];
        args.extend(when);
        let (ok, _, err) = run(path.to_str().unwrap(), dir.path(), &args);
        assert!(!ok && !err.contains("abort"), "{err}");
        let last = err.lines().last().unwrap();
        for says in ["m.gguf", "of memory", "are available", "smaller file"] {
            assert!(last.contains(says), "{says}: {err}");
        }
    }
}

#[test]
fn tokens_of_absurd_length_are_refused_and_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let with = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut tiny = model(None);
        let count = {
            let tokens = tiny.metadata.get_mut("tokenizer.ggml.tokens");
            let Some(Value::Array(tokens)) = tokens else {
                panic!("no tokens");
            };
            change(tokens);
            tokens.len()
        };
        // All of them control tokens.
        let kinds = Value::Array(vec![Value::I32(3); count]);
        let key = "tokenizer.ggml.token_type";
        tiny.metadata.insert(key.into(), kinds);
        tiny.write(&path).unwrap();
        run(path.to_str().unwrap(), dir.path(), &["--raw", "-p", "ab"])
    };
    let (ok, _, err) = with(&|tokens| tokens[7] = Value::String("x".repeat(10 << 20)));
    assert!(!ok, "{err}");
    for says in ["tokenizer.ggml.tokens", "10485760 bytes at 7"] {
        assert!(err.contains(says), "{says}: {err}");
    }
    let (ok, _, err) = with(&|tokens| {
        for (i, token) in tokens.iter_mut().enumerate() {
            *token = Value::String(format!("{i:_>60000}"));
        }
    });
    assert!(!ok && err.contains("96 control and added tokens"), "{err}");
}

#[test]
fn special_tokens_that_are_not_there_are_told_of_and_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut tiny = model(None);
    let wrong = [("bos", Value::U32(600)), ("eot", Value::U64(1 << 40))];
    for (key, value) in &wrong {
        let key = format!("tokenizer.ggml.{key}_token_id");
        tiny.metadata.insert(key, value.clone());
    }
    tiny.set("rope.scaling.factor", Value::F32(0.0));
    tiny.write(&path).unwrap();
    let (ok, _, err) = run(path.to_str().unwrap(), dir.path(), &["--raw", "-p", "ab"]);
    assert!(ok, "{err}");
    for says in [
        "bos_token_id` is 600",
        "eot_token_id` is 1099511627776",
        "rope.scaling.factor` is 0",
    ] {
        assert!(err.contains(says), "{says}: {err}");
    }
}

#[test]
fn few_open_files_are_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    model(None).write(&path).unwrap();
    let binary = kvpsi_tests::kvpsi_binary();
    let model = path.to_str().unwrap();
    let mut told = 0;
    for most in [6, 8, 9, 10, 11, 12, 16] {
        for command in [
            &["run", "--raw", "-p", "ab", "-n", "1"][..],
            // A limit of context that the model does not have ends it, once it listens.
            &["serve", "--port", "0", "--ctx", "1000000"],
        ] {
            let out = Command::new("sh")
                .args(["-c", &format!("ulimit -n {most}; exec \"$@\""), "sh"])
                .arg(&binary)
                .args(command)
                .args(["--signal", "none", "--weights-cache", "off", "-m", model])
                .output()
                .unwrap();
            let err = String::from_utf8_lossy(&out.stderr);
            assert!(!err.contains("panicked"), "{most} for {command:?}: {err}");
            // Below this the system cannot start a program.
            assert!(
                matches!(out.status.code(), Some(0 | 1 | 127)),
                "{most}: {err}"
            );
            told += usize::from(err.contains("ulimit -n"));
        }
    }
    assert!(told >= 2, "said {told} times");
}
