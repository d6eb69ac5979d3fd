//! Which path is answered by what.
//!
//! Owns the paths, the checks that each wants, and how bodies are read: within
//! a size and a time. Out of scope: what answers are made of.

use super::{
    anthropic, api,
    complete::{Completer, is_model},
    connections::Connection,
    error::ApiError,
    inbound::Held,
    live::Live,
    observe::{Note, REQUEST_ID, observe},
    ollama, page, responses,
    state::Server,
    texts,
    view::{Control, History, Status, TrimDone, TrimOrder},
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::json;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tower::util::option_layer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

type App = State<Arc<Server>>;

/// How long a browser need not ask again.
const PREFLIGHT: Duration = Duration::from_secs(600);

/// The whole of it.
pub(super) fn router(server: &Arc<Server>) -> Router {
    let cors = cors(&server.config.access.origins);
    let admit = middleware::from_fn_with_state(server.clone(), admit);
    let administer = middleware::from_fn_with_state(server.clone(), administer);
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/responses", post(response))
        .route("/v1/messages", post(message))
        .route("/v1/messages/count_tokens", post(count))
        .merge(ollama_paths())
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/kvpsi/status", get(status))
        .route("/kvpsi/history", get(history))
        .layer(admit);
    let administered = Router::new()
        .route("/kvpsi/trim", post(trim))
        .route("/kvpsi/control", post(control))
        .route("/kvpsi/trace", get(trace))
        .layer(administer);
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .merge(page::routes())
        .merge(guarded)
        .merge(administered)
        .fallback(|uri: Uri| async move { ApiError::no_path(uri.path()) })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::method(method.as_str(), uri.path())
        })
        .layer(option_layer(cors))
        .layer(middleware::from_fn_with_state(server.clone(), observe))
        .with_state(server.clone())
}

/// Answers browsers that ask for pages of other origins, where some may.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = if origins.iter().any(|o| o == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|o| o.parse().ok()))
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST])
        // SDKs send headers of their own.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, RETRY_AFTER])
        // A page from the network may then ask a server on this machine.
        .allow_private_network(true)
        .max_age(PREFLIGHT);
    (!origins.is_empty()).then_some(layer)
}

/// Ollama's paths.
fn ollama_paths() -> Router<Arc<Server>> {
    let tags = |State(s): App| async move { Json(ollama::tags(&s)) };
    let ps = |State(s): App| async move { Json(ollama::ps(&s)) };
    let version = || async { Json(ollama::version()) };
    Router::new()
        .route("/api/chat", post(ollama_chat))
        .route("/api/generate", post(ollama_generate))
        .route("/api/tags", get(tags))
        .route("/api/ps", get(ps))
        .route("/api/version", get(version))
        .route("/api/show", post(ollama_show))
        .route("/api/embed", post(ollama_embed))
}

async fn admit(State(server): App, mut request: Request, next: Next) -> Response {
    let access = &server.config.access;
    key_of_anthropic(request.headers_mut());
    match access.admit(request.headers(), connection(&request)) {
        Ok(()) => next.run(request).await,
        Err(e) => e.into_response(),
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

async fn administer(State(server): App, request: Request, next: Next) -> Response {
    let access = &server.config.access;
    match access.administer(request.headers(), connection(&request)) {
        Ok(()) => next.run(request).await,
        Err(e) => e.into_response(),
    }
}

fn connection(request: &Request) -> Option<&Connection> {
    request.extensions().get::<Arc<Connection>>().map(|c| &**c)
}

/// The model, once it is there.
fn ready(server: &Server) -> Result<Arc<Live>, ApiError> {
    server.live().ok_or_else(|| {
        ApiError::unavailable("loading", "the model is still being read; try again soon")
    })
}

/// The body of a request, if it is not too large and does not take too long.
async fn read(server: &Server, request: Request) -> Result<Held, ApiError> {
    let (head, body) = request.into_parts();
    let said = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|l| l.to_str().ok()?.parse().ok());
    let connection = head.extensions.get::<Arc<Connection>>();
    let time = server.config.body_timeout;
    let connection = connection.map(|c| &**c);
    server.inbound.read(body, said, time, connection).await
}

async fn chat(State(s): App, request: Request) -> Result<Response, ApiError> {
    complete(s, request, api::parse_chat).await
}

async fn completion(State(s): App, request: Request) -> Result<Response, ApiError> {
    complete(s, request, api::parse_completion).await
}

async fn complete(
    server: Arc<Server>,
    request: Request,
    parse: fn(&[u8]) -> Result<api::Request, ApiError>,
) -> Result<Response, ApiError> {
    let (completer, body) = begin(&server, request).await?;
    completer.answer(body, parse).await
}

async fn embeddings(State(server): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&server, request).await?;
    completer.embed(body).await
}

async fn response(State(s): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&s, request).await?;
    responses::answer(completer, body).await
}

async fn message(State(s): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&s, request).await?;
    anthropic::answer(completer, body).await
}

async fn count(State(s): App, request: Request) -> Result<Response, ApiError> {
    let live = ready(&s)?;
    let body = read(&s, request).await?;
    let count = move |body: &[u8]| anthropic::count(&live, body);
    Ok(Json(texts::in_turn(&s, body, count).await?).into_response())
}

async fn ollama_chat(State(s): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&s, request).await?;
    ollama::answer(completer, body, true).await
}

async fn ollama_generate(State(s): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&s, request).await?;
    ollama::answer(completer, body, false).await
}

async fn ollama_embed(State(s): App, request: Request) -> Result<Response, ApiError> {
    let (completer, body) = begin(&s, request).await?;
    ollama::embed(completer, body).await
}

async fn ollama_show(State(s): App, request: Request) -> Result<Response, ApiError> {
    let body = read(&s, request).await?;
    let server = s.clone();
    let show = move |body: &[u8]| ollama::show(&server, body);
    Ok(Json(texts::in_turn(&s, body, show).await?).into_response())
}

/// What a request for an answer needs, and its body.
async fn begin(server: &Server, request: Request) -> Result<(Completer, Held), ApiError> {
    let live = ready(server)?;
    let note = request.extensions().get::<Arc<Note>>().cloned();
    let body = read(server, request).await?;
    let completer = Completer {
        live,
        metrics: server.metrics.clone(),
        permits: server.permits.clone(),
        inbound: server.inbound.clone(),
        note: note.unwrap_or_else(Note::new),
        name: server.config.name.clone(),
        timeout: server.config.request_timeout,
        most_prompt: server.config.max_prompt.unwrap_or(usize::MAX),
    };
    Ok((completer, body))
}

fn described(server: &Server, live: &Live) -> serde_json::Value {
    json!({
        "id": server.config.name, "object": "model", "created": server.started_unix,
        "owned_by": "kvpsi", "max_model_len": live.loaded.context,
    })
}

async fn models(State(server): App) -> Result<Response, ApiError> {
    let live = ready(&server)?;
    let all = json!({"object": "list", "data": [described(&server, &live)]});
    Ok(Json(all).into_response())
}

async fn model(State(server): App, Path(id): Path<String>) -> Result<Response, ApiError> {
    let live = ready(&server)?;
    if !is_model(&id, &server.config.name) {
        return Err(ApiError::no_model(&id, &server.config.name));
    }
    Ok(Json(described(&server, &live)).into_response())
}

async fn tokenize(State(server): App, request: Request) -> Result<Response, ApiError> {
    let live = ready(&server)?;
    let body = read(&server, request).await?;
    texts::tokenize(&server, live, body).await
}

async fn detokenize(State(server): App, request: Request) -> Result<Response, ApiError> {
    let live = ready(&server)?;
    let body = read(&server, request).await?;
    texts::detokenize(&server, live, body).await
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
    let status = live.as_ref().map(|l| server.status(l));
    let of = live.as_ref().zip(status.as_ref()).map(|(live, status)| {
        let loaded = &live.loaded;
        (status, &*loaded.pool, loaded.governor.as_ref())
    });
    let account = live.as_ref().map(|l| &*l.loaded.account);
    server.metrics.edge(&server.connections, &server.inbound);
    if let Some(spans) = &server.config.spans {
        server.metrics.spans(spans.counts());
    }
    let text = server.metrics.render(of, account);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, kind)], text).into_response()
}

async fn status(State(server): App) -> Result<Json<Status>, ApiError> {
    Ok(Json(server.status(&*ready(&server)?)))
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
    request: Request,
) -> Result<T, ApiError> {
    serde_json::from_slice(&read(server, request).await?)
        .map_err(|e| ApiError::bad(format!("the body is not what it must be: {e}")))
}

async fn trim(State(server): App, request: Request) -> Result<Json<TrimDone>, ApiError> {
    let live = ready(&server)?;
    let order: TrimOrder = order(&server, request).await?;
    // It waits for a layer of the model.
    tokio::task::spawn_blocking(move || Json(live.trim(order.bytes)))
        .await
        .map_err(|e| ApiError::internal(e.to_string()))
}

async fn control(State(server): App, request: Request) -> Result<Json<Status>, ApiError> {
    let live = ready(&server)?;
    let change: Control = order(&server, request).await?;
    if !live.control(change) {
        return Err(ApiError::param(
            "trimming",
            "no pressure source is open (--signal none): only manual trims are possible",
        ));
    }
    tracing::info!(?change, "changed by a client");
    Ok(Json(server.status(&live)))
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
