//! A server that answers as it is told, over real sockets, and remembers what it was asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::serve::ListenerExt;
use bytes::Bytes;
use camino::Utf8Path;
use fettle_app::ports::serving::{Endpoint, EngineAddress, ReadyEngine};
use fettle_placement::id::{EngineId, Epoch};
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

pub(crate) const KEY: &str = "the engine's own key";

/// One answer.
pub(crate) enum Act {
    Status(u16, Vec<(&'static str, &'static str)>, String),
    /// Each piece as it comes out of the channel; its end closes the stream, or breaks it off.
    Stream(mpsc::Receiver<Piece>),
}

pub(crate) enum Piece {
    Bytes(Bytes),
    BreakOff,
}

pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Script {
    acts: VecDeque<Act>,
    asked: Vec<Asked>,
}

#[derive(Clone)]
struct Shared {
    script: Arc<Mutex<Script>>,
    /// Requests so far, and answers whose callers have gone before their end.
    count: Arc<watch::Sender<usize>>,
    left: Arc<watch::Sender<usize>>,
}

pub(crate) struct Upstream {
    shared: Shared,
    at: Endpoint,
    _server: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Without a script it answers every request with [`whole`].
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = Endpoint::Tcp(listener.local_addr().unwrap());
        let shared = Shared::new();
        let router = shared.router();
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
        let server = async move { axum::serve(listener, router).await.unwrap() };
        Self { shared, at, _server: spawn(server) }
    }

    pub(crate) fn start_unix(path: &Utf8Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let shared = Shared::new();
        let router = shared.router();
        let server = async move { axum::serve(listener, router).await.unwrap() };
        Self { shared, at: Endpoint::Unix(path.to_owned()), _server: spawn(server) }
    }

    pub(crate) fn engine(&self, name: &str, parallel: u16) -> ReadyEngine {
        engine(name, parallel, self.at.clone())
    }

    pub(crate) fn url(&self) -> String {
        match &self.at {
            Endpoint::Tcp(at) => format!("http://{at}"),
            Endpoint::Unix(path) => panic!("{path} has no URL"),
        }
    }

    pub(crate) fn act(&self, act: Act) {
        self.shared.script.lock().unwrap().acts.push_back(act);
    }

    pub(crate) fn fail(&self, status: u16) {
        self.act(Act::Status(status, Vec::new(), r#"{"error":{"message":"secret words of the engine"}}"#.to_owned()));
    }

    /// A stream that goes on as its sender says.
    pub(crate) fn stream(&self) -> mpsc::Sender<Piece> {
        let (sender, receiver) = mpsc::channel(64);
        self.act(Act::Stream(receiver));
        sender
    }

    pub(crate) async fn asked(&self, times: usize) {
        self.shared.count.subscribe().wait_for(|count| *count >= times).await.unwrap();
    }

    pub(crate) fn times(&self) -> usize {
        *self.shared.count.borrow()
    }

    /// Waits until so many callers have hung up.
    pub(crate) async fn left(&self, times: usize) {
        self.shared.left.subscribe().wait_for(|count| *count >= times).await.unwrap();
    }

    pub(crate) fn last(&self) -> Asked {
        self.shared.script.lock().unwrap().asked.pop().unwrap()
    }
}

pub(crate) fn engine(name: &str, parallel: u16, at: Endpoint) -> ReadyEngine {
    ReadyEngine {
        engine: EngineId::new(name),
        epoch: Epoch(1),
        recipe: "recipe".to_owned(),
        address: EngineAddress { at, key: Some(KEY.to_owned().into()), model: "wire-name".to_owned(), kv_tokens: None },
        parallel,
        draining: false,
        devices: Vec::new(),
    }
}

#[expect(clippy::disallowed_methods, reason = "its handle ends it")]
fn spawn(server: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(server))
}

impl Shared {
    fn new() -> Self {
        Self { script: Arc::default(), count: Arc::new(watch::Sender::new(0)), left: Arc::new(watch::Sender::new(0)) }
    }

    fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }
}

async fn answer(State(shared): State<Shared>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let streamed = body["stream"] == json!(true);
    let act = {
        let mut script = shared.script.lock().unwrap();
        let path = parts.uri.path().to_owned();
        script.asked.push(Asked { path, headers: parts.headers, body });
        script.acts.pop_front()
    };
    shared.count.send_modify(|count| *count += 1);
    let calls = asks_for_call(&shared);
    match act {
        None if calls && streamed => {
            let events = [call_delta(), call_finish(), usage(), done()].concat();
            events_response(Body::from(events))
        }
        None if calls => respond(200, &[], whole_call()),
        None if streamed => {
            let events = [delta("Hello"), delta(" world"), finish(), usage(), done()].concat();
            events_response(Body::from(events))
        }
        None => respond(200, &[], whole()),
        Some(Act::Status(status, headers, body)) => respond(status, &headers, body),
        Some(Act::Stream(pieces)) => {
            let leaving = Leaving { left: Arc::clone(&shared.left), ended: false };
            let stream = futures::stream::unfold((pieces, leaving), |(mut pieces, mut leaving)| async move {
                let piece = pieces.recv().await;
                leaving.ended = piece.is_none() || matches!(piece, Some(Piece::BreakOff));
                let piece = match piece? {
                    Piece::Bytes(bytes) => Ok(bytes),
                    Piece::BreakOff => Err(std::io::Error::other("broken off")),
                };
                Some((piece, (pieces, leaving)))
            });
            events_response(Body::from_stream(stream.map(Ok::<_, Infallible>).map(Result::unwrap)))
        }
    }
}

/// The last request has tools and no result of one yet.
fn asks_for_call(shared: &Shared) -> bool {
    let script = shared.script.lock().unwrap();
    let body = &script.asked.last().unwrap().body;
    let answered = body["messages"].as_array().is_some_and(|all| all.iter().any(|one| one["role"] == json!("tool")));
    body["tools"].is_array() && !answered
}

/// Tells when an answer is dropped before its end.
struct Leaving {
    left: Arc<watch::Sender<usize>>,
    ended: bool,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if !self.ended {
            self.left.send_modify(|count| *count += 1);
        }
    }
}

fn respond(status: u16, headers: &[(&'static str, &'static str)], body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

fn events_response(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    response
}

pub(crate) fn whole() -> String {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "wire-name",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": "Hello world" }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15,
                   "prompt_tokens_details": { "cached_tokens": 4 } },
    })
    .to_string()
}

fn call() -> Value {
    json!([{ "index": 0, "id": "call_1", "type": "function",
             "function": { "name": "weather", "arguments": "{\"city\": \"Ulm\"}" } }])
}

fn whole_call() -> String {
    json!({
        "id": "chatcmpl-2", "object": "chat.completion", "created": 1, "model": "wire-name",
        "choices": [{ "index": 0, "finish_reason": "tool_calls",
                      "message": { "role": "assistant", "content": null, "tool_calls": call() } }],
        "usage": { "prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15 },
    })
    .to_string()
}

fn call_delta() -> String {
    let delta = json!({ "role": "assistant", "content": null, "tool_calls": call() });
    chunk(&json!([{ "index": 0, "delta": delta, "finish_reason": null }]), &Value::Null)
}

fn call_finish() -> String {
    chunk(&json!([{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }]), &Value::Null)
}

fn chunk(choices: &Value, usage: &Value) -> String {
    let chunk = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "wire-name",
        "choices": choices, "usage": usage,
    });
    format!("data: {chunk}\n\n")
}

pub(crate) fn delta(text: &str) -> String {
    chunk(
        &json!([{ "index": 0, "delta": { "role": "assistant", "content": text }, "finish_reason": null }]),
        &Value::Null,
    )
}

pub(crate) fn finish() -> String {
    chunk(&json!([{ "index": 0, "delta": {}, "finish_reason": "stop" }]), &Value::Null)
}

pub(crate) fn usage() -> String {
    chunk(&json!([]), &json!({ "prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15 }))
}

pub(crate) fn done() -> String {
    "data: [DONE]\n\n".to_owned()
}

pub(crate) fn piece(text: String) -> Piece {
    Piece::Bytes(Bytes::from(text))
}
