//! Spans for a collector, made of those that logs have anyway. Which ones, what of them, and where each stands in its Task's
//! trace is said in the tables below; nothing else leaves, so no text of a model, an issue or a secret does.
//!
//! A library that hands on whatever a span holds, with all that is logged in it, could not promise that.

use std::fmt;

use fettle_domain::id::{CorrelationId, DeliveryId, TaskId};
use fettle_domain::trace::{SpanId, TraceId, TraceParent};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::{Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, SpanRef};
use uuid::Uuid;

use super::otlp::Queue;

/// What a span says of itself in its fields, and its place in the trace by them.
struct Form {
    /// As `info_span!` has it.
    name: &'static str,
    kind: SpanKind,
    /// Behind the name, the values of these.
    titled: &'static [&'static str],
    /// It stands for what this field names, so that others can hang on to it who know no more than that.
    stands_for: Option<&'static str>,
    /// Without a span around it in this process, it hangs on the one that stands for this.
    belongs_to: Option<&'static str>,
}

const fn form(name: &'static str, kind: SpanKind) -> Form {
    Form { name, kind, titled: &[], stands_for: None, belongs_to: None }
}

/// The closed list, which is a Task's tree: a request stores a delivery; intake opens a Task of it; a worker's
/// Run and the publishing belong to the Task; a Run calls models, through a gateway that has a span of its own, and tools, and
/// verifies; publishing has one for each effect.
const FORMS: [Form; 11] = [
    Form { titled: &["http.method", "http.route"], ..form("request", SpanKind::Server) },
    Form { stands_for: Some("delivery.id"), ..form("delivery", SpanKind::Producer) },
    Form { belongs_to: Some("delivery.id"), ..form("intake", SpanKind::Consumer) },
    Form { stands_for: Some("task.id"), ..form("task", SpanKind::Producer) },
    Form { belongs_to: Some("task.id"), ..form("run", SpanKind::Consumer) },
    Form { titled: &["model.name"], ..form("model", SpanKind::Client) },
    Form { titled: &["model.name"], ..form("gateway", SpanKind::Server) },
    Form { titled: &["tool.name"], ..form("tool", SpanKind::Internal) },
    form("verify", SpanKind::Internal),
    Form { belongs_to: Some("task.id"), ..form("publish", SpanKind::Consumer) },
    Form { titled: &["effect.kind"], ..form("effect", SpanKind::Client) },
];

/// Fields that leave, and what a collector knows them by.
const ATTRIBUTES: [(&str, &str); 23] = [
    ("http.method", "http.request.method"),
    ("http.route", "http.route"),
    ("http.status", "http.response.status_code"),
    ("request.id", "fettle.request.id"),
    ("correlation.id", "fettle.correlation.id"),
    ("delivery.id", "fettle.delivery.id"),
    ("task.id", "fettle.task.id"),
    ("task.mode", "fettle.task.mode"),
    ("run.id", "fettle.run.id"),
    ("job.id", "fettle.job.id"),
    ("lease.fence", "fettle.lease.fence"),
    ("worker.id", "fettle.worker.id"),
    ("effect.kind", "fettle.effect.kind"),
    ("effect.id", "fettle.effect.id"),
    ("model.name", "gen_ai.request.model"),
    ("model.target", "fettle.gateway.target"),
    ("model.stream", "fettle.model.stream"),
    ("tool.name", "fettle.tool.name"),
    ("tokens.prompt", "gen_ai.usage.input_tokens"),
    ("tokens.output", "gen_ai.usage.output_tokens"),
    ("attempts", "fettle.attempts"),
    ("queue_ms", "fettle.queue_ms"),
    (OUTCOME, "fettle.outcome"),
];

/// Of requests, those of people and forges. Workers ask every few seconds, probes too, and pages are files.
const ROUTES: [&str; 2] = ["/api/", "/webhooks/"];
const ROUTE: &str = "http.route";
/// `failed` is an error of the span.
const OUTCOME: &str = "outcome";
const FAILED: &str = "failed";
const STATUS: &str = "http.status";
const CORRELATION: &str = "correlation.id";
/// The caller's `traceparent`.
const CAUSE: &str = "trace.parent";
/// Digits that whoever makes the span has told others already.
const OWN: &str = "span.id";
/// Text is cut here: names and ids are shorter.
const MAX_TEXT_CHARS: usize = 128;
/// In `flags`: sampled, and it is known whether the parent is of another process.
const FLAGS: u32 = 0x01 | 0x100;
/// It may be.
const REMOTE: u32 = 0x200;

/// Whether a span is one that a collector may be told of.
pub(super) fn is_told(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("fettle") && form_of(metadata.name()).is_some()
}

fn form_of(name: &str) -> Option<&'static Form> {
    FORMS.iter().find(|form| form.name == name)
}

/// A span that has begun.
struct Open {
    form: &'static Form,
    own: SpanId,
    /// Of the span around it in this process.
    above: Option<TraceParent>,
    begun_unix_nanos: u64,
    since: Instant,
    fields: Fields,
}

impl Open {
    fn place(&self) -> Place {
        let cause = self.fields.parsed::<TraceParent>(CAUSE);
        let above = self.above.or(cause);
        let correlation = self.fields.parsed::<CorrelationId>(CORRELATION);
        let own_trace = correlation.and_then(TraceId::of);
        let trace = match (self.above, own_trace) {
            (Some(above), _) => Some(above.trace),
            (None, Some(own)) => Some(own),
            (None, None) => cause.map(|cause| cause.trace),
        };
        let trace = trace.unwrap_or_else(|| trace_alone(self.own));
        let parent = match above.filter(|above| above.trace == trace) {
            Some(above) => Some(above.span),
            None => self.form.belongs_to.and_then(|field| self.fields.stands_for(field)),
        };
        let is_caused_elsewhere = parent.is_some() && self.above.is_none();
        Place { trace, parent, is_caused_elsewhere, linked: cause.filter(|cause| cause.trace != trace) }
    }

    fn is_wanted(&self) -> bool {
        self.fields.text(ROUTE).is_none_or(|route| ROUTES.iter().any(|wanted| route.starts_with(wanted)))
    }

    fn ended(self) -> Span {
        let place = self.place();
        let took = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Self { form, own, begun_unix_nanos, fields, .. } = self;
        let mut name = match form.name {
            // What people know a request by.
            "request" => String::new(),
            name => name.to_owned(),
        };
        for field in form.titled {
            if let Some(text) = fields.text(field) {
                name.push_str(if name.is_empty() { "" } else { " " });
                name.push_str(text);
            }
        }
        let failed = fields.text(OUTCOME) == Some(FAILED) || fields.number(STATUS).is_some_and(|status| status >= 500);
        let links = place.linked.iter().map(|linked| Link {
            trace_id: linked.trace.bytes().to_vec(),
            span_id: linked.span.bytes().to_vec(),
            flags: FLAGS | REMOTE,
            ..Link::default()
        });
        Span {
            trace_id: place.trace.bytes().to_vec(),
            span_id: own.bytes().to_vec(),
            parent_span_id: place.parent.map(|parent| parent.bytes().to_vec()).unwrap_or_default(),
            flags: if place.is_caused_elsewhere { FLAGS | REMOTE } else { FLAGS },
            name,
            kind: form.kind.into(),
            start_time_unix_nano: begun_unix_nanos,
            end_time_unix_nano: begun_unix_nanos.saturating_add(took),
            links: links.collect(),
            attributes: fields.attributes(),
            status: failed.then(|| Status { code: StatusCode::Error.into(), ..Status::default() }),
            ..Span::default()
        }
    }
}

/// Where a span stands.
struct Place {
    trace: TraceId,
    parent: Option<SpanId>,
    /// The parent may be of another process.
    is_caused_elsewhere: bool,
    /// What caused it elsewhere, in another trace.
    linked: Option<TraceParent>,
}

/// Digits that are no one else's.
fn random_span() -> SpanId {
    loop {
        let digits = getrandom::u64().expect("the kernel gives random bytes once it has started");
        if let Some(id) = SpanId::from_digits(digits) {
            return id;
        }
    }
}

/// The span's digits twice: however often it is asked, a span stands in the same trace.
fn trace_alone(span: SpanId) -> TraceId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&span.bytes());
    bytes[8..].copy_from_slice(&span.bytes());
    TraceId::of(CorrelationId::from_uuid(Uuid::from_bytes(bytes))).expect("a span's digits are not all zeros")
}

/// Hands spans that have ended to the queue.
pub(super) struct Spans {
    queue: Queue,
}

impl Spans {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue }
    }
}

impl<S: Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let (Some(form), Some(span)) = (form_of(attributes.metadata().name()), context.span(id)) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let around = span.parent();
        let above = around.iter().flat_map(SpanRef::scope).find_map(|around| {
            let extensions = around.extensions();
            let open = extensions.get::<Open>()?;
            Some(TraceParent { trace: open.place().trace, span: open.own })
        });
        let told = fields.text(OWN).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let own = told.and_then(SpanId::from_digits);
        let own =
            own.or_else(|| form.stands_for.and_then(|field| fields.stands_for(field))).unwrap_or_else(random_span);
        let open = Open { form, own, above, begun_unix_nanos: unix_nanos(), since: Instant::now(), fields };
        span.extensions_mut().insert(open);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(&mut open.fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let open = context.span(&id).and_then(|span| span.extensions_mut().remove::<Open>());
        if let Some(open) = open.filter(Open::is_wanted) {
            self.queue.put(open.ended());
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a collector compares instants of all machines; nothing here is decided by it"
)]
fn unix_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What may leave of a span's fields, and what says where it stands.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl FnOnce() -> Value) {
        let name = field.name();
        let known = ATTRIBUTES.iter().any(|(known, _)| *known == name) || [CAUSE, OWN].contains(&name);
        if !known {
            return;
        }
        match self.0.iter_mut().find(|(had, _)| *had == name) {
            Some((_, old)) => *old = value(),
            None => self.0.push((name, value())),
        }
    }

    fn find(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(had, _)| *had == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.find(name)? {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Flag(_) => None,
        }
    }

    fn number(&self, name: &str) -> Option<i64> {
        match self.find(name)? {
            Value::Number(number) => Some(*number),
            Value::Text(_) | Value::Flag(_) => None,
        }
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    fn stands_for(&self, field: &str) -> Option<SpanId> {
        let id = match field {
            "task.id" => self.parsed::<TaskId>(field)?.as_uuid(),
            _ => self.parsed::<DeliveryId>(field)?.as_uuid(),
        };
        SpanId::of(id)
    }

    fn attributes(self) -> Vec<KeyValue> {
        let attribute = |(name, value): (&'static str, Value)| {
            let (_, key) = ATTRIBUTES.iter().find(|(known, _)| *known == name)?;
            let value = match value {
                Value::Text(text) => any_value::Value::StringValue(text),
                Value::Number(number) => any_value::Value::IntValue(number),
                Value::Flag(flag) => any_value::Value::BoolValue(flag),
            };
            Some(KeyValue {
                key: (*key).to_owned(),
                value: Some(AnyValue { value: Some(value) }),
                ..KeyValue::default()
            })
        };
        self.0.into_iter().filter_map(attribute).collect()
    }
}

fn cut(text: &str) -> Value {
    Value::Text(text.chars().take(MAX_TEXT_CHARS).collect())
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, || cut(&format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, || cut(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, || Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, || Value::Number(i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, || Value::Flag(value));
    }
}

#[cfg(test)]
mod tests;
