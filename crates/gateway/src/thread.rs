//! What an exchange is called in logs, errors, usage and at the target: its own id, the Task's thread, the trace.

use fettle_app::ports::clock::IdSource;
use fettle_domain::trace::TraceParent;
use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Span, field, info_span};
use uuid::Uuid;

const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
const REQUEST: HeaderName = HeaderName::from_static("x-request-id");
/// Anthropic's name for it.
const REQUEST_AS_ANTHROPIC: HeaderName = HeaderName::from_static("request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// Pass through as they are.
const TRACES: [HeaderName; 2] = [TRACE_PARENT, HeaderName::from_static("tracestate")];
/// What ids of requests that we made begin with.
const OWN: &str = "req";
/// A longer id is replaced by one of ours.
const MAX_ID_BYTES: usize = 128;

#[derive(Debug, Clone)]
pub(crate) struct Thread {
    pub(crate) request: HeaderValue,
    pub(crate) correlation: HeaderValue,
    pub(crate) span: Span,
}

impl Thread {
    pub(crate) fn of(headers: &HeaderMap, ids: &dyn IdSource) -> Self {
        let request = given(headers, &REQUEST).unwrap_or_else(|| made(OWN, ids));
        let cause = cause_of(headers);
        let thread_of_cause = || HeaderValue::try_from(cause?.trace.correlation().to_string()).ok();
        let correlation = given(headers, &CORRELATION).or_else(thread_of_cause).unwrap_or_else(|| made("corr", ids));
        Self { request, correlation, span: Span::none() }
    }

    /// From here on there is a span of it, until the last copy of this has gone.
    pub(crate) fn traced(self, headers: &HeaderMap) -> Self {
        let span = info_span!(
            "gateway",
            request.id = self.request(),
            correlation.id = self.correlation(),
            trace.parent = cause_of(headers).map(field::display),
            model.name = field::Empty,
            model.target = field::Empty,
            tokens.prompt = field::Empty,
            tokens.output = field::Empty,
            attempts = field::Empty,
            queue_ms = field::Empty,
            http.status = field::Empty,
            outcome = field::Empty,
        );
        Self { span, ..self }
    }

    pub(crate) fn request(&self) -> &str {
        self.request.to_str().unwrap_or_default()
    }

    pub(crate) fn correlation(&self) -> &str {
        self.correlation.to_str().unwrap_or_default()
    }

    pub(crate) fn tell_caller(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST, self.request.clone());
        headers.insert(REQUEST_AS_ANTHROPIC, self.request.clone());
        headers.insert(CORRELATION, self.correlation.clone());
    }

    pub(crate) fn tell_target(&self, caller: &HeaderMap, headers: &mut HeaderMap) {
        headers.insert(REQUEST, as_uuid(&self.request));
        headers.insert(CORRELATION, self.correlation.clone());
        for name in &TRACES {
            if let Some(value) = caller.get(name) {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// What a caller gave, if it is fit for a log: visible ASCII without spaces and quotes.
fn given(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let value = headers.get(name)?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    (!value.is_empty() && value.len() <= MAX_ID_BYTES && value.as_bytes().iter().all(plain)).then(|| value.clone())
}

fn cause_of(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get(TRACE_PARENT)?.to_str().ok()?.parse().ok()
}

/// An id of our own as a plain UUID, whose digits it is; a caller's as it is. Servers with starlette-context, such as
/// llama-cpp-python's, refuse requests with any other.
fn as_uuid(request: &HeaderValue) -> HeaderValue {
    let digits = request.to_str().ok().and_then(|id| id.strip_prefix(OWN)?.strip_prefix('_'));
    let uuid = digits.and_then(|digits| Uuid::try_parse(digits).ok());
    uuid.and_then(|uuid| HeaderValue::try_from(uuid.to_string()).ok()).unwrap_or_else(|| request.clone())
}

fn made(prefix: &str, ids: &dyn IdSource) -> HeaderValue {
    HeaderValue::try_from(format!("{prefix}_{}", ids.uuid().simple())).expect("an id is a prefix and hex digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Seven;

    impl IdSource for Seven {
        fn uuid(&self) -> Uuid {
            Uuid::from_u128(7)
        }
    }

    #[test]
    fn a_target_gets_our_ids_as_uuids_and_the_callers_as_they_are() {
        let told = |given: &[(HeaderName, HeaderValue)]| {
            let given: HeaderMap = given.iter().cloned().collect();
            let mut headers = HeaderMap::new();
            Thread::of(&given, &Seven).tell_target(&given, &mut headers);
            headers[REQUEST].to_str().unwrap().to_owned()
        };
        assert_eq!(told(&[]), "00000000-0000-0000-0000-000000000007");
        for own in ["req-7", "req_7", "req_01a22a58b9a0"] {
            assert_eq!(told(&[(REQUEST, HeaderValue::from_static(own))]), own);
        }
    }

    #[test]
    fn a_caller_that_is_traced_and_says_no_thread_is_on_its_traces() {
        let cause = (TRACE_PARENT, "00-0123456789abcdef0123456789abcdef-00000000000000aa-01");
        let of = |given: &[(HeaderName, &'static str)]| {
            let headers = given.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            Thread::of(&headers.collect(), &Seven).correlation().to_owned()
        };
        assert_eq!(of(std::slice::from_ref(&cause)), "corr_0123456789abcdef0123456789abcdef");
        assert_eq!(of(&[cause, (CORRELATION, "corr-9")]), "corr-9");
        assert_eq!(of(&[(TRACE_PARENT, "odd")]), "corr_00000000000000000000000000000007");
    }

    #[test]
    fn given_ids_stay_and_what_could_spoil_a_log_is_replaced() {
        let of = |id: &'static str| {
            let headers = HeaderMap::from_iter([(REQUEST, HeaderValue::from_static(id))]);
            Thread::of(&headers, &Seven).request().to_owned()
        };
        assert_eq!(of("req-1.a:b/c"), "req-1.a:b/c");
        for wrong in ["", "a b", "a\"b"] {
            assert_eq!(of(wrong), "req_00000000000000000000000000000007", "{wrong}");
        }
    }
}
