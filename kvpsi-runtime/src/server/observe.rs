//! What is seen of every request: its id, its line in the log, its counters,
//! and when its connection is free again.
//!
//! Owns the one layer around all paths. Invariants: a response has the id that
//! its line in the log has; the line is written when the last byte of the
//! response is handed over, or the client is gone; a request that is turned
//! away is counted once. Out of scope: who may ask, and what.

use super::{
    connections::{Client, Connection},
    error::ApiError,
    page,
    paths::{known, shaped_for},
    spans::{ChoiceRecord, RequestRecord, Traced, context},
    state::Server,
};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The id of a request: the client's own, where it sends one.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken from a client.
const LONGEST_ID: usize = 128;
/// In the log where the client left before there was a response (nginx's code).
const GONE: u16 = 499;
/// Answered on reserved connections, and logged at a lower level.
const LOOKS: [&str; 3] = ["/health", "/metrics", "/kvpsi/status"];

/// What came of a request, for the log: sums over its choices.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub prompt_tokens: usize,
    pub tokens: usize,
    pub trims: u64,
    /// Until its first choice was taken up.
    pub queued: Option<Duration>,
    /// Until its first token.
    pub first: Option<Duration>,
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Note {
    begun: Instant,
    figures: Mutex<Figures>,
    traced: Option<Traced>,
}

impl Note {
    pub fn new() -> Arc<Self> {
        Self::of(Instant::now(), None)
    }

    fn of(begun: Instant, traced: Option<Traced>) -> Arc<Self> {
        Arc::new(Self {
            begun,
            figures: Mutex::default(),
            traced,
        })
    }

    /// Whether spans are made of it.
    pub fn is_traced(&self) -> bool {
        self.traced.is_some()
    }

    /// One of its sequences is over.
    pub fn chose(&self, choice: ChoiceRecord) {
        if let Some(traced) = &self.traced {
            traced.chose(choice);
        }
    }

    pub fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The response and every sequence are over, each in its own time.
impl Drop for Note {
    fn drop(&mut self) {
        if let Some(traced) = &self.traced {
            let figures = *self.figures();
            traced.hand_over(figures.prompt_tokens, figures.trims);
        }
    }
}

/// Sees to a request from its head to the last byte of its response.
pub(super) async fn observe(
    State(server): State<Arc<Server>>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = id(request.headers());
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let known = known(&path);
    let looks = LOOKS.contains(&path.as_str());
    let quiet = looks || path == "/kvpsi/history" || page::has(&path);
    let begun = Instant::now();
    let traced = (server.config.spans.as_ref().zip(known)).filter(|_| !quiet);
    let traced = traced.map(|(sink, path)| {
        let record = RequestRecord {
            id: id.to_str().unwrap_or_default().to_owned(),
            method: named(&method),
            path,
            model: server.config.name.clone(),
            context: context(request.headers()),
            begun,
            ended: begun,
            status: GONE,
            prompt_tokens: 0,
            tokens: 0,
            trims: 0,
            choices: Vec::new(),
        };
        Traced::new(sink.clone(), record)
    });
    let note = Note::of(begun, traced);
    request.extensions_mut().insert(note.clone());
    let reserved = match &connection {
        Some(c) if c.is_reserved() => looks || !server.connections.settle(c).await,
        _ => false,
    };
    // Until there is a response: a client may leave before.
    let mut end = End {
        note,
        connection: connection.clone(),
        id: id.clone(),
        method,
        path,
        status: StatusCode::from_u16(GONE).unwrap_or_default(),
        quiet,
    };
    let mut response = if reserved && !looks {
        ApiError::unavailable(
            "connections",
            "all connections are being answered (--max-connections); try again later",
        )
        .into_response()
    } else {
        next.run(request).await
    };
    let status = response.status();
    count(&server, known, &response);
    if let Some(e) = response.extensions_mut().remove::<ApiError>() {
        *response.body_mut() = shaped_for(&end.path, &e).to_string().into();
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id.clone());
    if reserved {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    end.status = status;
    response.map(|body| {
        Body::new(body.map_err(move |e| {
            let _with_the_body = &end;
            e
        }))
    })
}

/// Methods by name; others are for spans what OpenTelemetry calls them.
fn named(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}

fn id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID);
    let good = |v: &&HeaderValue| {
        let v = v.as_bytes();
        !v.is_empty() && v.len() <= LONGEST_ID && v.iter().all(u8::is_ascii_graphic)
    };
    given.filter(good).cloned().unwrap_or_else(|| {
        let number = crate::random::number();
        let made = HeaderValue::from_str(&format!("req-{number:016x}"));
        made.unwrap_or_else(|_| HeaderValue::from_static("req"))
    })
}

/// Counts responses, and those that turn a request away.
fn count(server: &Server, known: Option<&'static str>, response: &Response) {
    let status = response.status();
    let path = known.unwrap_or("other");
    server.metrics.responded(path, status.as_u16());
    let error = response.extensions().get::<ApiError>();
    let counted = error.is_some_and(|e| e.counted);
    let reason = match status {
        _ if counted => return,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "not_allowed",
        StatusCode::TOO_MANY_REQUESTS => "busy",
        StatusCode::SERVICE_UNAVAILABLE if known != Some("/health") => "unavailable",
        s if s.is_client_error() => "invalid",
        _ => return,
    };
    server.metrics.refused(reason);
    if let Some(live) = server.live() {
        live.note_refused();
    }
}

/// A response that is being sent.
struct End {
    note: Arc<Note>,
    connection: Option<Arc<Connection>>,
    id: HeaderValue,
    method: Method,
    path: String,
    status: StatusCode,
    quiet: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        let client = self.connection.as_ref().map(|c| {
            c.idle();
            c.client
        });
        if let Some(traced) = &self.note.traced {
            traced.ended(self.status.as_u16());
        }
        let figures = *self.note.figures();
        if self.quiet {
            tracing::debug!(
                target: "kvpsi::request",
                id = self.id.to_str().unwrap_or_default(),
                client = client.map(|c: Client| tracing::field::display(c)),
                method = self.method.as_str(),
                path = self.path,
                status = self.status.as_u16(),
                ms = ms(self.note.begun.elapsed()),
            );
            return;
        }
        tracing::info!(
            target: "kvpsi::request",
            id = self.id.to_str().unwrap_or_default(),
            client = client.map(|c: Client| tracing::field::display(c)),
            method = self.method.as_str(),
            path = self.path,
            status = self.status.as_u16(),
            prompt_tokens = figures.prompt_tokens,
            completion_tokens = figures.tokens,
            queued_ms = figures.queued.map(ms),
            first_token_ms = figures.first.map(ms),
            ms = ms(self.note.begun.elapsed()),
            trims = figures.trims,
        );
    }
}

/// Milliseconds, to a tenth.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e4).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_clients_if_it_can_be_logged_and_else_a_new_one() {
        let with = |v: &str| {
            let mut all = HeaderMap::new();
            all.insert(REQUEST_ID, v.parse().unwrap());
            id(&all)
        };
        assert_eq!(with("a-1"), "a-1");
        for bad in ["", "a b", &"x".repeat(LONGEST_ID + 1)] {
            assert!(with(bad).to_str().unwrap().starts_with("req-"), "{bad}");
        }
        assert_ne!(id(&HeaderMap::new()), id(&HeaderMap::new()));
    }
}
