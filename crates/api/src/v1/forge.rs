//! With what the forge is asked, and the tokens that people enter for it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use fettle_app::adding::Entered;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::auth::Detail;
use crate::extract::Body;
use crate::problem::Problem;
use crate::state::ApiState;

#[derive(Serialize, ToSchema)]
#[schema(as = Forge)]
pub(crate) struct ForgeBody {
    /// Of its API.
    address: String,
    /// The configuration says with what it is asked; tokens cannot be entered here.
    configured: bool,
    /// Pull requests can be opened.
    can_write: bool,
    /// A token that reads was entered.
    read_token: bool,
    /// A token that writes was entered.
    write_token: bool,
    /// Why a token that was entered cannot be used; it has to be entered again.
    lost: Option<String>,
    /// The label that asks for work.
    label: String,
    /// It tells by webhooks. Else labels are looked for.
    webhooks: bool,
}

/// How the forge is reached.
#[utoipa::path(
    get, path = "/api/v1/forge", operation_id = "get_forge", tag = "operations", security(("admin_key" = [])),
    responses((status = 200, description = "As it counts now", body = ForgeBody))
)]
pub(crate) async fn get_forge(State(api): State<ApiState>) -> Json<ForgeBody> {
    let about = api.about.now();
    let added = api.adding.as_ref().map(|adding| adding.now()).unwrap_or_default();
    let entered = |token: &Entered| !matches!(token, Entered::None);
    let lost = [&added.forge.read, &added.forge.write].into_iter().find_map(|token| match token {
        Entered::Lost(why) => Some(why.to_string()),
        Entered::None | Entered::Open(_) => None,
    });
    Json(ForgeBody {
        address: about.forge.address.clone(),
        configured: api.adding.as_ref().is_none_or(|adding| adding.is_forge_configured()),
        can_write: api.adding.as_ref().is_some_and(|adding| adding.can_write()),
        read_token: entered(&added.forge.read),
        write_token: entered(&added.forge.write),
        lost,
        label: about.forge.label.clone(),
        webhooks: about.forge.webhooks,
    })
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedTokens {
    /// Can read contents: workers clone with it. Without one, only public repositories can be worked on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    read: Option<SecretString>,
    /// Can write contents, pull requests and issues. It never leaves the dashboard.
    #[schema(value_type = String)]
    write: SecretString,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct TokensTaken {
    /// As whom pull requests are opened.
    login: String,
}

/// Enters tokens for the forge, in the place of those before. They count at once.
#[utoipa::path(
    put, path = "/api/v1/forge/tokens", operation_id = "put_forge_tokens", tag = "operations",
    security(("admin_key" = [])), request_body = WantedTokens,
    responses((status = 200, description = "The forge knows whose they are", body = TokensTaken))
)]
pub(crate) async fn put_forge_tokens(
    State(api): State<ApiState>,
    Body(body): Body<WantedTokens>,
) -> Result<(Extension<Detail>, Json<TokensTaken>), Problem> {
    let login = api.adding()?.put_forge_tokens(body.read, body.write).await?;
    Ok((Extension(Detail(format!("the writing token is {login}'s"))), Json(TokensTaken { login })))
}

/// Throws the tokens away that were entered.
#[utoipa::path(
    delete, path = "/api/v1/forge/tokens", operation_id = "remove_forge_tokens", tag = "operations",
    security(("admin_key" = [])), responses((status = 204, description = "The forge is asked with nothing"))
)]
pub(crate) async fn remove_forge_tokens(State(api): State<ApiState>) -> Result<StatusCode, Problem> {
    api.adding()?.remove_forge_tokens().await?;
    Ok(StatusCode::NO_CONTENT)
}
