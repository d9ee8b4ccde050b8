//! The inference process of this machine, asked over its socket.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use camino::Utf8PathBuf;
use fettle_runtime::config::Config;
use fettle_runtime::data::DataDir;
use fettle_runtime::environment::Environment;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use crate::Common;
use crate::progress::one_line;

/// The process answers from what it knows; it asks no driver first.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Process {
    socket: Utf8PathBuf,
    http: reqwest::Client,
}

/// Nobody listens there.
#[derive(Debug, thiserror::Error)]
#[error(
    "no inference process answers at {0}; start `fettle up` or fettle-inference, or name its data folder with --data-dir"
)]
pub(crate) struct Away(Utf8PathBuf);

impl Process {
    pub(crate) fn of(common: &Common, environment: &Environment) -> Result<Self> {
        let config = Config::load(common.config.as_deref(), environment)?;
        Self::at(&DataDir::open(common.data_dir.as_deref(), &config, environment)?)
    }

    pub(crate) fn at(data: &DataDir) -> Result<Self> {
        let socket = data.inference_socket();
        let http = reqwest::Client::builder().unix_socket(socket.as_std_path()).timeout(ANSWER_LIMIT).build()?;
        Ok(Self { socket, http })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        self.ask(what, &[]).await
    }

    pub(crate) async fn ask<T: DeserializeOwned>(&self, what: &str, query: &[(&str, &str)]) -> Result<T> {
        self.ask_within(what, query, ANSWER_LIMIT).await
    }

    pub(crate) async fn ask_within<T: DeserializeOwned>(
        &self,
        what: &str,
        query: &[(&str, &str)],
        limit: Duration,
    ) -> Result<T> {
        let response = self.sent(self.request(Method::GET, what, query)?.timeout(limit)).await?;
        response
            .json()
            .await
            .with_context(|| format!("what answers at {} is no inference process of this version", self.socket))
    }

    pub(crate) async fn order(&self, what: &str, body: &serde_json::Value) -> Result<()> {
        self.sent(self.request(Method::POST, what, &[])?.json(body)).await.map(drop)
    }

    /// For what takes its time.
    pub(crate) async fn order_and_wait<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &serde_json::Value,
        limit: Duration,
    ) -> Result<T> {
        let request = self.request(Method::POST, what, &[])?.json(body).timeout(limit);
        Ok(self.sent(request).await?.json().await?)
    }

    fn request(&self, method: Method, what: &str, query: &[(&str, &str)]) -> Result<RequestBuilder> {
        let mut url = Url::parse(&format!("http://inference/admin/v1/{what}"))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.http.request(method, url))
    }

    async fn sent(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|error| {
            let away = Away(self.socket.clone());
            anyhow::Error::new(error).context(away)
        })?;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => bail!("{}", one_line(&response.text().await?)),
            status => bail!("the inference process answers {status}: {}", one_line(&response.text().await?)),
        }
    }
}
