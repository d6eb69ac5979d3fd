//! Which path is answered by what.
//!
//! Owns the paths, the checks that each wants, and how bodies are read: within
//! a size and a time. Out of scope: what answers are made of.

use super::{
    anthropic, api,
    complete::Completer,
    error::ApiError,
    guard,
    live::Live,
    ollama, page, responses,
    state::Server,
    view::{Control, History, Status, TrimDone, TrimOrder},
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde_json::json;
use std::sync::{Arc, atomic::Ordering::Relaxed};

type App = State<Arc<Server>>;

/// Paths that are counted by name.
const PATHS: [&str; 20] = [
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/api/show",
    "/api/ps",
    "/api/version",
    "/api/embed",
    "/kvpsi/status",
    "/kvpsi/history",
    "/kvpsi/trim",
    "/kvpsi/control",
    "/kvpsi/trace",
];

/// The whole of it.
pub(super) fn router(server: &Arc<Server>) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/responses", post(response))
        .route("/v1/messages", post(message))
        .merge(ollama())
        .route("/kvpsi/status", get(status))
        .route("/kvpsi/history", get(history))
        .route("/kvpsi/trim", post(trim))
        .route("/kvpsi/control", post(control))
        .route("/kvpsi/trace", get(trace))
        .layer(middleware::from_fn_with_state(server.clone(), admit));
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .merge(page::routes())
        .merge(guarded)
        .fallback(|uri: Uri| async move { ApiError::no_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method(method.as_str(), uri.path())
        })
        .layer(middleware::from_fn_with_state(server.clone(), count))
        .with_state(server.clone())
}

/// Ollama's paths.
fn ollama() -> Router<Arc<Server>> {
    let embed = || async { ollama::error(ApiError::not_yet("this server makes no embeddings")) };
    Router::new()
        .route("/api/chat", post(ollama_chat))
        .route("/api/generate", post(ollama_generate))
        .route(
            "/api/tags",
            get(|State(s): App| async move { Json(ollama::tags(&s)) }),
        )
        .route(
            "/api/ps",
            get(|State(s): App| async move { Json(ollama::ps(&s)) }),
        )
        .route("/api/version", get(|| async { Json(ollama::version()) }))
        .route("/api/show", post(ollama_show))
        .route("/api/embed", post(embed))
}

async fn ollama_show(State(s): App, headers: HeaderMap, body: Body) -> Response {
    let body = read(&s, &headers, body).await;
    let shown = body.and_then(|body| ollama::show(&s, &body));
    shown.map_or_else(ollama::error, |shown| Json(shown).into_response())
}

async fn ollama_chat(State(s): App, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let completer = completer(&s)?;
        let request = ollama::parse_chat(&read(&s, &headers, body).await?)?;
        ollama::answer(completer, request, true).await
    };
    answer.await.unwrap_or_else(ollama::error)
}

async fn ollama_generate(State(s): App, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let completer = completer(&s)?;
        let request = ollama::parse_generate(&read(&s, &headers, body).await?)?;
        ollama::answer(completer, request, false).await
    };
    answer.await.unwrap_or_else(ollama::error)
}

/// Counts responses, and those that turn a request away.
async fn count(State(server): App, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let known = PATHS.iter().find(|p| **p == path).copied();
    let response = next.run(request).await;
    let status = response.status();
    server
        .metrics
        .responded(known.unwrap_or("other"), status.as_u16());
    let reason = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "not_allowed",
        StatusCode::TOO_MANY_REQUESTS => "busy",
        StatusCode::SERVICE_UNAVAILABLE if known != Some("/health") => "unavailable",
        s if s.is_client_error() => "invalid",
        _ => return response,
    };
    server.metrics.refused(reason);
    if let Some(live) = server.live() {
        live.note_refused();
    }
    response
}

async fn admit(State(server): App, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let error = match path {
        "/v1/messages" => anthropic::error,
        _ if path.starts_with("/api/") => ollama::error,
        _ => ApiError::into_response,
    };
    key_of_anthropic(request.headers_mut());
    match guard::admit(request.headers(), server.config.api_key.as_deref()) {
        Ok(()) => next.run(request).await,
        Err(e) => error(e),
    }
}

/// Anthropic's clients send their key by a header of its own.
fn key_of_anthropic(headers: &mut HeaderMap) {
    if let Some(key) = headers.remove("x-api-key")
        && !headers.contains_key(AUTHORIZATION)
        && let Ok(bearer) = HeaderValue::from_bytes(&[b"Bearer ", key.as_bytes()].concat())
    {
        headers.insert(AUTHORIZATION, bearer);
    }
}

/// The model, once it is there.
fn ready(server: &Server) -> Result<Arc<Live>, ApiError> {
    server.live().ok_or_else(|| {
        ApiError::unavailable("loading", "the model is still being read; try again soon")
    })
}

/// The body of a request, if it is not too large and does not take too long.
async fn read(server: &Server, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    let most = server.config.max_body;
    let said = headers
        .get(CONTENT_LENGTH)
        .and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|l| l > most as u64) {
        return Err(ApiError::too_large(most));
    }
    let whole = Limited::new(body, most).collect();
    match tokio::time::timeout(server.config.body_timeout, whole).await {
        Err(_) => Err(ApiError::slow()),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(ApiError::too_large(most)),
        Ok(Err(e)) => Err(ApiError::bad(format!("the body could not be read: {e}"))),
    }
}

async fn chat(State(s): App, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    complete(s, headers, body, api::parse_chat).await
}

async fn completion(State(s): App, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    complete(s, headers, body, api::parse_completion).await
}

async fn response(State(s): App, headers: HeaderMap, body: Body) -> Result<Response, ApiError> {
    let completer = completer(&s)?;
    responses::answer(completer, &read(&s, &headers, body).await?).await
}

async fn message(State(s): App, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let completer = completer(&s)?;
        let request = anthropic::parse(&read(&s, &headers, body).await?)?;
        anthropic::answer(completer, request).await
    };
    answer.await.unwrap_or_else(anthropic::error)
}

async fn complete(
    server: Arc<Server>,
    headers: HeaderMap,
    body: Body,
    parse: fn(&[u8]) -> Result<api::Request, ApiError>,
) -> Result<Response, ApiError> {
    let completer = completer(&server)?;
    let request = parse(&read(&server, &headers, body).await?)?;
    completer.answer(request).await
}

fn completer(server: &Server) -> Result<Completer, ApiError> {
    Ok(Completer {
        live: ready(server)?,
        metrics: server.metrics.clone(),
        permits: server.permits.clone(),
        name: server.config.name.clone(),
        timeout: server.config.request_timeout,
        most_prompt: server.config.max_prompt.unwrap_or(usize::MAX),
    })
}

async fn models(State(server): App) -> Result<Response, ApiError> {
    let live = ready(&server)?;
    Ok(Json(json!({
        "object": "list",
        "data": [{
            "id": server.config.name, "object": "model", "created": server.started_unix,
            "owned_by": "kvpsi", "max_model_len": live.loaded.context,
        }],
    }))
    .into_response())
}

/// 200 only when a request would be taken.
async fn health(State(server): App) -> Response {
    let (status, what) = if server.draining.load(Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining")
    } else if server.live().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "loading")
    } else {
        (StatusCode::OK, "ok")
    };
    (status, Json(json!({"status": what}))).into_response()
}

async fn metrics(State(server): App) -> Response {
    let live = server.live();
    let status = live.as_ref().map(|l| l.status(server.permits.taken()));
    let of = live.as_ref().zip(status.as_ref()).map(|(live, status)| {
        let loaded = &live.loaded;
        (status, &*loaded.pool, loaded.governor.as_ref())
    });
    let preemptions = live
        .as_ref()
        .map_or(0, |l| l.loaded.account.preemptions.load(Relaxed));
    let text = server.metrics.render(of, preemptions);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn status(State(server): App) -> Result<Json<Status>, ApiError> {
    Ok(Json(ready(&server)?.status(server.permits.taken())))
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn history(
    State(server): App,
    since: Result<Query<Since>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<History>, ApiError> {
    let Query(since) = since.map_err(|e| ApiError::param("since", e.body_text()))?;
    Ok(Json(ready(&server)?.history(since.since)))
}

/// A body of a shape of ours.
async fn order<T: serde::de::DeserializeOwned>(
    server: &Server,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, ApiError> {
    serde_json::from_slice(&read(server, headers, body).await?)
        .map_err(|e| ApiError::bad(format!("the body is not what it must be: {e}")))
}

async fn trim(
    State(server): App,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TrimDone>, ApiError> {
    let live = ready(&server)?;
    let order: TrimOrder = order(&server, &headers, body).await?;
    // It waits for a layer of the model.
    tokio::task::spawn_blocking(move || Json(live.trim(order.bytes)))
        .await
        .map_err(|e| ApiError::internal(e.to_string()))
}

async fn control(
    State(server): App,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Status>, ApiError> {
    let live = ready(&server)?;
    let change: Control = order(&server, &headers, body).await?;
    if !live.control(change) {
        return Err(ApiError::param(
            "trimming",
            "no pressure source is open (--signal none): only manual trims are possible",
        ));
    }
    tracing::info!(?change, "changed by a client");
    Ok(Json(live.status(server.permits.taken())))
}

/// What the reactor sees and does, as JSON lines, until the client goes.
async fn trace(State(server): App) -> Result<Response, ApiError> {
    ready(&server)?;
    let watched = server.watchers.watch();
    let lines = tokio_stream::wrappers::BroadcastStream::new(watched);
    let lines = tokio_stream::StreamExt::map(lines, |chunk| {
        Ok::<_, std::convert::Infallible>(match chunk {
            Ok(lines) => Bytes::from(lines.as_bytes().to_vec()),
            // Chunks, not entries: how many entries these had is not known.
            Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(n)) => {
                Bytes::from(format!("{{\"Lost\":{n}}}\n"))
            }
        })
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    let headers = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}
