//! One request to the collector, on the exporter's own thread.
//!
//! Owns its time and what of an answer is read. Out of scope: what is sent, and
//! when it is tried again (the SDK's).

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use ureq::Agent;

/// For a request with its answer.
const TIME: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read: a protobuf message of some fields.
const MOST: u64 = 64 << 10;

/// Blocks: the SDK calls it on a thread that does nothing else.
#[derive(Clone, Debug)]
pub(super) struct Client {
    agent: Agent,
    /// Why the last request had no answer: the SDK does not say.
    broken: Arc<Mutex<Option<String>>>,
}

impl Client {
    pub fn new() -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIME))
            .build();
        Self {
            agent: config.into(),
            broken: Arc::default(),
        }
    }

    /// Why the last request had no answer, once.
    pub fn take_broken(&self) -> Option<String> {
        self.broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = request.into_parts();
        let response = self.agent.run(Request::from_parts(head, &body[..]))?;
        let (head, mut body) = response.into_parts();
        let body = body.with_config().limit(MOST).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

impl HttpClient for Client {
    // As `async_trait` has it.
    fn send_bytes<'me, 'out>(
        &'me self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'out>>
    where
        'me: 'out,
        Self: 'out,
    {
        let sent = self.send(request);
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        *broken = sent.as_ref().err().map(ToString::to_string);
        Box::pin(std::future::ready(sent.map_err(Into::into)))
    }
}
