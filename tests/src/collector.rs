//! A collector of traces, small: takes what comes by OTLP over HTTP and keeps it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// One span as it came.
#[derive(Debug, Clone)]
pub struct Collected {
    /// `service.name` of whoever sent it.
    pub service: String,
    pub name: String,
    /// In hexadecimal digits, as people see them; of a root the parent is empty.
    pub trace: String,
    pub span: String,
    pub parent: String,
    pub attributes: BTreeMap<String, String>,
    pub failed: bool,
    /// Everything that was sent of it, for whoever looks for what must not be there.
    pub whole: String,
}

#[derive(Default)]
struct Kept {
    spans: Mutex<Vec<Collected>>,
    changed: tokio::sync::Notify,
}

/// Listens on a free port of loopback, with a thread of its own; stops when dropped.
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Kept>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (kept, cancel) = (Arc::new(Kept::default()), CancellationToken::new());
        let routes = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&kept));
        let stop = cancel.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime of one thread can be built").block_on(async {
                let listener = TcpListener::from_std(listener).expect("a non-blocking listener belongs to tokio");
                tokio::select! {
                    served = axum::serve(listener, routes) => served.expect("the collector serves"),
                    () = stop.cancelled() => {}
                }
            });
        });
        Self { address, kept, cancel, thread: Some(thread) }
    }

    /// For `telemetry.otlp_endpoint`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn spans(&self) -> Vec<Collected> {
        self.kept.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `seen` finds in all spans what it looks for.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        seen: impl Fn(&[Collected]) -> Option<T>,
    ) -> anyhow::Result<T> {
        let waiting = async {
            loop {
                let changed = self.kept.changed.notified();
                if let Some(found) = seen(&self.spans()) {
                    return found;
                }
                changed.await;
            }
        };
        let waited = tokio::time::timeout(limit, waiting).await;
        waited.with_context(|| format!("the collector waits for {what}; it has {:#?}", self.spans()))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say that is of use to whoever drops this.
            let _ = thread.join();
        }
    }
}

async fn take(State(kept): State<Arc<Kept>>, headers: HeaderMap, body: Bytes) -> Result<Vec<u8>, (StatusCode, String)> {
    let spans = read(&headers, &body).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error:#}")))?;
    kept.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
    kept.changed.notify_waiters();
    Ok(ExportTraceServiceResponse::default().encode_to_vec())
}

fn read(headers: &HeaderMap, body: &[u8]) -> anyhow::Result<Vec<Collected>> {
    if headers.get(CONTENT_TYPE).is_none_or(|kind| kind != "application/x-protobuf") {
        bail!("not protobuf: {headers:?}");
    }
    let request = ExportTraceServiceRequest::decode(body)?;
    let mut collected = Vec::new();
    for of in request.resource_spans {
        let resource = attributes(&of.resource.unwrap_or_default().attributes);
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            collected.push(Collected {
                service: service.clone(),
                whole: format!("{span:?}"),
                trace: hex::encode(&span.trace_id),
                span: hex::encode(&span.span_id),
                parent: hex::encode(&span.parent_span_id),
                attributes: attributes(&span.attributes),
                failed: span.status.is_some_and(|status| status.code == 2),
                name: span.name,
            });
        }
    }
    Ok(collected)
}

fn attributes(given: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value =
        |one: &KeyValue| one.value.as_ref().and_then(|value| value.value.as_ref()).map(text).unwrap_or_default();
    given.iter().map(|one| (one.key.clone(), value(one))).collect()
}
