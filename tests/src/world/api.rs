//! The API of a running dashboard, as a program on the same machine uses it.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use camino::Utf8Path;
use futures::StreamExt as _;
use serde_json::Value;

/// One answer; feeds have their own limit.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// A server that says 503 wants patience.
const ASKED_AGAIN: Duration = Duration::from_millis(100);

pub struct Api {
    base: String,
    /// Where health is told: the internal listener, where there is one.
    health: String,
    key: String,
    client: reqwest::Client,
    /// Whatever was answered, to be searched afterwards.
    answers: Mutex<Vec<String>>,
}

impl Api {
    /// Addresses and key as a dashboard leaves them in its data folder.
    pub fn of(data: &Utf8Path) -> anyhow::Result<Self> {
        Self::with_key(data, &data.join("admin.key"))
    }

    /// As [`Api::of`], with a key that lies elsewhere.
    pub fn with_key(data: &Utf8Path, key: &Utf8Path) -> anyhow::Result<Self> {
        let base = format!("http://{}", fs_err::read_to_string(data.join("address"))?.trim());
        let internal = data.join("internal-address");
        let health = match internal.exists() {
            true => format!("http://{}", fs_err::read_to_string(internal)?.trim()),
            false => base.clone(),
        };
        let key = fs_err::read_to_string(key)?.trim().to_owned();
        let client = reqwest::Client::builder().no_proxy().connect_timeout(ANSWER_LIMIT).build()?;
        Ok(Self { base, health, key, client, answers: Mutex::default() })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `127.0.0.1:<port>`.
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// Where the forge sends its deliveries.
    pub fn webhooks(&self) -> String {
        format!("{}/webhooks/github", self.base)
    }

    pub fn answers(&self) -> Vec<String> {
        self.answers.lock().expect("no holder panics").clone()
    }

    /// The status and the text of any path.
    pub async fn raw(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.answer(self.client.get(format!("{}{path}", self.base))).await
    }

    /// The status and the text of a path where health is told, asked without a key.
    pub async fn health(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.public(&format!("{}{path}", self.health)).await
    }

    /// A value of the internal listener, asked with the key.
    pub async fn internal(&self, path: &str) -> anyhow::Result<Value> {
        let (status, text) = self.answer(self.client.get(format!("{}{path}", self.health))).await?;
        ensure!(status == 200, "{path} answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The status and the text of an address outside of this API, asked without a key.
    pub async fn public(&self, url: &str) -> anyhow::Result<(u16, String)> {
        let response = self.client.get(url).timeout(ANSWER_LIMIT).send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    /// The status and the text of a request with a body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<(u16, String)> {
        self.answer(self.client.post(format!("{}{path}", self.base)).json(body)).await
    }

    /// The same, in the place of what is there.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<(u16, String)> {
        self.answer(self.client.put(format!("{}{path}", self.base)).json(body)).await
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let (status, text) = self.raw(path).await?;
        ensure!(status == 200, "{path} answered {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    pub async fn task(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&format!("/api/v1/tasks/{id}")).await
    }

    /// Newest first; a test has no second page.
    pub async fn tasks(&self) -> anyhow::Result<Vec<Value>> {
        let page = self.get("/api/v1/tasks?limit=200").await?;
        Ok(page["items"].as_array().cloned().unwrap_or_default())
    }

    /// Shows each event of a Task, from its first, until `each` breaks or the Task has ended; what `each` broke with.
    pub async fn follow_task<T>(
        &self,
        id: &str,
        limit: Duration,
        each: impl FnMut(&Value) -> ControlFlow<T>,
    ) -> anyhow::Result<Option<T>> {
        self.follow(&format!("/api/v1/tasks/{id}/events"), limit, each).await
    }

    /// The same, with what its models say between the events.
    pub async fn follow_words<T>(
        &self,
        id: &str,
        limit: Duration,
        each: impl FnMut(&Value) -> ControlFlow<T>,
    ) -> anyhow::Result<Option<T>> {
        self.follow(&format!("/api/v1/tasks/{id}/events?words=true"), limit, each).await
    }

    /// The same over all Tasks, which only ends by `each`.
    pub async fn follow_all<T>(
        &self,
        limit: Duration,
        each: impl FnMut(&Value) -> ControlFlow<T>,
    ) -> anyhow::Result<T> {
        let found = self.follow("/api/v1/events", limit, each).await?;
        found.context("the feed of all Tasks ended")
    }

    /// The id of the Task that was opened first, or the next one after so many.
    pub async fn task_opened(&self, nth: usize, limit: Duration) -> anyhow::Result<String> {
        let mut left = nth;
        self.follow_all(limit, |event| {
            if event["what"]["type"] == "task_created" {
                if left == 0 {
                    return ControlFlow::Break(event["task_id"].as_str().unwrap_or_default().to_owned());
                }
                left -= 1;
            }
            ControlFlow::Continue(())
        })
        .await
        .context("while waiting for a Task")
    }

    /// The Task after its end.
    pub async fn task_ended(&self, id: &str, limit: Duration) -> anyhow::Result<Value> {
        self.follow_task(id, limit, |_| ControlFlow::<()>::Continue(())).await?;
        self.task(id).await
    }

    async fn follow<T>(
        &self,
        path: &str,
        limit: Duration,
        mut each: impl FnMut(&Value) -> ControlFlow<T>,
    ) -> anyhow::Result<Option<T>> {
        let mut said = String::new();
        let following = async {
            let (mut last, mut id): (Option<String>, Option<String>) = (None, None);
            // A feed that breaks off without its end, since the ledger was away, is resumed; while it is away, asked for again.
            loop {
                let mut request = self.client.get(format!("{}{path}", self.base)).bearer_auth(&self.key);
                if let Some(last) = &last {
                    request = request.header("Last-Event-ID", last);
                }
                let response = request.send().await?;
                if response.status() == 503 {
                    tokio::time::sleep(ASKED_AGAIN).await;
                    continue;
                }
                ensure!(response.status() == 200, "{path} answered {}", response.status());
                let mut pieces = response.bytes_stream();
                let mut rest = Vec::new();
                let mut over = false;
                while let Some(piece) = pieces.next().await {
                    rest.extend_from_slice(&piece?);
                    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
                        let line = String::from_utf8(rest.drain(..=end).collect())?;
                        said.push_str(&line);
                        over |= line.trim() == "event: end";
                        match line.trim().split_once(": ") {
                            Some(("data", _)) if over => return Ok(None),
                            Some(("data", data)) => {
                                if let ControlFlow::Break(found) = each(&serde_json::from_str(data)?) {
                                    return Ok(Some(found));
                                }
                                last = id.take().or(last);
                            }
                            Some(("id", next)) => id = Some(next.to_owned()),
                            _ => {}
                        }
                    }
                }
            }
        };
        let found = tokio::time::timeout(limit, following).await;
        let found = found.unwrap_or_else(|_| bail!("{path} went on for more than {limit:?}"));
        let told = found.with_context(|| format!("what was told:\n{said}"));
        self.answers.lock().expect("no holder panics").push(said);
        told
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(u16, String)> {
        let response = request.bearer_auth(&self.key).timeout(ANSWER_LIMIT).send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        self.answers.lock().expect("no holder panics").push(text.clone());
        Ok((status, text))
    }
}
