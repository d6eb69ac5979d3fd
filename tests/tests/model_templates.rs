//! Chat templates beside transformers and Jinja2: what they made of them was recorded
//! by `tests/data/chat_templates.py` and `tests/data/template_cases.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::model::chat::ChatTemplate;
use kvpsi_tests::{skip, vocabularies};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

fn recorded() -> Value {
    serde_json::from_str(include_str!("../data/chat_templates.json")).unwrap()
}

fn compare(what: &str, template: &ChatTemplate, variables: &str, want: &Value) -> Option<String> {
    let got = template.render_json(variables);
    match (want.as_str(), got) {
        (Some(want), Ok(got)) if got == want => None,
        (None, Err(e)) => {
            assert!(!e.to_string().contains('\n'), "{e}");
            None
        }
        (want, got) => Some(format!("{what}\n  want {want:?}\n  got  {got:?}")),
    }
}

#[test]
fn what_transformers_gives_a_template_is_there_and_writes_the_same() {
    let recorded = recorded();
    let variables = recorded["variables"].as_str().unwrap();
    let mut wrong = Vec::new();
    for case in recorded["environment"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let template = ChatTemplate::compile(source, "<s>".into(), "</s>".into()).unwrap();
        wrong.extend(compare(source, &template, variables, &case["text"]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One filter, method, operator or statement each. Those that are known to differ
/// must: a reason that is no longer one is taken out.
#[test]
fn small_templates_render_as_jinja2_renders_them() {
    let recorded = include_str!("../data/template_cases.json");
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let variables = recorded["variables"].as_str().unwrap();
    let cases = recorded["cases"].as_array().unwrap();
    let (mut wrong, mut different) = (Vec::new(), 0);
    for case in cases {
        let source = case["source"].as_str().unwrap();
        // One that does not compile is refused, as one that fails.
        let compared = match ChatTemplate::compile(source, "<s>".into(), "</s>".into()) {
            Ok(template) => compare(source, &template, variables, &case["text"]),
            Err(e) => case["text"].as_str().map(|_| format!("{source}\n  {e}")),
        };
        match (&case["different"], compared) {
            (Value::Null, compared) => wrong.extend(compared),
            (why, None) => wrong.push(format!("{source} is the same, in spite of: {why}")),
            _ => different += 1,
        }
    }
    println!(
        "{} the same, {different} not",
        cases.len() - different - wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Those that llama.cpp's sources have, where these are.
#[test]
fn llama_cpps_templates_render_as_transformers_renders_them() {
    let test = "llama_cpps_templates_render_as_transformers_renders_them";
    let Some(folder) = std::env::var_os("KVPSI_TEMPLATES") else {
        skip(
            test,
            "KVPSI_TEMPLATES is not set: models/templates of llama.cpp's sources",
        );
        return;
    };
    let recorded = recorded();
    let (mut same, mut wrong) = (0, Vec::new());
    for (name, texts) in recorded["llama_cpp"].as_object().unwrap() {
        let source = std::fs::read_to_string(Path::new(&folder).join(name)).unwrap();
        let source = source.replace("strftime_now(", "'today'.format(");
        let template = ChatTemplate::compile(&source, "<s>".into(), "</s>".into()).unwrap();
        let cases = recorded["cases"].as_array().unwrap();
        for (i, (case, want)) in cases.iter().zip(texts.as_array().unwrap()).enumerate() {
            let got = template.render_json(case.as_str().unwrap());
            let hash = got.as_ref().ok().map(|text| sha256(text)[..16].to_owned());
            if hash.as_deref() == want.as_str() {
                same += 1;
            } else if !DIFFERENT.contains(&(name.as_str(), i)) {
                wrong.push(format!("{name}, case {i}: {got:?}"));
            }
        }
    }
    println!("{same} the same");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What `safe` does to a text that is added to it, and a generator that Python
/// cannot write as JSON.
const DIFFERENT: [(&str, usize); 8] = [
    ("meetkai-functionary-medium-v3.1.jinja", 9),
    ("meetkai-functionary-medium-v3.1.jinja", 10),
    ("meetkai-functionary-medium-v3.1.jinja", 11),
    ("meetkai-functionary-medium-v3.1.jinja", 12),
    ("llama-cpp-deepseek-r1.jinja", 9),
    ("llama-cpp-deepseek-r1.jinja", 10),
    ("llama-cpp-deepseek-r1.jinja", 11),
    ("llama-cpp-deepseek-r1.jinja", 12),
];

fn sha256(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_templates_of_real_models_render_as_transformers_renders_them() {
    let test = "the_templates_of_real_models_render_as_transformers_renders_them";
    let Some(folder) = vocabularies(test) else {
        return;
    };
    let recorded = recorded();
    let mut wrong = Vec::new();
    for (name, package) in recorded["packages"].as_object().unwrap() {
        let config = folder
            .join(name)
            .join("package/models/tokenizer_config.json");
        let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
        let source = config["chat_template"].as_str().unwrap();
        let special = |key: &str| package[key].as_str().unwrap().to_owned();
        let template =
            ChatTemplate::compile(source, special("bos_token"), special("eos_token")).unwrap();
        for (i, case) in package["cases"].as_array().unwrap().iter().enumerate() {
            let what = format!("{name}, case {i}");
            let variables = case["variables"].as_str().unwrap();
            wrong.extend(compare(&what, &template, variables, &case["text"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
