//! What a failed call means to the caller: wait, try again, ask for less, or stop. Pure.

use std::time::Duration;

use fettle_app::ports::model::ModelError;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::decode::DecodeError;

/// Enough for a server's sentence; a page of HTML is not one.
const MAX_SENTENCE_CHARS: usize = 500;

/// Of an answer that is something else: enough to recognise a web page or another API.
const MAX_EXCERPT_CHARS: usize = 120;

/// Codes and phrases by which servers say that prompt and answer do not fit: OpenAI, vLLM, SGLang, llama.cpp, TGI,
/// LM Studio, Mistral, Groq, Gemini and Anthropic behind a compatible endpoint.
const CONTEXT_CODES: [&str; 3] =
    ["context_length_exceeded", "exceed_context_size_error", "model_max_prompt_tokens_exceeded"];
const CONTEXT_PHRASES: [&str; 13] = [
    "maximum context length",
    "model's context length",
    "exceeds the context length",
    "exceeds the available context size",
    "exceeds the context window",
    "exceed context window",
    "context length exceeded",
    "context window is full",
    "the context overflows",
    "greater than the context length",
    "too large for model with",
    "prompt is too long",
    "exceeds the maximum number of tokens allowed",
];

/// What the server says about a failure, as far as it says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Complaint {
    pub(super) sentence: String,
    /// `code` and `type` of the error, in lower case.
    codes: Vec<String>,
    /// An HTTP status named inside a body or stream.
    status: Option<u16>,
}

impl Complaint {
    /// From the body of an answer with an error status.
    pub(super) fn of_body(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        match serde_json::from_str::<Value>(&text) {
            Ok(value) => Self::within(&value).unwrap_or_else(|| Self::of_value(&value)),
            Err(_) if text.trim_start().starts_with('<') => Self::default(),
            Err(_) => Self { sentence: text.trim().to_owned(), ..Self::default() },
        }
    }

    /// The error inside an answer or a chunk, if there is one.
    pub(super) fn within(value: &Value) -> Option<Self> {
        match &value["error"] {
            Value::String(sentence) => Some(Self { sentence: sentence.clone(), ..Self::of_value(value) }),
            error @ Value::Object(_) => Some(Self::of_value(error)),
            _ if value["object"] == "error" => Some(Self::of_value(value)),
            _ => None,
        }
    }

    fn of_value(value: &Value) -> Self {
        let sentence = ["message", "detail", "msg"].into_iter().find_map(|key| match &value[key] {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        });
        let codes = ["code", "type"].into_iter().filter_map(|key| value[key].as_str()).map(str::to_lowercase).collect();
        let status = ["status", "code"].into_iter().find_map(|key| value[key].as_u64());
        Self { sentence: sentence.unwrap_or_default(), codes, status: status.and_then(|s| u16::try_from(s).ok()) }
    }

    fn says_context_exceeded(&self) -> bool {
        let sentence = self.sentence.to_lowercase();
        self.codes.iter().any(|code| CONTEXT_CODES.contains(&code.as_str()))
            || CONTEXT_PHRASES.iter().any(|phrase| sentence.contains(phrase))
    }

    fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|own| own == code)
    }
}

/// Who was asked, for the sentences about it.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The base URL, without what may be secret in it.
    pub(super) url: &'a str,
    pub(super) key: Option<&'a SecretString>,
    pub(super) is_gateway: bool,
}

/// The cause behind `Unavailable`, for operators.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("{url} answered {status}: {sentence}")]
    Status { url: String, status: u16, sentence: String },
    #[error("{url} broke off with an error: {sentence}")]
    Reported { url: String, sentence: String },
    #[error(
        "what {url} sent is no chat completion ({status}, {kind}, `{excerpt}`); does the URL end as the server documents it, mostly in /v1?"
    )]
    Foreign {
        url: String,
        status: u16,
        kind: String,
        excerpt: String,
        #[source]
        why: DecodeError,
    },
}

/// For an answer that began with an error status.
pub(super) fn of_status(
    status: u16,
    retry_after: Option<Duration>,
    complaint: &Complaint,
    asked: Asked<'_>,
) -> ModelError {
    let url = asked.url;
    let sentence = fit_to_show(&complaint.sentence, MAX_SENTENCE_CHARS, asked.key);
    let said = Some(&sentence).filter(|sentence| !sentence.is_empty()).cloned();
    let sentence = if sentence.is_empty() { "it gave no reason".to_owned() } else { sentence };
    match status {
        // Codes that only time heals come with 429 and 503, but a used-up account stays used up.
        429 if complaint.has_code("insufficient_quota") => ModelError::Refused(sentence),
        429 => ModelError::Busy { retry_after, said },
        503 if retry_after.is_some() => ModelError::Busy { retry_after, said },
        // llama.cpp answered 500 for a prompt too long before it had a code of its own.
        400 | 413 | 422 | 500 if complaint.says_context_exceeded() => ModelError::ContextExceeded,
        300..400 => ModelError::Refused(format!("{url} answered {status}, and redirects are not followed")),
        // 408 and 425 ask for another try.
        408 | 425 | 500.. => ModelError::Unavailable(Box::new(Cause::Status { url: url.to_owned(), status, sentence })),
        401 | 403 if asked.is_gateway => ModelError::Refused(format!(
            "{url} answered {status}: {sentence}; dashboard and gateway need the same gateway.run_token_key_file, or without it the same auth.worker_key_file"
        )),
        401 | 403 => ModelError::Refused(format!(
            "{url} answered {status}: {sentence}; look at the file with its key (api_key_file, or --model-key-file)"
        )),
        // It may have been added a moment ago, or the gateway has begun and was told of nothing yet.
        404 if asked.is_gateway => {
            ModelError::Unavailable(Box::new(Cause::Status { url: url.to_owned(), status, sentence }))
        }
        404 => ModelError::Refused(format!(
            "{url} answered {status}: {sentence}; does the URL end as the server documents it, mostly in /v1, and does the server have this model?"
        )),
        _ => ModelError::Refused(format!("{url} answered {status}: {sentence}")),
    }
}

/// For an error that came inside an answer with a success status.
pub(super) fn reported(complaint: &Complaint, nothing_said: bool, asked: Asked<'_>) -> ModelError {
    if complaint.says_context_exceeded() {
        return ModelError::ContextExceeded;
    }
    match complaint.status {
        Some(429) if nothing_said => ModelError::Busy { retry_after: None, said: None },
        Some(status @ (400 | 401 | 403 | 404)) if nothing_said => of_status(status, None, complaint, asked),
        _ => ModelError::Unavailable(Box::new(Cause::Reported {
            url: asked.url.to_owned(),
            sentence: fit_to_show(&complaint.sentence, MAX_SENTENCE_CHARS, asked.key),
        })),
    }
}

/// For an answer with a success status that is nothing a model's server sends. `head` is how it began.
pub(super) fn foreign(status: u16, kind: &str, head: &[u8], why: DecodeError, asked: Asked<'_>) -> ModelError {
    ModelError::Unavailable(Box::new(Cause::Foreign {
        url: asked.url.to_owned(),
        status,
        kind: fit_to_show(kind, MAX_EXCERPT_CHARS, asked.key),
        excerpt: fit_to_show(&String::from_utf8_lossy(head), MAX_EXCERPT_CHARS, asked.key),
        why,
    }))
}

/// How long the server asks to wait. A date counts from the server's own clock, so ours does not matter.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) = text("retry-after-ms").and_then(|value| value.parse().ok()) {
        return Some(Duration::from_millis(millis));
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(text(DATE.as_str())?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

/// One bounded line without the key: servers like to repeat what they were sent.
fn fit_to_show(sentence: &str, max_chars: usize, key: Option<&SecretString>) -> String {
    let without_key = match key.map(ExposeSecret::expose_secret) {
        Some(key) if !key.is_empty() => sentence.replace(key, "[key]"),
        _ => sentence.to_owned(),
    };
    let line = without_key.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    match line.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked<'static> = Asked { url: "http://x/v1", key: None, is_gateway: false };

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (reqwest::header::HeaderName::from_static(name), reqwest::header::HeaderValue::from_static(value))
            })
            .collect()
    }

    #[test]
    fn the_time_to_wait_is_read_in_each_of_its_forms() {
        let dates = [("retry-after", "Fri, 20 Nov 2026 12:01:30 GMT"), ("date", "Fri, 20 Nov 2026 12:00:00 GMT")];
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers(&[("retry-after-ms", "250")])), Some(Duration::from_millis(250)));
        assert_eq!(retry_after(&headers(&dates)), Some(Duration::from_secs(90)));
        assert_eq!(retry_after(&headers(&dates[..1])), None);
        assert_eq!(retry_after(&headers(&[("retry-after", "-1")])), None);
        assert_eq!(retry_after(&headers(&[("retry-after", "soon")])), None);
    }

    #[test]
    fn each_servers_way_to_say_that_the_prompt_is_too_long_is_known() {
        for body in [
            r#"{"error":{"message":"too many tokens","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000 tokens","code":400}"#,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size, try increasing it","type":"exceed_context_size_error"}}"#,
            r#"{"error":"The input (9000 tokens) is longer than the model's context length (8192 tokens)."}"#,
        ] {
            let error = of_status(400, None, &Complaint::of_body(body.as_bytes()), ASKED);
            assert!(matches!(error, ModelError::ContextExceeded), "{body}: {error:?}");
        }
    }

    #[test]
    fn a_refusal_carries_one_bounded_sentence_and_never_the_key() {
        let key = SecretString::from("sk-canary");
        let asked = Asked { key: Some(&key), ..ASKED };
        let body = format!(r#"{{"error":{{"message":"bad key sk-canary\n {}"}}}}"#, "x".repeat(2_000));
        let ModelError::Refused(sentence) = of_status(401, None, &Complaint::of_body(body.as_bytes()), asked) else {
            panic!("401 is a refusal");
        };
        assert!(sentence.starts_with("http://x/v1 answered 401: bad key [key] xxx"), "{sentence}");
        assert!(sentence.chars().count() < MAX_SENTENCE_CHARS + 120 && sentence.ends_with("--model-key-file)"));
    }
}
