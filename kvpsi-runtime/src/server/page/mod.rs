//! The status page: what `kvpsi top` shows, in a browser, and a chat to try
//! the model.
//!
//! Owns the page's files, which are part of the binary: it works offline and
//! loads nothing from elsewhere, and its policy forbids the browser to. The
//! files hold no figure and no secret, so they are served without a key; the
//! page asks `/kvpsi/*` and `/v1/*` for the figures like any other client.
//! Out of scope: where those come from.

use axum::{
    Router,
    http::header::{
        CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
        X_CONTENT_TYPE_OPTIONS,
    },
    response::{IntoResponse, Response},
    routing::get,
};

/// What the page may do: its own scripts and styles, and requests to where it
/// came from. No inline script: text of a model that reached the page as
/// markup would still not run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// One file of the page.
#[derive(Clone, Copy, Debug)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const fn file(path: &'static str, kind: &'static str, text: &'static str) -> File {
    File { path, kind, text }
}

/// Whether a path is a file of the page.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

const FILES: [File; 8] = [
    file("/", HTML, include_str!("index.html")),
    file("/page.css", CSS, include_str!("page.css")),
    file("/page.js", SCRIPT, include_str!("page.js")),
    file("/page/api.js", SCRIPT, include_str!("api.js")),
    file("/page/chat.js", SCRIPT, include_str!("chat.js")),
    file("/page/figures.js", SCRIPT, include_str!("figures.js")),
    file("/page/markdown.js", SCRIPT, include_str!("markdown.js")),
    file("/page/plot.js", SCRIPT, include_str!("plot.js")),
];

impl IntoResponse for File {
    fn into_response(self) -> Response {
        let headers: [(HeaderName, &str); 5] = [
            (CONTENT_TYPE, self.kind),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            // A newer kvpsi on the same port is a newer page.
            (CACHE_CONTROL, "no-cache"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        (headers, self.text).into_response()
    }
}

/// The page at `/`, and its files. To be merged outside of whatever asks for a
/// key: the page has a field for it.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(move || async move { file }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        body::{Body, to_bytes},
        http::{Request, StatusCode},
    };
    use tower::ServiceExt;

    fn ask(path: &str) -> (StatusCode, axum::http::HeaderMap, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = routes::<()>().oneshot(request).await.unwrap();
            let (head, body) = response.into_parts();
            let body = to_bytes(body, 1 << 20).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            (head.status, head.headers, body)
        })
    }

    /// Paths that a file names in `src="..."`, `href="..."` or `from "..."`.
    fn named(text: &str) -> Vec<String> {
        ["src=\"", "href=\"", "from \""]
            .into_iter()
            .flat_map(|mark| text.split(mark).skip(1))
            .filter_map(|rest| rest.split('"').next())
            .filter(|path| !path.starts_with("data:") && !path.starts_with('#'))
            .map(ToOwned::to_owned)
            .collect()
    }

    #[test]
    fn every_file_comes_with_its_type_and_the_policy() {
        for file in FILES {
            let (status, headers, body) = ask(file.path);
            assert_eq!(status, StatusCode::OK, "{}", file.path);
            assert_eq!(body, file.text);
            assert_eq!(headers[CONTENT_TYPE], file.kind);
            assert_eq!(headers[CONTENT_SECURITY_POLICY], POLICY);
            assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(headers[CACHE_CONTROL], "no-cache");
        }
    }

    #[test]
    fn the_policy_allows_nothing_inline_and_nothing_from_elsewhere() {
        assert!(POLICY.starts_with("default-src 'none'; "));
        for word in ["unsafe", "http", "*"] {
            assert!(!POLICY.contains(word), "{word}");
        }
    }

    #[test]
    fn whatever_a_file_names_is_served() {
        for file in FILES {
            // Modules are named from the folder of the one that imports them.
            let folder = if file.path.starts_with("/page/") {
                "/page/"
            } else {
                "/"
            };
            for name in named(file.text) {
                let path = format!("{folder}{}", name.trim_start_matches("./"));
                assert_eq!(ask(&path).0, StatusCode::OK, "{} names {name}", file.path);
            }
        }
        assert!(named(FILES[0].text).len() >= 2, "nothing was looked at");
        assert!(named(FILES[2].text).len() >= 4, "nothing was looked at");
    }

    #[test]
    fn no_file_needs_what_the_policy_forbids() {
        for file in FILES {
            let text = file.text;
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=\"",
                "onclick=",
                "<style",
                "https://",
            ] {
                assert!(!text.contains(word), "{}: {word}", file.path);
            }
        }
    }

    #[test]
    fn what_is_not_of_the_page_is_not_found() {
        for path in ["/page", "/page/", "/page/index.html", "/page/../page.js"] {
            assert_eq!(ask(path).0, StatusCode::NOT_FOUND, "{path}");
        }
    }
}
