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
    last: Arc<Mutex<Last>>,
}

/// What the SDK does not say of the last request.
#[derive(Clone, Debug, Default)]
pub(super) struct Last {
    /// Why it had no answer.
    pub broken: Option<String>,
    /// Spans that the collector did not take though it took others.
    pub rejected: u64,
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
            last: Arc::default(),
        }
    }

    /// What there is to say of the last request, once.
    pub fn take_last(&self) -> Last {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut last)
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
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Last {
            broken: sent.as_ref().err().map(ToString::to_string),
            rejected: sent.as_ref().map_or(0, |r| rejected(r.body())),
        };
        Box::pin(std::future::ready(sent.map_err(Into::into)))
    }
}

/// Spans that an answer says were not taken: `partial_success.rejected_spans`, both
/// the first field of their message (opentelemetry-proto, `trace_service.proto`).
fn rejected(answer: &[u8]) -> u64 {
    let partial = first_field(answer).map(|(_, message)| message);
    let count = partial.and_then(first_field).map(|(count, _)| count);
    count.unwrap_or(0)
}

/// The first field of a protobuf message, if its number is 1: a number, or bytes.
fn first_field(message: &[u8]) -> Option<(u64, &[u8])> {
    let (key, rest) = number(message)?;
    let (value, rest) = number(rest)?;
    match key {
        // Number 1: a varint, or a length and as many bytes.
        0x08 => Some((value, &[])),
        0x0a => Some((0, rest.get(..usize::try_from(value).ok()?)?)),
        _ => None,
    }
}

/// A varint, and what comes behind it.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(10).position(|b| b & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at(end + 1);
    let value = digits.iter().rev();
    let value = value.fold(0u64, |n, b| (n << 7) | u64::from(b & 0x7f));
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_many_spans_were_not_taken() {
        for (answer, count) in [
            (&b""[..], 0),
            (b"\x0a\x00", 0),
            (b"\x0a\x02\x08\x05", 5),
            (b"\x0a\x08\x08\xac\x02\x12\x03why", 300),
            (b"\x0a\x05\x12\x03why", 0),
            (b"\x0a\x20\x08", 0),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0),
        ] {
            assert_eq!(rejected(answer), count, "{answer:?}");
        }
    }
}
