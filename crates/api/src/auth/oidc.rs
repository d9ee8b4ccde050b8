//! Signing in by another provider: a browser is sent there, and comes back with a code.
//!
//! Both requests are a browser's that follows a link, so what they answer is for a person.

use std::net::IpAddr;

use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use fettle_app::doorkeeping::{DoorError, Doorkeeper, Returned};
use fettle_app::ports::provider::ProviderError;
use fettle_domain::oidc::NotAllowed;
use secrecy::SecretString;
use serde::Deserialize;
use tracing::error;
use utoipa::IntoParams;

use super::cookie::Place;
use super::origin;
use super::routes::{Peer, ip};
use crate::edge::report;
use crate::problem::{Problem, ProblemBody};
use crate::state::ApiState;

/// Where whoever came in begins.
const HOME: &str = "/";
/// Where whoever did not is told why.
const SIGN_IN: &str = "/sign-in";
/// Bytes of what a provider sends along; the longest codes have some 2,000.
const MAX_PARAMETER_BYTES: usize = 4096;

/// Why somebody was not signed in, as one word that the page of the sign-in knows the sentence for. The address of a page shows in
/// histories and logs, so it says no more than that.
struct NotSignedIn(&'static str);

impl NotSignedIn {
    fn because(error: DoorError) -> Self {
        let word = match &error {
            DoorError::NotBegunHere => "not_begun_here",
            DoorError::NotAllowed(NotAllowed::Unverified) => "unverified",
            DoorError::NotAllowed(NotAllowed::Stranger) => "not_allowed",
            DoorError::Inactive => "inactive",
            DoorError::EmailHasAccount => "email_has_account",
            DoorError::Provider(ProviderError::Refused(_)) | DoorError::Unfit(_) => "unfit",
            DoorError::Provider(ProviderError::Unavailable(_)) => "away",
            _ => "failed",
        };
        report(&error.into());
        Self(word)
    }

    /// To the page of the sign-in, which says it in words.
    fn answer(&self, place: Place) -> Response {
        let to = HeaderValue::try_from(format!("{SIGN_IN}?problem={}", self.0)).expect("words are an address");
        // What was begun is over, however it ended.
        sent(to, [place.clear_flow()])
    }
}

/// Sends the browser to the provider.
#[utoipa::path(
    get, path = "/api/auth/oidc/start", operation_id = "begin_oidc", tag = "accounts",
    responses(
        (status = 303, description = "To the provider; the cookie binds the sign-in to this browser. Or, if it is not to be had, to `/sign-in?problem=…`"),
        (status = 404, description = "There is no provider", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn begin(State(api): State<ApiState>, peer: Peer, headers: HeaderMap) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    door.foreign.as_ref().ok_or(DoorError::NotFound)?;
    let place = Place::of(&headers, peer);
    Ok(match begun(&api, door, peer).await {
        Ok((to, secret)) => sent(to, [place.set_flow(&secret)]),
        Err(why) => why.answer(place),
    })
}

async fn begun(
    api: &ApiState,
    door: &Doorkeeper,
    peer: Option<IpAddr>,
) -> Result<(HeaderValue, SecretString), NotSignedIn> {
    api.take(peer, "oidc", None).map_err(|_| NotSignedIn("too_many"))?;
    let (url, secret) = door.begin_foreign().await.map_err(NotSignedIn::because)?;
    let to = HeaderValue::try_from(url).map_err(|error| {
        error!(error = &error as &dyn std::error::Error, "the provider's address cannot be sent to a browser");
        NotSignedIn("away")
    })?;
    Ok((to, secret))
}

fn sent(to: HeaderValue, cookies: impl IntoIterator<Item = HeaderValue>) -> Response {
    let cookies = AppendHeaders(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)).collect::<Vec<_>>());
    let headers = [(LOCATION, to), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    (StatusCode::SEE_OTHER, headers, cookies).into_response()
}

/// Providers send more along than is read here.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Callback {
    state: Option<String>,
    code: Option<String>,
    /// Instead of a code, when the provider has refused.
    error: Option<String>,
}

/// Where the provider sends the browser back to: signs it in.
#[utoipa::path(
    get, path = "/api/auth/oidc/callback", operation_id = "end_oidc", tag = "accounts", params(Callback),
    responses(
        (status = 303, description = "Signed in by cookie, to the first page; or not, to `/sign-in?problem=…`, where the word is one of `refused`, `nothing`, `not_begun_here`, `unfit`, `unverified`, `not_allowed`, `inactive`, `email_has_account`, `away`, `too_many` and `failed`"),
        (status = 404, description = "There is no provider", body = ProblemBody, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn end(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Query(callback): Query<Callback>,
) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    door.foreign.as_ref().ok_or(DoorError::NotFound)?;
    let place = Place::of(&headers, peer);
    Ok(match signed_in(&api, door, place, peer, &headers, callback).await {
        Ok(cookie) => sent(HeaderValue::from_static(HOME), [cookie, place.clear_flow()]),
        Err(why) => why.answer(place),
    })
}

/// The cookie of the new session.
async fn signed_in(
    api: &ApiState,
    door: &Doorkeeper,
    place: Place,
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    callback: Callback,
) -> Result<HeaderValue, NotSignedIn> {
    api.take(peer, "oidc", None).map_err(|_| NotSignedIn("too_many"))?;
    let Callback { state: Some(state), code: Some(code), error: None } = callback else {
        return Err(NotSignedIn(if callback.error.is_some() { "refused" } else { "nothing" }));
    };
    if state.len() > MAX_PARAMETER_BYTES || code.len() > MAX_PARAMETER_BYTES {
        return Err(NotSignedIn("not_begun_here"));
    }
    let origin = origin(headers, peer);
    let returned = Returned { state, code };
    let ended = door.end_foreign(place.find_flow(headers).as_ref(), &returned, &origin).await;
    let signed_in = ended.map_err(NotSignedIn::because)?;
    // Whatever was signed in here before is not left behind.
    if let Some(old) = place.find(headers) {
        door.log_out(&old, &origin).await.map_err(|error| NotSignedIn::because(error.into()))?;
    }
    Ok(place.set(&signed_in.secret))
}
