//! One request and what its answer means for the caller. Applies a write at most once.

use std::error::Error as StdError;
use std::time::Duration;

use fettle_app::ports::BoxError;
use fettle_app::ports::forge::{F, ForgeError};
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use octocrab::{GitHubError, Octocrab};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::GitHub;

/// GitHub's own advice when it limits without saying for how long.
const DEFAULT_RATE_WAIT: Duration = Duration::from_secs(60);
/// The primary limit starts anew each hour; a longer wait is a broken header.
const MAX_RATE_WAIT: Duration = Duration::from_secs(3600);
/// Enough of the forge's words to understand a refusal, too little to fill a log.
const MAX_REFUSAL_CHARS: usize = 500;
/// List pages hold at most this many items.
pub(crate) const PER_PAGE: usize = 100;

/// What an unknown result means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Nothing that a user sees: ask again.
    Light,
    /// May have been applied: read back first.
    Write,
}

#[derive(Clone)]
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    weight: Weight,
    /// Names what a 404 says is absent.
    subject: String,
    /// The tag of an answer that we know: the same one need not be sent again.
    known: Option<String>,
    /// It need not be answered now.
    pub(crate) can_wait: bool,
}

impl Call {
    pub(crate) fn read(path: String, subject: impl Into<String>) -> Self {
        Self::preparing(Method::GET, path, subject)
    }

    /// Not a write as users see it, whatever the method: minting a token.
    pub(crate) fn preparing(method: Method, path: String, subject: impl Into<String>) -> Self {
        let weight = Weight::Light;
        Self { method, path, body: None, weight, subject: subject.into(), known: None, can_wait: false }
    }

    pub(crate) fn write(method: Method, path: String, subject: impl Into<String>) -> Self {
        Self { weight: Weight::Write, ..Self::preparing(method, path, subject) }
    }

    pub(crate) fn with(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(crate) fn unless(self, known: Option<&str>) -> Self {
        Self { known: known.map(str::to_owned), ..self }
    }

    pub(crate) fn that_can_wait(self) -> Self {
        Self { can_wait: true, ..self }
    }

    /// Names and values of the query, encoded here.
    pub(crate) fn query(mut self, pairs: &[(&str, &str)]) -> Self {
        let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
        self.path = format!("{}?{query}", self.path);
        self
    }

    fn unknown(&self, cause: impl Into<BoxError>) -> ForgeError {
        match self.weight {
            Weight::Light => ForgeError::Unavailable(cause.into()),
            Weight::Write => ForgeError::NoAnswer(cause.into()),
        }
    }
}

/// `/a/b/c` with each segment percent-encoded, so that no name can reach another path.
pub(crate) fn route(segments: &[&str]) -> String {
    let mut url = Url::parse("http://forge").expect("a constant URL");
    url.path_segments_mut().expect("an http URL has segments").extend(segments);
    url.path().to_owned()
}

pub(crate) struct Answer {
    pub(crate) headers: HeaderMap,
    /// What is asked for is as the tag of the call says, and was not sent.
    pub(crate) unchanged: bool,
    body: String,
    weight: Weight,
}

impl Answer {
    /// A body that is not what the API promises says nothing about a write's result.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> F<T> {
        serde_json::from_str(&self.body).map_err(|e| match self.weight {
            Weight::Light => ForgeError::Unavailable(e.into()),
            Weight::Write => ForgeError::NoAnswer(e.into()),
        })
    }

    /// When the forge answered, by its own clock.
    pub(crate) fn date(&self) -> Option<Timestamp> {
        date(&self.headers)
    }

    /// The number of the last page, when there is more than this one.
    pub(crate) fn last_page(&self) -> Option<u32> {
        self.link("last")?.query_pairs().find(|(name, _)| name == "page")?.1.parse().ok()
    }

    /// Where a list goes on that has no page numbers.
    pub(crate) fn next_cursor(&self) -> Option<String> {
        Some(self.link("next")?.query_pairs().find(|(name, _)| name == "cursor")?.1.into_owned())
    }

    /// Tells this answer from others to the same question.
    pub(crate) fn tag(&self) -> Option<String> {
        Some(self.headers.get(http::header::ETAG)?.to_str().ok()?.to_owned())
    }

    fn link(&self, rel: &str) -> Option<Url> {
        let links = self.headers.get(http::header::LINK)?.to_str().ok()?;
        links.split(',').find_map(|link| {
            let (target, parameters) = link.split_once(';')?;
            let wanted = parameters.split(';').any(|p| p.trim() == format!("rel=\"{rel}\""));
            let target = target.trim().strip_prefix('<')?.strip_suffix('>')?;
            wanted.then(|| Url::parse(target).ok()).flatten()
        })
    }
}

pub(crate) struct Failure {
    pub(crate) error: ForgeError,
    /// 401: the credential was not taken and nothing happened.
    pub(crate) unauthorized: bool,
}

impl From<ForgeError> for Failure {
    fn from(error: ForgeError) -> Self {
        Self { error, unauthorized: false }
    }
}

impl From<Failure> for ForgeError {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl GitHub {
    /// Sends the call, and once more to where a renamed repository has gone: a redirected write was not applied.
    pub(crate) async fn exchange(&self, client: &Octocrab, call: &Call) -> Result<Answer, Failure> {
        match self.send(client, call, &call.path).await? {
            Sent::Answered(answer) => Ok(answer),
            Sent::Moved(path) => match self.send(client, call, &path).await? {
                Sent::Answered(answer) => Ok(answer),
                Sent::Moved(_) => Err(ForgeError::Refused("it sends us from place to place".to_owned()).into()),
            },
        }
    }

    async fn send(&self, client: &Octocrab, call: &Call, path: &str) -> Result<Sent, Failure> {
        let mut builder = http::Request::builder().method(call.method.clone()).uri(path);
        if let Some(known) = &call.known {
            builder = builder.header(http::header::IF_NONE_MATCH, known);
        }
        let request = client
            .build_request(builder, call.body.as_ref())
            .map_err(|e| ForgeError::Refused(format!("not a request: {e}")))?;
        let exchanged = tokio::time::timeout(self.answer_timeout, async {
            let response = client.execute(request).await?;
            if response.status() == StatusCode::NOT_MODIFIED {
                return Ok((response.headers().clone(), true, String::new()));
            }
            let response = octocrab::map_github_error(response).await?;
            let headers = response.headers().clone();
            Ok::<_, octocrab::Error>((headers, false, client.body_to_string(response).await?))
        });
        match exchanged.await {
            Ok(Ok((headers, unchanged, body))) => {
                Ok(Sent::Answered(Answer { headers, unchanged, body, weight: call.weight }))
            }
            Ok(Err(error)) => self.moved(&error).map(Sent::Moved).ok_or_else(|| failure(call, error)),
            Err(elapsed) => Err(call.unknown(elapsed).into()),
        }
    }

    /// Where on this same forge to ask instead. Our credentials go nowhere else.
    fn moved(&self, error: &octocrab::Error) -> Option<String> {
        let octocrab::Error::GitHub { source, .. } = error else { return None };
        if !source.status_code.is_redirection() {
            return None;
        }
        let location = source.headers.as_ref()?.get(http::header::LOCATION)?.to_str().ok()?;
        let to = self.base_url.join(location).ok().filter(|to| to.origin() == self.base_url.origin())?;
        Some(to[url::Position::BeforePath..url::Position::AfterQuery].to_owned())
    }
}

enum Sent {
    Answered(Answer),
    Moved(String),
}

fn failure(call: &Call, error: octocrab::Error) -> Failure {
    match error {
        octocrab::Error::GitHub { source, .. } => {
            let unauthorized = source.status_code == StatusCode::UNAUTHORIZED;
            Failure { error: answered(call, *source), unauthorized }
        }
        octocrab::Error::JWT { source, .. } => {
            ForgeError::Denied(format!("the App's private key cannot sign: {source}")).into()
        }
        octocrab::Error::Service { source, .. } if never_connected(source.as_ref()) => {
            ForgeError::Unavailable(source).into()
        }
        other => call.unknown(other).into(),
    }
}

fn never_connected(error: &(dyn StdError + 'static)) -> bool {
    std::iter::successors(Some(error), |&e| e.source())
        .any(|e| e.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect()))
}

/// By what the caller can do about the status.
fn answered(call: &Call, error: GitHubError) -> ForgeError {
    if let Some(wait) = rate_limit(&error) {
        return ForgeError::RateLimited { wait };
    }
    match error.status_code {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ForgeError::Denied(words(&error)),
        StatusCode::NOT_FOUND | StatusCode::GONE => ForgeError::NotFound(call.subject.clone()),
        // GitHub answers 502 and 504 for requests that it applies a moment later.
        status if status.is_server_error() => call.unknown(error),
        StatusCode::REQUEST_TIMEOUT => call.unknown(error),
        _ => ForgeError::Refused(words(&error)),
    }
}

/// How long the forge wants to be left alone; `None` when the answer is about something else.
///
/// Source: "Best practices for using the REST API", rate limits: `retry-after` first, then `x-ratelimit-reset` when
/// nothing remains, else at least a minute.
fn rate_limit(error: &GitHubError) -> Option<Duration> {
    if !matches!(error.status_code, StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS) {
        return None;
    }
    let empty = HeaderMap::new();
    let headers = error.headers.as_ref().unwrap_or(&empty);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let until = |instant: Timestamp| {
        let now = date(headers)?;
        Some(Duration::try_from(instant.duration_since(now)).unwrap_or(Duration::ZERO))
    };
    let asked = text("retry-after").map(|value| match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(value).and_then(until).unwrap_or(DEFAULT_RATE_WAIT),
    });
    let exhausted = || {
        (text("x-ratelimit-remaining")?.trim() == "0").then(|| {
            let reset = text("x-ratelimit-reset").and_then(|value| value.parse().ok());
            reset.and_then(|second| Timestamp::from_second(second).ok()).and_then(until).unwrap_or(DEFAULT_RATE_WAIT)
        })
    };
    let secondary = || {
        let told = error.message.to_ascii_lowercase();
        let limited = error.status_code == StatusCode::TOO_MANY_REQUESTS
            || ["secondary rate limit", "abuse detection", "rate limit exceeded"].iter().any(|p| told.contains(p));
        limited.then_some(DEFAULT_RATE_WAIT)
    };
    asked.or_else(exhausted).or_else(secondary).map(|wait| wait.clamp(Duration::from_secs(1), MAX_RATE_WAIT))
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(http::header::DATE)?.to_str().ok()?)
}

fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

/// The message and the details of its errors, shortened.
fn words(error: &GitHubError) -> String {
    let details = error.errors.iter().flatten().map(|detail| match detail {
        Value::String(text) => text.clone(),
        other => other.get("message").and_then(Value::as_str).map_or_else(|| other.to_string(), str::to_owned),
    });
    let all: Vec<String> = std::iter::once(error.message.clone()).chain(details).collect();
    all.join(": ").chars().take(MAX_REFUSAL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_escapes_its_path_segment() {
        assert_eq!(route(&["repos", "o", "..", "labels", "a/b ?x#é"]), "/repos/o/labels/a%2Fb%20%3Fx%23%C3%A9");
    }
}
