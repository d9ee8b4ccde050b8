//! Following many things over one WebSocket.
//!
//! Whoever follows subscribes to topics: `tasks`, the events of all Tasks; `task:` and a Task's id, its events; `queue`, those
//! of all Tasks' events that change what waits or is at work. These are the events of the feeds in `events`, with the same
//! numbers, so a follower that comes again subscribes after the last one it has seen and misses nothing. `words:` and a Task's id
//! is what its models say now, which has no numbers and is told as far as it is known. All messages are JSON text.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::HeaderMap;
use axum::response::Response;
use fettle_app::words::Listened;
use fettle_domain::access::{Action, Object, Via};
use fettle_domain::id::TaskId;
use futures::SinkExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tracing::{Instrument as _, Span, debug, warn};
use utoipa::ToSchema;

use super::events::{EventBody, WordsBody};
use crate::auth::{Caller, cookie};
use crate::edge::Exchange;
use crate::extract;
use crate::feeds::{Follower, HEAR_EVERY, LOOK_AGAIN, Place, WINDOW};
use crate::problem::{Code, Problem, ProblemBody};
use crate::serve::Slot;
use crate::state::ApiState;

/// Whoever offers protocols is told that this is the one.
const PROTOCOL: &str = "fettle";
/// Who has not answered one by the next is gone.
const PING_EVERY: Duration = Duration::from_secs(20);
/// A follower that takes nothing of what it is sent for so long is gone; it resumes where it was.
const SEND_LIMIT: Duration = Duration::from_secs(20);
/// For the last word, which nobody has to hear.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A topic and a number fit several times.
const MAX_SAID_BYTES: usize = 4 * 1024;
/// Whatever a follower sends, pings and pongs too: it subscribes when somebody turns to another page.
const MAX_SAID: u32 = 200;
/// In which it may.
const PACE_WINDOW: Duration = Duration::from_secs(10);
/// Of one follower: more Tasks than a page shows, for which there is `tasks`.
const MAX_TOPICS: usize = 64;
/// Read at once; each connection holds it for as long as it lasts.
const READ_BYTES: usize = MAX_SAID_BYTES;
/// What is gathered before it is written: messages have some 400 bytes.
const WRITE_BYTES: usize = 16 * 1024;
/// What may wait to be written; one message is far shorter.
const MAX_WRITE_BYTES: usize = 1024 * 1024;

/// What a follower says.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = LiveRequest)]
pub(crate) enum Said {
    /// Follows a topic. Again: goes on from another place.
    Subscribe {
        /// `tasks`, `queue`, or `task:` or `words:` and a Task's id.
        topic: String,
        /// Only events with a greater number; 0 for all that are kept, absent for those that come from now on.
        after: Option<u64>,
    },
    Unsubscribe {
        topic: String,
    },
}

/// What a follower is told.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = LiveMessage)]
pub(crate) enum Tell<'t> {
    Subscribed {
        topic: &'t str,
        /// Events with greater numbers follow.
        sequence: u64,
    },
    Unsubscribed {
        topic: &'t str,
    },
    Event {
        topic: &'t str,
        /// `after` when it is subscribed to again.
        sequence: u64,
        event: &'t EventBody,
    },
    /// What a model says while it says it. It has no number and may be incomplete: this dashboard tells what it heard itself.
    Words {
        topic: &'t str,
        words: WordsBody,
    },
    /// The follower takes events more slowly than they come. None is left out: they go on to be read from the ledger after
    /// `sequence`. Who would rather skip them subscribes after `newest`.
    Lagged {
        topic: &'t str,
        sequence: u64,
        newest: u64,
    },
    /// There is no event with the number `after`, nor a greater one, as when the ledger was restored from a backup: what was
    /// seen may not have happened. Events with numbers greater than `sequence` follow.
    Gap {
        topic: &'t str,
        after: u64,
        sequence: u64,
    },
    /// The Task has ended and everything was told; its topic is unsubscribed.
    End {
        topic: &'t str,
    },
    /// Nothing was changed by what was said.
    Error {
        topic: Option<&'t str>,
        problem: ProblemBody,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topic {
    Tasks,
    Queue,
    Task(TaskId),
    Words(TaskId),
}

impl Topic {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "tasks" => Some(Self::Tasks),
            "queue" => Some(Self::Queue),
            other => match other.strip_prefix("words:") {
                Some(task) => task.parse().ok().map(Self::Words),
                None => other.strip_prefix("task:")?.parse().ok().map(Self::Task),
            },
        }
    }

    fn action(self) -> Action {
        match self {
            Self::Tasks | Self::Task(_) | Self::Words(_) => Action::TasksRead,
            Self::Queue => Action::JobsRead,
        }
    }

    fn task(self) -> Option<TaskId> {
        match self {
            Self::Tasks | Self::Queue => None,
            Self::Task(task) | Self::Words(task) => Some(task),
        }
    }
}

/// Follows any number of topics over one WebSocket, with resumption by sequence.
///
/// The client sends `LiveRequest`s and is sent `LiveMessage`s, each as JSON text. Topics are `tasks` (the events of all Tasks),
/// `task:` and a Task's id, `queue` (of all Tasks' events those that change what waits or is at work), and `words:` and a Task's
/// id (what its models say while they say it: without numbers, recorded nowhere, and known only to the dashboard that the Run's
/// worker talks to). A browser that cannot send a key in a header offers two protocols, `fettle` and `fettle-key.` with the key
/// in base64url. A ping comes every
/// 20 s; who has not answered by the next is cut off, as is who sends more than 200 messages in 10 s or one above 4 KiB. The
/// connection ends with the session, token or key that it came with (close code 1008), and with the server (1001). A page of
/// another origin than this host's is refused.
#[utoipa::path(
    get, path = "/api/v1/live", operation_id = "follow_live", tag = "events", security(("admin_key" = [])),
    responses(
        (status = 101, description = "From here on WebSocket messages: `LiveRequest` to the server, `LiveMessage` from it"),
        (status = 400, description = "This is no WebSocket handshake", body = ProblemBody, content_type = "application/problem+json"),
        (status = 403, description = "A page of another origin asks", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "The caller follows as many feeds as one may", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn follow_live(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(names): Extension<Exchange>,
    slot: Option<Extension<Slot>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    // Browsers ask nobody before they open one from a page of another site, and send the cookie along.
    let by_cookie = caller.actor.via == Via::Session;
    if !cookie::is_own_origin(&headers).unwrap_or(!by_cookie) {
        return Err(Problem::new(Code::Forbidden, "A page of another origin may not follow with this one's cookie."));
    }
    let upgrade = upgrade.map_err(|rejection| {
        Problem::new(Code::BadRequest, format!("This address is for a WebSocket: {}.", rejection.body_text()))
    })?;
    let follower = Follower::new(&api, &caller, headers)?;
    let (topics, words) = (BTreeMap::new(), BTreeMap::new());
    let live = Live { api, caller, names, follower, topics, words, hears_at: Instant::now(), pace: Pace::default() };
    let span = Span::current();
    let upgrade = upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_SAID_BYTES)
        .max_frame_size(MAX_SAID_BYTES)
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_write_buffer_size(MAX_WRITE_BYTES)
        .on_failed_upgrade(|error| debug!(error = &error as &dyn std::error::Error, "a WebSocket did not come about"));
    Ok(upgrade.on_upgrade(move |socket| {
        async move {
            match slot {
                Some(Extension(slot)) => slot.hold(live.run(socket)).await,
                None => live.run(socket).await,
            }
        }
        .instrument(span)
    }))
}

/// How a connection ends.
enum End {
    /// The other side is not there to hear why.
    Gone,
    Closed(u16, &'static str),
}

const SHUTTING_DOWN: End = End::Closed(close_code::AWAY, "the server is stopping; resume by sequence");
const NOT_KNOWN: End = End::Closed(close_code::POLICY, "what you came with is not good any more");
const TOO_FAST: End = End::Closed(close_code::POLICY, "more messages than a follower may send");
const TOO_LARGE: End = End::Closed(close_code::SIZE, "a message has at most 4 KiB");
const BROKEN: End = End::Closed(close_code::AGAIN, "the events could not be read; resume by sequence");

/// Messages within the current window.
struct Pace {
    since: Instant,
    said: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), said: 0 }
    }
}

impl Pace {
    fn takes(&mut self) -> bool {
        if self.since.elapsed() >= PACE_WINDOW {
            *self = Self::default();
        }
        self.said += 1;
        self.said <= MAX_SAID
    }
}

struct Subscription {
    topic: Topic,
    place: Place,
    /// Everything was told once, so that being behind is the follower's doing.
    live: bool,
}

struct Live {
    api: ApiState,
    caller: Caller,
    names: Exchange,
    follower: Follower,
    topics: BTreeMap<String, Subscription>,
    /// Topics of what models say.
    words: BTreeMap<String, (TaskId, Listened)>,
    /// Not before then.
    hears_at: Instant,
    pace: Pace,
}

impl Live {
    async fn run(mut self, mut socket: WebSocket) {
        let Err(end) = self.follow(&mut socket).await;
        // Whoever sees that it is over may take the seat again.
        drop(self);
        if let End::Closed(code, reason) = end {
            let close = Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from_static(reason) }));
            // Whether it was heard changes nothing.
            drop(timeout(CLOSE_LIMIT, socket.send(close)).await);
        }
    }

    async fn follow(&mut self, socket: &mut WebSocket) -> Result<std::convert::Infallible, End> {
        let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut news, shutdown) = (self.api.ledger.newest_event(), self.api.shutdown.clone());
        let (mut unanswered, mut more) = (false, false);
        let mut said = self.api.words.news();
        // What was said before somebody asked is told at once.
        said.mark_changed();
        loop {
            let (hears, hears_at) = (!self.words.is_empty(), self.hears_at);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(SHUTTING_DOWN),
                asked = socket.recv() => {
                    unanswered = false;
                    match asked {
                        Some(Ok(asked)) => {
                            more |= self.hear(asked, socket).await?;
                            said.mark_changed();
                        }
                        Some(Err(error)) => return Err(unreadable(&error)),
                        None => return Err(End::Gone),
                    }
                }
                _ = pings.tick() => {
                    if unanswered {
                        return Err(End::Gone);
                    }
                    unanswered = true;
                    send(socket, Message::Ping(bytes::Bytes::new())).await?;
                }
                () = std::future::ready(()), if more => {
                    // Marked as seen before reading: what comes during the read wakes us again.
                    news.borrow_and_update();
                    more = self.tell(socket).await?;
                }
                _ = heard(&mut said, hears_at), if hears && !more => {
                    self.hears_at = Instant::now() + HEAR_EVERY;
                    self.tell_words(socket).await?;
                }
                changed = timeout(LOOK_AGAIN, news.changed()), if !more => match changed {
                    Ok(Err(_)) => return Err(SHUTTING_DOWN),
                    Ok(Ok(())) | Err(_) => more = true,
                },
            }
            self.may_stay().await?;
        }
    }

    async fn may_stay(&mut self) -> Result<(), End> {
        self.follower.may_stay(&self.api).await.map_err(|problem| match problem.code {
            Code::Unauthenticated | Code::Forbidden => NOT_KNOWN,
            _ => BROKEN,
        })
    }

    /// What was said, carried out and answered; whether there may be something to tell.
    async fn hear(&mut self, said: Message, socket: &mut WebSocket) -> Result<bool, End> {
        if !self.pace.takes() {
            return Err(TOO_FAST);
        }
        let text = match said {
            Message::Text(text) => text,
            Message::Ping(_) | Message::Pong(_) => return Ok(false),
            Message::Close(_) => return Err(End::Gone),
            Message::Binary(_) => {
                let problem = Problem::new(Code::UnsupportedMediaType, "Send JSON as text, and nothing binary.");
                return self.refuse(None, problem, socket).await.map(|()| false);
            }
        };
        match extract::parse(text.as_bytes()) {
            Ok(Said::Subscribe { topic, after }) => match self.subscribe(&topic, after).await {
                Ok((begun, gap)) => {
                    if let Some(gap) = gap {
                        say(socket, &Tell::Gap { topic: &topic, after: gap, sequence: begun }).await?;
                    }
                    say(socket, &Tell::Subscribed { topic: &topic, sequence: begun }).await?;
                    Ok(true)
                }
                Err(problem) => self.refuse(Some(&topic), problem, socket).await.map(|()| false),
            },
            Ok(Said::Unsubscribe { topic }) => {
                if self.topics.remove(&topic).is_some() || self.words.remove(&topic).is_some() {
                    say(socket, &Tell::Unsubscribed { topic: &topic }).await?;
                } else {
                    let problem = Problem::new(Code::NotFound, "This topic is not subscribed to.");
                    self.refuse(Some(&topic), problem, socket).await?;
                }
                Ok(false)
            }
            Err(problem) => self.refuse(None, problem, socket).await.map(|()| false),
        }
    }

    async fn refuse(&self, topic: Option<&str>, problem: Problem, socket: &mut WebSocket) -> Result<(), End> {
        if let Some(cause) = &problem.cause {
            warn!(error = &**cause as &dyn std::error::Error, "could not subscribe to a topic");
        }
        say(socket, &Tell::Error { topic, problem: problem.body(self.names.request) }).await
    }

    /// From where events follow; and the number that was asked for, if there is no such event.
    async fn subscribe(&mut self, name: &str, after: Option<u64>) -> Result<(u64, Option<u64>), Problem> {
        let topic = Topic::parse(name).ok_or_else(|| {
            Problem::refused("/topic", "Topics are `tasks`, `queue`, and `task:` or `words:` with the id of a Task.")
        })?;
        self.caller.may(topic.action(), Object::Shared)?;
        let known = self.topics.contains_key(name) || self.words.contains_key(name);
        if self.topics.len() + self.words.len() >= MAX_TOPICS && !known {
            let detail =
                format!("One connection has at most {MAX_TOPICS} topics. `tasks` has the events of all Tasks.");
            return Err(Problem::new(Code::TooMany, detail));
        }
        if let Some(task) = topic.task() {
            self.api.ledger.task(task).await?;
        }
        let newest = *self.api.ledger.newest_event().borrow();
        if let Topic::Words(task) = topic {
            self.words.insert(name.to_owned(), (task, Listened::default()));
            self.hears_at = Instant::now();
            return Ok((newest, None));
        }
        let (begin, gap) = match after {
            None => (newest, None),
            Some(after) if after <= newest => (after, None),
            // Another dashboard's newest ones may not be known here yet.
            Some(after) => match self.api.ledger.events(None, after - 1, 1).await?.is_empty() {
                false => (after, None),
                true => (newest, Some(after)),
            },
        };
        let live = begin == newest;
        self.topics.insert(name.to_owned(), Subscription { topic, place: Place::new(topic.task(), begin), live });
        Ok((begin, gap))
    }

    /// What models have said since.
    async fn tell_words(&mut self, socket: &mut WebSocket) -> Result<(), End> {
        for (name, (task, listened)) in &mut self.words {
            for told in self.api.words.since(*task, listened) {
                within(socket.feed(text(&Tell::Words { topic: name, words: told.into() }))).await?;
            }
        }
        within(socket.flush()).await
    }

    /// Up to a page of each topic; whether there may be more.
    async fn tell(&mut self, socket: &mut WebSocket) -> Result<bool, End> {
        let (mut any_more, mut ended) = (false, Vec::new());
        for (name, subscription) in &mut self.topics {
            let newest = *self.api.ledger.newest_event().borrow();
            let sequence = subscription.place.after;
            if subscription.live && newest.saturating_sub(sequence) > WINDOW {
                subscription.live = false;
                say(socket, &Tell::Lagged { topic: name, sequence, newest }).await?;
            }
            let (events, more) = subscription.place.read(&self.api).await.map_err(|error| {
                warn!(error = &error as &dyn std::error::Error, "an event feed broke off");
                BROKEN
            })?;
            for told in events.iter().filter(|told| subscription.topic != Topic::Queue || told.of_queue) {
                // A slow follower must not outstay what it came with.
                self.follower.may_stay(&self.api).await.map_err(|_| NOT_KNOWN)?;
                let event = Tell::Event { topic: name, sequence: told.event.seq, event: &told.event };
                within(socket.feed(text(&event))).await?;
            }
            within(socket.flush()).await?;
            subscription.live |= !more;
            // Whoever was told of what may be a Task's end hears at once whether it is.
            any_more |= more || subscription.place.looks_at_task();
            if subscription.place.ended {
                ended.push(name.clone());
            }
        }
        for name in ended {
            self.topics.remove(&name);
            say(socket, &Tell::End { topic: &name }).await?;
        }
        Ok(any_more)
    }
}

/// Waits for words, and not before `from`.
async fn heard(said: &mut watch::Receiver<u64>, from: Instant) -> bool {
    sleep_until(from).await;
    said.changed().await.is_ok()
}

fn text(tell: &Tell<'_>) -> Message {
    Message::text(serde_json::to_string(tell).expect("a message is strings and numbers"))
}

async fn say(socket: &mut WebSocket, tell: &Tell<'_>) -> Result<(), End> {
    send(socket, text(tell)).await
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), End> {
    within(socket.send(message)).await
}

async fn within(sending: impl Future<Output = Result<(), axum::Error>>) -> Result<(), End> {
    match timeout(SEND_LIMIT, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(End::Gone),
    }
}

/// What could not be read of a follower.
fn unreadable(error: &axum::Error) -> End {
    // The library's own error is not to be had from here; its text says this of a message or frame above the limit.
    if error.to_string().contains("too long") { TOO_LARGE } else { End::Gone }
}
