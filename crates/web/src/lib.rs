//! The pages that people look at, built from `ui` and embedded, and the headers under which a browser may run them. Knows
//! nothing of Tasks: everything shown is asked of the API by the page itself.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use rust_embed::RustEmbed;

/// Nothing from elsewhere, nothing inline: what a model or an issue says can be shown and cannot run.
pub const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; \
     object-src 'none'";

#[derive(RustEmbed)]
#[folder = "dist"]
struct Dist;

struct File {
    plain: Vec<u8>,
    zipped: Vec<u8>,
    kind: &'static str,
    tag: HeaderValue,
}

static FILES: LazyLock<BTreeMap<String, File>> = LazyLock::new(|| {
    let files = Dist::iter().filter_map(|path| {
        let embedded = Dist::get(&path)?;
        let tag: String = embedded.metadata.sha256_hash().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let plain = embedded.data.into_owned();
        let file = File {
            zipped: zip(&plain),
            plain,
            kind: kind(&path),
            tag: HeaderValue::from_str(&format!("\"{tag}\"")).expect("hex digits"),
        };
        Some((path.into_owned(), file))
    });
    files.collect()
});

fn zip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).and_then(|()| encoder.finish()).expect("memory takes every write")
}

fn kind(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, end)| end) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

/// Where programs ask; a person's browser gets no page there, but the program's own answer.
const NO_PAGES: &[&str] = &["/api/", "/worker/", "/webhooks/", "/assets/", "/v1/", "/health/"];

/// The file at `path`, or the page when a browser asks for one. `None`: neither.
pub fn answer(path: &str, asked: &HeaderMap) -> Option<Response> {
    let named = FILES.get(path.trim_start_matches('/'));
    let file = match named {
        Some(file) => file,
        None if path == "/" || is_page(path, asked) => FILES.get("index.html")?,
        None => return None,
    };
    let same = asked.get_all(IF_NONE_MATCH).iter().any(|tag| tag == file.tag);
    let zipped = mentions(asked, ACCEPT_ENCODING, "gzip");
    let body = match (same, zipped) {
        (true, _) => Body::empty(),
        (false, true) => Body::from(file.zipped.as_slice()),
        (false, false) => Body::from(file.plain.as_slice()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = if same { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
    // The names stay the same over releases, so each use asks whether the content has.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ETAG, file.tag.clone());
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    if zipped && !same {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Some(response)
}

fn is_page(path: &str, asked: &HeaderMap) -> bool {
    mentions(asked, ACCEPT, "text/html") && !NO_PAGES.iter().any(|start| path.starts_with(start))
}

fn mentions(headers: &HeaderMap, name: axum::http::HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|value| value.to_str().is_ok_and(|text| text.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JavaScript that a first visit loads, compressed.
    const FIRST_LOAD_BYTES: usize = 200_000;

    fn asking(name: axum::http::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_browser_gets_the_page_at_any_address_that_is_not_a_programs() {
        let browser = asking(ACCEPT, "text/html,application/xhtml+xml");
        for path in ["/", "/tasks", "/tasks/task_1"] {
            let response = answer(path, &browser).unwrap();
            assert_eq!(response.headers()[CONTENT_TYPE], "text/html; charset=utf-8", "{path}");
            assert_eq!(response.headers()[CONTENT_SECURITY_POLICY], CONTENT_POLICY, "{path}");
        }
        for path in ["/api/v1/nothing", "/webhooks/gitlab", "/assets/gone.js"] {
            assert!(answer(path, &browser).is_none(), "{path}");
        }
        assert!(answer("/tasks", &asking(ACCEPT, "application/json")).is_none());
    }

    #[test]
    fn what_a_browser_has_is_not_sent_again() {
        let first = answer("/assets/main.js", &HeaderMap::new()).unwrap();
        let tag = first.headers()[ETAG].clone();
        let again = answer("/assets/main.js", &HeaderMap::from_iter([(IF_NONE_MATCH, tag)])).unwrap();
        assert_eq!((first.status(), again.status()), (StatusCode::OK, StatusCode::NOT_MODIFIED));
        let zipped = answer("/assets/main.js", &asking(ACCEPT_ENCODING, "gzip, br")).unwrap();
        assert_eq!(zipped.headers()[CONTENT_ENCODING], "gzip");
    }

    #[test]
    fn the_page_has_nothing_inline_or_from_elsewhere_and_loads_little() {
        let page = String::from_utf8(FILES["index.html"].plain.clone()).unwrap();
        assert!(!page.contains("<style") && !page.contains("style=") && !page.contains("http"), "{page}");
        let scripts: Vec<&str> = page
            .match_indices("assets/")
            .map(|(at, _)| at)
            .map(|at| {
                let rest = &page[at..];
                &rest[..rest.find('"').unwrap()]
            })
            .filter(|name| name.ends_with(".js"))
            .collect();
        assert!(!scripts.is_empty(), "{page}");
        let bytes: usize = scripts.iter().map(|name| FILES[*name].zipped.len()).sum();
        assert!(bytes <= FIRST_LOAD_BYTES, "{bytes} bytes of {scripts:?}");
    }
}
