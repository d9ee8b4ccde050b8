//! Spans on their way to a collector, by OTLP over HTTP. Whoever ends a span never waits: the queue has an end, and what finds
//! no place in it, or no collector, is dropped and counted.
//!
//! The messages are OpenTelemetry's own crate. Its exporter is not used: it reads the environment, tries again without telling,
//! and does not say how many spans were lost.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus::{IntCounterVec, Opts, Registry};
use prost::Message as _;
use reqwest::blocking::Client;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Url, redirect};
use tokio::time::Instant;
use tracing::{info, warn};

/// Spans that wait: some hundred bytes each, so a megabyte or two; a busy gateway makes so many in a few seconds.
const WAITING: usize = 4096;
/// Spans of one request: some hundred kilobytes, which every collector takes.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// A collector accepts at once or is away.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A request's whole time.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// How long the end of the process waits for what is queued.
const LAST_WORD: Duration = Duration::from_secs(3);
/// What a collector says of a request is a few bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// How spans ended; a closed set of labels.
#[derive(Clone)]
pub(super) struct SpanCounts(IntCounterVec);

impl SpanCounts {
    fn new() -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "fettle_trace_spans_total",
            "Spans for the collector: sent, failed with their request, refused by it, or dropped because too many waited",
        );
        let counts = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in [Outcome::Sent, Outcome::Failed, Outcome::Refused, Outcome::Dropped] {
            counts.with_label_values(&[outcome.name()]);
        }
        Ok(Self(counts))
    }

    /// # Errors
    ///
    /// When the name is taken in `registry`.
    pub(super) fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.0.clone()))
    }

    fn add(&self, outcome: Outcome, spans: usize) {
        self.0.with_label_values(&[outcome.name()]).inc_by(spans as u64);
    }

    #[cfg(test)]
    fn of(&self, outcome: Outcome) -> u64 {
        self.0.with_label_values(&[outcome.name()]).get()
    }
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Sent,
    Failed,
    Refused,
    Dropped,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

/// Where spans wait.
#[derive(Clone)]
pub(super) struct Queue {
    /// Nothing once the process ends: later spans are nobody's.
    sender: Arc<Mutex<Option<SyncSender<Span>>>>,
    counts: SpanCounts,
}

impl Queue {
    pub(super) fn put(&self, span: Span) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = &*sender else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(span) {
            self.counts.add(Outcome::Dropped, 1);
        }
    }
}

/// The way to a collector. Dropping it sends what is queued, within [`LAST_WORD`].
pub(super) struct Exporter {
    pub(super) queue: Queue,
    ended: Receiver<()>,
}

/// Why no spans can be sent at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExporterError {
    #[error("telemetry.otlp_endpoint is not a URL of a collector")]
    Endpoint,
    #[error("could not count spans")]
    Count(#[from] prometheus::Error),
    #[error("could not start the thread that sends spans")]
    Thread(#[from] std::io::Error),
}

impl Exporter {
    /// Sends from a thread of its own, which a slow collector cannot take from anybody. Contacts nobody before there is a span.
    pub(super) fn start(endpoint: &str, process: &str) -> Result<Self, ExporterError> {
        let url = traces_url(endpoint).ok_or(ExporterError::Endpoint)?;
        let counts = SpanCounts::new()?;
        let (sender, receiver) = sync_channel(WAITING);
        let (tell, ended) = sync_channel(1);
        let sending = Sending { url, resource: resource(process), counts: counts.clone(), is_away: false };
        std::thread::Builder::new().name("trace export".to_owned()).spawn(move || {
            sending.work(&receiver);
            let _nobody_waits = tell.try_send(());
        })?;
        Ok(Self { queue: Queue { sender: Arc::new(Mutex::new(Some(sender))), counts }, ended })
    }

    pub(super) fn counts(&self) -> &SpanCounts {
        &self.queue.counts
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.queue.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _late = self.ended.recv_timeout(LAST_WORD);
    }
}

/// As OpenTelemetry has it: below the endpoint.
pub(super) fn traces_url(endpoint: &str) -> Option<Url> {
    let mut url = Url::parse(endpoint).ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    if !is_plain || url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    url.path_segments_mut().ok()?.pop_if_empty().extend(["v1", "traces"]);
    Some(url)
}

fn resource(process: &str) -> Resource {
    let attribute = |key: &str, text: String| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }),
        ..KeyValue::default()
    };
    let attributes = vec![
        attribute("service.namespace", "fettle".to_owned()),
        attribute("service.name", process.to_owned()),
        attribute("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        attribute("service.instance.id", crate::system::process_name()),
    ];
    Resource { attributes, ..Resource::default() }
}

struct Sending {
    url: Url,
    resource: Resource,
    counts: SpanCounts,
    /// Told once when it begins and once when it ends.
    is_away: bool,
}

impl Sending {
    fn work(mut self, spans: &Receiver<Span>) {
        let mut client = Client::builder()
            .user_agent(concat!("fettle/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .timeout(SEND_LIMIT)
            .redirect(redirect::Policy::none());
        if is_loopback(&self.url) {
            client = client.no_proxy();
        }
        let client = match client.build() {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "no traces are sent");
                return;
            }
        };
        while let Some(batch) = gather(spans) {
            let count = batch.len();
            match self.send(&client, batch) {
                Ok(refused) => {
                    self.counts.add(Outcome::Sent, count.saturating_sub(refused));
                    self.counts.add(Outcome::Refused, refused.min(count));
                    if std::mem::take(&mut self.is_away) {
                        info!("the collector of traces takes them again");
                    }
                }
                Err(why) => {
                    self.counts.add(Outcome::Failed, count);
                    if !std::mem::replace(&mut self.is_away, true) {
                        warn!("the collector of traces does not take them, and they are dropped until it does: {why}");
                    }
                }
            }
        }
    }

    /// How many of them the collector refused.
    fn send(&self, client: &Client, spans: Vec<Span>) -> Result<usize, String> {
        let scope = InstrumentationScope { name: "fettle".to_owned(), ..InstrumentationScope::default() };
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        };
        let sent = client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .body(request.encode_to_vec())
            .send()
            .map_err(|error| super::chain(&error.without_url()))?;
        if !sent.status().is_success() {
            return Err(format!("it answered {}", sent.status()));
        }
        let mut body = Vec::new();
        // An answer that cannot be read refuses nothing.
        let read = std::io::Read::read_to_end(&mut std::io::Read::take(sent, MAX_ANSWER_BYTES), &mut body);
        let said = read.ok().and_then(|_| ExportTraceServiceResponse::decode(&*body).ok());
        let refused = said.and_then(|said| said.partial_success).map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(refused).unwrap_or(0))
    }
}

/// The next spans to send together; nothing at the end.
fn gather(spans: &Receiver<Span>) -> Option<Vec<Span>> {
    let mut batch = vec![spans.recv().ok()?];
    let until = Instant::now() + BATCH_WAIT;
    while batch.len() < BATCH {
        match spans.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(span),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    Some(batch)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
