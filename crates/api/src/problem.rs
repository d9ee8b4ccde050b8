//! Every error to the wire: RFC 9457 `application/problem+json`, one closed set of codes that clients switch on.
//!
//! A handler returns a [`Problem`]; the edge names the exchange in it, reports its cause once and writes the body. A
//! 5xx body never holds the cause.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use fettle_app::adding::{AddError, TokenFor};
use fettle_app::ports::ledger::LedgerError;
use fettle_app::submit::SubmitError;
use fettle_domain::id::RequestId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub(crate) const MEDIA_TYPE: &str = "application/problem+json";
/// A ledger that restarts is back within seconds; asking sooner only adds load.
const LEDGER_RETRY: Duration = Duration::from_secs(2);

/// What went wrong, for programs. The name is the wire's `code`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BadRequest,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Stale,
    TooLate,
    NotPossible,
    TooLarge,
    UnsupportedMediaType,
    Refused,
    DigestMismatch,
    Internal,
    LedgerDamaged,
    Unavailable,
    NotConfigured,
    Busy,
    Timeout,
    LedgerFull,
    TooMany,
}

impl Code {
    /// Status by who must act, the wire's word, and the title.
    fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad_request", "The request cannot be read"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "Credentials are missing or wrong"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not allowed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", "Not found"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "The method is not allowed here")
            }
            Self::Stale => (StatusCode::CONFLICT, "stale", "The lease is no longer live"),
            Self::TooLate => (StatusCode::CONFLICT, "too_late", "It is too late for that"),
            Self::NotPossible => (StatusCode::CONFLICT, "not_possible", "The state does not allow it"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The content type is not supported")
            }
            Self::Refused => (StatusCode::UNPROCESSABLE_ENTITY, "refused", "The request was refused"),
            Self::DigestMismatch => {
                (StatusCode::UNPROCESSABLE_ENTITY, "digest_mismatch", "The content does not match its digest")
            }
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong here"),
            Self::LedgerDamaged => (StatusCode::INTERNAL_SERVER_ERROR, "ledger_damaged", "The ledger is damaged"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available now"),
            Self::NotConfigured => (StatusCode::SERVICE_UNAVAILABLE, "not_configured", "Not configured"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "Too busy"),
            Self::Timeout => (StatusCode::SERVICE_UNAVAILABLE, "timeout", "It took too long"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too_many", "Too many tries"),
            Self::LedgerFull => (StatusCode::INSUFFICIENT_STORAGE, "ledger_full", "No room left"),
        }
    }

    pub(crate) fn word(self) -> &'static str {
        self.facts().1
    }

    /// For answers that were made outside of our handlers.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            StatusCode::UNPROCESSABLE_ENTITY => Self::Refused,
            other if other.is_client_error() => Self::BadRequest,
            _ => Self::Internal,
        }
    }
}

/// An error on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    /// For the operator's log, never for the body.
    pub(crate) cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl Problem {
    /// `detail` is a sentence for the person who reads the answer.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after: None, cause: None }
    }

    /// 422 for one field, named by a JSON pointer into the body or by `?parameter`.
    pub(crate) fn refused(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldError { pointer: pointer.into(), detail: detail.into() };
        let mut problem = Self::new(Code::Refused, error.detail.clone());
        problem.errors.push(error);
        problem
    }

    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    pub(crate) fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// As it is told, with the exchange's name in it.
    pub(crate) fn body(self, request: RequestId) -> ProblemBody {
        let (status, code, title) = self.code.facts();
        ProblemBody {
            r#type: format!("/problems/{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail,
            code: code.to_owned(),
            request_id: request.to_string(),
            errors: self.errors,
        }
    }

    /// The answer, with the exchange's name in it.
    pub(crate) fn render(self, request: RequestId) -> Response {
        let (code, retry_after, status) = (self.code, self.retry_after, self.code.facts().0);
        let body = self.body(request);
        let json = serde_json::to_vec(&body).expect("a problem is strings and numbers");
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(wait) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if code == Code::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"fettle\""));
        }
        response
    }
}

/// Only carries the problem to the edge, which writes the body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.facts().0.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        let problem = match &error {
            LedgerError::Unavailable(_) => {
                Self::new(Code::Unavailable, "The ledger does not answer. Try again shortly.").retry_after(LEDGER_RETRY)
            }
            LedgerError::Full => Self::new(
                Code::LedgerFull,
                "The disk of the ledger is full. Reads go on; writes wait until the operator has made room.",
            ),
            LedgerError::Invalid(why) => return Self::new(Code::BadRequest, why.clone()),
            LedgerError::NotFound(what) => return Self::new(Code::NotFound, format!("{what} does not exist.")),
            LedgerError::Unreadable(_) => Self::new(
                Code::Internal,
                "A stored value cannot be read. The operator finds it in the log by the request id.",
            ),
            LedgerError::Corrupt(_) => {
                Self::new(Code::LedgerDamaged, "The ledger is damaged. The operator must restore it from a backup.")
            }
        };
        problem.because(error)
    }
}

impl From<SubmitError> for Problem {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Invalid { pointer, detail } => Self::refused(pointer, detail),
            SubmitError::UnknownHost { .. } => Self::refused("/repository".to_owned(), error.to_string()),
            SubmitError::NotPermitted(_) => Self::new(Code::Forbidden, error.to_string()),
            SubmitError::NotFound(_) => Self::new(Code::NotFound, error.to_string()),
            SubmitError::Unavailable { retry_after, .. } => {
                Self::new(Code::Unavailable, format!("{error}: it does not answer, or limits us. The cause is in the log, by the request id. Try again later."))
                    .retry_after(retry_after)
                    .because(error)
            }
            SubmitError::Ledger(cause) => cause.into(),
        }
    }
}

impl From<AddError> for Problem {
    fn from(error: AddError) -> Self {
        let told = sentence(&error.to_string());
        match error {
            AddError::Profile(bad) => Self::refused(format!("/{}", bad.field), bad.what),
            AddError::OddKey | AddError::KeyAgain => Self::refused("/api_key", told),
            AddError::Configured(_)
            | AddError::NoRing
            | AddError::NoAccess
            | AddError::MayNotWrite(..)
            | AddError::ForgeConfigured
            | AddError::Full => Self::new(Code::NotPossible, told),
            AddError::SameToken | AddError::UnknownToken(TokenFor::Reading, _) => Self::refused("/read", told),
            AddError::UnknownToken(TokenFor::Writing, _) => Self::refused("/write", told),
            AddError::Forge(_) => Self::new(Code::Unavailable, told).because(error),
            AddError::NotFound => Self::new(Code::NotFound, told),
            AddError::Repository(error) => error.into(),
            AddError::RingFile(_) => Self::new(Code::Unavailable, told).because(error),
            AddError::Ledger(cause) => cause.into(),
        }
    }
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", chars.as_str())
}

/// The body of every error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// `/problems/` and the code.
    pub(crate) r#type: String,
    pub(crate) title: String,
    pub(crate) status: u16,
    /// A sentence for people.
    pub(crate) detail: String,
    /// For programs: `not_found`, `stale`, `refused`, …
    pub(crate) code: String,
    /// Names this exchange in the logs.
    pub(crate) request_id: String,
    /// One entry for each refused field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) errors: Vec<FieldError>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct FieldError {
    /// A JSON pointer into the body (`/issue`), or `?` and the name of a query parameter.
    pub(crate) pointer: String,
    pub(crate) detail: String,
}
