//! The model's server that all gateways stand before: it answers at once, so that what is measured is theirs. A process of its own.
//!
//! The model's name says how: `fast` answers without a pause, `paced` with one before each event. `max_tokens` says how many events
//! a stream has. Each event tells when it was sent, by the clock that all processes of this machine share.

use std::convert::Infallible;
use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// As fast as a good GPU gives tokens to one person.
const PACE: Duration = Duration::from_millis(5);
/// What the events' marks begin with.
pub(crate) const MARK: &str = "at:";
/// Of an answer that is not streamed: some three lines of code.
const ANSWER: &str = "The loop ended one element early, because its bound was the length of the shorter list; it now runs over \
                      both lists and takes the default for what is missing.";

/// Serves until it is killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("while listening")?;
    writeln!(std::io::stdout(), "listens on {}", listener.local_addr()?)?;
    let mut connections = JoinSet::new();
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let service = service_fn(answer);
            // A caller that hangs up is no fault.
            let _hung_up =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let body = request.into_body().collect().await?.to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    if body["stream"] != true {
        let answer = serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_750_000_000, "model": model,
            "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": ANSWER } }],
            "usage": { "prompt_tokens": 300, "completion_tokens": 40, "total_tokens": 340 },
        });
        let body = Full::from(serde_json::to_vec(&answer)?).boxed_unsync();
        return Ok(Response::builder().header("content-type", "application/json").body(body)?);
    }
    let asked = body["max_tokens"].as_u64().or_else(|| body["max_completion_tokens"].as_u64());
    let events = asked.unwrap_or(1);
    let pace = (model == "paced").then_some(PACE);
    let frames = stream::unfold(0, move |nth| {
        let model = model.clone();
        async move {
            if let Some(pace) = pace.filter(|_| nth < events) {
                tokio::time::sleep(pace).await;
            }
            let data = match nth.cmp(&events) {
                std::cmp::Ordering::Less => {
                    event(&model, &serde_json::json!({ "content": format!("{MARK}{}", crate::now()) }), None)
                }
                std::cmp::Ordering::Equal => event(&model, &serde_json::json!({}), Some("stop")) + "data: [DONE]\n\n",
                std::cmp::Ordering::Greater => return None,
            };
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(data))), nth + 1))
        }
    });
    let body = StreamBody::new(frames).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body)?)
}

fn event(model: &str, delta: &serde_json::Value, finish: Option<&str>) -> String {
    let chunk = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_750_000_000, "model": model,
        "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }],
    });
    format!("data: {chunk}\n\n")
}
