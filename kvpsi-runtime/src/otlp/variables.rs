//! OpenTelemetry's variables that are not obeyed: the SDK passes over them in silence.
//!
//! Owns what of them is said. Values of headers are secrets and are not. Out of
//! scope: what they mean.

/// A line for each variable that is not obeyed, as `variable` has it.
pub fn not_obeyed(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let get = |name: &str| variable(name).filter(|v| !v.trim().is_empty());
    let mut all = Vec::new();
    for name in [
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ] {
        match get(name).as_deref() {
            None | Some("http/protobuf") => {}
            Some(other) => all.push(format!(
                "{name}={other}: spans are sent as http/protobuf all the same"
            )),
        }
    }
    if let Some(sampler) = get("OTEL_TRACES_SAMPLER") {
        let plain = sampler.strip_prefix("parentbased_").unwrap_or(&sampler);
        let ratio = get("OTEL_TRACES_SAMPLER_ARG");
        match (plain, ratio) {
            ("always_on" | "always_off", _) | ("traceidratio", None) => {}
            ("traceidratio", Some(ratio)) => {
                let number: Option<f64> = ratio.trim().parse().ok();
                if number.is_none_or(|n| !(0.0..=1.0).contains(&n)) {
                    all.push(format!(
                        "OTEL_TRACES_SAMPLER_ARG={ratio} is no number from 0 to 1: all requests are traced"
                    ));
                }
            }
            _ => all.push(format!(
                "OTEL_TRACES_SAMPLER={sampler} is not known here: all requests are traced"
            )),
        }
    }
    for name in [
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
        "OTEL_EXPORTER_OTLP_HEADERS",
    ] {
        let given = get(name).unwrap_or_default();
        let parts = given.split(',').filter(|p| !p.trim().is_empty());
        for (i, part) in parts.enumerate() {
            let key = part.split_once('=').map(|(key, _)| key.trim());
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            if key.is_none_or(|key| key.is_empty() || !key.bytes().all(token)) {
                all.push(format!(
                    "{name}: part {} is no NAME=VALUE and is not sent",
                    i + 1
                ));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_are_not_obeyed_are_named_without_secrets() {
        let of = |name: &'static str, value: &'static str| {
            not_obeyed(move |asked| (asked == name).then(|| value.to_owned()))
        };
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", ""),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hush, a=b%20c"),
        ] {
            assert_eq!(of(name, value), [""; 0], "{name}");
        }
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,hush"),
        ] {
            let said = of(name, value);
            assert!(said.len() == 1 && said[0].starts_with(name), "{said:?}");
            assert!(!said[0].contains("hush"), "{said:?}");
        }
        let both = not_obeyed(|name| match name {
            "OTEL_TRACES_SAMPLER" => Some("traceidratio".into()),
            "OTEL_TRACES_SAMPLER_ARG" => Some("2".into()),
            _ => None,
        });
        assert_eq!(both.len(), 1, "{both:?}");
    }
}
