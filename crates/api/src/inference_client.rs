//! Asks the inference process of this machine over its socket, which only its user reaches.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

/// It answers from what it knows; right after its start it looks for devices first.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

pub struct InferenceClient {
    http: reqwest::Client,
}

#[derive(Debug, thiserror::Error)]
pub enum InferenceError {
    #[error("could not ask the inference process")]
    Asked(#[source] reqwest::Error),
}

impl InferenceError {
    /// Nobody listens there.
    pub(crate) fn is_away(&self) -> bool {
        let Self::Asked(error) = self;
        error.is_connect()
    }
}

impl InferenceClient {
    /// Whether somebody listens there is found out when something is asked.
    pub fn at(socket: &Path) -> Result<Self, InferenceError> {
        let http = reqwest::Client::builder().unix_socket(socket).timeout(ANSWER_LIMIT).build();
        http.map(|http| Self { http }).map_err(InferenceError::Asked)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, what: &str) -> Result<T, InferenceError> {
        let asked = self.http.get(format!("http://inference/admin/v1/{what}")).send().await;
        let answer = asked.and_then(reqwest::Response::error_for_status).map_err(InferenceError::Asked)?;
        answer.json().await.map_err(InferenceError::Asked)
    }
}
