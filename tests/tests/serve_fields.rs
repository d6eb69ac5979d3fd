//! Fields of requests and the smaller endpoints, as a running server obeys them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use candle_core::quantized::gguf_file::Value as Setting;
use kvpsi_tests::{model, served::Served, tiny::Tiny};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

fn serve(test: &str, args: &[&str]) -> Option<Served> {
    Some(Served::start(&model(test)?, args, None))
}

fn with(body: &Value, more: &Value) -> Value {
    let mut all = body.clone();
    all.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    all
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    for (i, c) in choices.iter().enumerate() {
        assert_eq!(c["index"], i, "{answer}");
    }
    let text = |c: &Value| {
        c["text"]
            .as_str()
            .or(c["message"]["content"].as_str())
            .map(str::to_owned)
    };
    choices.iter().map(|c| text(c).unwrap()).collect()
}

#[test]
fn several_prompts_and_answers_come_by_their_index_whole_and_in_pieces() {
    let test = "several_prompts_and_answers_come_by_their_index_whole_and_in_pieces";
    let Some(s) = serve(test, &["--parallel", "2", "--queue", "6"]) else {
        return;
    };
    let one = json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0});
    let (_, first) = s.post(COMPLETION, &one);
    let (_, second) = s.post(
        COMPLETION,
        &with(&one, &json!({"prompt": "The lighthouse"})),
    );
    let many = with(
        &one,
        &json!({"prompt": ["Once upon a time", "The lighthouse"], "n": 2}),
    );
    let (status, all) = s.post(COMPLETION, &many);
    assert_eq!(status, 200, "{all}");
    let [a, b] = [texts(&first).remove(0), texts(&second).remove(0)];
    assert_eq!(texts(&all), [a.clone(), a.clone(), b.clone(), b.clone()]);
    assert_eq!(all["usage"]["completion_tokens"], 32);
    assert_eq!(
        all["usage"]["prompt_tokens"].as_u64().unwrap(),
        first["usage"]["prompt_tokens"].as_u64().unwrap()
            + second["usage"]["prompt_tokens"].as_u64().unwrap()
    );

    let streamed = with(
        &many,
        &json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let got = s.stream(COMPLETION, &streamed, |_| true).unwrap();
    let mut pieces = vec![String::new(); 4];
    let mut ends = vec![0; 4];
    for (_, piece) in &got.pieces {
        for c in piece["choices"].as_array().unwrap() {
            let i = usize::try_from(c["index"].as_u64().unwrap()).unwrap();
            pieces[i].push_str(c["text"].as_str().unwrap());
            ends[i] += usize::from(c["finish_reason"].is_string());
        }
    }
    assert!(got.done);
    assert_eq!((pieces, ends), (texts(&all), vec![1; 4]));
    assert_eq!(got.usage().unwrap()["completion_tokens"], 32);

    // Answers to one prompt differ, and a seed makes them the same again.
    let chat = json!({
        "messages": [{"role": "user", "content": "Tell me about rivers."}],
        "n": 3, "max_tokens": 12, "temperature": 1.5, "seed": 7,
    });
    let (_, answer) = s.post(CHAT, &chat);
    let three = texts(&answer);
    assert!(three[0] != three[1] && three[1] != three[2], "{three:?}");
    assert_eq!(texts(&s.post(CHAT, &chat).1), three);
    // More than there are places.
    let (status, answer) = s.post(CHAT, &with(&chat, &json!({"n": 9})));
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("n")),
        "{answer}"
    );
    assert_eq!(s.rest().requests.cancelled, 0);
}

#[test]
fn fields_that_steer_what_is_drawn_are_obeyed() {
    let test = "fields_that_steer_what_is_drawn_are_obeyed";
    let Some(s) = serve(test, &[]) else { return };
    let tokens = |text: &str| -> Vec<u64> {
        let (_, got) = s.post("/tokenize", &json!({"content": text}));
        got["tokens"]
            .as_array()
            .unwrap_or_else(|| panic!("{got}"))
            .iter()
            .map(|t| t.as_u64().unwrap())
            .collect()
    };
    let plain = json!({"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0});
    let text = texts(&s.post(COMPLETION, &plain).1).remove(0);
    let first = tokens(&text)[0];

    let without = s
        .post(
            COMPLETION,
            &with(&plain, &json!({"logit_bias": {first.to_string(): -100}})),
        )
        .1;
    assert_ne!(tokens(&texts(&without)[0])[0], first, "{without}");
    let lamp = tokens(" lamp")[0];
    let only = s
        .post(
            COMPLETION,
            &with(&plain, &json!({"logit_bias": {lamp.to_string(): 100}})),
        )
        .1;
    assert_eq!(texts(&only)[0], " lamp".repeat(6));
    let (status, e) = s.post(
        COMPLETION,
        &with(&plain, &json!({"logit_bias": {"999999": 1}})),
    );
    assert_eq!(
        (status, &e["error"]["param"]),
        (400, &json!("logit_bias")),
        "{e}"
    );

    // The third token ends it, and is part of the answer as it is no control token.
    let third = tokens(&text)[2];
    let (_, ended) = s.post(
        COMPLETION,
        &with(&plain, &json!({"stop_token_ids": [third]})),
    );
    assert_eq!(ended["choices"][0]["finish_reason"], "stop", "{ended}");
    assert_eq!(tokens(&texts(&ended)[0]), tokens(&text)[..3]);
    let longer = json!({"stop_token_ids": [third], "min_tokens": 4});
    let (_, longer) = s.post(COMPLETION, &with(&plain, &longer));
    assert!(
        longer["usage"]["completion_tokens"].as_u64().unwrap() >= 4,
        "{longer}"
    );

    // So narrow that the likeliest alone is left.
    for narrow in [
        json!({"min_p": 1}),
        json!({"top_k": 1}),
        json!({"top_p": 0}),
    ] {
        let hot = with(&with(&plain, &json!({"temperature": 1.5})), &narrow);
        assert_eq!(texts(&s.post(COMPLETION, &hot).1)[0], text, "{narrow}");
    }
    let hot = json!({"temperature": 1.5, "typical_p": 0.2, "seed": 3});
    let (status, typical) = s.post(COMPLETION, &with(&plain, &hot));
    assert_eq!(status, 200, "{typical}");

    let echo = with(&plain, &json!({"echo": true}));
    assert_eq!(
        texts(&s.post(COMPLETION, &echo).1)[0],
        format!("The capital of France is{text}")
    );
    let nothing = with(&echo, &json!({"max_tokens": 0}));
    assert_eq!(
        texts(&s.post(COMPLETION, &nothing).1)[0],
        "The capital of France is"
    );
    let got = s
        .stream(COMPLETION, &with(&echo, &json!({"stream": true})), |_| true)
        .unwrap();
    assert_eq!(got.text(), format!("The capital of France is{text}"));

    // Up to the context, where no limit is given.
    let to_the_end =
        json!({"max_tokens": -1, "ignore_eos": true, "logit_bias": {lamp.to_string(): 100}});
    let small = Served::start(&model(test).unwrap(), &["--ctx", "64"], None);
    let (_, all) = small.post(COMPLETION, &with(&plain, &to_the_end));
    assert_eq!(all["choices"][0]["finish_reason"], "length");
    assert_eq!(all["usage"]["total_tokens"], 64, "{all}");
}

#[test]
fn a_gap_is_filled_where_the_vocabulary_has_tokens_for_it() {
    let test = "a_gap_is_filled_where_the_vocabulary_has_tokens_for_it";
    let Some(file) = model(test) else { return };
    let body = json!({"prompt": "def f(", "suffix": "\n    return x", "max_tokens": 3});
    let s = Served::start(&file, &[], None);
    for path in [COMPLETION, "/api/generate"] {
        let (status, e) = s.post(path, &body);
        assert!(
            status == 400 && e.to_string().contains("no fill-in tokens"),
            "{e}"
        );
    }
    let mut tiny = Tiny::open(&file).unwrap();
    for (key, id) in [("fim_pre", 3), ("suffix", 4), ("fim_mid", 5)] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        tiny.metadata.insert(key, Setting::U32(id));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fill.gguf");
    tiny.write(&path).unwrap();
    let s = Served::start(&path, &[], None);
    let (status, filled) = s.post(COMPLETION, &body);
    assert_eq!(status, 200, "{filled}");
    let count = |text: &str| s.post("/tokenize", &json!({"content": text})).1["count"].as_u64();
    let texts = count("def f(").unwrap() + count("\n    return x").unwrap();
    assert_eq!(filled["usage"]["prompt_tokens"], texts + 3, "{filled}");
    let ollama = json!({
        "prompt": "def f(", "suffix": "\n    return x", "stream": false, "options": {"num_predict": 3},
    });
    let (status, answer) = s.post("/api/generate", &ollama);
    assert_eq!(
        (status, &answer["prompt_eval_count"]),
        (200, &json!(texts + 3)),
        "{answer}"
    );
    let listed = json!({"prompt": ["a", "b"], "suffix": "c"});
    assert_eq!(s.post(COMPLETION, &listed).1["error"]["param"], "suffix");
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "suffix": "c"});
    assert_eq!(s.post(CHAT, &chat).1["error"]["param"], "suffix");
}

#[test]
fn models_and_tokens_are_told() {
    let Some(s) = serve(
        "models_and_tokens_are_told",
        &["--alias", "org/smol:latest", "--ctx", "1024"],
    ) else {
        return;
    };
    let (status, body) = s.get("/v1/models/org/smol:latest");
    assert_eq!(status, 200, "{body}");
    let one: Value = serde_json::from_str(&body).unwrap();
    let all: Value = serde_json::from_str(&s.get("/v1/models").1).unwrap();
    assert_eq!(all["data"][0], one);
    assert_eq!(s.get("/v1/models/gpt-9").0, 404);

    let text = "Half an emoji 🦀, naïve words\n and  spaces";
    let (_, vllm) = s.post(
        "/tokenize",
        &json!({"model": "org/smol:latest", "prompt": text}),
    );
    let (_, llama) = s.post("/tokenize", &json!({"content": text}));
    assert_eq!(
        vllm["tokens"], llama["tokens"],
        "this model has no token before a text"
    );
    assert_eq!(vllm["count"], vllm["tokens"].as_array().unwrap().len());
    let (_, back) = s.post("/detokenize", &json!({"tokens": vllm["tokens"]}));
    assert_eq!(
        (&back["prompt"], &back["content"]),
        (&json!(text), &json!(text))
    );
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let (_, counted) = s.post("/tokenize", &chat);
    let (_, answer) = s.post(CHAT, &with(&chat, &json!({"max_tokens": 1})));
    assert_eq!(counted["count"], answer["usage"]["prompt_tokens"]);
    // More than the context, and what is not obeyed.
    for (path, body, field) in [
        ("/detokenize", json!({"tokens": vec![5; 100_000]}), "tokens"),
        (
            "/tokenize",
            json!({"content": "x", "parse_special": false}),
            "parse_special",
        ),
        (
            "/tokenize",
            json!({"content": "x", "with_pieces": true}),
            "with_pieces",
        ),
    ] {
        let (status, e) = s.post(path, &body);
        assert_eq!((status, &e["error"]["param"]), (400, &json!(field)), "{e}");
    }
    // Ollama's clients add a tag, or leave it out.
    for name in ["org/smol", "org/smol:latest"] {
        let body =
            json!({"model": name, "prompt": "hi", "stream": false, "options": {"num_predict": 1}});
        for path in ["/api/generate", "/api/show"] {
            let (status, answer) = s.post(path, &body);
            assert_eq!(status, 200, "{answer}");
        }
    }
    // What the file knows of the model, and the context that there is here.
    let (_, shown) = s.post("/api/show", &json!({"model": "org/smol"}));
    for (at, value) in [
        ("/details/family", json!("llama")),
        ("/details/parameter_size", json!("134.52M")),
        ("/model_info/general.parameter_count", json!(134_515_008)),
        ("/model_info/llama.block_count", json!(30)),
        ("/model_info/llama.context_length", json!(1024)),
        ("/model_info/tokenizer.ggml.tokens", json!(null)),
    ] {
        assert_eq!(shown.pointer(at), Some(&value), "{at}: {shown}");
    }
    let has = |at: &str, text| shown.pointer(at).unwrap().as_str().unwrap().contains(text);
    assert!(has("/template", "<|im_start|>") && has("/details/quantization_level", "Q"));
    for bad in [
        json!({}),
        json!({"tokens": [999_999]}),
        json!({"tokens": "x"}),
        json!([]),
    ] {
        assert_eq!(s.post("/detokenize", &bad).0, 400, "{bad}");
    }
    assert_eq!(s.post("/tokenize", &json!({"text": "x"})).0, 400);
}

#[test]
fn a_prompt_that_is_repeated_has_the_logprobs_that_its_tokens_had_when_they_were_generated() {
    let test = "a_prompt_that_is_repeated_has_logprobs";
    let Some(s) = serve(test, &[]) else { return };
    let body =
        json!({"prompt": "A lighthouse keeper", "max_tokens": 40, "temperature": 0, "logprobs": 2});
    let (_, made) = s.post(COMPLETION, &body);
    let text = texts(&made).remove(0);
    let whole = format!("A lighthouse keeper{text}");
    // Through several chunks, and nothing of it from the cache.
    let long = format!("{} {whole}", "The sea was calm. ".repeat(80));
    for prompt in [&whole, &long] {
        let scored = json!({
            "prompt": prompt, "echo": true, "max_tokens": 0, "logprobs": 2,
        });
        let (status, answer) = s.post(COMPLETION, &scored);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(texts(&answer)[0], *prompt);
        let logprobs = &answer["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().unwrap();
        assert_eq!(
            tokens.len() as u64,
            answer["usage"]["prompt_tokens"].as_u64().unwrap()
        );
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
        let joined: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(&joined, prompt);
        assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
        let last = tokens.len() - 1;
        let offset = logprobs["text_offset"][last].as_u64().unwrap();
        let word = tokens[last].as_str().unwrap().chars().count();
        assert_eq!(offset, (prompt.chars().count() - word) as u64);
        assert_eq!(logprobs["top_logprobs"][last].as_object().unwrap().len(), 2);
    }
    let scored = json!({"prompt": whole, "echo": true, "max_tokens": 0, "logprobs": 2});
    let (_, answer) = s.post(COMPLETION, &scored);
    let of = |answer: &Value| -> Vec<f64> {
        let all = answer["choices"][0]["logprobs"]["token_logprobs"]
            .as_array()
            .unwrap();
        all.iter().filter_map(Value::as_f64).collect()
    };
    let (generated, again) = (of(&made), of(&answer));
    assert_eq!(generated.len(), 40);
    // Few rows and many go through different kernels; another token's would be
    // some nats apart.
    let apart = generated.iter().rev().zip(again.iter().rev());
    let apart: Vec<f64> = apart.map(|(a, b)| (a - b).abs()).collect();
    let mean = apart.iter().sum::<f64>() / 40.0;
    assert!(
        apart.iter().all(|d| *d < 0.25) && mean < 0.05,
        "{mean}: {apart:?}"
    );
    // And with an answer behind it, whole and in pieces.
    let more =
        json!({"prompt": "A lamp", "echo": true, "max_tokens": 3, "temperature": 0, "logprobs": 1});
    let (_, answer) = s.post(COMPLETION, &more);
    assert_eq!(of(&answer).len(), 4, "{answer}");
    let got = s
        .stream(COMPLETION, &with(&more, &json!({"stream": true})), |_| true)
        .unwrap();
    assert_eq!(got.text(), texts(&answer)[0]);
}

#[test]
fn texts_become_vectors_of_length_1() {
    let Some(s) = serve("texts_become_vectors_of_length_1", &["--parallel", "2"]) else {
        return;
    };
    let ask = |body: &Value| s.post("/v1/embeddings", body);
    let long = "The tide comes in at dusk. ".repeat(90);
    let texts = json!(["A lamp.", &long, "A lamp.", "Stocks fell on Friday."]);
    let (status, answer) = ask(&json!({"input": texts}));
    assert_eq!(status, 200, "{answer}");
    let vector = |v: &Value| -> Vec<f64> {
        v["embedding"]
            .as_array()
            .unwrap_or_else(|| panic!("{v}"))
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    let all: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(vector)
        .collect();
    assert_eq!(all.len(), 4);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for v in &all {
        assert_eq!(v.len(), 576);
        assert!((dot(v, v) - 1.0).abs() < 1e-4);
    }
    assert!(dot(&all[0], &all[2]) > 0.9999);
    assert!(dot(&all[0], &all[3]) < 0.99);
    // A text by its tokens, alone, and as base64.
    let (_, tokens) = s.post("/tokenize", &json!({"content": "A lamp."}));
    let (_, one) = ask(&json!({"input": tokens["tokens"]}));
    assert!(dot(&vector(&one["data"][0]), &all[0]) > 0.9999);
    assert_eq!(one["usage"]["prompt_tokens"], tokens["count"]);
    let (_, base64) = ask(&json!({"input": "A lamp.", "encoding_format": "base64"}));
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (576 * 4usize).div_ceil(3) * 4);
    for (bad, field) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": [1, "a"]}), "input"),
        (json!({"input": "a", "dimensions": 5}), "dimensions"),
        (
            json!({"input": "a", "encoding_format": "x"}),
            "encoding_format",
        ),
        (json!({"input": [999_999]}), "input"),
    ] {
        let (status, e) = ask(&bad);
        assert_eq!(
            (status, &e["error"]["param"]),
            (400, &json!(field)),
            "{bad}: {e}"
        );
    }
    assert_eq!(ask(&json!({"input": "a", "model": "x"})).0, 404);
    // More than there are places: each in its turn, and in their order.
    let many: Vec<String> = (0..150).map(|i| format!("Number {}.", i % 50)).collect();
    let (status, answer) = ask(&json!({"input": many}));
    assert_eq!(status, 200, "{answer}");
    let got: Vec<Vec<f64>> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(vector)
        .collect();
    assert_eq!(got.len(), 150);
    assert!(dot(&got[7], &got[57]) > 0.999 && dot(&got[7], &got[107]) > 0.999);
    assert!(dot(&got[7], &got[8]) < 0.9999);
    let (status, ollama) = s.post("/api/embed", &json!({"input": ["A lamp.", "x"]}));
    assert_eq!(status, 200, "{ollama}");
    assert_eq!(ollama["embeddings"][0].as_array().unwrap().len(), 576);
    let (status, e) = ask(&json!({"input": vec!["a"; 2049]}));
    let why = e["error"]["message"].as_str().unwrap();
    assert!(status == 400 && why.contains("2048"), "{e}");
    // Beside a chat that goes on.
    let chat = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60, "ignore_eos": true});
    let (beside, alone) = std::thread::scope(|scope| {
        let chat = scope.spawn(|| s.post(CHAT, &chat));
        let beside = ask(&json!({"input": &long})).1;
        assert_eq!(chat.join().unwrap().0, 200);
        (beside, &all[1])
    });
    assert!(dot(&vector(&beside["data"][0]), alone) > 0.9999);
    assert_eq!(s.rest().inbound.answer_bytes.0, 0);
}

/// What was begun ends the prompt, though the template's own text has it, too.
#[test]
fn an_answer_that_was_begun_goes_on_where_it_ends() {
    let test = "an_answer_that_was_begun_goes_on_where_it_ends";
    let Some(file) = model(test) else { return };
    let mut s = Served::start(&file, &[], None);
    for begun in ["<", "e", "|", "im_end", "The answer is  ", "\u{e9}"] {
        let body = json!({
            "messages": [
                { "role": "user", "content": "e < | im_end" },
                { "role": "assistant", "content": begun },
            ],
            "continue_final_message": true, "add_generation_prompt": false,
        });
        let (status, told) = s.post("/tokenize", &body);
        assert_eq!(status, 200, "{told}");
        let (_, told) = s.post("/detokenize", &json!({ "tokens": told["tokens"] }));
        let text = told["prompt"].as_str().unwrap();
        let end = format!("<|im_start|>assistant\n{}", begun.trim_end());
        assert!(text.ends_with(&end), "{begun:?}: {text:?}");
    }
    s.stop();
}
