//! Access: keys, and pages of other sites.
//!
//! Owns who may ask what. A server on loopback without a key is open to every
//! local program, and must not be to every web page that its user visits: those
//! send another `Host` (DNS rebinding) or an `Origin`. What changes how memory
//! is returned, and what shows other programs, wants a key of its own, the
//! admin socket, or a server that is open to this machine alone. Out of scope:
//! what is asked.

use super::{
    connections::{Client, Connection},
    error::ApiError,
};
use axum::http::{HeaderMap, header};

const API_KEY: &str = "--api-key";
const ADMIN_KEY: &str = "--admin-key";

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// What clients must know; none: open to all.
    pub api_key: Option<String>,
    /// What they must know who trim, change settings and watch stalls.
    pub admin_key: Option<String>,
    /// There is a socket for them.
    pub admin_socket: bool,
    /// Other machines cannot reach the server.
    pub loopback: bool,
    /// Names that a client may call this host by, beside addresses and
    /// localhost, without a key.
    pub hosts: Vec<String>,
    /// Any name is taken.
    pub any_host: bool,
    /// Origins of pages that may ask; `*` is any.
    pub origins: Vec<String>,
}

/// What a request has of a key.
enum Sent<'a> {
    Nothing,
    Other,
    Key(&'a [u8]),
}

impl Access {
    /// Checks the key, or, without one, that no page of another site asks. The
    /// admin key opens whatever the API key opens.
    pub(super) fn admit(
        &self,
        headers: &HeaderMap,
        from: Option<&Connection>,
    ) -> Result<(), ApiError> {
        if is_admin_socket(from) {
            return Ok(());
        }
        let Some(key) = &self.api_key else {
            return self.is_from_here(headers);
        };
        let keys = [Some(key), self.admin_key.as_ref()];
        has_one_of(headers, &keys, API_KEY)
    }

    /// Checks who asks for what only the one who runs the server may.
    pub(super) fn administer(
        &self,
        headers: &HeaderMap,
        from: Option<&Connection>,
    ) -> Result<(), ApiError> {
        if is_admin_socket(from) {
            return Ok(());
        }
        if let Some(key) = &self.admin_key {
            return match sent(headers) {
                Sent::Key(given) if self.is_api_key(given) && !same(given, key.as_bytes()) => {
                    Err(ApiError::forbidden(
                        "this wants the admin key (--admin-key), and the API key was sent",
                    ))
                }
                _ => has_one_of(headers, &[Some(key)], ADMIN_KEY),
            };
        }
        if self.loopback && self.api_key.is_none() && !self.admin_socket {
            // What pages of others may use is the model.
            return Self {
                origins: Vec::new(),
                any_host: false,
                ..self.clone()
            }
            .is_from_here(headers);
        }
        Err(ApiError::forbidden(
            "only the one who runs this server may ask for that: start it with --admin-key-file or KVPSI_ADMIN_KEY, or ask by --admin-socket",
        ))
    }

    fn is_api_key(&self, given: &[u8]) -> bool {
        (self.api_key.as_ref()).is_some_and(|k| same(given, k.as_bytes()))
    }

    fn is_from_here(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
        if let Some(host) = host.filter(|h| !self.is_our_name(h)) {
            return Err(ApiError::forbidden(format!(
                "the Host `{}` is no name of this server: start it with --allowed-host {}, or set --api-key-file",
                short(host),
                short(name_of(host)),
            )));
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
            (Some(Ok(origin)), _) if self.origins.iter().any(|o| o == "*" || o == origin) => Ok(()),
            (Some(origin), _) => Err(ApiError::forbidden(format!(
                "pages of `{0}` may not use this server: start it with --cors-origin {0}, or set --api-key-file",
                short(origin.unwrap_or("another site")),
            ))),
        }
    }

    /// Something that no other site's name can be, or a name that was allowed.
    fn is_our_name(&self, host: &str) -> bool {
        let name = name_of(host);
        self.any_host
            || name.eq_ignore_ascii_case("localhost")
            || name.parse::<std::net::IpAddr>().is_ok()
            || (self.hosts.iter()).any(|h| h.eq_ignore_ascii_case(name) || h == host)
    }
}

fn has_one_of(headers: &HeaderMap, keys: &[Option<&String>], flag: &str) -> Result<(), ApiError> {
    match sent(headers) {
        Sent::Nothing => Err(ApiError::no_key(flag)),
        Sent::Key(given) if (keys.iter().flatten()).any(|key| same(given, key.as_bytes())) => {
            Ok(())
        }
        Sent::Key(_) | Sent::Other => Err(ApiError::wrong_key(flag)),
    }
}

fn is_admin_socket(from: Option<&Connection>) -> bool {
    from.is_some_and(|c| c.client == Client::Admin)
}

/// The key of a request. The scheme's case does not matter (RFC 9110, 11.1).
fn sent(headers: &HeaderMap) -> Sent<'_> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Sent::Nothing;
    };
    match value.as_bytes().split_first_chunk::<7>() {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => match key.trim_ascii() {
            [] => Sent::Nothing,
            key => Sent::Key(key),
        },
        _ => Sent::Other,
    }
}

/// As long for a wrong key as for a right one of its length.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.trim_start_matches('[').trim_end_matches(']')
}

/// As much as an error may repeat.
fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(100)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn headers(all: &[(header::HeaderName, &str)]) -> HeaderMap {
        let one = |(n, v): &(header::HeaderName, &str)| (n.clone(), v.parse().unwrap());
        all.iter().map(one).collect()
    }

    fn with_keys(api: Option<&str>, admin: Option<&str>) -> Access {
        Access {
            api_key: api.map(str::to_owned),
            admin_key: admin.map(str::to_owned),
            loopback: true,
            ..Access::default()
        }
    }

    #[test]
    fn a_key_must_be_the_one_and_a_wrong_one_is_called_wrong() {
        let access = with_keys(Some("secret"), None);
        let get = |v: &str| access.admit(&headers(&[(header::AUTHORIZATION, v)]), None);
        for right in ["Bearer secret", "bearer secret", "BEARER  secret "] {
            assert!(get(right).is_ok(), "{right}");
        }
        for wrong in ["Bearer secreT", "Bearer secret2", "secret", "Basic secret"] {
            let e = get(wrong).unwrap_err();
            assert_eq!(
                (e.status, e.code),
                (StatusCode::UNAUTHORIZED, Some("invalid_api_key"))
            );
            assert!(e.challenge.unwrap().contains("invalid_token"));
        }
        for missing in [get("Bearer "), access.admit(&HeaderMap::new(), None)] {
            let e = missing.unwrap_err();
            assert_eq!(
                (e.status, e.code),
                (StatusCode::UNAUTHORIZED, Some("missing_api_key"))
            );
            assert!(e.challenge.is_some());
        }
    }

    #[test]
    fn without_a_key_pages_of_other_sites_are_turned_away_by_the_flag_that_lets_them_in() {
        let access = with_keys(None, None);
        let get = |all: &[(header::HeaderName, &str)]| access.admit(&headers(all), None);
        assert!(get(&[(header::HOST, "127.0.0.1:8080")]).is_ok());
        assert!(get(&[(header::HOST, "localhost:8080")]).is_ok());
        assert!(get(&[(header::HOST, "[::1]:8080")]).is_ok());
        assert!(get(&[]).is_ok());
        let e = get(&[(header::HOST, "evil.example:8080")]).unwrap_err();
        assert!(
            e.message.contains("--allowed-host evil.example,"),
            "{}",
            e.message
        );
        let origin = |o| [(header::HOST, "127.0.0.1:8080"), (header::ORIGIN, o)];
        assert!(get(&origin("http://127.0.0.1:8080")).is_ok());
        let e = get(&origin("http://evil.example")).unwrap_err();
        assert!(
            e.message.contains("--cors-origin http://evil.example,"),
            "{}",
            e.message
        );
        assert!(get(&origin("null")).is_err());

        let open = Access {
            hosts: vec!["kvpsi".into()],
            origins: vec!["http://app.example".into()],
            ..with_keys(None, None)
        };
        let get = |host, origin| {
            open.admit(
                &headers(&[(header::HOST, host), (header::ORIGIN, origin)]),
                None,
            )
        };
        assert!(get("KVPSI:8080", "http://app.example").is_ok());
        assert!(get("kvpsi.example", "http://app.example").is_err());
        assert!(get("kvpsi", "https://app.example").is_err());
    }

    #[test]
    fn what_administers_wants_its_own_key_or_socket_or_a_server_for_this_machine_alone() {
        let of = |key: &str| headers(&[(header::AUTHORIZATION, &format!("Bearer {key}"))]);
        let status = |r: Result<(), ApiError>| r.err().map(|e| e.status.as_u16());
        let (none, api, admin) = (HeaderMap::new(), of("api"), of("admin"));

        let local = with_keys(None, None);
        assert!(local.administer(&none, None).is_ok());
        // Pages that may use the model may do no more.
        let open = Access {
            origins: vec!["*".into()],
            any_host: true,
            ..local.clone()
        };
        let page = headers(&[
            (header::HOST, "127.0.0.1:8080"),
            (header::ORIGIN, "http://evil.example"),
        ]);
        assert!(open.admit(&page, None).is_ok());
        assert_eq!(status(open.administer(&page, None)), Some(403));
        let rebound = headers(&[
            (header::HOST, "evil.example"),
            (header::ORIGIN, "http://evil.example"),
        ]);
        assert!(open.admit(&rebound, None).is_ok());
        assert_eq!(status(open.administer(&rebound, None)), Some(403));
        let remote = Access {
            loopback: false,
            ..local.clone()
        };
        assert_eq!(status(remote.administer(&none, None)), Some(403));
        let with_socket = Access {
            admin_socket: true,
            ..local
        };
        assert_eq!(status(with_socket.administer(&none, None)), Some(403));
        let socket = Connection::new(Client::Admin, false);
        assert!(with_socket.administer(&none, Some(&socket)).is_ok());

        assert_eq!(
            status(with_keys(Some("api"), None).administer(&api, None)),
            Some(403)
        );
        let both = with_keys(Some("api"), Some("admin"));
        assert_eq!(status(both.administer(&none, None)), Some(401));
        assert_eq!(status(both.administer(&api, None)), Some(403));
        assert_eq!(status(both.administer(&of("x"), None)), Some(401));
        assert!(both.administer(&admin, None).is_ok());
        assert!(both.admit(&admin, None).is_ok() && both.admit(&api, None).is_ok());
        assert!(both.admit(&none, Some(&socket)).is_ok());
    }
}
