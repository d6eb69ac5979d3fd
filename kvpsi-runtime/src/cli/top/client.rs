//! Requests of `kvpsi top` to a running kvpsi.
//!
//! Owns the connection, the key, what a refusal means, and how much of the
//! history is known already. An instance that started anew at the same address
//! is noticed, and its history asked for whole. It is spoken to directly and
//! nowhere else: no proxy, no redirect gets to see the key. Out of scope:
//! what is shown.

use crate::{
    pressure::plain,
    server::view::{Control, History, Status, TrimDone, TrimOrder},
};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use ureq::{Agent, Body, http::Response};

/// Where a server listens unless it is told otherwise.
pub const USUAL: &str = "http://127.0.0.1:8080";

/// Longest that a look may take. A trim by hand does work: it may take more.
const LOOK: Duration = Duration::from_secs(5);
const ORDER: Duration = Duration::from_secs(30);
/// A history is less than one: 2400 samples and 1024 trims.
const MOST_BYTES: u64 = 16 << 20;

/// Why there is no answer that could be shown.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server answers.
    #[error(
        "no kvpsi answers at {url}: {why}; `kvpsi serve -m MODEL` starts one, --url names another"
    )]
    Gone {
        /// Where it was looked for.
        url: String,
        /// The system's word on it.
        why: String,
    },
    /// Without the right key nothing is told.
    #[error(
        "kvpsi at {url} wants its API key, and that was not it or none was sent: --api-key KEY, or KVPSI_API_KEY"
    )]
    Key {
        /// Who wants it.
        url: String,
    },
    /// It says no.
    #[error("{url} says {status}: {why}")]
    Refused {
        /// Who says so.
        url: String,
        /// Of HTTP.
        status: u16,
        /// Its word on it.
        why: String,
    },
    /// It answers something else.
    #[error("{url} does not answer as kvpsi {} does: {why}", env!("CARGO_PKG_VERSION"))]
    Strange {
        /// Who answers.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ClientError {
    /// Without what the screen says elsewhere.
    pub fn brief(&self) -> String {
        match self {
            Self::Gone { why, .. } => format!("no answer: {why}"),
            Self::Key { .. } => "it wants its API key: --api-key, or KVPSI_API_KEY".into(),
            Self::Refused { status, why, .. } => format!("it says {status}: {why}"),
            Self::Strange { why, .. } => format!("it does not answer as kvpsi does: {why}"),
        }
    }
}

/// A base address as `--url` takes it, without a slash at the end.
pub fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    let whole = match text.split_once("://") {
        Some(("http", rest)) => format!("http://{}", rest.trim_end_matches('/')),
        Some(("https", _)) => {
            return Err("kvpsi serves plain HTTP: an address begins with http://".into());
        }
        Some((other, _)) => return Err(format!("{other} is not spoken here, http is")),
        None => format!("http://{}", text.trim_end_matches('/')),
    };
    let uri: ureq::http::Uri = whole.parse().map_err(|e| format!("{e}"))?;
    match (uri.host(), uri.query()) {
        (None | Some(""), _) => Err("it names no host".into()),
        (_, Some(_)) => Err("an address has no `?`".into()),
        _ => Ok(whole),
    }
}

/// A key that a header can carry.
pub fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("a key is made of ASCII letters, digits and signs, without spaces".into())
    }
}

/// One running kvpsi. Clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    url: String,
    key: Option<String>,
}

impl Client {
    /// Of the kvpsi at `url`; nothing is asked yet.
    pub fn new(url: String, key: Option<String>) -> Self {
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("kvpsi-top/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::new_with_config(config);
        Self { agent, url, key }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A look by GET. Asked once more where a kept connection turned out to be
    /// closed: that says nothing of who is there now.
    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let ask = || {
            let request = self.agent.get(format!("{}{path}", self.url));
            let request = request.config().timeout_global(Some(LOOK)).build();
            match self.bearer() {
                Some(value) => request.header("authorization", value).call(),
                None => request.call(),
            }
        };
        let answer = match ask() {
            Err(ureq::Error::Io(_) | ureq::Error::Protocol(_)) => ask(),
            other => other,
        };
        self.read(answer)
    }

    fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request.config().timeout_global(Some(ORDER)).build();
        let request = match self.bearer() {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        self.read(request.send_json(body))
    }

    fn bearer(&self) -> Option<String> {
        self.key.as_ref().map(|key| format!("Bearer {key}"))
    }

    fn read<T: DeserializeOwned>(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<T, ClientError> {
        let url = self.url.clone();
        let gone = |e: ureq::Error| {
            let why = match e {
                ureq::Error::Io(e) => plain(&e),
                ureq::Error::Timeout(_) => "it takes too long".into(),
                ureq::Error::HostNotFound => "there is no such host".into(),
                other => other.to_string(),
            };
            ClientError::Gone {
                url: url.clone(),
                why,
            }
        };
        let mut response = answer.map_err(gone)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(MOST_BYTES);
        let body = body.read_to_vec().map_err(gone)?;
        if status == 401 {
            return Err(ClientError::Key { url });
        }
        if !status.is_success() {
            let why = said(&body).unwrap_or_else(|| "nothing more".into());
            return Err(ClientError::Refused {
                url,
                status: status.as_u16(),
                why,
            });
        }
        serde_json::from_slice(&body).map_err(|e| ClientError::Strange {
            url,
            why: e.to_string(),
        })
    }

    /// Carries an order out.
    pub fn order(&self, order: Order) -> Result<Outcome, ClientError> {
        match order {
            Order::Control(c) => self
                .post("/kvpsi/control", &c)
                .map(|s| Outcome::Status(Box::new(s))),
            Order::Trim(t) => self.post("/kvpsi/trim", &t).map(Outcome::Trim),
        }
    }
}

/// The message of an error body in OpenAI's shape.
pub fn said(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(value["error"]["message"].as_str()?.to_owned())
}

/// What a hand orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another profile, or trimming on or off.
    Control(Control),
    /// Bytes to return.
    Trim(TrimOrder),
}

/// What came of an order.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// How it is set now.
    Status(Box<Status>),
    /// What was returned.
    Trim(TrimDone),
}

/// What one look brought.
#[derive(Clone, Debug)]
pub struct Answer {
    /// As it is now.
    pub status: Status,
    /// What is new, with some that is known.
    pub history: History,
    /// True: what was known before is of another instance.
    pub anew: bool,
}

/// A client that looks again and again.
#[derive(Debug)]
pub struct Looker {
    client: Client,
    next: u64,
    uptime_s: f64,
}

impl Looker {
    /// It knows nothing yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            next: 0,
            uptime_s: 0.0,
        }
    }

    /// Asks for what is new.
    pub fn look(&mut self) -> Result<Answer, ClientError> {
        let status: Status = self.client.get("/kvpsi/status")?;
        let mut anew = self.next == 0 || status.uptime_s < self.uptime_s;
        // The last one known is asked for again: a trim belongs to the first
        // sample after it, and none is to fall between two answers.
        let path = match self.next {
            2.. if !anew => format!("/kvpsi/history?since={}", self.next - 1),
            _ => "/kvpsi/history".into(),
        };
        let mut history: History = self.client.get(&path)?;
        if history.next < self.next && !anew {
            anew = true;
            history = self.client.get("/kvpsi/history")?;
        }
        self.next = history.next;
        self.uptime_s = status.uptime_s;
        Ok(Answer {
            status,
            history,
            anew,
        })
    }
}

#[cfg(test)]
mod tests;
