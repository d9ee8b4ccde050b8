//! How the forge says no.

use http::{HeaderName, HeaderValue, Response};
use serde_json::{Value, json};

use super::server::{Body, json_response};

/// An error in GitHub's shape.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    message: String,
    errors: Option<Value>,
    headers: Vec<(&'static str, String)>,
}

impl Refusal {
    pub(super) fn new(status: u16, message: &str) -> Self {
        Self { status, message: message.to_owned(), errors: None, headers: Vec::new() }
    }

    pub(super) fn with(mut self, header: &'static str, value: String) -> Self {
        self.headers.push((header, value));
        self
    }

    pub(super) fn not_found() -> Self {
        Self::new(404, "Not Found")
    }

    pub(super) fn bad_credentials() -> Self {
        Self::new(401, "Bad credentials")
    }

    pub(super) fn requires_authentication() -> Self {
        Self::new(401, "Requires authentication")
    }

    pub(super) fn forbidden(message: &str) -> Self {
        Self::new(403, message)
    }

    pub(super) fn invalid(error: Value) -> Self {
        Self { errors: Some(json!([error])), ..Self::new(422, "Validation Failed") }
    }

    pub(super) fn missing(resource: &str, field: &str) -> Self {
        Self::invalid(json!({ "resource": resource, "code": "missing_field", "field": field }))
    }

    pub(super) fn pull(words: String) -> Self {
        Self::invalid(json!({ "resource": "PullRequest", "code": "custom", "message": words }))
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut body = json!({
            "message": self.message,
            "documentation_url": "https://docs.github.com/rest",
            "status": self.status.to_string(),
        });
        if let Some(errors) = self.errors {
            body["errors"] = errors;
        }
        let mut response = json_response(self.status, body);
        for (name, value) in self.headers {
            let value = HeaderValue::try_from(value).expect("a header value of ours");
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
        response
    }
}
