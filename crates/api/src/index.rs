//! `/`: what this is and where things are, for a person who opens the address.

use axum::extract::State;
use axum::response::Html;

use crate::state::ApiState;

pub(crate) async fn get_index(State(api): State<ApiState>) -> Html<String> {
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Fettle</title>\n\
         <h1>Fettle {}</h1>\n\
         <p>Turns GitHub issues into pull requests that carry their own proof.</p>\n<ul>\n\
         <li><a href=\"/api/openapi.json\">/api/openapi.json</a>: the API, under <code>/api/v1</code>, with the admin key as bearer token</li>\n\
         <li><code>/webhooks/github</code>: where GitHub sends its events</li>\n\
         <li><a href=\"/healthz\">/healthz</a>, <a href=\"/readyz\">/readyz</a>, <a href=\"/metrics\">/metrics</a>: how it is doing</li>\n\
         </ul></html>\n",
        api.version
    ))
}
