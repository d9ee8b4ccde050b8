//! Signing in by another provider: a browser is sent there, and comes back with a code.
//!
//! Both requests are a browser's that follows a link, so what they answer is for a person.

use std::net::IpAddr;

use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use fettle_app::doorkeeping::{DoorError, Returned};
use serde::Deserialize;
use utoipa::IntoParams;

use super::cookie::Place;
use super::origin;
use super::routes::{Peer, ip};
use crate::problem::{Code, Problem};
use crate::state::ApiState;

/// Where whoever came in begins.
const HOME: &str = "/";
/// Bytes of what a provider sends along; the longest codes have some 2,000.
const MAX_PARAMETER_BYTES: usize = 4096;

/// Sends the browser to the provider.
#[utoipa::path(
    get, path = "/api/auth/oidc/start", operation_id = "begin_oidc", tag = "accounts",
    responses((status = 303, description = "To the provider; the cookie binds the sign-in to this browser"))
)]
pub(crate) async fn begin(State(api): State<ApiState>, peer: Peer, headers: HeaderMap) -> Result<Response, Problem> {
    let (door, peer) = (api.door()?, ip(peer));
    api.take(peer, "oidc", None)?;
    let (url, secret) = door.begin_foreign().await?;
    let location = HeaderValue::try_from(url)
        .map_err(|_| Problem::new(Code::Unavailable, "The provider's address cannot be sent to a browser."))?;
    let cookie = Place::of(&headers, peer).set_flow(&secret);
    Ok(sent(location, [cookie]))
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
    responses((status = 303, description = "Signed in by cookie, to the first page"))
)]
pub(crate) async fn end(
    State(api): State<ApiState>,
    peer: Peer,
    headers: HeaderMap,
    Query(callback): Query<Callback>,
) -> Result<Response, Problem> {
    let peer = ip(peer);
    let place = Place::of(&headers, peer);
    match signed_in(&api, place, peer, &headers, callback).await {
        Ok(cookie) => Ok(sent(HeaderValue::from_static(HOME), [cookie, place.clear_flow()])),
        // What was begun is over, however it ended.
        Err(problem) => Ok((AppendHeaders([(SET_COOKIE, place.clear_flow())]), problem).into_response()),
    }
}

/// The cookie of the new session.
async fn signed_in(
    api: &ApiState,
    place: Place,
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    callback: Callback,
) -> Result<HeaderValue, Problem> {
    let door = api.door()?;
    api.take(peer, "oidc", None)?;
    let Callback { state: Some(state), code: Some(code), error: None } = callback else {
        let refused = callback.error.is_some();
        let why = if refused { "The provider did not sign you in." } else { "The provider said nothing. Begin again." };
        return Err(Problem::new(Code::Unauthenticated, why));
    };
    if state.len() > MAX_PARAMETER_BYTES || code.len() > MAX_PARAMETER_BYTES {
        return Err(DoorError::NotBegunHere.into());
    }
    let origin = origin(headers, peer);
    let returned = Returned { state, code };
    let signed_in = door.end_foreign(place.find_flow(headers).as_ref(), &returned, &origin).await?;
    // Whatever was signed in here before is not left behind.
    if let Some(old) = place.find(headers) {
        door.log_out(&old, &origin).await?;
    }
    Ok(place.set(&signed_in.secret))
}
