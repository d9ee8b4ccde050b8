//! The server around a script: routes, records, and a thread of its own when a test starts it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::frames::{self, Body, Frame};
use super::{Answer, Conversation, Fault, Script};

/// A prompt may fill a window of a million tokens.
const MAX_REQUEST_BYTES: usize = 64 * 1024 * 1024;
/// How long open answers may take to notice that the server stops.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Serves `script` on `listener` until `cancel`. Open answers end then.
pub async fn serve(listener: TcpListener, script: Script, cancel: CancellationToken) -> io::Result<()> {
    serve_recording(listener, script, Arc::new(Records::default()), cancel).await
}

/// One request as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    pub body: Value,
    /// 1 for the first request with these messages.
    pub attempt: u32,
}

impl Recorded {
    pub fn conversation(&self) -> Conversation {
        Conversation::of_body(&self.body, self.attempt)
    }
}

/// A scripted model on a free port of 127.0.0.1, with a thread and runtime of its own, so that it serves tests with and
/// without a runtime and does not care about their clock. Stops when dropped.
pub struct ModelServer {
    address: SocketAddr,
    records: Arc<Records>,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl ModelServer {
    pub fn start(script: Script) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let address = listener.local_addr().expect("a bound listener has an address");
        let records = Arc::new(Records::default());
        let cancel = CancellationToken::new();
        let thread = std::thread::spawn({
            let (records, cancel) = (Arc::clone(&records), cancel.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime of one thread can be built").block_on(async {
                    let listener = TcpListener::from_std(listener).expect("a non-blocking listener belongs to tokio");
                    serve_recording(listener, script, records, cancel).await.expect("the scripted model serves");
                });
            }
        });
        Self { address, records, cancel, thread: Some(thread) }
    }

    /// `http://127.0.0.1:<port>/v1`, as models are configured. The same routes exist without `/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All completion requests that were accepted, in order. Requests without the demanded key are not among them.
    pub fn requests(&self) -> Vec<Recorded> {
        self.records.lock().requests.clone()
    }

    pub fn request_count(&self) -> usize {
        self.records.lock().requests.len()
    }

    /// Requests that came in this phase.
    pub fn phase_count(&self, phase: &str) -> usize {
        self.requests().iter().filter(|request| request.conversation().phase() == Some(phase)).count()
    }

    /// Answers that the client did not read to their end: it cancelled, died or was content with less.
    pub fn abandoned_count(&self) -> usize {
        self.records.lock().abandoned
    }

    /// Waits until `count` requests have come; false if that takes longer than `limit`.
    pub async fn wait_for_requests(&self, count: usize, limit: Duration) -> bool {
        self.wait_until(limit, |counted| counted.requests.len() >= count).await
    }

    /// Waits until `count` answers were abandoned; false if that takes longer than `limit`.
    pub async fn wait_for_abandoned(&self, count: usize, limit: Duration) -> bool {
        self.wait_until(limit, |counted| counted.abandoned >= count).await
    }

    /// Stops and waits for the end.
    pub fn shutdown(mut self) {
        self.stop();
    }

    async fn wait_until(&self, limit: Duration, reached: impl Fn(&Counted) -> bool) -> bool {
        let mut changes = self.records.changed.subscribe();
        let wait = changes.wait_for(|_| reached(&self.records.lock()));
        tokio::time::timeout(limit, wait).await.is_ok_and(|seen| seen.is_ok())
    }

    fn stop(&mut self) {
        self.cancel.cancel();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Records {
    counted: Mutex<Counted>,
    /// Sent on each change, for those who wait.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Counted {
    requests: Vec<Recorded>,
    attempts: BTreeMap<String, u32>,
    abandoned: usize,
}

impl Default for Records {
    fn default() -> Self {
        Self { counted: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Records {
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().expect("no one panics while holding the records")
    }

    fn add(&self, path: &str, authorization: Option<String>, body: Value) -> Recorded {
        let mut counted = self.lock();
        let attempt = counted.attempts.entry(body["messages"].to_string()).or_default();
        *attempt += 1;
        let recorded = Recorded { path: path.to_owned(), authorization, body, attempt: *attempt };
        counted.requests.push(recorded.clone());
        drop(counted);
        self.changed.send_replace(());
        recorded
    }
}

/// Counts an answer as abandoned unless it was sent to its end.
struct Watch {
    records: Arc<Records>,
    sent: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.sent {
            self.records.lock().abandoned += 1;
            self.records.changed.send_replace(());
        }
    }
}

#[derive(Clone)]
struct Served {
    script: Script,
    records: Arc<Records>,
    cancel: CancellationToken,
}

async fn serve_recording(
    listener: TcpListener,
    script: Script,
    records: Arc<Records>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let api = Router::new().route("/chat/completions", post(complete)).route("/models", get(list_models));
    let app = Router::new()
        .nest("/v1", api.clone())
        .merge(api)
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(Served { script, records, cancel: cancel.clone() });
    let server = axum::serve(listener, app).with_graceful_shutdown(cancel.clone().cancelled_owned());
    let too_late = async {
        cancel.cancelled().await;
        tokio::time::sleep(SHUTDOWN_LIMIT).await;
    };
    tokio::select! {
        served = server => served,
        () = too_late => Ok(()),
    }
}

async fn list_models(State(served): State<Served>, headers: HeaderMap) -> Response {
    if let Some(refusal) = refuse_key(&served.script, &headers) {
        return refusal;
    }
    let models = served.script.models.iter().map(|name| json!({ "id": name, "object": "model", "owned_by": "script" }));
    Json(json!({ "object": "list", "data": models.collect::<Value>() })).into_response()
}

async fn complete(State(served): State<Served>, uri: Uri, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(refusal) = refuse_key(&served.script, &headers) {
        return refusal;
    }
    let recorded = served.records.add(uri.path(), authorization(&headers), body);
    let conversation = recorded.conversation();
    let answer = served.script.answer(&conversation);
    let fault = answer.fault_at(conversation.attempt);
    let mut watch = Watch { records: Arc::clone(&served.records), sent: false };
    if let Some(Fault::Status { status, headers, body }) = fault {
        watch.sent = true;
        return error(*status, headers, body);
    }
    if let Some(Fault::Stall(lasting)) = fault {
        wait(*lasting, &served.cancel).await;
    }
    reply(&answer, &conversation, fault, watch, served.cancel)
}

fn reply(
    answer: &Answer,
    conversation: &Conversation,
    fault: Option<&Fault>,
    watch: Watch,
    cancel: CancellationToken,
) -> Response {
    let streamed = conversation.stream && fault != Some(&Fault::IgnoresStream);
    let (kind, body) = if streamed {
        ("text/event-stream", frames::events(answer, conversation, fault))
    } else {
        ("application/json", frames::document(answer, conversation, fault))
    };
    ([(header::CONTENT_TYPE, kind)], HttpBody::from_stream(sending(body, watch, cancel))).into_response()
}

struct Sending {
    frames: std::vec::IntoIter<Frame>,
    endless: Option<Frame>,
    watch: Watch,
    cancel: CancellationToken,
}

impl Sending {
    async fn next(mut self) -> Option<(io::Result<String>, Self)> {
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            let Some(frame) = self.frames.next().or_else(|| self.endless.clone()) else {
                self.watch.sent = true;
                return None;
            };
            match frame {
                Frame::Bytes(bytes) => return Some((Ok(bytes), self)),
                Frame::Wait(lasting) => wait(lasting, &self.cancel).await,
                Frame::Break => {
                    // hyper sends what it holds only when the body has nothing ready; else the break would swallow it.
                    tokio::task::yield_now().await;
                    self.watch.sent = true;
                    return Some((Err(io::Error::other("the script breaks the connection here")), self));
                }
            }
        }
    }
}

fn sending(body: Body, watch: Watch, cancel: CancellationToken) -> impl futures::Stream<Item = io::Result<String>> {
    let sending = Sending { frames: body.frames.into_iter(), endless: body.endless, watch, cancel };
    stream::unfold(sending, Sending::next)
}

async fn wait(lasting: Duration, cancel: &CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = tokio::time::sleep(lasting) => {}
    }
}

fn authorization(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn refuse_key(script: &Script, headers: &HeaderMap) -> Option<Response> {
    let key = script.api_key.as_ref()?;
    if authorization(headers) == Some(format!("Bearer {key}")) {
        return None;
    }
    let body = json!({ "error": { "message": "bad or missing API key", "code": "invalid_api_key" } });
    Some(error(401, &[], &body))
}

fn error(status: u16, headers: &[(String, String)], body: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("a script names real status codes");
    let mut response = (status, Json(body)).into_response();
    for (name, value) in headers {
        let name = header::HeaderName::from_bytes(name.as_bytes()).expect("a script names real headers");
        let value = header::HeaderValue::from_str(value).expect("a script gives headers that can be sent");
        response.headers_mut().append(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No wait of these tests is meant to last; this ends one that does.
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn post(server: &ModelServer, path: &str, text: &str, stream: bool) -> reqwest::Result<reqwest::Response> {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let messages = json!([{ "role": "user", "content": text }]);
        let body = json!({ "model": "m", "stream": stream, "messages": messages });
        let url = format!("http://{}{path}", server.address());
        client.post(url).bearer_auth("right").json(&body).send().await
    }

    #[tokio::test]
    async fn both_paths_answer_and_requests_are_recorded_with_their_attempts() {
        let script = Script::phases().phase("fix", [Answer::text("done").failing_first(1, Fault::busy(Some(3)))]);
        let server = ModelServer::start(script.script());
        let busy = post(&server, "/v1/chat/completions", "Phase: fix", true).await.unwrap();
        assert_eq!((busy.status().as_u16(), busy.headers()["retry-after"].to_str().unwrap()), (429, "3"));
        let answered = post(&server, "/chat/completions", "Phase: fix", true).await.unwrap();
        assert_eq!(answered.headers()["content-type"], "text/event-stream");
        assert!(answered.text().await.unwrap().ends_with("data: [DONE]\n\n"));
        let whole: Value =
            post(&server, "/v1/chat/completions", "Phase: fix", false).await.unwrap().json().await.unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "done");
        assert!(server.wait_for_requests(3, PATIENCE).await);
        let recorded = server.requests();
        assert_eq!(recorded.iter().map(|request| request.attempt).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(recorded[1].path, "/chat/completions");
        assert_eq!((server.phase_count("fix"), server.abandoned_count()), (3, 0));
        server.shutdown();
    }

    #[tokio::test]
    async fn a_demanded_key_is_checked_everywhere() {
        for (key, status) in [("right", 200), ("other", 401)] {
            let server = ModelServer::start(Script::always(Answer::text("hi")).requiring_key(key));
            assert_eq!(post(&server, "/v1/chat/completions", "x", false).await.unwrap().status(), status);
            assert_eq!(server.request_count(), usize::from(status == 200));
            let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
            let models = client.get(format!("{}/models", server.base_url())).bearer_auth("right").send().await.unwrap();
            assert_eq!(models.status(), status);
        }
    }

    #[tokio::test]
    async fn a_cut_breaks_the_connection_and_an_early_end_does_not() {
        let long = Answer::text("a long text in many pieces");
        let cut = ModelServer::start(Script::always(long.clone().with_fault(Fault::CutAfter { pieces: 2 })));
        assert!(post(&cut, "/v1/chat/completions", "x", true).await.unwrap().text().await.is_err());
        let short = ModelServer::start(Script::always(long.with_fault(Fault::EndsAfter { pieces: 2 })));
        let text = post(&short, "/v1/chat/completions", "x", true).await.unwrap().text().await.unwrap();
        assert_eq!(text.matches("data: ").count(), 2);
    }

    #[tokio::test]
    async fn an_answer_whose_client_leaves_is_abandoned() {
        for fault in [Fault::Repetition("again ".into()), Fault::StallAfter { pieces: 1, lasting: PATIENCE * 9 }] {
            let server = ModelServer::start(Script::always(Answer::text("one").with_fault(fault)));
            let mut answer = post(&server, "/v1/chat/completions", "x", true).await.unwrap();
            assert!(answer.chunk().await.unwrap().is_some());
            drop(answer);
            assert!(server.wait_for_abandoned(1, PATIENCE).await);
        }
    }

    #[tokio::test]
    async fn shutting_down_ends_a_stall() {
        let server = ModelServer::start(Script::always(Answer::text("late").with_fault(Fault::Stall(PATIENCE * 9))));
        let stalled = post(&server, "/v1/chat/completions", "x", true);
        let stop = async {
            assert!(server.wait_for_requests(1, PATIENCE).await);
            server.cancel.cancel();
        };
        let (answer, ()) = tokio::join!(stalled, stop);
        assert!(answer.is_ok() && server.request_count() == 1);
    }
}
