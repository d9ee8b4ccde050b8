//! Many senders of webhooks on keep-alive connections, each with one delivery under way.
//!
//! Cheap on purpose, since it shares the machine with the server: the bytes are made and signed once, and only the
//! delivery's id is written anew. Nothing is parsed but the answer's status and length.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::forge::webhook::sign;

/// Like GitHub's: a GUID.
const ID_CHARS: usize = 36;
/// Every answer of the webhook fits.
const ANSWER_BYTES: usize = 4096;
/// GitHub itself gives up after this long.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// One event, ready to be sent again and again under new ids.
#[derive(Clone)]
pub(super) struct Request {
    bytes: Bytes,
    id_at: usize,
    /// The status of a good answer.
    expected: &'static [u8],
}

impl Request {
    /// `status`: three digits.
    pub(super) fn new(event: &str, secret: &str, body: &[u8], status: &'static str) -> Self {
        let head = format!(
            "POST /webhooks/github HTTP/1.1\r\nhost: localhost\r\nuser-agent: GitHub-Hookshot/bench\r\naccept: */*\r\n\
             content-type: application/json\r\nx-github-event: {event}\r\nx-hub-signature-256: {}\r\n\
             content-length: {}\r\nx-github-delivery: ",
            sign(secret, body),
            body.len(),
        );
        let id_at = head.len();
        let bytes = [head.as_bytes(), &[b'0'; ID_CHARS], b"\r\n\r\n", body].concat();
        Self { bytes: bytes.into(), id_at, expected: status.as_bytes() }
    }
}

/// Ids that never repeat in one run of the benchmark, scattered like GitHub's so that an index gets no help.
#[derive(Clone, Default)]
pub(super) struct Ids(Arc<AtomicU64>);

impl Ids {
    fn write_next(&self, mut place: &mut [u8]) {
        let id = scatter(self.0.fetch_add(1, Ordering::Relaxed));
        write!(place, "{:08x}-{:04x}-11e3-{:04x}-4c9367dc0958", id >> 32, (id >> 16) & 0xffff, id & 0xffff)
            .expect("a GUID has 36 characters");
    }
}

/// The last step of SplitMix64: no two inputs give the same number.
fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// How fast the senders go together.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// The next delivery follows the answer.
    AsFastAsAnswered,
    PerSecond(f64),
}

/// What the senders saw.
pub(super) struct Answered {
    pub(super) per_second: f64,
    /// Sorted. From the moment when a delivery was due, if its connection was still busy with the one before; else from
    /// its first byte, because a timer of this side that was late is not the server's.
    pub(super) latencies: Vec<Duration>,
}

impl Answered {
    pub(super) fn count(&self) -> u64 {
        self.latencies.len() as u64
    }

    pub(super) fn p99(&self) -> Duration {
        self.latencies[(self.latencies.len() * 99 / 100).min(self.latencies.len() - 1)]
    }
}

/// Sends for `time` over `connections` connections and waits for every answer. Errors at the first one that is not good.
pub(super) async fn send(
    address: SocketAddr,
    connections: u32,
    request: &Request,
    ids: &Ids,
    pace: Pace,
    time: Duration,
) -> anyhow::Result<Answered> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(address).await.context("while connecting")?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let started = Instant::now();
    let mut senders = JoinSet::new();
    for (stream, nth) in streams.into_iter().zip(0..connections) {
        let every = match pace {
            Pace::AsFastAsAnswered => Duration::ZERO,
            Pace::PerSecond(rate) => Duration::from_secs_f64(f64::from(connections) / rate),
        };
        let sender = Sender {
            stream,
            bytes: request.bytes.to_vec(),
            id_at: request.id_at,
            expected: request.expected,
            ids: ids.clone(),
            // Evenly spread over the first interval.
            due: started + every.mul_f64(f64::from(nth) / f64::from(connections)),
            every,
        };
        senders.spawn(sender.send_until(started + time));
    }
    let mut latencies = Vec::new();
    while let Some(sent) = senders.join_next().await {
        latencies.append(&mut sent.context("a sender panicked")??);
    }
    let took = started.elapsed();
    ensure!(!latencies.is_empty(), "nothing was sent in {time:?}");
    latencies.sort_unstable();
    Ok(Answered { per_second: latencies.len() as f64 / took.as_secs_f64(), latencies })
}

struct Sender {
    stream: TcpStream,
    bytes: Vec<u8>,
    id_at: usize,
    expected: &'static [u8],
    ids: Ids,
    due: Instant,
    /// Zero: no pace.
    every: Duration,
}

impl Sender {
    async fn send_until(mut self, end: Instant) -> anyhow::Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        let mut now = Instant::now();
        while self.due.max(now) < end {
            let is_late = !self.every.is_zero() && self.due < now;
            if self.due > now {
                sleep_until(self.due).await;
                now = Instant::now();
            }
            let since = if is_late { self.due } else { now };
            self.ids.write_next(&mut self.bytes[self.id_at..self.id_at + ID_CHARS]);
            self.stream.write_all(&self.bytes).await.context("while sending a delivery")?;
            timeout(ANSWER_LIMIT, read_answer(&mut self.stream, self.expected))
                .await
                .context("a delivery was not answered in time")??;
            now = Instant::now();
            latencies.push(now - since);
            self.due = if self.every.is_zero() { now } else { self.due + self.every };
        }
        Ok(latencies)
    }
}

/// One whole answer, with its body left unread by anybody.
async fn read_answer(stream: &mut TcpStream, expected: &[u8]) -> anyhow::Result<()> {
    let mut answer = [0; ANSWER_BYTES];
    let mut filled = 0;
    loop {
        let read = stream.read(&mut answer[filled..]).await.context("while reading an answer")?;
        ensure!(read > 0, "the connection ended within an answer");
        filled += read;
        let text = &answer[..filled];
        let Some(head) = text.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        ensure!(
            text.strip_prefix(b"HTTP/1.1 ").is_some_and(|rest| rest.starts_with(expected)),
            "a delivery was answered with: {}",
            String::from_utf8_lossy(text),
        );
        match filled.cmp(&(head + 4 + content_length(&text[..head])?)) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => bail!("more than one answer to one delivery"),
        }
    }
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|byte| *byte == b'\n')
        .find(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
        .context("an answer without a content-length")?;
    Ok(std::str::from_utf8(&line[NAME.len()..])?.trim().parse()?)
}
