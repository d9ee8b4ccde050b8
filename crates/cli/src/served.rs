//! What a model's server says of itself at `/models`: whether it is there, takes the key, and which models it has.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use fettle_app::ports::chain;
use fettle_runtime::config::ModelConfig;
use fettle_runtime::secrets;
use reqwest::header::CONTENT_TYPE;
use reqwest::{StatusCode, Url};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use crate::client;

/// Names told when one of them must be chosen.
const NAMES_TOLD: usize = 5;

pub(crate) enum Listed {
    /// Empty when the answer is JSON, but no list of models.
    Names(Vec<String>),
    Refused(StatusCode),
    /// A success, but a web page or other text: its content type.
    Foreign(String),
}

/// Nobody answered; whether the server may be busy rather than away.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Away {
    pub(crate) busy: bool,
    text: String,
}

#[derive(Deserialize)]
struct List {
    data: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

/// Asks once. An error that is not [`Away`] is one of the configuration: no URL, no key file.
pub(crate) async fn listed(model: &ModelConfig, limit: Duration) -> Result<Listed> {
    let base = base(model)?;
    let mut request = client::http(&base)?.get(client::join(&base, &["models"], &[])).timeout(limit);
    if let Some(file) = &model.api_key_file {
        request = request.bearer_auth(secrets::read(file)?.expose_secret());
    }
    let away = |error: anyhow::Error| {
        let busy = error.downcast_ref::<reqwest::Error>().is_some_and(|e| e.is_timeout() && !e.is_connect());
        let why = if busy { format!("nothing came within {} s", limit.as_secs()) } else { chain(error.as_ref()) };
        anyhow!(Away { busy, text: format!("{} does not answer: {why}", shown(&base)) })
    };
    let response = request.send().await.map_err(|error| away(error.without_url().into()))?;
    if !response.status().is_success() {
        return Ok(Listed::Refused(response.status()));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("no type").to_owned();
    let body = client::read(response).await.map_err(away)?;
    Ok(match serde_json::from_slice::<serde_json::Value>(&body) {
        Err(_) => Listed::Foreign(kind),
        Ok(value) => Listed::Names(
            serde_json::from_value(value)
                .map_or_else(|_| Vec::new(), |list: List| list.data.into_iter().map(|named| named.id).collect()),
        ),
    })
}

/// The server's URL for people: its query may hold a key.
pub(crate) fn address(model: &ModelConfig) -> Result<String> {
    Ok(shown(&base(model)?))
}

fn base(model: &ModelConfig) -> Result<Url> {
    let url =
        model.server().with_context(|| format!("the model `{}` has no server: this machine runs it", model.name))?;
    client::base_url(url).with_context(|| format!("`{url}` is not an http or https URL without user name and password"))
}

fn shown(base: &Url) -> String {
    let mut url = base.clone();
    url.set_query(None);
    url.as_str().trim_end_matches('/').to_owned()
}

/// The first few of them, and how many more there are.
pub(crate) fn told(names: &[String]) -> String {
    let first = names[..names.len().min(NAMES_TOLD)].join(", ");
    match names.len().saturating_sub(NAMES_TOLD) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
