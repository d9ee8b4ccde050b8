//! Following one Task: its event feed, taken up again after the last event when it breaks off.

use std::time::Duration;

use anyhow::{Result, bail};
use reqwest::Response;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::client::{Client, Failure};
use crate::progress;

/// Three of the server's signs of life.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);
/// The events that are there come with one short read of the ledger; a second of silence means that all were told.
const DRAINED: Duration = Duration::from_secs(1);
/// How often whoever watches is told that nothing happened.
const QUIET: Duration = Duration::from_secs(1);
/// Between two tries, unless the server names its own wait.
const RETRY: Duration = Duration::from_secs(2);
/// A dashboard that is upgraded or restarted is back by then.
const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// An event is a title and a few numbers.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// How far to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// What has happened so far.
    Now,
    /// The end of the Task.
    End,
}

/// What whoever watches is given.
pub(crate) enum News<'a> {
    /// `data` of one message, as the API gives it.
    Event(&'a Value),
    /// Nothing happened since the last call.
    Quiet,
}

/// Gives `watch` every event of the Task once, in order.
///
/// Errors: the dashboard refuses, or is away for longer than [`PATIENCE`]; or `watch` fails.
pub(crate) async fn follow(
    client: &Client,
    task: &str,
    until: Until,
    mut watch: impl AsyncFnMut(News<'_>) -> Result<()>,
) -> Result<()> {
    let path = ["api", "v1", "tasks", task, "events"];
    let mut place = Place { last: None, retry: RETRY };
    let mut heard = Instant::now();
    loop {
        let failure = match client.feed(&path, place.last.as_deref()).await {
            Ok(response) => match listen(response, until, &mut place, &mut watch).await? {
                Broke::Never => return Ok(()),
                Broke::Off { heard_something } => {
                    if heard_something {
                        heard = Instant::now();
                    }
                    Failure::unanswered("the event feed broke off")
                }
            },
            Err(failure) if failure.may_pass() => failure,
            Err(failure) => return Err(failure.into()),
        };
        if heard.elapsed() > PATIENCE || until == Until::Now {
            return Err(failure.into());
        }
        progress::note(&format!("{failure}; trying again in {} s", place.retry.as_secs_f32().ceil()));
        tokio::time::sleep(place.retry).await;
    }
}

/// Where a feed is taken up again.
struct Place {
    last: Option<String>,
    retry: Duration,
}

enum Broke {
    /// The feed is over, or everything wanted was told.
    Never,
    Off {
        heard_something: bool,
    },
}

async fn listen(
    mut response: Response,
    until: Until,
    place: &mut Place,
    watch: &mut impl AsyncFnMut(News<'_>) -> Result<()>,
) -> Result<Broke> {
    let mut messages = Messages::default();
    let mut heard = Instant::now();
    let mut heard_something = false;
    let pause = if until == Until::Now { DRAINED } else { QUIET };
    loop {
        // Dropping the read loses nothing: a chunk is taken whole or stays.
        let chunk = match timeout(pause, response.chunk()).await {
            Err(_) if until == Until::Now => return Ok(Broke::Never),
            Err(_) if heard.elapsed() > SILENCE_LIMIT => return Ok(Broke::Off { heard_something }),
            Err(_) => {
                watch(News::Quiet).await?;
                continue;
            }
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None) | Err(_)) => return Ok(Broke::Off { heard_something }),
        };
        heard = Instant::now();
        heard_something = true;
        for message in messages.push(&chunk) {
            if let Some(retry) = message.retry {
                place.retry = retry;
            }
            if message.event.as_deref() == Some("end") {
                return Ok(Broke::Never);
            }
            if !message.data.is_empty() {
                watch(News::Event(&serde_json::from_str(&message.data)?)).await?;
            }
            // After the event was shown: one that was not is asked for again.
            if message.id.is_some() {
                place.last = message.id;
            }
        }
        if messages.pending.len() > MAX_MESSAGE_BYTES {
            bail!("the event feed holds a line of more than {MAX_MESSAGE_BYTES} bytes; is this a Fettle dashboard?");
        }
    }
}

/// One message of a feed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<String>,
    event: Option<String>,
    data: String,
    retry: Option<Duration>,
}

/// Cuts bytes into messages, as the HTML standard's section on server-sent events has it.
#[derive(Default)]
struct Messages {
    pending: Vec<u8>,
    message: Message,
}

impl Messages {
    fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.pending.extend_from_slice(bytes);
        let mut complete = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let message = std::mem::take(&mut self.message);
                if message != Message::default() {
                    complete.push(message);
                }
            } else {
                self.line(line);
            }
        }
        complete
    }

    fn line(&mut self, line: &str) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        let message = &mut self.message;
        match field {
            "id" => message.id = Some(value.to_owned()),
            "event" => message.event = Some(value.to_owned()),
            "retry" => message.retry = value.parse().ok().map(Duration::from_millis),
            "data" if message.data.is_empty() => value.clone_into(&mut message.data),
            "data" => message.data = format!("{}\n{value}", message.data),
            // A line that begins with a colon is a sign of life.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_wherever_the_bytes_are_cut() {
        let text =
            "retry: 10\n: hello\n\nid: 1\ndata: {\"a\":\"ü\"}\n\n: still here\n\nevent: end\r\ndata: {}\r\n\r\nid: 3\n"
                .as_bytes();
        let whole = Messages::default().push(text);
        assert_eq!(
            whole,
            [
                Message { retry: Some(Duration::from_millis(10)), ..Message::default() },
                Message { id: Some("1".into()), data: "{\"a\":\"ü\"}".into(), ..Message::default() },
                Message { event: Some("end".into()), data: "{}".into(), ..Message::default() },
            ]
        );
        for cut in 0..text.len() {
            let mut messages = Messages::default();
            let mut found = messages.push(&text[..cut]);
            found.extend(messages.push(&text[cut..]));
            assert_eq!(found, whole, "cut at {cut}");
        }
    }
}
