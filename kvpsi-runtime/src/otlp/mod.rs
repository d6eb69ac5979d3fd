//! Spans of requests, sent to a collector over OTLP (HTTP, protobuf).
//!
//! Owns the way from a record of a request to the collector: a queue of
//! bounded length, and one thread that empties it. Invariants: handing a
//! record over never blocks, whatever the collector does; a span is exported,
//! failed or dropped, and counted as one of them; no text of a prompt or an
//! answer leaves. Out of scope: what is recorded ([`crate::server::spans`]),
//! TLS (a collector on this machine has it), and gRPC.

mod client;
mod queue;
mod tree;
mod variables;

use crate::server::spans::{SpanCounts, SpanSink};
use client::Client;
use opentelemetry::{Key, trace::TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use queue::{Counted, Queue};
use std::{fmt, str::FromStr, sync::Arc, time::Duration};
use ureq::http::Uri;
pub use variables::not_obeyed;

/// Below an endpoint: where OTLP has traces go.
const PATH: &str = "/v1/traces";
/// The port where a URL names none.
const PORT: u16 = 80;
/// Of the service, where the environment names none.
const SERVICE: &str = "kvpsi";
/// What the SDK calls a service without a name.
const UNNAMED: &str = "unknown_service";
/// For spans that wait when the server ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    base: String,
    /// What is added to it.
    path: &'static str,
    host: String,
    port: u16,
}

impl Endpoint {
    /// The name or the address of the collector's host, and its port.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    fn url(&self) -> String {
        format!("{}{}", self.base, self.path)
    }

    /// The same for a URL that traces alone go to: nothing is added to it.
    ///
    /// # Errors
    /// As [`Endpoint::from_str`].
    pub fn of_traces(text: &str) -> Result<Self, String> {
        let endpoint: Self = text.parse()?;
        Ok(Self {
            base: text.to_owned(),
            path: "",
            ..endpoint
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// A URL as `http://127.0.0.1:4318`, to which `/v1/traces` is added.
    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text
            .parse()
            .map_err(|e| format!("{e}: a URL, as http://127.0.0.1:4318"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(
                    "kvpsi sends spans without TLS: name a collector on this machine, as http://127.0.0.1:4318"
                        .into(),
                );
            }
            _ => return Err("a URL that begins with http://, as http://127.0.0.1:4318".into()),
        }
        let host = uri.host().unwrap_or_default();
        let named = uri.authority().map_or("", |a| a.as_str());
        // A port that is no port reads as none.
        let no_port = uri.port_u16().is_none() && named.len() > host.len();
        if host.is_empty() || no_port || uri.query().is_some() || text.contains(['@', '#']) {
            return Err(
                "a URL of a host, a port and a path alone, as http://127.0.0.1:4318".into(),
            );
        }
        Ok(Self {
            base: text.trim_end_matches('/').to_owned(),
            path: PATH,
            // An IPv6 address is in brackets there.
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(PORT),
        })
    }
}

/// The exporter of a process; ended by [`Otlp::end`].
#[derive(Debug)]
pub struct Otlp {
    provider: SdkTracerProvider,
    queue: Arc<Queue>,
    endpoint: Endpoint,
    sink: Arc<SpanSink>,
}

impl Otlp {
    /// Starts its thread. Call it once privileges are dropped: the thread has
    /// what the caller has then.
    ///
    /// # Errors
    /// One of OpenTelemetry's variables asks for what is not there.
    pub fn start(endpoint: &Endpoint) -> Result<Self, opentelemetry_otlp::ExporterBuildError> {
        let client = Client::new();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.url())
            .build()?;
        let counts = Arc::new(SpanCounts::default());
        let queue = Arc::new(Queue::new(counts.clone()));
        let counted = Counted::new(exporter, client, queue.clone(), endpoint.to_string());
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(queue::processor(counted, queue.clone()))
            .build();
        let tracer = provider.tracer(SERVICE);
        let sink = SpanSink::new(counts, move |record| tree::make(&tracer, &record));
        Ok(Self {
            provider,
            queue,
            endpoint: endpoint.clone(),
            sink: Arc::new(sink),
        })
    }

    /// Takes records of requests.
    #[must_use]
    pub fn sink(&self) -> Arc<SpanSink> {
        self.sink.clone()
    }

    /// Sends what waits, for two seconds at most.
    pub fn end(self) {
        let done = self.provider.shutdown_with_timeout(FLUSH);
        let left = self.queue.waiting();
        if let Err(e) = done
            && left > 0
        {
            tracing::warn!("{left} spans were not sent to {}: {e}", self.endpoint);
        }
    }
}

/// What the spans are of: the standard variables say (`OTEL_SERVICE_NAME`,
/// `OTEL_RESOURCE_ATTRIBUTES`).
fn resource() -> Resource {
    let found = Resource::builder().build();
    let name = found.get(&Key::from_static_str("service.name"));
    let unnamed = name.is_none_or(|n| n.as_str().starts_with(UNNAMED));
    let named = Resource::builder();
    let named = if unnamed {
        named.with_service_name(SERVICE)
    } else {
        named
    };
    named
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::spans::RequestRecord;
    use std::{net::TcpListener, sync::atomic::Ordering::Relaxed, time::Instant};

    #[test]
    fn who_hands_over_waits_for_no_collector_and_each_span_is_counted_once() {
        // It takes connections and never answers.
        let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = silent.local_addr().unwrap().port();
        let endpoint = format!("http://127.0.0.1:{port}").parse().unwrap();
        let otlp = Otlp::start(&endpoint).unwrap();
        let sink = otlp.sink();
        let now = Instant::now();
        let record = || RequestRecord {
            id: "req".into(),
            method: "GET",
            path: "/v1/models",
            model: "m".into(),
            context: axum::http::HeaderMap::new(),
            begun: now,
            ended: now,
            status: 200,
            prompt_tokens: 0,
            tokens: 0,
            trims: 0,
            choices: Vec::new(),
        };
        let all = 4000;
        for _ in 0..all {
            sink.hand_over(record());
        }
        let took = now.elapsed();
        assert!(took < Duration::from_secs(2), "{took:?}");
        let counts = sink.counts();
        let queue = otlp.queue.clone();
        let counted = || {
            let lost = counts.dropped.load(Relaxed) + counts.failed.load(Relaxed);
            lost + counts.exported.load(Relaxed) + queue.waiting() as u64
        };
        assert_eq!(counted(), all);
        assert!(counts.dropped.load(Relaxed) >= 1000, "{counts:?}");
        let told = Instant::now();
        otlp.end();
        assert!(told.elapsed() < FLUSH + Duration::from_secs(1));
        assert_eq!(counted(), all);
    }

    #[test]
    fn an_endpoint_is_a_plain_url_of_a_host() {
        let of = |text: &str| text.parse::<Endpoint>();
        let e = of("http://127.0.0.1:4318/").unwrap();
        assert_eq!(e.host_and_port(), ("127.0.0.1", 4318));
        assert_eq!(e.url(), "http://127.0.0.1:4318/v1/traces");
        let e = Endpoint::of_traces("http://127.0.0.1:4318/x/").unwrap();
        assert_eq!(e.url(), "http://127.0.0.1:4318/x/");
        let e = of("http://[::1]:7/otel").unwrap();
        assert_eq!(e.host_and_port(), ("::1", 7));
        assert_eq!(e.url(), "http://[::1]:7/otel/v1/traces");
        assert_eq!(of("http://tempo").unwrap().host_and_port(), ("tempo", 80));
        for (text, why) in [
            ("https://collector:4318", "without TLS"),
            ("collector:4318", "http://"),
            ("grpc://collector:4317", "http://"),
            ("http://user:hush@collector", "alone"),
            ("http://collector/?a=b", "alone"),
            ("http://", "as http://127.0.0.1:4318"),
            ("", "as http://127.0.0.1:4318"),
        ] {
            let e = of(text).expect_err(text);
            assert!(e.contains(why), "{text:?}: {e}");
        }
    }
}
