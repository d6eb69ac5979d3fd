//! Flags of `kvpsi serve` for spans, and the exporter that they start.
//!
//! Out of scope: what is sent. Without the feature `otlp` there is no flag.

use crate::{sandbox::Confinement, server::spans::SpanSink};
use std::sync::Arc;
#[cfg(feature = "otlp")]
use {
    crate::otlp::{Endpoint, Otlp, not_obeyed},
    anyhow::Context,
    std::net::IpAddr,
};

/// Where spans are sent.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Send a trace of every request to this collector (OTLP over HTTP), as http://127.0.0.1:4318
    #[cfg(feature = "otlp")]
    #[arg(long, value_name = "URL", env = VARIABLE, value_parser = wanted)]
    otlp_endpoint: Option<Wanted>,
}

/// Of all signals, and of traces alone.
#[cfg(feature = "otlp")]
const VARIABLE: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
#[cfg(feature = "otlp")]
const TRACES_VARIABLE: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// What a flag or a variable says; an empty variable says nothing, as the standard
/// has it.
#[cfg(feature = "otlp")]
#[derive(Clone, Debug)]
struct Wanted {
    endpoint: Option<Endpoint>,
    /// The flag says it.
    by_flag: bool,
}

#[cfg(feature = "otlp")]
fn wanted(text: &str) -> Result<Wanted, String> {
    let by_flag = !std::env::var(VARIABLE).is_ok_and(|v| v == text);
    if is_off() || text.is_empty() {
        return Ok(Wanted {
            endpoint: None,
            by_flag,
        });
    }
    match text.parse() {
        Ok(endpoint) => Ok(Wanted {
            endpoint: Some(endpoint),
            by_flag,
        }),
        Err(why) if by_flag => Err(why),
        // The environment is for all programs: one that cannot use it does without.
        Err(_) => Ok(Wanted {
            endpoint: None,
            by_flag,
        }),
    }
}

#[cfg(feature = "otlp")]
fn is_off() -> bool {
    std::env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"))
}

/// What of OpenTelemetry's variables is not obeyed, and why.
#[cfg(feature = "otlp")]
fn wrong_variables(by_flag: bool, found: bool) -> Vec<String> {
    let get = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let mut all = Vec::new();
    if !by_flag && !is_off() {
        let wrong = |name: &str, parsed: Result<Endpoint, String>| {
            let why = parsed.err()?;
            Some(format!("{name}: no spans are sent: {why}"))
        };
        match (get(TRACES_VARIABLE), get(VARIABLE)) {
            (Some(url), _) => all.extend(wrong(TRACES_VARIABLE, Endpoint::of_traces(&url))),
            (None, Some(url)) => all.extend(wrong(VARIABLE, url.parse())),
            (None, None) => {}
        }
    }
    if found {
        all.extend(not_obeyed(get));
    }
    all
}

/// The exporter, if one was asked for.
#[derive(Debug)]
pub struct Exporting {
    #[cfg(feature = "otlp")]
    otlp: Option<Otlp>,
}

#[cfg(feature = "otlp")]
impl Args {
    fn by_flag(&self) -> bool {
        self.otlp_endpoint.as_ref().is_some_and(|w| w.by_flag)
    }

    /// The flag's, or that of the variable for traces, or that for all signals.
    fn endpoint(&self) -> Option<Endpoint> {
        let traces = std::env::var(TRACES_VARIABLE).ok();
        let traces = traces.filter(|v| !v.is_empty() && !is_off() && !self.by_flag());
        match traces {
            Some(url) => Endpoint::of_traces(&url).ok(),
            None => self.otlp_endpoint.as_ref()?.endpoint.clone(),
        }
    }

    /// Lets `confinement` reach the collector.
    pub fn allow(&self, confinement: &mut Confinement) {
        if let Some(endpoint) = &self.endpoint() {
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
        let endpoint = self.endpoint();
        for line in wrong_variables(self.by_flag(), endpoint.is_some()) {
            tracing::warn!("{line}");
        }
        let otlp = endpoint.as_ref().map(Otlp::start).transpose();
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
