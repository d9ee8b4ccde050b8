//! Following Tasks: server-sent events, resumable by `Last-Event-ID`.
//!
//! Each message's `id` is the event's number over all Tasks and its `data` an [`EventBody`]. A Task's feed ends with a
//! message of type `end` when the Task has ended and everything was told; the feed of all Tasks only ends with the server.
//! A feed that breaks off without `end` is resumed by asking again with the last `id`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as Message, KeepAlive};
use fettle_app::ports::ledger::LedgerError;
use fettle_app::words::{Listened, Told};
use fettle_domain::event::{Event, EventBody as Body};
use fettle_domain::id::{CorrelationId, TaskId};
use fettle_domain::words::{Piece, Voice};
use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::warn;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Caller;
use crate::extract::{Named, Parameters};
use crate::feeds::{Follower, HEAR_EVERY, LOOK_AGAIN, Place};
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// Proxies cut connections that are silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client waits before it asks again.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FollowParameters {
    /// Only events with a greater number; for clients that cannot send `Last-Event-ID`, which wins.
    after: Option<u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct FollowTaskParameters {
    /// Only events with a greater number; for clients that cannot send `Last-Event-ID`, which wins.
    after: Option<u64>,
    /// Between the events, what the Task's models say now: messages of type `words` without a number, as far as this dashboard
    /// has heard it.
    #[serde(default)]
    words: bool,
}

/// Follows one Task from its first event, or from `Last-Event-ID`, to its end.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}/events", operation_id = "follow_task", tag = "events",
    params(
        ("task_id" = String, Path, description = "`task_…`"), FollowTaskParameters,
        ("Last-Event-ID" = Option<u64>, Header, description = "The last number seen"),
    ),
    security(("admin_key" = [])),
    responses(
        (status = 200, description = "Each message's data is a TaskEvent; a message of type `end` ends the feed, and that of one of type `words` is TaskWords", body = EventBody, content_type = "text/event-stream"),
    )
)]
pub(crate) async fn follow_task(
    State(api): State<ApiState>,
    Named(task): Named<TaskId>,
    Parameters(parameters): Parameters<FollowTaskParameters>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>>>, Problem> {
    api.ledger.task(task).await?;
    let listened = parameters.words.then(Listened::default);
    feed(api, Some(task), parameters.after, listened, &caller, headers)
}

/// Follows all Tasks, from the first kept event or from `Last-Event-ID`, until the server stops.
#[utoipa::path(
    get, path = "/api/v1/events", operation_id = "follow_events", tag = "events",
    params(FollowParameters, ("Last-Event-ID" = Option<u64>, Header, description = "The last number seen")),
    security(("admin_key" = [])),
    responses((status = 200, description = "Each message's data is a TaskEvent", body = EventBody, content_type = "text/event-stream"))
)]
pub(crate) async fn follow_events(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<FollowParameters>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>>>, Problem> {
    feed(api, None, parameters.after, None, &caller, headers)
}

fn feed(
    api: ApiState,
    task: Option<TaskId>,
    after: Option<u64>,
    listened: Option<Listened>,
    caller: &Caller,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Message, Infallible>> + use<>>, Problem> {
    let after = match headers.get("last-event-id") {
        None => after.unwrap_or(0),
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            number.ok_or_else(|| Problem::new(Code::BadRequest, "`Last-Event-ID` is not an event's number."))?
        }
    };
    let follower = Follower::new(&api, caller, headers)?;
    let news = api.ledger.newest_event();
    let mut said = api.words.news();
    said.mark_changed();
    let feed = Feed { api, task, place: Place::new(task, after), news, said, listened, follower };
    let greeting = stream::once(async { Ok(Message::default().retry(RETRY).comment("fettle events")) });
    let pages = stream::unfold(feed, |mut feed| async move { feed.next().await.map(|page| (page, feed)) });
    let messages = pages.flat_map(|page| stream::iter(page).map(Ok));
    Ok(Sse::new(greeting.chain(messages)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("still here")))
}

struct Feed {
    api: ApiState,
    task: Option<TaskId>,
    place: Place,
    news: watch::Receiver<u64>,
    said: watch::Receiver<u64>,
    listened: Option<Listened>,
    follower: Follower,
}

impl Feed {
    /// The next messages; waits for some. `None` when the feed is over.
    async fn next(&mut self) -> Option<Vec<Message>> {
        while !self.place.ended {
            self.follower.may_stay(&self.api).await.ok()?;
            // Marked as seen before reading: what comes during the read wakes us again.
            self.news.borrow_and_update();
            self.said.borrow_and_update();
            match self.read().await {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => return Some(messages),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "an event feed broke off");
                    return None;
                }
            }
            tokio::select! {
                () = self.api.shutdown.cancelled() => return None,
                _ = self.said.changed(), if self.listened.is_some() => sleep(HEAR_EVERY).await,
                changed = timeout(LOOK_AGAIN, self.news.changed()) => if let Ok(Err(_)) = changed { return None },
            }
        }
        None
    }

    async fn read(&mut self) -> Result<Vec<Message>, LedgerError> {
        let (events, _) = self.place.read(&self.api).await?;
        let mut messages: Vec<Message> = events.iter().map(|told| message(&told.event)).collect();
        if let (Some(task), Some(listened)) = (self.task, &mut self.listened) {
            let told = self.api.words.since(task, listened).into_iter().map(WordsBody::from);
            messages.extend(told.map(|words| {
                let data = serde_json::to_string(&words).expect("words are strings and numbers");
                Message::default().event("words").data(data)
            }));
        }
        if self.place.ended {
            messages.push(Message::default().event("end").data("{}"));
        }
        Ok(messages)
    }
}

fn message(event: &EventBody) -> Message {
    let data = serde_json::to_string(event).expect("an event is strings and numbers");
    Message::default().id(event.seq.to_string()).data(data)
}

/// One event, as `data` of a message.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = TaskEvent)]
pub(crate) struct EventBody {
    /// Over all Tasks; grows.
    pub(crate) seq: u64,
    #[schema(value_type = String)]
    pub(crate) task_id: TaskId,
    /// Of this Task, from 1, without gaps.
    task_seq: u64,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    #[schema(value_type = String)]
    correlation_id: CorrelationId,
    what: What,
}

/// What a model says while it says it. All of it is foreign text, and none of it is recorded.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskWords)]
pub(crate) struct WordsBody {
    /// Which of the Task's Runs, from 1.
    run: u16,
    /// The number that the step will have when the answer is whole.
    step: u32,
    /// These pieces take the place of whatever was told of this Run's answer; else they follow it.
    whole: bool,
    pieces: Vec<PieceBody>,
    /// Something in it looks like a secret: no more of this answer is shown.
    hidden: bool,
    /// The answer has ended.
    over: bool,
}

/// One that has the `voice` of the piece before goes on where that ends, unless it is a `call`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WordsPiece)]
struct PieceBody {
    voice: VoiceBody,
    text: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WordsVoice)]
enum VoiceBody {
    /// Thought before the answer.
    Thought,
    Said,
    /// The name of a tool that is called.
    Call,
    /// Of the call before.
    Arguments,
}

impl From<Told> for WordsBody {
    fn from(told: Told) -> Self {
        let Told { run, step, whole, pieces, hidden, over } = told;
        let piece = |Piece { voice, text }| {
            let voice = match voice {
                Voice::Thought => VoiceBody::Thought,
                Voice::Said => VoiceBody::Said,
                Voice::Call => VoiceBody::Call,
                Voice::Arguments => VoiceBody::Arguments,
            };
            PieceBody { voice, text }
        };
        Self { run, step, whole, pieces: pieces.into_iter().map(piece).collect(), hidden, over }
    }
}

/// What happened.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = TaskEventKind)]
enum What {
    TaskCreated {
        title: String,
        mode: String,
        trigger: String,
    },
    TaskJoined {
        by: String,
        message: String,
    },
    RunLeased {
        /// Which of the Task's Runs, from 1.
        run: u16,
        worker: String,
        fence: u64,
    },
    Step {
        /// Which of the Task's Runs, from 1.
        run: u16,
        seq: u32,
        kind: String,
        phase: String,
        title: String,
        calls: u32,
        generated_tokens: u64,
        prompt_tokens: u64,
        took_ms: u64,
    },
    RunFailed {
        /// Which of the Task's Runs, from 1.
        run: u16,
        why: String,
        again: bool,
    },
    RunLapsed {
        /// Which of the Task's Runs, from 1.
        run: u16,
        again: bool,
    },
    RunEnded {
        /// Which of the Task's Runs, from 1.
        run: u16,
        outcome: String,
        level: Option<String>,
    },
    EffectIntended {
        effect: String,
        detail: String,
    },
    EffectSettled {
        effect: String,
        detail: String,
        url: Option<String>,
    },
    PublishFailed {
        why: String,
        again: bool,
    },
    CancelRequested {
        by: String,
    },
    TaskCancelled,
    TaskDone {
        outcome: String,
        pull_request: Option<u64>,
    },
    Redriven {
        by: String,
    },
    /// Further Runs, of these models in their order; null: the first configured one.
    RunsAdded {
        by: String,
        models: Vec<Option<String>>,
    },
    /// Of several patches, this Run's is published.
    RunChosen {
        by: String,
        run: u16,
        /// As a draft, whatever its proof says.
        draft: bool,
    },
    /// Somebody stopped this Run; the others go on.
    RunStopped {
        by: String,
        run: u16,
    },
}

impl From<Event> for EventBody {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq,
            task_id: event.task,
            task_seq: event.task_seq,
            at: event.at,
            correlation_id: event.correlation,
            what: event.body.into(),
        }
    }
}

impl From<Body> for What {
    fn from(body: Body) -> Self {
        match body {
            Body::TaskCreated { title, mode, trigger } => Self::TaskCreated { title, mode, trigger },
            Body::TaskJoined { by, what } => Self::TaskJoined { by, message: what },
            Body::RunLeased { ordinal: run, worker, fence } => Self::RunLeased { run, worker, fence },
            Body::Step { ordinal: run, seq, kind, phase, title, calls, generated_tokens, prompt_tokens, took_ms } => {
                Self::Step { run, seq, kind, phase, title, calls, generated_tokens, prompt_tokens, took_ms }
            }
            Body::RunFailed { ordinal: run, why, again } => Self::RunFailed { run, why, again },
            Body::RunLapsed { ordinal: run, again } => Self::RunLapsed { run, again },
            Body::RunEnded { ordinal: run, outcome, level } => Self::RunEnded { run, outcome, level },
            Body::EffectIntended { effect, what } => Self::EffectIntended { effect, detail: what },
            Body::EffectSettled { effect, what, url } => Self::EffectSettled { effect, detail: what, url },
            Body::PublishFailed { why, again } => Self::PublishFailed { why, again },
            Body::CancelRequested { by } => Self::CancelRequested { by },
            Body::TaskCancelled => Self::TaskCancelled,
            Body::TaskDone { outcome, pull_request } => Self::TaskDone { outcome, pull_request },
            Body::Redriven { by } => Self::Redriven { by },
            Body::RunsAdded { by, models } => Self::RunsAdded { by, models },
            Body::RunChosen { by, ordinal: run, draft } => Self::RunChosen { by, run, draft },
            Body::RunStopped { by, ordinal: run } => Self::RunStopped { by, run },
        }
    }
}
