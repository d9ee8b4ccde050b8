//! Who asks: the same requests whichever way they go.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::clock::nanos;

pub(crate) const KEY: &str = "sesame";
pub(crate) const MODEL: &str = "coder";
/// A request that takes longer than this hangs.
const LIMIT: Duration = Duration::from_secs(20);
/// Of a prompt, in bytes: what an agent's first turns have.
const PROMPT: usize = 4_000;

/// What kind of answer is asked for; it travels in the number of tokens and the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Whole,
    /// A stream of so many pieces as fast as they go.
    Pieces(u32),
    /// One piece after the other, with a pause between.
    Paced(u32),
    /// A stream whose first piece takes as long as a model takes.
    First,
    /// A stream that does not end.
    Open,
}

impl Wish {
    fn body(self) -> String {
        let (seed, tokens) = match self {
            Self::Whole => (0, 50),
            Self::Pieces(pieces) => (1, pieces),
            Self::Paced(pieces) => (2, pieces),
            Self::First => (3, 1),
            Self::Open => (4, 1),
        };
        let stream = self != Self::Whole;
        let prompt = "word ".repeat(PROMPT / 5);
        format!(
            "{{\"seed\":{seed},\"max_tokens\":{tokens},\"stream\":{stream},\"model\":\"{MODEL}\",\
             \"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"}}]}}"
        )
    }

    /// Reads it back.
    pub(crate) fn of(body: &[u8]) -> Self {
        let tokens = number(body, b"\"max_tokens\":").unwrap_or(1);
        match number(body, b"\"seed\":") {
            Some(1) => Self::Pieces(tokens),
            Some(2) => Self::Paced(tokens),
            Some(3) => Self::First,
            Some(4) => Self::Open,
            _ => Self::Whole,
        }
    }
}

fn number(body: &[u8], name: &[u8]) -> Option<u32> {
    let at = body.windows(name.len()).position(|window| window == name)? + name.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&body[at..at + digits]).ok()?.parse().ok()
}

/// Asks one server.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client<HttpConnector, Full<Bytes>>,
    at: SocketAddr,
}

impl Caller {
    pub(crate) fn new(at: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { client: Client::builder(TokioExecutor::new()).build(connector), at }
    }

    async fn ask(&self, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let request = Request::post(format!("http://{}/v1/chat/completions", self.at))
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let response = timeout(LIMIT, self.client.request(request)).await.context("no answer came")??;
        ensure!(response.status().is_success(), "the answer was {}", response.status());
        Ok(response)
    }

    async fn whole(&self, body: Bytes) -> anyhow::Result<()> {
        let response = self.ask(body).await?;
        timeout(LIMIT, response.into_body().collect()).await.context("an answer did not end")??;
        Ok(())
    }

    /// How long each of `count` requests took, in microseconds, one after the other.
    pub(crate) async fn latencies(&self, count: usize) -> anyhow::Result<Vec<f64>> {
        let body = Bytes::from(Wish::Whole.body());
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            self.whole(body.clone()).await?;
            latencies.push(begun.elapsed().as_secs_f64() * 1e6);
        }
        Ok(latencies)
    }

    /// Requests that `callers` got answered within `time`, all of them without an error.
    pub(crate) async fn crowd(&self, callers: usize, time: Duration) -> anyhow::Result<usize> {
        let body = Bytes::from(Wish::Whole.body());
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (caller, body) = (self.clone(), body.clone());
            tasks.spawn(async move {
                let mut answered = 0;
                while Instant::now() < until {
                    caller.whole(body.clone()).await?;
                    answered += 1;
                }
                Ok::<usize, anyhow::Error>(answered)
            });
        }
        let mut all = 0;
        while let Some(answered) = tasks.join_next().await {
            all += answered??;
        }
        Ok(all)
    }

    /// How long each piece of a paced stream was on its way, in microseconds.
    pub(crate) async fn pieces(&self, count: u32) -> anyhow::Result<Vec<f64>> {
        let mut body = self.ask(Wish::Paced(count).body().into()).await?.into_body();
        let mut delays = Vec::new();
        while let Some(frame) = timeout(LIMIT, body.frame()).await.context("a stream stopped")? {
            let now = nanos();
            let Ok(data) = frame?.into_data() else { continue };
            delays.extend(stamps(&data).map(|sent| now.saturating_sub(sent) as f64 / 1e3));
        }
        Ok(delays)
    }

    /// Seconds that a stream of `count` pieces takes that nothing slows down.
    pub(crate) async fn torrent(&self, count: u32) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.whole(Wish::Pieces(count).body().into()).await?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Until the first piece, in microseconds.
    pub(crate) async fn first_piece(&self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut body = self.ask(Wish::First.body().into()).await?.into_body();
        timeout(LIMIT, body.frame()).await.context("no piece came")?.context("the stream was empty")??;
        let first = begun.elapsed().as_secs_f64() * 1e6;
        timeout(LIMIT, body.collect()).await.context("a stream did not end")??;
        Ok(first)
    }

    /// Streams that have begun and do not end.
    pub(crate) async fn open(&self, count: usize) -> anyhow::Result<Vec<Incoming>> {
        let body = Bytes::from(Wish::Open.body());
        let mut open = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = self.ask(body.clone()).await?.into_body();
            timeout(LIMIT, stream.frame()).await.context("no piece came")?.context("the stream was empty")??;
            open.push(stream);
        }
        Ok(open)
    }
}

fn stamps(data: &[u8]) -> impl Iterator<Item = u64> {
    data.split(|byte| *byte == b'@').filter_map(|text| std::str::from_utf8(text).ok()?.parse().ok())
}
