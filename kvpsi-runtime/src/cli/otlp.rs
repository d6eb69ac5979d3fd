//! Flags of `kvpsi serve` for spans, and the exporter that they start.
//!
//! Out of scope: what is sent. Without the feature `otlp` there is no flag.

use crate::{sandbox::Confinement, server::spans::SpanSink};
use std::sync::Arc;
#[cfg(feature = "otlp")]
use {
    crate::otlp::{Endpoint, Otlp},
    anyhow::Context,
    std::net::IpAddr,
};

/// Where spans are sent.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Send a trace of every request to this collector (OTLP over HTTP), as http://127.0.0.1:4318
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_parser = wanted)]
    otlp_endpoint: Option<Wanted>,
}

/// An endpoint; none where the variable is empty, as the standard has it.
#[cfg(feature = "otlp")]
#[derive(Clone, Debug)]
struct Wanted(Option<Endpoint>);

#[cfg(feature = "otlp")]
fn wanted(text: &str) -> Result<Wanted, String> {
    let off = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
    if off || text.is_empty() {
        return Ok(Wanted(None));
    }
    text.parse().map(|endpoint| Wanted(Some(endpoint)))
}

/// The exporter, if one was asked for.
#[derive(Debug)]
pub struct Exporting {
    #[cfg(feature = "otlp")]
    otlp: Option<Otlp>,
}

#[cfg(feature = "otlp")]
impl Args {
    fn endpoint(&self) -> Option<&Endpoint> {
        self.otlp_endpoint.as_ref()?.0.as_ref()
    }

    /// Lets `confinement` reach the collector.
    pub fn allow(&self, confinement: &mut Confinement) {
        if let Some(endpoint) = self.endpoint() {
            let (host, port) = endpoint.host_and_port();
            confinement.connect = Some(port);
            confinement.resolve = host.parse::<IpAddr>().is_err();
        }
    }

    /// Starts the exporter. Call it once privileges are dropped.
    ///
    /// # Errors
    /// OpenTelemetry's variables ask for what is not there.
    pub fn start(&self) -> anyhow::Result<Exporting> {
        let otlp = self.endpoint().map(Otlp::start).transpose();
        let otlp = otlp.context("--otlp-endpoint: a variable OTEL_... cannot be obeyed")?;
        Ok(Exporting { otlp })
    }
}

#[cfg(feature = "otlp")]
impl Exporting {
    /// Takes records of requests.
    #[must_use]
    pub fn sink(&self) -> Option<Arc<SpanSink>> {
        self.otlp.as_ref().map(Otlp::sink)
    }

    /// Sends what waits, for two seconds at most.
    pub fn end(self) {
        if let Some(otlp) = self.otlp {
            otlp.end();
        }
    }
}

/// The same without the feature: nothing is sent.
#[cfg(not(feature = "otlp"))]
impl Args {
    /// Nothing to be reached.
    pub fn allow(&self, _confinement: &mut Confinement) {}

    /// Nothing to be started.
    pub fn start(&self) -> anyhow::Result<Exporting> {
        Ok(Exporting {})
    }
}

#[cfg(not(feature = "otlp"))]
impl Exporting {
    /// None.
    #[must_use]
    pub fn sink(&self) -> Option<Arc<SpanSink>> {
        None
    }

    /// Nothing to be ended.
    pub fn end(self) {}
}
