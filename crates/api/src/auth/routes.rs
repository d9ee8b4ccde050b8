//! Coming in and going out: first admin, browsers' sessions, clients' tokens.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Extension, Json};
use fettle_app::doorkeeping::{DoorError, Doorkeeper, Known, Registration, SignedIn, TOKEN_SECONDS, Tokens, Wanted};
use fettle_app::ports::provider::ProviderError;
use fettle_domain::access::{self, Actor, Via};
use fettle_domain::account::network;
use fettle_domain::session::Kind;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cookie::{self, Place};
use super::limits::{PER_ACCOUNT, PER_ADDRESS};
use super::{foreign_page, origin};
use crate::extract::Body;
use crate::problem::{Code, Problem, ProblemBody};
use crate::state::ApiState;

pub(super) type Peer = Option<Extension<ConnectInfo<SocketAddr>>>;

pub(super) fn ip(peer: Peer) -> Option<IpAddr> {
    peer.map(|Extension(ConnectInfo(peer))| peer.ip().to_canonical())
}

impl ApiState {
    pub(crate) fn door(&self) -> Result<&Doorkeeper, Problem> {
        self.door.as_deref().ok_or_else(|| {
            Problem::new(Code::NotConfigured, "There are no accounts on this ledger; use the admin key.")
        })
    }

    /// Counts a try of this address, and of it about this account.
    pub(crate) fn take(&self, peer: Option<IpAddr>, route: &str, login: Option<&str>) -> Result<(), Problem> {
        let address = network(&peer.map(|peer| peer.to_string()).unwrap_or_default());
        self.limits.take(format!("{route} {address}"), PER_ADDRESS)?;
        match login {
            // A longer text is no login, and need not be remembered.
            Some(login) if login.len() <= MAX_LOGIN_BYTES => {
                self.limits.take(format!("login {address} {}", login.trim().to_lowercase()), PER_ACCOUNT)
            }
            Some(_) => Err(DoorError::Wrong.into()),
            None => Ok(()),
        }
    }
}

/// Bytes of a user name or address.
const MAX_LOGIN_BYTES: usize = 254;

impl From<DoorError> for Problem {
    fn from(error: DoorError) -> Self {
        let sentence = |error: &DoorError| {
            let text = error.to_string();
            let mut chars = text.chars();
            chars.next().map(|first| format!("{}{}.", first.to_uppercase(), chars.as_str())).unwrap_or_default()
        };
        match error {
            DoorError::Wrong | DoorError::WrongToken | DoorError::WrongSetupToken | DoorError::NotBegunHere => {
                Self::new(Code::Unauthenticated, sentence(&error))
            }
            DoorError::SetUp
            | DoorError::LastAdmin(_)
            | DoorError::TooManyKeys
            | DoorError::NoAccount
            | DoorError::EmailHasAccount => Self::new(Code::NotPossible, sentence(&error)),
            DoorError::RegistrationClosed | DoorError::NotAllowed(_) | DoorError::Inactive => {
                Self::new(Code::Forbidden, sentence(&error))
            }
            DoorError::Provider(ProviderError::Unavailable(_)) => {
                let detail = "The provider of sign-ins does not answer. Try again in a moment.";
                Self::new(Code::Unavailable, detail).because(error)
            }
            // What it is, the audit log says: to whom it is told here, nobody knows.
            DoorError::Provider(ProviderError::Refused(_)) | DoorError::Unfit(_) => {
                let detail = "What the provider of sign-ins says is not good for this sign-in. Begin again.";
                Self::new(Code::Unauthenticated, detail)
            }
            DoorError::Weak(_) => Self::refused("/password", sentence(&error)),
            DoorError::Name(fettle_domain::account::NameError::Email)
            | DoorError::EmailTaken
            | DoorError::EmailOfProvider(_) => Self::refused("/email", sentence(&error)),
            DoorError::Name(_) | DoorError::UsernameTaken => Self::refused("/username", sentence(&error)),
            DoorError::KeyName => Self::refused("/name", sentence(&error)),
            DoorError::KeyReach => Self::refused("/scopes", sentence(&error)),
            DoorError::NotFound => Self::new(Code::NotFound, sentence(&error)),
            DoorError::Busy(_) => {
                Self::new(Code::Busy, sentence(&error)).retry_after(std::time::Duration::from_secs(2))
            }
            DoorError::Ledger(cause) => cause.into(),
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = AuthState)]
pub(crate) struct StateBody {
    /// There is no admin yet: the setup page comes first.
    setup_needed: bool,
    registration: RegistrationWord,
    /// Who else signs people in, at `/api/auth/oidc/start`.
    oidc: Option<ProviderBody>,
    user: Option<MeBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = SignInProvider)]
struct ProviderBody {
    /// As people know it.
    name: String,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Registration)]
enum RegistrationWord {
    Closed,
    Open,
}

/// Who is signed in.
#[derive(Serialize, ToSchema)]
#[schema(as = Me)]
pub(crate) struct MeBody {
    /// Null for the holder of the admin key, as is `email`.
    id: Option<String>,
    username: String,
    email: Option<String>,
    /// `admin`, `maintainer` or `viewer`.
    role: &'static str,
    #[schema(value_type = String)]
    via: Via,
    /// What this caller may do: `tasks.create`, …
    may: Vec<&'static str>,
}

impl MeBody {
    pub(crate) fn new(actor: &Actor, known: Option<&Known>) -> Self {
        Self {
            id: actor.user.map(|id| id.to_string()),
            username: actor.name.clone(),
            email: known.map(|known| known.user.email.as_str().to_owned()),
            role: actor.role.name(),
            via: actor.via,
            may: access::allowed(actor).into_iter().map(access::Action::word).collect(),
        }
    }
}

impl From<&Known> for MeBody {
    fn from(known: &Known) -> Self {
        Self::new(&known.actor, Some(known))
    }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setup {
    /// As the terminal shows it at the first start.
    #[schema(value_type = String)]
    token: SecretString,
    username: String,
    email: String,
    #[schema(value_type = String)]
    password: SecretString,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Register {
    username: String,
    email: String,
    #[schema(value_type = String)]
    password: SecretString,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignIn {
    /// User name or e-mail address.
    username: String,
    #[schema(value_type = String)]
    password: SecretString,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RefreshToken {
    #[schema(value_type = String)]
    refresh_token: SecretString,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Tokens)]
pub(crate) struct TokensBody {
    access_token: String,
    /// Good once: each exchange gives the next.
    refresh_token: String,
    /// Seconds that the access token lasts.
    expires_in: i64,
}

impl From<Tokens> for TokensBody {
    fn from(tokens: Tokens) -> Self {
        Self {
            access_token: tokens.access.expose_secret().to_owned(),
            refresh_token: tokens.refresh.expose_secret().to_owned(),
            expires_in: TOKEN_SECONDS,
        }
    }
}

/// What a sign-in page needs to know.
#[utoipa::path(
    get, path = "/api/auth/state", operation_id = "get_auth_state", tag = "accounts",
    responses((status = 200, description = "Who is signed in by cookie, and how one may", body = StateBody))
)]
pub(crate) async fn get_auth_state(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Json<StateBody>, Problem> {
    let door = api.door()?;
    let user = match Place::of(&headers, ip(peer)).find(&headers) {
        Some(secret) => door.by_session(&secret).await?,
        None => None,
    };
    Ok(Json(StateBody {
        setup_needed: door.needs_setup().await?,
        registration: match door.registration {
            Registration::Closed => RegistrationWord::Closed,
            Registration::Open => RegistrationWord::Open,
        },
        oidc: door.foreign.as_ref().map(|foreign| ProviderBody { name: foreign.name.clone() }),
        user: user.as_ref().map(MeBody::from),
    }))
}

/// Makes the first admin and signs it in.
#[utoipa::path(
    post, path = "/api/auth/setup", operation_id = "set_up", tag = "accounts", request_body = Setup,
    responses(
        (status = 201, description = "Signed in by cookie", body = MeBody),
        (status = 409, description = "There is an admin", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn set_up(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<Setup>,
) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "setup", Some("setup"))?;
    let wanted = Wanted { username: body.username, email: body.email, password: body.password };
    let signed_in = door.set_up(&body.token, wanted, &origin(&headers, peer)).await?;
    Ok(with_cookie(StatusCode::CREATED, &signed_in, Place::of(&headers, peer)))
}

fn with_cookie(status: StatusCode, signed_in: &SignedIn, place: Place) -> Response {
    let cookie = AppendHeaders([(SET_COOKIE, place.set(&signed_in.secret))]);
    (status, cookie, Json(MeBody::from(&signed_in.known))).into_response()
}

/// Signs a browser in.
#[utoipa::path(
    post, path = "/api/auth/session", operation_id = "sign_in", tag = "accounts", request_body = SignIn,
    responses((status = 200, description = "Signed in by cookie", body = MeBody))
)]
pub(crate) async fn sign_in(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<SignIn>,
) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "login", Some(&body.username))?;
    let (origin, place) = (origin(&headers, peer), Place::of(&headers, peer));
    let signed_in = door.log_in(&body.username, &body.password, Kind::Browser, &origin).await?;
    // Whatever was signed in here before is not left behind.
    if let Some(old) = place.find(&headers) {
        door.log_out(&old, &origin).await?;
    }
    Ok(with_cookie(StatusCode::OK, &signed_in, place))
}

/// Signs a browser out.
#[utoipa::path(
    delete, path = "/api/auth/session", operation_id = "sign_out", tag = "accounts",
    responses((status = 204, description = "Signed out"))
)]
pub(crate) async fn sign_out(State(api): State<ApiState>, peer: Peer, headers: HeaderMap) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    let place = Place::of(&headers, peer);
    if let Some(secret) = place.find(&headers) {
        if !cookie::counts(&Method::DELETE, &headers) {
            return Err(foreign_page());
        }
        door.log_out(&secret, &origin(&headers, peer)).await?;
    }
    Ok((StatusCode::NO_CONTENT, AppendHeaders([(SET_COOKIE, place.clear())])).into_response())
}

/// Makes an account for oneself, where the configuration allows it.
#[utoipa::path(
    post, path = "/api/auth/register", operation_id = "register", tag = "accounts", request_body = Register,
    responses((status = 201, description = "A viewer", body = MeBody))
)]
pub(crate) async fn register(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<Register>,
) -> Result<(StatusCode, Json<MeBody>), Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "register", None)?;
    let wanted = Wanted { username: body.username, email: body.email, password: body.password };
    let user = door.register(wanted, &origin(&headers, peer)).await?;
    let (name, role) = (user.username.as_str().to_owned(), user.standing.role);
    let actor = Actor { user: Some(user.id), name, role, scope: None, via: Via::Session };
    let known = Known { user, session: None, actor };
    Ok((StatusCode::CREATED, Json(MeBody::from(&known))))
}

/// Signs a client in.
#[utoipa::path(
    post, path = "/api/auth/login", operation_id = "log_in", tag = "accounts", request_body = SignIn,
    responses((status = 200, description = "Tokens", body = TokensBody))
)]
pub(crate) async fn log_in(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<SignIn>,
) -> Result<Json<TokensBody>, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "login", Some(&body.username))?;
    Ok(Json(door.log_in_client(&body.username, &body.password, &origin(&headers, peer)).await?.into()))
}

/// Exchanges a refresh token for the next. One that was exchanged before ends all that came of its sign-in.
#[utoipa::path(
    post, path = "/api/auth/refresh", operation_id = "refresh", tag = "accounts", request_body = RefreshToken,
    responses((status = 200, description = "Tokens", body = TokensBody))
)]
pub(crate) async fn refresh(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<RefreshToken>,
) -> Result<Json<TokensBody>, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "refresh", None)?;
    Ok(Json(door.refresh(&body.refresh_token, &origin(&headers, peer)).await?.into()))
}

/// Signs a client out: its refresh token and the access tokens that came of the same sign-in are good no longer.
#[utoipa::path(
    post, path = "/api/auth/logout", operation_id = "log_out", tag = "accounts", request_body = RefreshToken,
    responses((status = 204, description = "Signed out"))
)]
pub(crate) async fn log_out(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Body(body): Body<RefreshToken>,
) -> Result<StatusCode, Problem> {
    api.door()?.log_out(&body.refresh_token, &origin(&headers, ip(peer))).await?;
    Ok(StatusCode::NO_CONTENT)
}
