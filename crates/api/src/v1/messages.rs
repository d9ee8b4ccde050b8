//! What people say to a Task while it is at work: each of its Runs is told before its next model call.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use fettle_app::ports::ledger::Message;
use fettle_domain::id::TaskId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::submit::fits;
use crate::auth::Caller;
use crate::extract::{Body, Named};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

/// What fits into a prompt beside everything else.
const MAX_MESSAGE_CHARS: usize = 8_000;
/// Of a Task, and so of one answer. Each of its Runs is told all of them, and no prompt has room for more; whoever has more to
/// say wants another Task.
const MAX_MESSAGES: u16 = 200;

/// What a Task was told, the newest last, at most the newest 200. An issue's comments are among them.
#[utoipa::path(
    get, path = "/api/v1/tasks/{task_id}/messages", operation_id = "list_messages", tag = "messages",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])),
    responses((status = 200, description = "The messages", body = Messages))
)]
pub(crate) async fn list_messages(
    State(api): State<ApiState>,
    Named(task): Named<TaskId>,
) -> Result<Json<Messages>, Problem> {
    let messages = api.ledger.messages(task, MAX_MESSAGES).await?;
    Ok(Json(Messages { items: messages.into_iter().map(MessageBody::from).collect() }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Messages {
    items: Vec<MessageBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Message)]
pub(crate) struct MessageBody {
    by: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Foreign text.
    text: String,
}

impl From<Message> for MessageBody {
    fn from(message: Message) -> Self {
        Self { by: message.by, at: message.at, text: message.text }
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewMessage {
    /// At most 8,000 characters.
    #[schema(min_length = 1, max_length = 8000)]
    text: String,
}

/// Says something to a Task that has not ended. A Run that waits for an answer goes on.
#[utoipa::path(
    post, path = "/api/v1/tasks/{task_id}/messages", operation_id = "post_message", tag = "messages",
    params(("task_id" = String, Path, description = "`task_…`")), security(("admin_key" = [])), request_body = NewMessage,
    responses(
        (status = 202, description = "Its Runs will be told", body = Messages),
        (status = 409, description = "The Task has ended, or was told 200 messages, which is as many as it takes", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn post_message(
    State(api): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Named(task): Named<TaskId>,
    Body(body): Body<NewMessage>,
) -> Result<(StatusCode, Json<Messages>), Problem> {
    fits("/text", Some(&body.text), MAX_MESSAGE_CHARS)?;
    let state = api.ledger.task(task).await?.state;
    if state.is_final() {
        let why =
            format!("The Task is {}, and nobody works on it any more. Retry it, or say it on the issue.", state.name());
        return Err(Problem::new(Code::TooLate, why));
    }
    if api.ledger.messages(task, MAX_MESSAGES).await?.len() >= MAX_MESSAGES.into() {
        let why =
            format!("The Task was told {MAX_MESSAGES} messages, which is as many as one takes. Make another Task.");
        return Err(Problem::new(Code::NotPossible, why));
    }
    api.ledger.post_message(task, &caller.actor.name, &body.text).await?;
    let messages = api.ledger.messages(task, MAX_MESSAGES).await?;
    Ok((StatusCode::ACCEPTED, Json(Messages { items: messages.into_iter().map(MessageBody::from).collect() })))
}
