//! Chat templates beside transformers: what it made of them was recorded by
//! `tests/data/chat_templates.py`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvpsi::model::chat::ChatTemplate;
use kvpsi_tests::vocabularies;
use serde_json::Value;

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
