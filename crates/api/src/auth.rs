//! Who asks: bearer keys, compared by digest and in constant time.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// The digest of a key. Comparing digests hides the key's length as well.
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(key: &SecretString) -> Self {
        Self(Sha256::digest(key.expose_secret().trim().as_bytes()).into())
    }

    /// Whether the request carries this key as its bearer token. An empty token never matches.
    pub(crate) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = bearer(headers) else {
            return false;
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        bool::from(digest.ct_eq(&self.0))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !token.is_empty()).then_some(token)
}

/// Guards `/api/v1`.
pub(crate) async fn require_admin(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    if api.admin_key.admits(request.headers()) {
        next.run(request).await
    } else {
        Problem::new(Code::Unauthenticated, "Send the admin key: `Authorization: Bearer …`.").into_response()
    }
}

/// Guards `/worker/v1`.
pub(crate) async fn require_worker(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    if api.worker_key.admits(request.headers()) {
        next.run(request).await
    } else {
        Problem::new(
            Code::Unauthenticated,
            "Send the service key of `auth.worker_key_file`: `Authorization: Bearer …`.",
        )
        .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn with(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_whole_key_as_a_bearer_token_is_admitted() {
        let key = Key::new(&SecretString::from("open-sesame\n"));
        assert!(key.admits(&with("Bearer open-sesame")));
        assert!(key.admits(&with("bearer open-sesame")));
        for wrong in
            ["Bearer open-sesam", "Bearer open-sesame2", "Basic open-sesame", "open-sesame", "Bearer", "Bearer "]
        {
            assert!(!key.admits(&with(wrong)), "{wrong}");
        }
        assert!(!key.admits(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_key_file_admits_nobody() {
        let key = Key::new(&SecretString::from(""));
        assert!(!key.admits(&with("Bearer ")));
        assert!(!key.admits(&HeaderMap::new()));
    }
}
