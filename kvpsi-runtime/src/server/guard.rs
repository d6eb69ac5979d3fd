//! Access: the API key, and pages of other sites.
//!
//! Owns both checks. A server on loopback without a key is open to every local
//! program, and must not be to every web page that its user visits: those send
//! another `Host` (DNS rebinding) or an `Origin`. Out of scope: what is asked.

use super::error::ApiError;
use axum::http::{HeaderMap, header};

/// Checks the key, or, without one, that no page of another site asks.
pub(super) fn admit(headers: &HeaderMap, key: Option<&str>) -> Result<(), ApiError> {
    let Some(key) = key else {
        return from_here(headers);
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    match given {
        Some(given) if same(given.trim().as_bytes(), key.as_bytes()) => Ok(()),
        _ => Err(ApiError::unauthorized()),
    }
}

/// As long for a wrong key as for a right one of its length.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

fn from_here(headers: &HeaderMap) -> Result<(), ApiError> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    if host.is_some_and(|h| !is_plain(h)) {
        return Err(ApiError::forbidden(
            "without an API key this server answers to IP addresses and localhost only: set --api-key to use a name",
        ));
    }
    let origin = headers.get(header::ORIGIN).map(|o| o.to_str());
    match (origin, host) {
        (None, _) => Ok(()),
        (Some(Ok(origin)), Some(host))
            if origin.strip_prefix("http://") == Some(host)
                || origin.strip_prefix("https://") == Some(host) =>
        {
            Ok(())
        }
        _ => Err(ApiError::forbidden(
            "without an API key this server answers no pages of other sites: set --api-key",
        )),
    }
}

/// Something that no other site's name can be.
fn is_plain(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn headers(all: &[(header::HeaderName, &str)]) -> HeaderMap {
        let one = |(n, v): &(header::HeaderName, &str)| (n.clone(), v.parse().unwrap());
        all.iter().map(one).collect()
    }

    #[test]
    fn a_key_must_be_the_one() {
        let get = |v: &str| admit(&headers(&[(header::AUTHORIZATION, v)]), Some("secret"));
        assert!(get("Bearer secret").is_ok());
        for wrong in [
            "Bearer secreT",
            "Bearer secret2",
            "Bearer ",
            "secret",
            "Basic secret",
        ] {
            assert_eq!(get(wrong).unwrap_err().status, StatusCode::UNAUTHORIZED);
        }
        assert!(admit(&HeaderMap::new(), Some("secret")).is_err());
    }

    #[test]
    fn without_a_key_pages_of_other_sites_are_turned_away() {
        let get = |all: &[(header::HeaderName, &str)]| admit(&headers(all), None).is_ok();
        assert!(get(&[(header::HOST, "127.0.0.1:8080")]));
        assert!(get(&[(header::HOST, "localhost:8080")]));
        assert!(get(&[(header::HOST, "[::1]:8080")]));
        assert!(get(&[]));
        assert!(!get(&[(header::HOST, "evil.example:8080")]));
        let origin = |o| [(header::HOST, "127.0.0.1:8080"), (header::ORIGIN, o)];
        assert!(get(&origin("http://127.0.0.1:8080")));
        assert!(!get(&origin("http://evil.example")));
        assert!(!get(&origin("null")));
    }
}
