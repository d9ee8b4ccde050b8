//! Questions to an engine over its own API: is it up, does it take the key, does one token come back.

use std::time::Duration;

use fettle_app::ports::serving::{Endpoint, EngineAddress, Exit, ExitClass};
use fettle_placement::quantity::Millis;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::actor::duration;
use crate::driver::{Api, Probe};
use crate::exit::{self, Status};

/// For what an engine answers without computing.
const QUICK: Duration = Duration::from_secs(2);
/// For an engine that loads the model when it is asked, and stops loading when nobody waits: whoever watches its progress ends it
/// long before.
const LOAD: Duration = Duration::from_secs(24 * 3600);
/// Of an answer. One token and what is said about it; a list of models may be longer.
const ANSWER_BYTES: usize = 1 << 20;

pub(crate) struct Client {
    address: EngineAddress,
    api: Api,
    token: Duration,
}

pub(crate) enum Answer {
    NotYet,
    Token,
    /// It never will answer as it should.
    Wrong(Exit),
}

impl Client {
    pub(crate) fn new(address: EngineAddress, api: Api, token: Millis) -> Self {
        Self { address, api, token: duration(token) }
    }

    async fn is_well(&self, path: &str) -> bool {
        self.send(Method::GET, path, None, QUICK).await.is_some_and(|(status, _)| status.is_success())
    }

    pub(crate) async fn takes_key(&self) -> bool {
        self.is_well(&self.api.guarded).await
    }

    /// Asks for one token, once it says that it is well.
    pub(crate) async fn ask(&self) -> Answer {
        if !self.is_well(&self.api.health).await {
            return Answer::NotYet;
        }
        let model = self.address.model.as_str();
        match self.api.probe {
            Probe::Chat => {
                let chat = json!({"model": model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1});
                match self.post("/v1/chat/completions", &chat).await {
                    Said::Yes(body) if !body["choices"][0]["message"].is_null() => Answer::Token,
                    // A model that was not made for talking has no template for it.
                    Said::No(StatusCode::BAD_REQUEST, _) => {
                        let plain = json!({"model": model, "prompt": ".", "max_tokens": 1});
                        self.judge("/v1/completions", &plain, |body| !body["choices"][0]["text"].is_null()).await
                    }
                    said => judged(said),
                }
            }
            Probe::Embeddings => {
                let body = json!({"model": model, "input": "."});
                self.judge("/v1/embeddings", &body, |body| !body["data"][0]["embedding"].is_null()).await
            }
            Probe::Ollama => {
                let body = json!({"model": model, "prompt": ".", "stream": false, "keep_alive": -1, "options": {"num_predict": 1}});
                match self.judge("/api/generate", &body, |body| !body["response"].is_null()).await {
                    Answer::Token => self.all_on_device().await,
                    other => other,
                }
            }
        }
    }

    async fn judge(&self, path: &str, body: &Value, is_token: impl Fn(&Value) -> bool) -> Answer {
        match self.post(path, body).await {
            Said::Yes(body) if is_token(&body) => Answer::Token,
            said => judged(said),
        }
    }

    async fn all_on_device(&self) -> Answer {
        let Some((_, text)) = self.send(Method::GET, "/api/ps", None, QUICK).await else { return Answer::NotYet };
        let Ok(body) = serde_json::from_str::<Value>(&text) else { return Answer::NotYet };
        let bytes = |name: &str| body["models"][0][name].as_u64();
        match (bytes("size"), bytes("size_vram")) {
            (Some(all), Some(there)) if there < all => Answer::Wrong(Exit {
                class: ExitClass::OutOfMemory,
                why: format!("it put {there} of {all} bytes on the device and the rest elsewhere"),
            }),
            (Some(_), Some(_)) => Answer::Token,
            _ => Answer::NotYet,
        }
    }

    /// `None`: nobody is there, or not in time.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Option<(StatusCode, String)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.address.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", key.expose_secret()));
        }
        let request = request.body(Full::from(body.map(Value::to_string).unwrap_or_default())).ok()?;
        let answer = async {
            match &self.address.at {
                Endpoint::Unix(path) => exchange(UnixStream::connect(path.as_std_path()).await.ok()?, request).await,
                Endpoint::Tcp(address) => exchange(TcpStream::connect(address).await.ok()?, request).await,
            }
        };
        tokio::time::timeout(within, answer).await.ok().flatten()
    }

    async fn post(&self, path: &str, body: &Value) -> Said {
        let within = if self.api.probe == Probe::Ollama { LOAD } else { self.token };
        let Some((status, text)) = self.send(Method::POST, path, Some(body), within).await else {
            return Said::Nothing;
        };
        match (status.is_success(), serde_json::from_str(&text)) {
            (true, Ok(body)) => Said::Yes(body),
            _ => Said::No(status, text),
        }
    }
}

/// One request on a connection of its own: the process at the other end may be another one by the next.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Option<(StatusCode, String)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.ok()?;
    let asked = async {
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        // The other end has closed it, perhaps behind a whole answer.
        _ = connection => asked.await,
    }
}

enum Said {
    Yes(Value),
    No(StatusCode, String),
    /// Not there, or not in time.
    Nothing,
}

fn judged(said: Said) -> Answer {
    let (status, text) = match said {
        Said::Nothing => return Answer::NotYet,
        Said::Yes(_) => {
            let why = "it answers a request of one token without a token".to_owned();
            return Answer::Wrong(Exit { class: ExitClass::Unknown, why });
        }
        Said::No(status, text) => (status, text),
    };
    // An engine whose model could not be loaded may well live on and say so to whoever asks.
    let known = exit::classify(Status::Code(0), text.lines(), false);
    if known.class != ExitClass::Unknown {
        return Answer::Wrong(known);
    }
    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
        let why = format!("it refuses a request of one token with status {}: {}", status.as_u16(), exit::shown(&text));
        return Answer::Wrong(Exit { class: ExitClass::Unknown, why });
    }
    // 503 is how engines say that they still load.
    Answer::NotYet
}
