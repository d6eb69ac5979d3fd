//! From what a client asks to what the model gets: tokens, a grammar, and how
//! its answer is taken apart.
//!
//! Out of scope: the fields of requests, admission, and the shapes of answers.

use super::{
    api::{Prompt, Request},
    error::ApiError,
    live::Live,
};
use crate::{
    engine::{Constraint, Grammar},
    model::{
        chat::{AnswerParser, Conversation, ToolFormat},
        gguf::ModelError,
    },
};

/// A request as the model gets it.
pub(super) struct Prepared {
    pub tokens: Vec<u32>,
    pub constraint: Option<Constraint>,
    /// None where all of the answer is text.
    pub parser: Option<AnswerParser>,
    /// Ids of calls have nine letters, as Mistral's templates want them.
    pub short_ids: bool,
}

/// A thought that the template began, and white space after it.
const REST_OF_THOUGHT: &str = r"/(?s:.*)<\/think>\s{0,2}/";

/// Takes a while for a long prompt or a large grammar: not on a thread of the
/// runtime.
pub(super) fn prepare(live: &Live, request: &Request) -> Result<Prepared, ApiError> {
    let loaded = &live.loaded;
    match &request.prompt {
        Prompt::Chat(conversation) => chat(live, request, conversation),
        Prompt::Text(text) => {
            // Control tokens are recognised, as vLLM and llama.cpp do here.
            let tokens = loaded.tokenizer.encode(text, true).map_err(bad)?;
            bare(live, request, tokens)
        }
        Prompt::Tokens(tokens) => {
            let vocab = loaded.vocab;
            match tokens.iter().find(|t| **t as usize >= vocab) {
                Some(t) => Err(ApiError::param(
                    "prompt",
                    format!("`prompt` has the token {t}; this model has {vocab}"),
                )),
                None => bare(live, request, tokens.clone()),
            }
        }
    }
}

fn bad(e: ModelError) -> ApiError {
    ApiError::param("messages", e.to_string())
}

/// A prompt without turns.
fn bare(live: &Live, request: &Request, tokens: Vec<u32>) -> Result<Prepared, ApiError> {
    if tokens.is_empty() {
        return Err(ApiError::param("prompt", "`prompt` is empty"));
    }
    let grammars = request.grammar.iter().map(|(_, g)| g.clone()).collect();
    Ok(Prepared {
        tokens,
        constraint: constraint(live, request, grammars, None)?,
        parser: None,
        short_ids: false,
    })
}

fn chat(live: &Live, request: &Request, asked: &Conversation) -> Result<Prepared, ApiError> {
    let loaded = &live.loaded;
    let template = loaded.chat.as_ref().ok_or_else(|| {
        ApiError::bad(
            "this model has no chat template: use /v1/completions, or start with --chat-template",
        )
    })?;
    let style = template.style();
    let tools = request.tools.told();
    if !tools.is_empty() && style.format.is_none() {
        return Err(ApiError::unsupported(
            "tools",
            "this model's template has calls in a form that is not read here; --chat-template gives another",
        ));
    }
    let prompt = template.tokens(asked, &loaded.tokenizer).map_err(bad)?;
    let format = style.format.unwrap_or(ToolFormat::Hermes);
    let (grammars, before) = answers(live, request, format);
    let before = match prompt.thinking {
        true => Some(REST_OF_THOUGHT.to_owned()),
        false => before,
    };
    Ok(Prepared {
        tokens: prompt.tokens,
        constraint: constraint(live, request, grammars, before.as_deref())?,
        parser: AnswerParser::new(style, tools, prompt.thinking),
        short_ids: matches!(format, ToolFormat::Mistral | ToolFormat::MistralArgs),
    })
}

/// What the answer must be one of, and what comes before it.
fn answers(live: &Live, request: &Request, format: ToolFormat) -> (Vec<Grammar>, Option<String>) {
    let tokenizer = &live.loaded.tokenizer;
    let calls =
        |tools: &[_]| Grammar::Lark(format.grammar(tools, !request.tools.one_call, tokenizer));
    if let Some(forced) = request.tools.forced() {
        return (vec![calls(&forced)], None);
    }
    let Some((_, grammar)) = request.grammar.clone() else {
        return (Vec::new(), None);
    };
    match request.tools.told() {
        [] => (vec![grammar], format.before_text(tokenizer)),
        told => (vec![grammar, calls(told)], None),
    }
}

fn constraint(
    live: &Live,
    request: &Request,
    grammars: Vec<Grammar>,
    before: Option<&str>,
) -> Result<Option<Constraint>, ApiError> {
    if grammars.is_empty() {
        return Ok(None);
    }
    let compiled = live
        .loaded
        .grammars()
        .and_then(|g| g.compile(grammars, before));
    compiled.map(Some).map_err(|e| {
        let field = request.grammar.as_ref().map_or("tools", |(field, _)| field);
        ApiError::param(field, format!("`{field}` cannot be obeyed: {e}"))
    })
}
