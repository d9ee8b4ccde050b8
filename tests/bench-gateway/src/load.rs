//! Callers: connections that stay open, as those of a busy client's pool do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::upstream::MARK;

/// A prompt of about 1 KiB.
const PROMPT: &str = "Mend the function below and say in one sentence what was wrong with it. ";
const PROMPT_TIMES: usize = 14;
/// An answer that takes longer will not come.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Whom to ask.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// `127.0.0.1:80`
    pub(crate) authority: String,
    pub(crate) path: String,
    /// Before a model's name.
    pub(crate) prefix: String,
}

/// One kind of request to it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum What {
    Whole,
    /// With so many events.
    Stream {
        events: u64,
        paced: bool,
    },
}

struct Caller {
    send: SendRequest<Full<Bytes>>,
    request: Request<Bytes>,
    _connection: JoinSet<hyper::Result<()>>,
}

/// What came of one request.
#[derive(Debug, Default)]
struct Seen {
    /// To the first byte of the answer's body, and to its end.
    first: Duration,
    whole: Duration,
    events: u64,
    /// From the sending of an event to its arrival.
    lags: Vec<Duration>,
}

impl Caller {
    async fn connect(door: &Door, what: What) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&door.authority).await.context("while connecting")?;
        stream.set_nodelay(true)?;
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut driven = JoinSet::new();
        driven.spawn(connection);
        let (model, tokens, stream) = match what {
            What::Whole => ("fast", 200, false),
            What::Stream { events, paced } => (if paced { "paced" } else { "fast" }, events, true),
        };
        let body = serde_json::json!({
            "model": format!("{}{model}", door.prefix), "max_tokens": tokens, "stream": stream,
            "messages": [{ "role": "user", "content": PROMPT.repeat(PROMPT_TIMES) }],
        });
        let request = Request::post(&door.path)
            .header("host", &door.authority)
            .header("content-type", "application/json")
            .header("authorization", "Bearer sk-nobody")
            .body(Bytes::from(serde_json::to_vec(&body)?))?;
        Ok(Self { send, request, _connection: driven })
    }

    async fn ask(&mut self) -> anyhow::Result<Seen> {
        tokio::time::timeout(ANSWER_LIMIT, self.answered()).await.context("no answer came in time")?
    }

    async fn answered(&mut self) -> anyhow::Result<Seen> {
        self.send.ready().await?;
        let begun = Instant::now();
        let response = self.send.send_request(self.request.clone().map(Full::new)).await?;
        let status = response.status();
        let (mut body, mut seen, mut bytes) = (response.into_body(), Seen::default(), Vec::new());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let now = crate::now();
            if seen.first.is_zero() {
                seen.first = begun.elapsed();
            }
            bytes.extend_from_slice(&data);
            // A piece is a line or several: what is not whole yet comes with the next.
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            for sent in marks(&bytes[..whole]) {
                seen.events += 1;
                seen.lags.push(Duration::from_nanos(now.saturating_sub(sent)));
            }
            if status.is_success() {
                bytes.drain(..whole);
            }
        }
        seen.whole = begun.elapsed();
        ensure!(status.is_success(), "it answers {status}: {}", String::from_utf8_lossy(&bytes).trim());
        Ok(seen)
    }
}

/// When the events in these lines were sent.
fn marks(lines: &[u8]) -> impl Iterator<Item = u64> {
    let mark = MARK.as_bytes();
    let starts = lines.windows(mark.len()).enumerate().filter(move |(_, window)| *window == mark);
    starts.filter_map(move |(at, _)| {
        let digits = lines[at + mark.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.map(|byte| u64::from(byte - b'0')).reduce(|number, digit| number * 10 + digit)
    })
}

/// As often as `callers` at once are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Throughput {
    pub(crate) requests_per_second: f64,
    pub(crate) events_per_second: f64,
    pub(crate) events: u64,
}

/// Each caller asks again as soon as it is answered.
pub(crate) async fn flood(door: &Door, what: What, callers: usize, time: Duration) -> anyhow::Result<Throughput> {
    let mut ready = Vec::new();
    for _ in 0..callers {
        ready.push(Caller::connect(door, what).await?);
    }
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for mut caller in ready {
        tasks.spawn(async move {
            let (mut requests, mut events) = (0_u64, 0);
            while begun.elapsed() < time {
                events += caller.ask().await?.events;
                requests += 1;
            }
            anyhow::Ok((requests, events))
        });
    }
    let (mut requests, mut events) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        let (more, of_them) = done??;
        (requests, events) = (requests + more, events + of_them);
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Throughput {
        requests_per_second: requests as f64 / seconds,
        events_per_second: events as f64 / seconds,
        events,
    })
}

/// Times of answers, each sorted.
#[derive(Debug, Default)]
pub(crate) struct Times {
    pub(crate) first: Vec<Duration>,
    pub(crate) whole: Vec<Duration>,
    pub(crate) lags: Vec<Duration>,
}

impl Times {
    pub(crate) fn quantile(sorted: &[Duration], part: f64) -> Duration {
        let place = (sorted.len() as f64 * part) as usize;
        sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// So many requests a second, whatever becomes of those before, from `callers` connections. A request that none of them is free
/// for begins late, and its wait is counted.
pub(crate) async fn at_rate(
    door: &Door,
    what: What,
    callers: usize,
    rate: f64,
    time: Duration,
) -> anyhow::Result<Times> {
    let mut ready = Vec::new();
    for _ in 0..callers {
        ready.push(Caller::connect(door, what).await?);
    }
    let next = Arc::new(AtomicU64::new(0));
    let (begun, mut tasks) = (Instant::now(), JoinSet::new());
    for mut caller in ready {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut times = Times::default();
            loop {
                let due = Duration::from_secs_f64(next.fetch_add(1, Ordering::Relaxed) as f64 / rate);
                if due >= time {
                    return anyhow::Ok(times);
                }
                let early = due.saturating_sub(begun.elapsed());
                // The runtime's timer is late by up to a millisecond, which is none of the gateway's: only a caller that was
                // busy is.
                let late = if early.is_zero() { begun.elapsed() - due } else { Duration::ZERO };
                tokio::time::sleep(early).await;
                let seen = caller.ask().await?;
                times.first.push(late + seen.first);
                times.whole.push(late + seen.whole);
                times.lags.extend(seen.lags);
            }
        });
    }
    let mut all = Times::default();
    while let Some(done) = tasks.join_next().await {
        let times = done??;
        all.first.extend(times.first);
        all.whole.extend(times.whole);
        all.lags.extend(times.lags);
    }
    for times in [&mut all.first, &mut all.whole, &mut all.lags] {
        times.sort_unstable();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_a_gateway_puts_them() {
        let lines = b"data: {\"content\":\"at:12\"}\n\ndata: {\"x\":[{\"content\":\"at:345\"}]}\ndata: [DONE]\n";
        assert_eq!(marks(lines).collect::<Vec<_>>(), [12, 345]);
        assert_eq!(marks(b"at:").count(), 0);
    }

    #[test]
    fn a_quantile_of_nothing_is_nothing_and_of_one_is_that() {
        assert_eq!(Times::quantile(&[], 0.99), Duration::ZERO);
        assert_eq!(Times::quantile(&[Duration::from_secs(1)], 0.99), Duration::from_secs(1));
    }
}
