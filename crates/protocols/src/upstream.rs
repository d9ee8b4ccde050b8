//! What an upstream's error means. Its words are read and never repeated: they may name paths, keys and other people.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::failure::{Failure, RETRY_AFTER_MAX, RETRY_AFTER_MIN};
use crate::json;
use crate::usage::lenient;

/// How much of an error body is looked at; a page of HTML says nothing that the status does not.
const LOOKED_AT_BYTES: usize = 64 * 1024;

/// An upstream's error, without its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamError {
    /// It cannot read what was sent.
    BadRequest,
    ContextTooLong,
    BadKey,
    NotAllowed,
    UnknownModel,
    /// Its limit of requests or tokens in a time.
    RateLimited {
        retry_after: Option<Duration>,
    },
    /// The account behind its key has nothing left.
    NoCredit,
    /// It takes no more now, or is down.
    Overloaded {
        retry_after: Option<Duration>,
    },
    Slow,
    Failed,
}

impl UpstreamError {
    /// Whether the same request may go better elsewhere or later.
    pub const fn worth_retrying(self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Overloaded { .. } | Self::Slow | Self::Failed => true,
            Self::BadRequest
            | Self::ContextTooLong
            | Self::BadKey
            | Self::NotAllowed
            | Self::UnknownModel
            | Self::NoCredit => false,
        }
    }

    /// What the caller is told. A key, an account or a name that the gateway chose is not the caller's fault.
    pub fn to_failure(self) -> Failure {
        let failed = |why: &str| Failure::UpstreamFailed { sentence: why.to_owned() };
        let wait = |after: Option<Duration>| after.unwrap_or(RETRY_AFTER_MIN).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        match self {
            Self::BadRequest => Failure::BadBody {
                field: None,
                sentence: "The model's server refuses this request as malformed.".to_owned(),
            },
            Self::ContextTooLong => Failure::ContextTooLong {
                sentence: "The request is longer than the model's context length.".to_owned(),
            },
            Self::BadKey => failed("The model's server does not accept the gateway's key."),
            Self::NotAllowed => failed("The model's server does not let the gateway use this model."),
            Self::UnknownModel => failed("The model's server does not know this model."),
            Self::NoCredit => failed("The gateway's account at the model's server has nothing left."),
            Self::RateLimited { retry_after } => Failure::RateLimited {
                sentence: "The model's server takes no more requests for now.".to_owned(),
                retry_after: wait(retry_after),
            },
            Self::Overloaded { retry_after } => Failure::CannotPlaceNow {
                sentence: "The model's server is overloaded or not available.".to_owned(),
                retry_after: wait(retry_after),
            },
            Self::Slow => Failure::UpstreamSlow { sentence: "The model's server did not answer in time.".to_owned() },
            Self::Failed => failed("The model's server failed."),
        }
    }
}

/// Reads an upstream's answer with a status of 400 or more, whatever its protocol: proxies answer in shapes of their
/// own. `retry_after` is that header as it came.
pub fn read_error(status: u16, retry_after: Option<&str>, body: &[u8]) -> UpstreamError {
    classify(status, retry_after.and_then(seconds), &Words::of(body))
}

/// Reads an error that came in a stream, or in an answer with status 200. There is no status, so its words decide.
pub(crate) fn read_error_event(json: &str) -> UpstreamError {
    let words = Words::of(json.as_bytes());
    classify(words.status.unwrap_or(500), None, &words)
}

fn classify(status: u16, retry_after: Option<Duration>, words: &Words) -> UpstreamError {
    if words.is_about_context() && !matches!(status, 401 | 403 | 429) {
        return UpstreamError::ContextTooLong;
    }
    let about_the_account = matches!(status, 401 | 402 | 429);
    if words.is_kind(&["insufficient_quota", "billing_error"])
        || (about_the_account && words.says(&["credit balance is too low", "exceeded your current quota"]))
    {
        return UpstreamError::NoCredit;
    }
    if words.is_kind(&["api_key_invalid", "invalid_api_key", "authentication_error"]) {
        return UpstreamError::BadKey;
    }
    if words.is_kind(&["overloaded_error", "server_is_overloaded", "slow_down"]) {
        return UpstreamError::Overloaded { retry_after };
    }
    if words.is_kind(&["rate_limit_exceeded", "rate_limit_error", "resource_exhausted"]) {
        return UpstreamError::RateLimited { retry_after };
    }
    match status {
        401 => UpstreamError::BadKey,
        402 => UpstreamError::NoCredit,
        403 => UpstreamError::NotAllowed,
        404 => UpstreamError::UnknownModel,
        408 | 504 => UpstreamError::Slow,
        429 => UpstreamError::RateLimited { retry_after },
        503 | 529 => UpstreamError::Overloaded { retry_after },
        400..=499 => UpstreamError::BadRequest,
        _ => UpstreamError::Failed,
    }
}

/// A wait in seconds. A date is not read: there is no clock here, and no server that was met sends one.
fn seconds(header: &str) -> Option<Duration> {
    const LONGEST: f64 = 86_400.0; // a day; what is longer is no wait
    let seconds: f64 = header.trim().parse().ok()?;
    (0.0..=LONGEST).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// What an error says about its kind, in lower case. Its sentence often quotes the request, so a caller can put words into it:
/// alone it never says anything about the key or the account.
struct Words {
    /// Codes and types: the server's own words.
    kinds: Vec<String>,
    sentence: String,
    status: Option<u16>,
}

#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct Inner<'a> {
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    code: Option<&'a RawValue>,
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

/// One of Google's details. The others describe fields of the request in its own words.
#[derive(Deserialize)]
struct Detail<'a> {
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
}

impl Words {
    fn of(body: &[u8]) -> Self {
        let body = &body[..body.len().min(LOOKED_AT_BYTES)];
        let text = String::from_utf8_lossy(body);
        // OpenAI, Anthropic, Google, llama.cpp: `error` is an object. Ollama: a string. Older vLLM and FastAPI: none.
        let outer = serde_json::from_str::<Outer<'_>>(&text).ok();
        let shown = outer.and_then(|outer| outer.error.or(outer.detail)).map_or(text.as_ref(), RawValue::get);
        match serde_json::from_str::<Inner<'_>>(shown) {
            Ok(inner) => {
                let details: Vec<Detail<'_>> = lenient(inner.details).unwrap_or_default();
                let reasons = details.iter().filter_map(|detail| detail.reason);
                let kinds = [inner.code, inner.r#type, inner.status].into_iter().flatten().chain(reasons);
                let sentence = inner.message.map(RawValue::get).unwrap_or_default().to_lowercase();
                Self {
                    kinds: kinds.filter_map(|raw| Some(json::text_of(raw.get())?.to_lowercase())).collect(),
                    sentence,
                    status: inner.code.and_then(|code| code.get().parse().ok()),
                }
            }
            Err(_) => {
                let sentence = json::text_of(shown).unwrap_or(shown.into()).to_lowercase();
                Self { kinds: Vec::new(), sentence, status: None }
            }
        }
    }

    fn is_kind(&self, kinds: &[&str]) -> bool {
        self.kinds.iter().any(|kind| kinds.contains(&kind.as_str()))
    }

    fn says(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.sentence.contains(part))
    }

    /// The sentences of OpenAI and vLLM, Anthropic, llama.cpp, SGLang, Ollama, and Google. A caller that is quoted in one is told
    /// so and nobody else: it says nothing of the server.
    fn is_about_context(&self) -> bool {
        self.is_kind(&["context_length_exceeded", "exceed_context_size_error"])
            || self.says(&[
                "maximum context length",
                "prompt is too long",
                "exceed context limit",
                "exceeds the available context size",
                "longer than the model's context length",
                "exceeds the context length",
                "exceeds the maximum number of tokens",
                "input length exceeds",
                "max_model_len",
            ])
    }
}
