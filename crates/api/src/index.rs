//! `/`: what this is and where things are, for a person who opens the address.

use axum::extract::State;
use axum::response::Html;

use crate::state::ApiState;

/// Where the process tells how it is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthAt {
    /// On the listener of this page.
    Here,
    InternalListener,
}

pub(crate) async fn get_index(State(api): State<ApiState>, health: HealthAt) -> Html<String> {
    let health = match health {
        HealthAt::Here => {
            "<a href=\"/healthz\">/healthz</a>, <a href=\"/readyz\">/readyz</a>, <a href=\"/metrics\">/metrics</a>"
        }
        HealthAt::InternalListener => {
            "<code>/healthz</code>, <code>/readyz</code>, <code>/metrics</code> at <code>server.internal_listen</code>"
        }
    };
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Fettle</title>\n\
         <h1>Fettle {}</h1>\n\
         <p>Turns GitHub issues into pull requests that carry their own proof.</p>\n<ul>\n\
         <li><a href=\"/api/openapi.json\">/api/openapi.json</a>: the API, under <code>/api/v1</code>, with the admin key as bearer token</li>\n\
         <li><code>/webhooks/github</code>: where GitHub sends its events</li>\n\
         <li>{health}: how it is doing</li>\n\
         </ul></html>\n",
        api.version
    ))
}
