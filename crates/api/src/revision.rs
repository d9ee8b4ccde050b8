//! Reads that are asked for again: what has not changed since is answered by 304, without a body.
//!
//! A revision is the digest of what would be told, so it changes exactly when that does.

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use fettle_domain::access::Action;
use http_body::Body as _;
use sha2::{Digest as _, Sha256};

use crate::auth;
use crate::extract::is_json;
use crate::problem::{Code, Problem};

/// Answers of the API are below: pages end before, and a patch is cut.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Of a digest; two different answers with the same ones do not happen.
const TAG_BYTES: usize = 16;

/// Whether an operation's answers have a revision: what is read of Tasks, queue and system, over and over. What is of accounts is
/// kept nowhere.
pub(crate) fn is_revised(method: &Method, route: &str) -> bool {
    let action = auth::action(method, route);
    *method == Method::GET && matches!(action, Some(Action::TasksRead | Action::JobsRead | Action::SystemRead))
}

/// A weak one: what is the same may be compressed or written otherwise on its way.
pub(crate) fn tag(parts: &[&[u8]]) -> HeaderValue {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let text = format!("W/\"{}\"", hex::encode(&digest.finalize()[..TAG_BYTES]));
    HeaderValue::try_from(text).expect("hex digits are a header")
}

/// Whether the asker has it already. Weak or strong is the same here (RFC 9110, 13.1.2).
pub(crate) fn is_known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let opaque = |text: &[u8]| text.trim_ascii().strip_prefix(b"W/").unwrap_or(text.trim_ascii()).to_vec();
    let wanted = opaque(tag.as_bytes());
    let given = headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    given.map(opaque).any(|given| given == wanted || given == b"*")
}

pub(crate) fn not_modified(tag: HeaderValue) -> Response {
    (StatusCode::NOT_MODIFIED, revised(tag)).into_response()
}

/// Kept by the asker alone, who asks before each use.
pub(crate) fn revised(tag: HeaderValue) -> [(axum::http::HeaderName, HeaderValue); 2] {
    [(ETAG, tag), (CACHE_CONTROL, HeaderValue::from_static("private, no-cache"))]
}

pub(crate) async fn revise(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()).unwrap_or_default();
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let headers = request.headers().clone();
    let mut response = next.run(request).await;
    let json = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).is_some_and(is_json);
    if !is_revised(&method, &route) {
        response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        return response;
    }
    // Event feeds are no JSON, and have no end that could be waited for.
    if response.status() != StatusCode::OK || !json || response.body().size_hint().exact().is_none() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = match to_bytes(body, MAX_ANSWER_BYTES).await {
        Ok(body) => body,
        Err(_) => return Problem::new(Code::Internal, "The answer is larger than an answer may be.").into_response(),
    };
    let tag = parts.headers.get(ETAG).cloned().unwrap_or_else(|| tag(&[&body]));
    if is_known(&headers, &tag) {
        return not_modified(tag);
    }
    parts.headers.extend(revised(tag));
    Response::from_parts(parts, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_among_others_whether_weak_or_strong() {
        let ours = tag(&[b"body"]);
        let text = ours.to_str().unwrap().to_owned();
        let strong = text.trim_start_matches("W/").to_owned();
        let known = |given: &str| {
            is_known(&HeaderMap::from_iter([(IF_NONE_MATCH, HeaderValue::try_from(given).unwrap())]), &ours)
        };
        for given in [text.clone(), strong, "*".to_owned(), format!("\"a\", {text} ,\"b\"")] {
            assert!(known(&given), "{given}");
        }
        for given in ["", ",", "W/", "\"\"", "W/\"0\"", &text[..text.len() - 1]] {
            assert!(!known(given), "{given}");
        }
        assert!(!is_known(&HeaderMap::new(), &ours));
        assert_ne!(tag(&[b"ab", b"c"]), tag(&[b"a", b"bc"]));
    }
}
