//! Loading and serving, as the engine that is played.

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

use crate::behaviour::{Behaviour, Fault};
use crate::command_line::{At, Kind, Order};
use crate::{begin_workers, lines, memory, say};

struct Engine {
    order: Order,
    behaviour: Behaviour,
    loaded: AtomicBool,
    answered: AtomicU64,
}

pub(crate) async fn live(order: Order, behaviour: Behaviour, program: String) -> io::Result<ExitCode> {
    let kind = order.kind;
    let engine = Arc::new(Engine { order, behaviour, loaded: AtomicBool::new(false), answered: AtomicU64::new(0) });
    let mut term = signal(SignalKind::terminate())?;
    // Only llama-server answers while it loads.
    let early = (kind == Kind::LlamaServer).then(|| tokio::task::JoinSet::from_iter([listen(Arc::clone(&engine))]));
    tokio::select! {
        loaded = load(&engine, &program) => match loaded? {
            None => {}
            Some(code) => return Ok(code),
        },
        _ = term.recv(), if !engine.behaviour.has(Fault::IgnoreTerm) => return end(&engine),
    }
    engine.loaded.store(true, Ordering::Relaxed);
    let serving = async {
        match early {
            Some(mut tasks) => tasks.join_next().await.map_or(Ok(()), |ended| ended.map_err(io::Error::other)?),
            None => listen(Arc::clone(&engine)).await,
        }
    };
    tokio::select! {
        served = serving => served.map(|()| ExitCode::SUCCESS),
        _ = term.recv(), if !engine.behaviour.has(Fault::IgnoreTerm) => end(&engine),
    }
}

/// `Some`: it is over already.
async fn load(engine: &Engine, program: &str) -> io::Result<Option<ExitCode>> {
    let behaviour = &engine.behaviour;
    let kv_tokens = if behaviour.kv_tokens > 0 { behaviour.kv_tokens } else { engine.order.kv_tokens() };
    let said = lines::of_load(&engine.order, kv_tokens);
    let step = Duration::from_millis(behaviour.load_ms) / u32::try_from(said.len()).unwrap_or(1);
    for (place, line) in said.iter().enumerate() {
        say(line);
        tokio::time::sleep(step).await;
        if place > 0 {
            continue;
        }
        begin_workers(program, behaviour)?;
        if let Some(gpu) = &behaviour.gpu {
            memory::allocate(gpu)?;
        }
        let kind = engine.order.kind;
        let failure = if behaviour.has(Fault::OutOfMemory) {
            lines::out_of_memory(kind)
        } else if behaviour.has(Fault::BadModel) {
            lines::bad_model(kind)
        } else if behaviour.has(Fault::Driver) {
            lines::NO_DEVICE
        } else if behaviour.has(Fault::Stall) {
            std::future::pending::<()>().await;
            continue;
        } else {
            continue;
        };
        say("Traceback (most recent call last):");
        say(failure);
        return Ok(Some(ExitCode::FAILURE));
    }
    Ok(None)
}

fn end(engine: &Engine) -> io::Result<ExitCode> {
    say("shutting down");
    if let Some(gpu) = engine.behaviour.gpu.as_ref().filter(|_| engine.behaviour.has(Fault::Leak)) {
        memory::leak(gpu)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn listen(engine: Arc<Engine>) -> io::Result<()> {
    let at = engine.order.at.clone();
    let router = Router::new()
        .route("/health", get(health))
        .route("/health_generate", get(health))
        .route("/metrics", get(async || "# fake\n"))
        .route("/props", get(async || Json(json!({"total_slots": 1}))))
        .route("/slots", get(async || Json(json!([]))))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/api/version", get(async || Json(json!({"version": "0.12.10"}))))
        .route("/api/tags", get(async || Json(json!({"models": []}))))
        .route("/api/ps", get(running))
        .route("/api/generate", post(generate))
        .layer(middleware::from_fn_with_state(Arc::clone(&engine), guard))
        .with_state(engine);
    match at {
        At::Socket(path) => axum::serve(UnixListener::bind(path)?, router).await,
        At::Port(address) => axum::serve(TcpListener::bind(address).await?, router).await,
    }
}

/// Keys where the engine checks them, and nothing before it has loaded.
async fn guard(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let open = match engine.order.kind {
        Kind::LlamaServer => matches!(path, "/health" | "/v1/models"),
        Kind::Vllm => !path.starts_with("/v1"),
        Kind::Sglang => path.starts_with("/health"),
        Kind::Ollama => true,
        Kind::Plain => path == "/health",
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let right = engine.order.key.as_ref().is_none_or(|key| given == Some(format!("Bearer {key}").as_str()));
    if !open && !right {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": {"message": "Invalid API Key"}}))).into_response();
    }
    if !engine.loaded.load(Ordering::Relaxed) {
        let loading = json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(loading)).into_response();
    }
    next.run(request).await
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn models(State(engine): State<Arc<Engine>>) -> Json<Value> {
    Json(
        json!({"object": "list", "data": [{"id": engine.order.model, "object": "model", "created": 0, "owned_by": "fake"}]}),
    )
}

impl Engine {
    /// The words of the next answer to `said`, or no answer ever.
    async fn words(&self, said: &str, most: Option<u64>) -> Vec<String> {
        let nth = self.answered.fetch_add(1, Ordering::Relaxed);
        if self.behaviour.has(Fault::Mute) {
            std::future::pending::<()>().await;
        }
        if self.behaviour.has(Fault::Crash) && nth >= self.behaviour.answered_before_crash {
            say("about to crash");
            std::process::abort();
        }
        let answers = &self.behaviour.answers;
        let nth = usize::try_from(nth).unwrap_or(usize::MAX);
        let answer = answers.get(nth).or(answers.last()).map_or(said, String::as_str);
        let most = most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
        answer.split_inclusive(' ').take(most).map(str::to_owned).collect()
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(self.behaviour.word_ms)
    }
}

/// Of text, as far as anything is counted here.
fn tokens(text: &str) -> usize {
    text.split_whitespace().count()
}

fn most(body: &Value) -> Option<u64> {
    body["max_tokens"].as_u64().or_else(|| body["max_completion_tokens"].as_u64())
}

async fn chat(State(engine): State<Arc<Engine>>, Json(body): Json<Value>) -> Response {
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let said = messages.last().and_then(|last| last["content"].as_str()).unwrap_or_default().to_owned();
    let prompt: usize = messages.iter().map(|one| tokens(one["content"].as_str().unwrap_or_default())).sum();
    let words = engine.words(&said, most(&body)).await;
    let usage =
        json!({"prompt_tokens": prompt, "completion_tokens": words.len(), "total_tokens": prompt + words.len()});
    let model = body["model"].clone();
    if body["stream"] == true {
        let piece = move |delta: Value, finish: Value| {
            json!({"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": 0, "model": model,
                   "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        };
        let mut pieces = vec![piece(json!({"role": "assistant", "content": ""}), Value::Null)];
        pieces.extend(words.iter().map(|word| piece(json!({"content": word}), Value::Null)));
        pieces.push(piece(json!({}), json!("stop")));
        if body["stream_options"]["include_usage"] == true {
            let mut last = piece(json!({}), Value::Null);
            last["choices"] = json!([]);
            last["usage"] = usage;
            pieces.push(last);
        }
        return streamed(pieces, engine.pause());
    }
    tokio::time::sleep(engine.pause() * u32::try_from(words.len()).unwrap_or(1)).await;
    let message = json!({"role": "assistant", "content": words.concat()});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    Json(json!({"id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model, "choices": [choice], "usage": usage}))
        .into_response()
}

async fn completions(State(engine): State<Arc<Engine>>, Json(body): Json<Value>) -> Json<Value> {
    let words = engine.words(body["prompt"].as_str().unwrap_or_default(), most(&body)).await;
    tokio::time::sleep(engine.pause() * u32::try_from(words.len()).unwrap_or(1)).await;
    let choice = json!({"index": 0, "text": words.concat(), "finish_reason": "stop"});
    Json(
        json!({"id": "cmpl-fake", "object": "text_completion", "created": 0, "model": body["model"], "choices": [choice]}),
    )
}

async fn embeddings(State(engine): State<Arc<Engine>>, Json(body): Json<Value>) -> Json<Value> {
    engine.words("", None).await;
    let inputs = match &body["input"] {
        Value::Array(many) => many.clone(),
        one => vec![one.clone()],
    };
    // As many numbers as make it a vector, the same for the same text.
    let vector = |text: &Value| {
        let length = text.as_str().map_or(0, str::len);
        json!([length, tokens(text.as_str().unwrap_or_default()), 1])
    };
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    Json(
        json!({"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}),
    )
}

async fn generate(State(engine): State<Arc<Engine>>, Json(body): Json<Value>) -> Json<Value> {
    let words =
        engine.words(body["prompt"].as_str().unwrap_or_default(), body["options"]["num_predict"].as_u64()).await;
    Json(json!({"model": body["model"], "response": words.concat(), "done": true, "eval_count": words.len()}))
}

async fn running(State(engine): State<Arc<Engine>>) -> Json<Value> {
    let bytes = engine.behaviour.gpu.as_ref().map_or(1, |gpu| gpu.bytes);
    Json(json!({"models": [{"name": "it", "size": bytes, "size_vram": bytes}]}))
}

fn streamed(pieces: Vec<Value>, pause: Duration) -> Response {
    let events = pieces.into_iter().map(|piece| format!("data: {piece}\n\n")).chain(["data: [DONE]\n\n".to_owned()]);
    let stream = futures::stream::iter(events).then(move |event| async move {
        tokio::time::sleep(pause).await;
        Ok::<_, Infallible>(Bytes::from(event))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}
