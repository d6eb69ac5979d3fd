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
    engine::{Constraint, Grammar, GrammarError},
    model::{
        chat::{self, AnswerParser, ChatTemplate, ChatText, Style, Tool, ToolFormat},
        gguf::ModelError,
        tokenizer::TooLong,
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

/// Takes a while for a long prompt or a large grammar: not on a thread of the
/// runtime. The prompt may have `most` tokens. What the tools and the grammar of
/// `request` say is in what comes back.
pub(super) fn prepare(
    live: &Live,
    request: &Request,
    prompt: Prompt,
    most: usize,
) -> Result<Prepared, ApiError> {
    let Prompt::Chat(asked) = prompt else {
        let grammars = request.grammar.iter().map(|(_, g)| g.clone()).collect();
        return Ok(Prepared {
            tokens: tokens(live, prompt, request.field, most)?,
            constraint: constraint(live, request, grammars, None)?,
            parser: None,
            short_ids: false,
        });
    };
    let template = template(live)?;
    let style = template.style();
    let tools = request.tools.told();
    if !tools.is_empty() && style.format.is_none() {
        return Err(ApiError::unsupported(
            "tools",
            "this model's template has calls in a form that is not read here; --chat-template gives another",
        ));
    }
    let field = request.field;
    let text = template.text(asked, &live.loaded.tokenizer);
    let text = text.map_err(|e| bad(field, &e))?;
    let thinking = text.thinking();
    let tokens = chat_tokens(live, &text, field, most)?;
    drop(text);
    let format = style.format.unwrap_or(ToolFormat::Hermes);
    let Answers {
        grammars,
        before,
        held,
    } = answers(live, request, style, thinking)?;
    let parser = AnswerParser::new(style, tools, thinking);
    let before = match thinking {
        true => Some(chat::rest_of_thought(&live.loaded.tokenizer)),
        false => before,
    };
    Ok(Prepared {
        tokens,
        constraint: constraint(live, request, grammars, before.as_deref())?,
        parser: match held {
            true => parser.map(AnswerParser::held),
            false => parser,
        },
        short_ids: matches!(format, ToolFormat::Mistral | ToolFormat::MistralArgs),
    })
}

fn bad(field: &str, e: &ModelError) -> ApiError {
    let hint = match e {
        ModelError::Template(_) => {
            "; /v1/completions does without, `kvpsi serve --chat-template` takes another one"
        }
        _ => "",
    };
    ApiError::param(field, format!("{e}{hint}"))
}

fn template(live: &Live) -> Result<&ChatTemplate, ApiError> {
    live.loaded.chat.as_deref().ok_or_else(|| {
        ApiError::bad(
            "this model has no chat template: use /v1/completions, or start with --chat-template",
        )
    })
}

/// Tokens of a text, if they are `most` or less.
pub(super) fn encode(
    live: &Live,
    text: &str,
    start: bool,
    field: &str,
    most: usize,
) -> Result<Vec<u32>, ApiError> {
    let tokens = live.loaded.tokenizer.encode_up_to(text, start, most);
    short(tokens, field, most)
}

fn chat_tokens(
    live: &Live,
    text: &ChatText,
    field: &str,
    most: usize,
) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &live.loaded.tokenizer;
    let tokens = tokenizer.encode_guarded(&text.text, text.mark, most);
    short(tokens, field, most)
}

fn short(
    tokens: Result<Result<Vec<u32>, TooLong>, ModelError>,
    field: &str,
    most: usize,
) -> Result<Vec<u32>, ApiError> {
    let tokens = tokens.map_err(|e| bad(field, &e))?;
    tokens.map_err(|e| match e {
        TooLong::Tokens(least) => ApiError::too_long(field, least, most),
        TooLong::Run(bytes) => ApiError::no_cut(field, bytes),
    })
}

/// The prompt's tokens, if they are `most` or less. It came in `field`.
pub(super) fn tokens(
    live: &Live,
    prompt: Prompt,
    field: &str,
    most: usize,
) -> Result<Vec<u32>, ApiError> {
    let loaded = &live.loaded;
    let empty = || ApiError::param(field, format!("`{field}` is empty"));
    match prompt {
        Prompt::Chat(asked) => {
            let text = template(live)?.text(asked, &loaded.tokenizer);
            let text = text.map_err(|e| bad(field, &e))?;
            chat_tokens(live, &text, field, most)
        }
        Prompt::Text(text) => {
            // Control tokens are recognised, as vLLM and llama.cpp do here.
            let tokens = encode(live, &text, true, field, most)?;
            match tokens.is_empty() {
                true => Err(empty()),
                false => Ok(tokens),
            }
        }
        Prompt::Fill(before, after) => {
            let filled = loaded.tokenizer.fill(&before, &after, most);
            match filled.transpose() {
                Some(tokens) => short(tokens, field, most),
                None => Err(ApiError::unsupported(
                    "suffix",
                    "this model has no fill-in tokens",
                )),
            }
        }
        Prompt::List(_) => Err(ApiError::internal("a list within a list of prompts")),
        Prompt::Tokens(tokens) => {
            let vocab = loaded.vocab;
            match tokens.iter().find(|t| **t as usize >= vocab) {
                Some(t) => Err(ApiError::param(
                    field,
                    format!("`{field}` has the token {t}; this model has {vocab}"),
                )),
                None if tokens.is_empty() => Err(empty()),
                None if tokens.len() > most => Err(ApiError::too_long(field, tokens.len(), most)),
                None => Ok(tokens),
            }
        }
    }
}

/// What the answer must be one of.
#[derive(Default)]
struct Answers {
    grammars: Vec<Grammar>,
    /// What comes before it.
    before: Option<String>,
    /// Calls come in the family's form alone.
    held: bool,
}

fn answers(
    live: &Live,
    request: &Request,
    style: Style,
    thinking: bool,
) -> Result<Answers, ApiError> {
    let tokenizer = &live.loaded.tokenizer;
    let format = style.format.unwrap_or(ToolFormat::Hermes);
    let parallel = !request.tools.one_call;
    let calls = |tools: &[_]| {
        let lark = format.grammar(tools, parallel, tokenizer);
        lark.map(Grammar::Lark).map_err(|e| cannot("tools", e))
    };
    let of = |grammars| Answers {
        grammars,
        ..Answers::default()
    };
    if let Some(forced) = request.tools.forced() {
        // There is a call instead of an answer; what is asked for beside it must be
        // something that could be obeyed all the same.
        if let Some((field, grammar)) = &request.grammar {
            compile(live, vec![grammar.clone()], None).map_err(|e| cannot(field, e))?;
        }
        return Ok(of(vec![calls(&forced)?]));
    }
    let told = request.tools.told();
    let Some((_, grammar)) = request.grammar.clone() else {
        if !told.iter().any(Tool::strict) {
            return Ok(Answers::default());
        }
        // A thought that was begun is before the answer.
        let thinks = style.thinks && !thinking;
        let free = format.free_grammar(told, parallel, thinks, tokenizer);
        let free = free.map_err(|e| cannot("tools", e))?;
        return Ok(Answers {
            held: free.is_some(),
            ..of(free.map(Grammar::Lark).into_iter().collect())
        });
    };
    Ok(match told {
        [] => Answers {
            before: format.before_text(tokenizer),
            ..of(vec![grammar])
        },
        told => of(vec![grammar, calls(told)?]),
    })
}

fn cannot(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::param(field, format!("`{field}` cannot be obeyed: {why}"))
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
    let sampling = &request.sampling;
    for (name, given) in [
        ("min_tokens", sampling.min_tokens > 0),
        ("ignore_eos", sampling.ignore_eos),
    ] {
        if given {
            let why = "the answer ends where its schema or grammar does";
            return Err(ApiError::unsupported(name, why));
        }
    }
    let alone = request.grammar.as_ref().filter(|_| grammars.len() > 1);
    let alone = alone.cloned();
    let compiled = compile(live, grammars, before);
    compiled.map(Some).map_err(|e| {
        let field = request.grammar.as_ref().map_or("tools", |(field, _)| field);
        // Which of them it is: the answer's, or that of calls.
        let calls = alone.is_some_and(|(_, g)| compile(live, vec![g], None).is_ok());
        cannot(if calls { "tools" } else { field }, e)
    })
}

fn compile(
    live: &Live,
    grammars: Vec<Grammar>,
    before: Option<&str>,
) -> Result<Constraint, GrammarError> {
    let all = live.loaded.grammars();
    all.and_then(|all| all.compile(grammars, before))
}
