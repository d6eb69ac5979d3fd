//! Chat templates by name, for files that have none or a broken one.
//!
//! Owns the formats of families that many models share, each as its model's
//! card describes it. Out of scope: tools, and what only one model has.

use super::{ChatTemplate, MOST_SOURCE};
use crate::model::{gguf::ModelError, open_regular};
use std::{
    io::{self, Read},
    path::Path,
};

/// Names that `--chat-template` takes.
pub const NAMES: &[&str] = &["chatml", "llama3", "gemma", "mistral", "deepseek"];

fn source(name: &str) -> Option<&'static str> {
    Some(match name {
        // OpenAI's format; Qwen, SmolLM2 and many more.
        "chatml" => concat!(
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ),
        "llama3" => concat!(
            "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' ",
            "+ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}",
            "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ),
        // Instructions come with the first question.
        "gemma" => concat!(
            "{{ bos_token }}{% set first = namespace(text='') %}{% for m in messages %}",
            "{% if m.role == 'system' %}{% set first.text = m.content | trim + '\\n\\n' %}{% else %}",
            "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + first.text ",
            "+ m.content | trim + '<end_of_turn>\\n' }}{% set first.text = '' %}{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        ),
        "mistral" => concat!(
            "{{ bos_token }}{% set first = namespace(text='') %}{% for m in messages %}",
            "{% if m.role == 'system' %}{% set first.text = m.content + '\\n\\n' %}",
            "{% elif m.role == 'user' %}{{ '[INST] ' + first.text + m.content + ' [/INST]' }}",
            "{% set first.text = '' %}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        ),
        "deepseek" => concat!(
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}",
            "{% elif m.role == 'user' %}{{ '<\u{ff5c}User\u{ff5c}>' + m.content }}",
            "{% else %}{{ '<\u{ff5c}Assistant\u{ff5c}>' + m.content + eos_token }}{% endif %}{% endfor %}",
            "{% if add_generation_prompt %}{{ '<\u{ff5c}Assistant\u{ff5c}>' }}{% endif %}",
        ),
        _ => return None,
    })
}

impl ChatTemplate {
    /// The source that `--chat-template` means: one of [`NAMES`], else a file.
    ///
    /// # Errors
    /// It is neither, or no template of the file compiles.
    pub fn source_of(file_or_name: &str) -> Result<String, ModelError> {
        let source = match source(file_or_name) {
            Some(source) => source.to_owned(),
            None => read(Path::new(file_or_name)).map_err(|e| {
                ModelError::Template(format!(
                    "--chat-template {file_or_name}: {e}; give a file, or one of {}",
                    NAMES.join(", ")
                ))
            })?,
        };
        Self::compile(&source, String::new(), String::new())?;
        Ok(source)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let most = MOST_SOURCE as u64 + 1;
    open_regular(path)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chat::{Message, Role};

    #[test]
    fn every_name_renders_a_conversation_and_another_one_is_refused_with_the_list() {
        let messages = [
            Message::new(Role::System, "be brief"),
            Message::new(Role::User, "hi"),
            Message::new(Role::Assistant, "hello"),
            Message::new(Role::User, "bye"),
        ];
        let mut all = std::collections::BTreeSet::new();
        for name in NAMES {
            let source = ChatTemplate::source_of(name).unwrap();
            let t = ChatTemplate::compile(&source, "<s>".into(), "</s>".into()).unwrap();
            let text = t.render(&messages, true).unwrap();
            for part in ["be brief", "hi", "hello", "bye"] {
                assert_eq!(text.matches(part).count(), 1, "{name}: {text}");
            }
            assert!(all.insert(text), "{name} is another's");
        }
        let e = ChatTemplate::source_of("of-next-year")
            .unwrap_err()
            .to_string();
        assert!(e.contains("chatml") && !e.contains('\n'), "{e}");
    }
}
