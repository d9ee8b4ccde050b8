//! The two servers of a measurement, each a process of its own with one thread: a model's server that does nothing but answer,
//! and the gateway.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::serving::{Endpoint, EngineAddress, ReadyEngine, ServedModel, Supply};
use fettle_gateway::{Gateway, Parts, Settings, StaticKey};
use fettle_placement::id::{EngineId, Epoch, ModelId, OwnerId};
use fettle_placement::view::Class;
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::callers::{KEY, MODEL, Wish};
use crate::clock::nanos;

/// Before its line comes the address, after it nothing.
pub(crate) const LISTENS: &str = "listening on ";
/// Between two pieces of a paced stream, about as fast as a large model writes.
const PACE: Duration = Duration::from_millis(10);
/// What a model takes for a middling prompt.
const PREFILL: Duration = Duration::from_millis(50);

const WHOLE: &str = concat!(
    r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"coder","choices":[{"index":0,"message":"#,
    r#"{"role":"assistant","content":"Hello world"},"finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}"#
);

pub(crate) fn upstream() -> anyhow::Result<()> {
    one_thread(async {
        let service = |request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(request).await) };
        serve(|stream| http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(service))).await
    })
}

pub(crate) fn gateway(upstream: SocketAddr) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let usage = camino::Utf8PathBuf::from_path_buf(folder.path().join("usage"));
    let usage = usage.ok().context("the folder of temporary files has a name of UTF-8")?;
    one_thread(async {
        let mut settings = Settings::new(usage);
        settings.keys = vec![StaticKey {
            key: KEY.to_owned().into(),
            owner: OwnerId::new("bench"),
            class: Class::Interactive,
            models: None,
        }];
        let (_supply, supplied) = watch::channel(Arc::new(supply(upstream)));
        let (_meters, metered) = watch::channel(Arc::default());
        let parts = Parts { supply: supplied, meters: metered, clock: Arc::new(Real), ids: Arc::new(Real) };
        let (gateway, _told) = Gateway::new(settings, parts, &Registry::new())?;
        let router = gateway.router();
        let mut tasks = JoinSet::new();
        tasks.spawn(gateway.run(CancellationToken::new()));
        serve(|stream| {
            let service = TowerToHyperService::new(router.clone());
            http1::Builder::new().serve_connection(TokioIo::new(stream), service)
        })
        .await
    })
}

fn supply(upstream: SocketAddr) -> Supply {
    let address = EngineAddress { at: Endpoint::Tcp(upstream), key: None, model: MODEL.to_owned(), kv_tokens: None };
    let engine = ReadyEngine {
        engine: EngineId::new("engine"),
        epoch: Epoch(1),
        recipe: "recipe".to_owned(),
        address,
        parallel: u16::MAX,
        draining: false,
        devices: Vec::new(),
    };
    let model = ServedModel { id: ModelId::new(MODEL), context_tokens: 32_768, engines: vec![engine], unserved: None };
    Supply { models: vec![model] }
}

struct Real;

impl Clock for Real {
    #[expect(clippy::disallowed_methods, reason = "what the port stands for")]
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}

impl IdSource for Real {
    #[expect(clippy::disallowed_methods, reason = "what the port stands for")]
    fn uuid(&self) -> uuid::Uuid {
        uuid::Uuid::now_v7()
    }
}

/// nginx has one worker, so each of these has one thread.
fn one_thread(role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(role)
}

async fn serve<C, E>(connect: impl Fn(tokio::net::TcpStream) -> C) -> anyhow::Result<()>
where
    C: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{LISTENS}{}", listener.local_addr()?)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                connections.spawn(connect(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(request: Request<Incoming>) -> Response<Body> {
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let kind = if body.is_empty() { Wish::Whole } else { Wish::of(&body) };
    let (kind, body) = match kind {
        Wish::Whole => ("application/json", Body::from(WHOLE)),
        Wish::Pieces(pieces) => ("text/event-stream", stream(pieces, Duration::ZERO)),
        Wish::Paced(pieces) => ("text/event-stream", stream(pieces, PACE)),
        Wish::First => {
            tokio::time::sleep(PREFILL).await;
            ("text/event-stream", stream(1, Duration::ZERO))
        }
        Wish::Open => {
            let open = futures::stream::once(async { Ok::<_, Infallible>(piece()) }).chain(futures::stream::pending());
            ("text/event-stream", Body::from_stream(open))
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn stream(pieces: u32, pace: Duration) -> Body {
    let pieces = futures::stream::iter(0..pieces).then(move |_| async move {
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        piece()
    });
    let end = futures::stream::iter([
        Bytes::from_static(b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"),
        Bytes::from_static(b"data: [DONE]\n\n"),
    ]);
    Body::from_stream(pieces.chain(end).map(Ok::<_, Infallible>))
}

/// Its text is when it was sent.
fn piece() -> Bytes {
    Bytes::from(format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"coder\",\
         \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"@{}@\"}},\"finish_reason\":null}}]}}\n\n",
        nanos()
    ))
}
