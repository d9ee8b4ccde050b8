//! Other programs' messages. What they wrote is not judged here: every entry becomes a body, whatever is in it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::transport::{ForeignInbox, ForeignMessage, MAX_FOREIGN_BYTES, X};

use crate::Redis;
use crate::connection::{Commands, Server};
use crate::desk::{Desk, Unwanted};
use crate::error::from_redis;
use crate::reader::{Reader, Reading};
use crate::stream::{Entry, Stream};

/// Where other programs leave messages: fields `repo_url`, `issue_id`, `mode`, `trigger_user`, or one field `payload`.
pub const MESSAGES: &str = "agent-tasks";
/// Where copies of bad messages go: fields `payload` and `reason`.
pub const DEAD: &str = "agent-tasks.dead";
const STREAM: Stream = Stream { key: MESSAGES, group: "fettle-intake" };
const PAYLOAD: &str = "payload";
/// A message may be as large as the server allows, so there is never more than one in memory.
const READ_AT_ONCE: usize = 1;

pub struct RedisInbox {
    commands: Arc<Commands>,
    reading: Reading,
}

impl RedisInbox {
    pub(crate) fn new(redis: &Redis) -> Self {
        let reading = Reading::new(Reader {
            server: Arc::clone(&redis.server),
            stream: STREAM,
            consumer: redis.process.clone(),
            limits: redis.limits,
            at_once: READ_AT_ONCE,
            anew: &[],
            desk: Arc::new(Desk::new(Unwanted::Keep, redis.limits.unsettled_after)),
        });
        Self { commands: Arc::clone(&redis.commands), reading }
    }
}

#[async_trait]
impl ForeignInbox for RedisInbox {
    async fn next(&self, max: Duration) -> Option<ForeignMessage> {
        self.reading.next(max).await.map(message)
    }

    async fn taken(&self, message: &ForeignMessage) -> X<()> {
        self.reading.desk().settled(&message.receipt);
        STREAM.settle(&self.commands, &message.receipt).await
    }

    async fn bury(&self, body: &Bytes, reason: &str) -> X<()> {
        let mut pipeline = redis::pipe();
        pipeline.cmd("XADD").arg(DEAD).arg("*").arg(PAYLOAD).arg(&body[..]).arg("reason").arg(reason);
        self.commands.run(&pipeline).await
    }

    async fn depth(&self) -> X<u64> {
        STREAM.length(&self.commands).await
    }
}

pub(crate) async fn submit(server: &Server, body: &Bytes) -> X<()> {
    let mut connection = server.connect().await?;
    let mut add = redis::cmd("XADD");
    add.arg(MESSAGES).arg("*").arg(PAYLOAD).arg(&body[..]);
    add.exec_async(&mut connection).await.map_err(from_redis)
}

fn message(entry: Entry) -> ForeignMessage {
    let mut body = body(entry.fields);
    body.truncate(MAX_FOREIGN_BYTES + 1);
    // The vector may be a thousand times larger than what is left of it.
    body.shrink_to_fit();
    ForeignMessage { body: body.into(), id: Some(entry.id.clone()), redelivered: entry.redelivered, receipt: entry.id }
}

/// The payload as it is; else the fields as a JSON object of strings. Fields that no JSON can hold stand line by line: who
/// looks at the dead letter sees them, and intake sees that they are not UTF-8.
fn body(fields: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let mut others = Vec::new();
    for (name, value) in fields {
        if name == PAYLOAD.as_bytes() {
            return value;
        }
        others.push((name, value));
    }
    let texts = others.iter().map(|(name, value)| Some((text(name)?, serde_json::Value::from(text(value)?))));
    match texts.collect::<Option<serde_json::Map<_, _>>>() {
        Some(object) => serde_json::Value::from(object).to_string().into_bytes(),
        None => others.iter().flat_map(|(name, value)| [&name[..], b": ", value, b"\n"].concat()).collect(),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
        body(fields.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect())
    }

    #[test]
    fn flat_fields_become_an_object_of_strings() {
        let flat = body_of(&[(b"repo_url", b"https://x/a"), (b"issue_id", b"7"), (b"more", "\"ü".as_bytes())]);
        let read: serde_json::Value = serde_json::from_slice(&flat).unwrap();
        assert_eq!(read, serde_json::json!({"repo_url": "https://x/a", "issue_id": "7", "more": "\"ü"}));
        assert_eq!(body_of(&[]), b"{}");
    }

    #[test]
    fn a_payload_is_the_body_whatever_is_beside_it() {
        assert_eq!(body_of(&[(b"v", b"1"), (b"payload", b"\xff{"), (b"w", b"2")]), b"\xff{");
    }

    #[test]
    fn fields_that_are_no_text_are_shown_and_are_no_text() {
        let shown = body_of(&[(b"mode", b"\xff"), (b"issue_id", b"7")]);
        assert_eq!(shown, b"mode: \xff\nissue_id: 7\n");
    }
}
