//! Oneself, sessions, keys, the other accounts, and the log of who did what.

use axum::body::Body as Stream;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use fettle_app::doorkeeping::{DoorError, UserEdit, Wanted, WantedKey};
use fettle_app::ports::accounts::{ApiKey, Session, User};
use fettle_domain::access::{Action, Object, Role, Scope, Via};
use fettle_domain::account::locked_elsewhere;
use fettle_domain::audit_log::Entry;
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use futures::stream;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Caller;
use crate::auth::routes::MeBody;
use crate::extract::{Body, Named, Parameters};
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

const DEFAULT_LIMIT: u16 = 50;
/// A page stays one short read of the ledger.
const MAX_LIMIT: u16 = 200;
/// Entries that an export holds in memory at once.
const EXPORT_PAGE: u16 = 500;
/// Of so many entries each, for one filtered answer: some hundred milliseconds of reading.
const LOG_PAGES: u16 = 10;

type Asks = Extension<Caller>;

fn limit(given: Option<u16>) -> Result<u16, Problem> {
    let limit = given.unwrap_or(DEFAULT_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::refused("?limit", format!("A page has 1 to {MAX_LIMIT} items, not {limit}.")))
}

/// Who asks.
#[utoipa::path(
    get, path = "/api/v1/me", operation_id = "get_me", tag = "accounts", security(("admin_key" = [])),
    responses((status = 200, description = "As whom this request came", body = MeBody))
)]
pub(crate) async fn get_me(Extension(caller): Asks) -> Json<MeBody> {
    Json(MeBody::new(&caller.actor, caller.known.as_ref()))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPassword {
    #[schema(value_type = String)]
    current: SecretString,
    #[schema(value_type = String)]
    new: SecretString,
}

/// Exchanges one's own password. All other sessions end.
#[utoipa::path(
    post, path = "/api/v1/me/password", operation_id = "change_password", tag = "accounts", security(("admin_key" = [])),
    request_body = NewPassword, responses((status = 204, description = "It counts from now on"))
)]
pub(crate) async fn change_password(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Body(body): Body<NewPassword>,
) -> Result<StatusCode, Problem> {
    let known = caller.known.as_ref().ok_or(DoorError::NoAccount)?;
    // As for a sign-in: a stolen session must not become a way to guess the password.
    api.take(caller.origin.address.parse().ok(), "password", Some(known.user.username.as_str()))?;
    api.door()?.change_password(known, &body.current, &body.new, &caller.origin).await.map_err(
        |error| match error {
            // 401 would say that the session is over.
            DoorError::Wrong => Problem::refused("/current", "This is not the current password."),
            DoorError::Weak(why) => Problem::refused("/new", why.to_string()),
            other => other.into(),
        },
    )?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionParameters {
    /// Of this account, for admins; one's own when absent.
    #[param(value_type = Option<String>)]
    user: Option<UserId>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct SessionList {
    items: Vec<SessionBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
struct SessionBody {
    #[schema(value_type = String)]
    id: SessionId,
    #[schema(value_type = String)]
    user_id: UserId,
    /// `browser` or `token`.
    kind: &'static str,
    address: String,
    /// Foreign text.
    user_agent: String,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    last_used_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// The one that this request came with.
    current: bool,
}

impl SessionBody {
    fn new(session: Session, current: Option<SessionId>) -> Self {
        Self {
            current: Some(session.id) == current,
            id: session.id,
            user_id: session.user,
            kind: session.kind.name(),
            address: session.address,
            user_agent: session.user_agent,
            created_at: session.life.created_at,
            last_used_at: session.last_used_at,
            expires_at: session.life.expires_at,
        }
    }
}

/// Live sessions, the newest first.
#[utoipa::path(
    get, path = "/api/v1/sessions", operation_id = "list_sessions", tag = "accounts", security(("admin_key" = [])),
    params(SessionParameters), responses((status = 200, description = "All of them", body = SessionList))
)]
pub(crate) async fn list_sessions(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Parameters(parameters): Parameters<SessionParameters>,
) -> Result<Json<SessionList>, Problem> {
    let Some(user) = parameters.user.or(caller.actor.user) else { return Ok(Json(SessionList { items: Vec::new() })) };
    caller.may(Action::SessionsRead, Object::Of(user))?;
    let current = caller.known.as_ref().and_then(|known| known.session);
    let sessions = api.door()?.store.list_sessions(user).await?;
    Ok(Json(SessionList { items: sessions.into_iter().map(|session| SessionBody::new(session, current)).collect() }))
}

/// Ends a session.
#[utoipa::path(
    delete, path = "/api/v1/sessions/{session_id}", operation_id = "end_session", tag = "accounts",
    params(("session_id" = String, Path, description = "`session_…`")), security(("admin_key" = [])),
    responses((status = 204, description = "It has ended"))
)]
pub(crate) async fn end_session(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Named(id): Named<SessionId>,
) -> Result<StatusCode, Problem> {
    let door = api.door()?;
    let (session, _) = door.store.find_session_by_id(id).await?.ok_or(DoorError::NotFound)?;
    caller.may(Action::SessionsEnd, Object::Of(session.user))?;
    door.end_session(&caller.actor, id, &caller.origin).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UserParameters {
    /// Items of a page: 1 to 200, 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `next` of the page before.
    #[param(value_type = Option<String>)]
    after: Option<UserId>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct UserPage {
    items: Vec<UserBody>,
    /// `after` of the next page; null on the last one.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = User)]
pub(crate) struct UserBody {
    #[schema(value_type = String)]
    id: UserId,
    username: String,
    email: String,
    #[schema(value_type = String)]
    role: Role,
    active: bool,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_login_at: Option<Timestamp>,
    /// Until when no password is looked at from addresses that the account did not sign in from lately, after wrong ones.
    #[schema(value_type = Option<String>, format = DateTime)]
    locked_until: Option<Timestamp>,
}

impl UserBody {
    fn new(user: User, now: Timestamp) -> Self {
        Self {
            id: user.id,
            username: user.username.as_str().to_owned(),
            email: user.email.as_str().to_owned(),
            role: user.standing.role,
            active: user.standing.active,
            created_at: user.created_at,
            last_login_at: user.last_login_at,
            locked_until: locked_elsewhere(user.failures).filter(|until| *until > now),
        }
    }
}

/// Accounts, in the order in which they were made.
#[utoipa::path(
    get, path = "/api/v1/users", operation_id = "list_users", tag = "accounts", security(("admin_key" = [])),
    params(UserParameters), responses((status = 200, description = "A page", body = UserPage))
)]
pub(crate) async fn list_users(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<UserParameters>,
) -> Result<Json<UserPage>, Problem> {
    let limit = limit(parameters.limit)?;
    let mut users = api.door()?.store.list_users(parameters.after, limit + 1).await?;
    let more = users.len() > usize::from(limit);
    users.truncate(limit.into());
    let next = users.last().filter(|_| more).map(|last| last.id.to_string());
    let now = api.clock.now();
    Ok(Json(UserPage { items: users.into_iter().map(|user| UserBody::new(user, now)).collect(), next }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    username: String,
    email: String,
    #[schema(value_type = String)]
    password: SecretString,
    /// `admin`, `maintainer` or `viewer`.
    #[schema(value_type = String)]
    role: Role,
}

/// Makes an account.
#[utoipa::path(
    post, path = "/api/v1/users", operation_id = "create_user", tag = "accounts", security(("admin_key" = [])),
    request_body = NewUser, responses((status = 201, description = "The account", body = UserBody))
)]
pub(crate) async fn create_user(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Body(body): Body<NewUser>,
) -> Result<(StatusCode, Json<UserBody>), Problem> {
    let wanted = Wanted { username: body.username, email: body.email, password: body.password };
    let user = api.door()?.create_user(&caller.actor, wanted, body.role, &caller.origin).await?;
    Ok((StatusCode::CREATED, Json(UserBody::new(user, api.clock.now()))))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChangeUser {
    #[schema(value_type = Option<String>)]
    role: Option<Role>,
    active: Option<bool>,
    #[schema(value_type = Option<String>)]
    password: Option<SecretString>,
}

/// Changes an account. A new password and being made inactive end its sessions; a new password also removes its API keys, since
/// whoever had the old one may have made some.
#[utoipa::path(
    patch, path = "/api/v1/users/{user_id}", operation_id = "change_user", tag = "accounts",
    params(("user_id" = String, Path, description = "`user_…`")), security(("admin_key" = [])), request_body = ChangeUser,
    responses(
        (status = 200, description = "The account", body = UserBody),
        (status = 409, description = "It is the last active admin", body = ProblemBody,
         content_type = "application/problem+json"),
    )
)]
pub(crate) async fn change_user(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Named(id): Named<UserId>,
    Body(body): Body<ChangeUser>,
) -> Result<Json<UserBody>, Problem> {
    let edit = UserEdit { role: body.role, active: body.active, password: body.password };
    let user = api.door()?.change_user(&caller.actor, id, edit, &caller.origin).await?;
    Ok(Json(UserBody::new(user, api.clock.now())))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ApiKeyList {
    items: Vec<ApiKeyBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct ApiKeyBody {
    #[schema(value_type = String)]
    id: ApiKeyId,
    name: String,
    /// How the key begins.
    prefix: String,
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
}

impl From<ApiKey> for ApiKeyBody {
    fn from(key: ApiKey) -> Self {
        let ApiKey { id, user: _, name, prefix, scopes, created_at, expires_at, last_used_at } = key;
        Self { id, name, prefix, scopes, created_at, expires_at, last_used_at }
    }
}

/// One's own keys, the newest first.
#[utoipa::path(
    get, path = "/api/v1/api-keys", operation_id = "list_api_keys", tag = "accounts", security(("admin_key" = [])),
    responses((status = 200, description = "All of them", body = ApiKeyList))
)]
pub(crate) async fn list_api_keys(
    State(api): State<ApiState>,
    Extension(caller): Asks,
) -> Result<Json<ApiKeyList>, Problem> {
    let keys = match caller.actor.user {
        Some(user) => api.door()?.store.list_api_keys(user).await?,
        None => Vec::new(),
    };
    Ok(Json(ApiKeyList { items: keys.into_iter().map(ApiKeyBody::from).collect() }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApiKey {
    name: String,
    /// `read`, `write` and `admin`; the furthest counts, within the owner's role.
    #[schema(value_type = Vec<String>)]
    scopes: Vec<Scope>,
    /// Absent: until it is removed.
    expires_in_days: Option<u16>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct MadeApiKey {
    #[serde(flatten)]
    shown: ApiKeyBody,
    /// Not to be had again.
    key: String,
}

/// Makes a key for programs.
#[utoipa::path(
    post, path = "/api/v1/api-keys", operation_id = "create_api_key", tag = "accounts", security(("admin_key" = [])),
    request_body = NewApiKey, responses((status = 201, description = "The key, this once", body = MadeApiKey))
)]
pub(crate) async fn create_api_key(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Body(body): Body<NewApiKey>,
) -> Result<(StatusCode, Json<MadeApiKey>), Problem> {
    if caller.actor.via == Via::ApiKey {
        // One that leaked would live on in those that it made.
        return Err(Problem::new(Code::Forbidden, "A key makes no keys: sign in."));
    }
    let wanted = WantedKey { name: body.name, scopes: body.scopes, days: body.expires_in_days };
    let (made, key) = api.door()?.create_api_key(&caller.actor, wanted, &caller.origin).await?;
    let key = key.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(MadeApiKey { shown: made.into(), key })))
}

/// Keys of an account, the newest first: one's own, or for admins anybody's.
#[utoipa::path(
    get, path = "/api/v1/users/{user_id}/keys", operation_id = "list_keys_of_user", tag = "accounts",
    params(("user_id" = String, Path, description = "`user_…`")), security(("admin_key" = [])),
    responses((status = 200, description = "All of them", body = ApiKeyList))
)]
pub(crate) async fn list_keys_of_user(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Named(user): Named<UserId>,
) -> Result<Json<ApiKeyList>, Problem> {
    caller.may(Action::ApiKeysRead, Object::Of(user))?;
    let door = api.door()?;
    door.store.find_user(user).await?.ok_or(DoorError::NotFound)?;
    let keys = door.store.list_api_keys(user).await?;
    Ok(Json(ApiKeyList { items: keys.into_iter().map(ApiKeyBody::from).collect() }))
}

/// Removes a key of an account: one's own, or for admins anybody's. It is good no longer.
#[utoipa::path(
    delete, path = "/api/v1/users/{user_id}/keys/{key_id}", operation_id = "remove_key_of_user", tag = "accounts",
    params(
        ("user_id" = String, Path, description = "`user_…`"), ("key_id" = String, Path, description = "`key_…`"),
    ),
    security(("admin_key" = [])), responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove_key_of_user(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Named((user, id)): Named<(UserId, ApiKeyId)>,
) -> Result<StatusCode, Problem> {
    caller.may(Action::ApiKeysEnd, Object::Of(user))?;
    let door = api.door()?;
    door.store.find_api_key_by_id(id).await?.filter(|key| key.user == user).ok_or(DoorError::NotFound)?;
    door.remove_api_key(&caller.actor, id, &caller.origin).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a key; it is good no longer.
#[utoipa::path(
    delete, path = "/api/v1/api-keys/{key_id}", operation_id = "remove_api_key", tag = "accounts",
    params(("key_id" = String, Path, description = "`key_…`")), security(("admin_key" = [])),
    responses((status = 204, description = "It is gone"))
)]
pub(crate) async fn remove_api_key(
    State(api): State<ApiState>,
    Extension(caller): Asks,
    Named(id): Named<ApiKeyId>,
) -> Result<StatusCode, Problem> {
    let door = api.door()?;
    let key = door.store.find_api_key_by_id(id).await?.ok_or(DoorError::NotFound)?;
    caller.may(Action::ApiKeysEnd, Object::Of(key.user))?;
    door.remove_api_key(&caller.actor, id, &caller.origin).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogParameters {
    /// Items of a page: 1 to 200, 50 when absent.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u16>,
    /// `next` of the page before.
    after: Option<u64>,
    /// Only what this user did.
    actor: Option<String>,
    /// Only this action.
    action: Option<String>,
}

impl LogParameters {
    fn wants(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, what: &str| wanted.as_ref().is_none_or(|wanted| wanted == what);
        is(&self.actor, &entry.note.actor) && is(&self.action, &entry.note.action)
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct LogPage {
    /// Fewer than asked for, or none, where what is wanted is further back than one answer looks.
    items: Vec<EntryBody>,
    /// `after` of the next page; null when there is nothing older.
    next: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuditLogEntry)]
struct EntryBody {
    sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    actor: String,
    action: String,
    object: String,
    address: String,
    /// `done` or `refused`.
    result: String,
    detail: String,
    /// SHA-256 of this entry and the digest of the one before.
    digest: String,
}

impl From<Entry> for EntryBody {
    fn from(entry: Entry) -> Self {
        Self {
            sequence: entry.sequence,
            at: entry.at,
            actor: entry.note.actor,
            action: entry.note.action,
            object: entry.note.object,
            address: entry.note.address,
            result: entry.note.result,
            detail: entry.note.detail,
            digest: hex::encode(entry.digest),
        }
    }
}

/// What was done and refused, the newest first.
#[utoipa::path(
    get, path = "/api/v1/audit-log", operation_id = "list_audit_log", tag = "accounts", security(("admin_key" = [])),
    params(LogParameters), responses((status = 200, description = "A page", body = LogPage))
)]
pub(crate) async fn list_audit_log(
    State(api): State<ApiState>,
    Parameters(parameters): Parameters<LogParameters>,
) -> Result<Json<LogPage>, Problem> {
    let limit = limit(parameters.limit)?;
    if parameters.after.is_some_and(|after| i64::try_from(after).is_err()) {
        return Err(Problem::refused("?after", "This is not the `next` of a page."));
    }
    let store = &api.door()?.store;
    let all = parameters.actor.is_none() && parameters.action.is_none();
    let at_once = if all { limit } else { EXPORT_PAGE };
    let (mut items, mut after) = (Vec::new(), parameters.after);
    for _ in 0..LOG_PAGES {
        let page = store.newest_entries(after, at_once).await?;
        let last = page.len() < usize::from(at_once);
        for entry in page {
            after = Some(entry.sequence);
            if parameters.wants(&entry) {
                items.push(EntryBody::from(entry));
            }
            if items.len() == usize::from(limit) {
                break;
            }
        }
        if last || items.len() == usize::from(limit) {
            break;
        }
    }
    let next = after.filter(|after| *after > 1).map(|after| after.to_string());
    Ok(Json(LogPage { items, next }))
}

/// The whole log as lines of JSON, the oldest first, as its chain goes.
#[utoipa::path(
    get, path = "/api/v1/audit-log/export", operation_id = "export_audit_log", tag = "accounts",
    security(("admin_key" = [])),
    responses((status = 200, description = "One entry a line", body = String, content_type = "application/jsonl"))
)]
pub(crate) async fn export_audit_log(State(api): State<ApiState>) -> Result<Response, Problem> {
    let store = api.door()?.store.clone();
    let pages = stream::try_unfold((store, 0), |(store, after)| async move {
        let page = store.entries_after(after, EXPORT_PAGE).await?;
        let Some(last) = page.last().map(|entry| entry.sequence) else { return Ok(None) };
        let lines: String = page
            .into_iter()
            .map(|entry| {
                serde_json::to_string(&EntryBody::from(entry)).expect("an entry is strings and numbers") + "\n"
            })
            .collect();
        Ok::<_, fettle_app::ports::ledger::LedgerError>(Some((lines, (store, last))))
    });
    Ok(([(CONTENT_TYPE, "application/jsonl")], Stream::from_stream(pages)).into_response())
}
