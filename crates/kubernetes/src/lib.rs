//! Pods of workers as the cluster's API tells of them, asked with the token of the pod that this runs in. Reads, and changes nothing.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::pods::{Pod, PodLog, Pods, PodsError, ShowPods};
use fettle_domain::outgoing::visible;
use fettle_domain::pod::PodName;
use jiff::Timestamp;
use reqwest::{Certificate, Response, StatusCode, redirect};
use serde::Deserialize;
use url::Url;

/// A person waits for the answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Ten times as many as a chart starts; more is no page.
const MAX_PODS: usize = 200;
/// Each pod is some ten kilobytes, with all that is known of it.
const MAX_LIST_BYTES: usize = 8 * 1024 * 1024;
/// Kept of a log, the newest: what a page still shows. A limit of the server's would keep the oldest of the lines that are asked for.
const MAX_SHOWN_BYTES: usize = 256 * 1024;
/// Of what a cluster says in an error.
const MAX_ERROR_BYTES: usize = 64 * 1024;
const MAX_WHY_CHARS: usize = 300;
/// The container that the chart runs a worker in; no other one's log is read.
const CONTAINER: &str = "worker";

/// Where the cluster is and what is known of it here.
pub struct Options {
    /// As Kubernetes says it in every pod.
    pub host: String,
    pub port: String,
    /// With `token`, `ca.crt` and `namespace`.
    pub account: Utf8PathBuf,
    /// Of labels, which all pods of workers and no others have.
    pub selector: String,
}

/// Why there is no asking.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("the pod's account is not there")]
    Account(#[source] std::io::Error),
    #[error("{0} is no address of a cluster")]
    Address(String),
    #[error("{0} holds no certificate that can be read")]
    Certificate(Utf8PathBuf, #[source] reqwest::Error),
}

pub struct Cluster {
    http: reqwest::Client,
    /// Of the namespace's pods.
    pods: Url,
    token: Utf8PathBuf,
    selector: String,
}

impl Cluster {
    pub fn new(options: Options) -> Result<Self, Unusable> {
        let Options { host, port, account, selector } = options;
        let read = |name: &str| fs_err::read_to_string(account.join(name)).map_err(Unusable::Account);
        let (authority, namespace) = (read("ca.crt")?, read("namespace")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let address = format!("https://{host}:{port}");
        let mut pods = Url::parse(&address).map_err(|_| Unusable::Address(address.clone()))?;
        let parts = ["api", "v1", "namespaces", namespace.trim(), "pods"];
        pods.path_segments_mut().map_err(|()| Unusable::Address(address))?.extend(parts);
        let unreadable = |error| Unusable::Certificate(account.join("ca.crt"), error);
        let authorities = Certificate::from_pem_bundle(authority.as_bytes()).map_err(unreadable)?;
        let http = reqwest::Client::builder()
            .tls_certs_only(authorities)
            // The cluster's own address is nothing that a proxy reaches.
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .build();
        let http = http.map_err(|error| Unusable::Certificate(account.join("ca.crt"), error))?;
        Ok(Self { http, pods, token: account.join("token"), selector })
    }

    async fn ask(&self, url: Url) -> Result<Response, Failed> {
        // It lasts an hour at most, and the kubelet writes a new one before.
        let token = read_token(&self.token)?;
        let asked = self.http.get(url).bearer_auth(token.trim()).send().await;
        let answer = asked.map_err(|error| Failed::Away(PodsError::Unavailable(Box::new(error.without_url()))))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let (body, _) = bounded(answer, MAX_ERROR_BYTES).await?;
        let told = serde_json::from_slice::<Told>(&body).unwrap_or_default();
        Err(Failed::Answered(status, cut(&visible(&told.message))))
    }

    async fn select(&self, name: Option<&PodName>) -> Result<List, PodsError> {
        let mut url = self.pods.clone();
        url.query_pairs_mut().append_pair("labelSelector", &self.selector).append_pair("limit", &MAX_PODS.to_string());
        if let Some(name) = name {
            url.query_pairs_mut().append_pair("fieldSelector", &format!("metadata.name={name}"));
        }
        let listed = async {
            let (body, whole) = bounded(self.ask(url).await?, MAX_LIST_BYTES).await?;
            match whole {
                true => {
                    serde_json::from_slice(&body).map_err(|error| Failed::Away(PodsError::Unavailable(Box::new(error))))
                }
                false => Err(Failed::Away(PodsError::Unavailable("its list of pods is far too large".into()))),
            }
        };
        listed.await.map_err(Failed::of_list)
    }
}

#[async_trait]
impl ShowPods for Cluster {
    async fn list(&self) -> Result<Pods, PodsError> {
        let list = self.select(None).await?;
        let cut = list.metadata.more.is_some_and(|more| !more.is_empty());
        let mut items: Vec<Pod> = list.items.into_iter().map(pod).collect();
        items.sort_by(|one, other| (other.created_at, &one.name).cmp(&(one.created_at, &other.name)));
        Ok(Pods { items, cut })
    }

    async fn log(&self, pod: &PodName, lines: u16) -> Result<PodLog, PodsError> {
        // Only a list can be asked by labels, and a name alone may be anybody's.
        if self.select(Some(pod)).await?.items.is_empty() {
            return Err(PodsError::NotFound(pod.clone()));
        }
        let mut url = self.pods.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend([pod.as_str(), "log"]);
        }
        url.query_pairs_mut().append_pair("container", CONTAINER).append_pair("tailLines", &lines.to_string());
        let told = async { tail(self.ask(url).await?).await };
        told.await.map_err(|failed| failed.of_log(pod))
    }
}

fn read_token(file: &Utf8Path) -> Result<String, Failed> {
    fs_err::read_to_string(file).map_err(|error| Failed::Away(PodsError::Unavailable(Box::new(error))))
}

enum Failed {
    /// With the cluster's words.
    Answered(StatusCode, String),
    Away(PodsError),
}

impl Failed {
    fn of_list(self) -> PodsError {
        match self {
            Self::Away(error) => error,
            Self::Answered(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, why) => PodsError::Refused(why),
            Self::Answered(status, why) => PodsError::Unavailable(format!("it answered {status}: {why}").into()),
        }
    }

    fn of_log(self, pod: &PodName) -> PodsError {
        match self {
            Self::Answered(StatusCode::NOT_FOUND, _) => PodsError::NotFound(pod.clone()),
            Self::Answered(StatusCode::BAD_REQUEST, why) => PodsError::NotYet(pod.clone(), why),
            other => other.of_list(),
        }
    }
}

/// Up to `most` bytes, and whether that is all.
async fn bounded(mut answer: Response, most: usize) -> Result<(Vec<u8>, bool), Failed> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(away)? {
        body.extend_from_slice(&chunk);
        if body.len() > most {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}

fn away(error: reqwest::Error) -> Failed {
    Failed::Away(PodsError::Unavailable(Box::new(error.without_url())))
}

/// The newest whole lines of what comes.
async fn tail(mut answer: Response) -> Result<PodLog, Failed> {
    let (mut kept, mut cut) = (VecDeque::new(), false);
    while let Some(chunk) = answer.chunk().await.map_err(away)? {
        kept.extend(chunk);
        if kept.len() > MAX_SHOWN_BYTES {
            kept.drain(..kept.len() - MAX_SHOWN_BYTES);
            cut = true;
        }
    }
    let bytes = Vec::from(kept);
    let from = match cut {
        true => bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1),
        false => 0,
    };
    Ok(PodLog { text: String::from_utf8_lossy(&bytes[from..]).into_owned(), cut })
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_WHY_CHARS).collect()
}

/// An error of the API.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Told {
    message: String,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMetadata,
    items: Vec<Item>,
}

#[derive(Deserialize, Default)]
struct ListMetadata {
    #[serde(rename = "continue")]
    more: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    creation_timestamp: Timestamp,
    deletion_timestamp: Option<Timestamp>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: String,
    reason: Option<String>,
    message: Option<String>,
    conditions: Vec<Condition>,
    container_statuses: Vec<Container>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
    message: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    ready: bool,
    restart_count: u32,
    state: State,
    last_state: State,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct State {
    waiting: Option<Reason>,
    terminated: Option<Ended>,
}

#[derive(Deserialize)]
struct Reason {
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    reason: Option<String>,
    exit_code: i32,
}

fn pod(item: Item) -> Pod {
    let worker = item.status.container_statuses.iter().find(|one| one.name == CONTAINER);
    let why = why(&item.metadata, &item.status, worker).map(|why| cut(&visible(&why)));
    Pod {
        name: item.metadata.name,
        phase: if item.status.phase.is_empty() { "Unknown".to_owned() } else { item.status.phase },
        ready: worker.is_some_and(|worker| worker.ready),
        restarts: worker.map_or(0, |worker| worker.restart_count),
        node: item.spec.node_name,
        created_at: item.metadata.creation_timestamp,
        why,
    }
}

/// What is nearest to a reason for the state that a pod is in.
fn why(metadata: &Metadata, status: &Status, worker: Option<&Container>) -> Option<String> {
    let both = |reason: Option<&String>, message: Option<&String>| match (reason, message) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (one, other) => one.or(other).cloned(),
    };
    let ended = |ended: &Ended| {
        let reason = ended.reason.as_deref().unwrap_or("ended");
        (ended.exit_code != 0).then(|| format!("{reason}, status {}", ended.exit_code))
    };
    if let Some(of_pod) = both(status.reason.as_ref(), status.message.as_ref()) {
        return Some(of_pod);
    }
    if let Some(worker) = worker {
        let waits = worker.state.waiting.as_ref().and_then(|one| both(one.reason.as_ref(), one.message.as_ref()));
        let before = worker.last_state.terminated.as_ref().and_then(ended);
        let told = waits.or_else(|| worker.state.terminated.as_ref().and_then(ended));
        if let Some(told) = told {
            return Some(before.map_or(told.clone(), |before| format!("{told}; before: {before}")));
        }
        if let Some(before) = before {
            return Some(format!("before: {before}"));
        }
    }
    if metadata.deletion_timestamp.is_some() {
        return Some("it is being ended".to_owned());
    }
    let unplaced = |one: &&Condition| one.r#type == "PodScheduled" && one.status == "False";
    status.conditions.iter().find(unplaced).and_then(|one| one.message.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(status: &serde_json::Value) -> Pod {
        let metadata = json!({ "name": "fettle-worker-x", "creationTimestamp": "2026-11-30T12:00:00Z" });
        pod(serde_json::from_value(json!({ "metadata": metadata, "status": status })).unwrap())
    }

    // As the API's reference describes each; the shapes are those of a running cluster.
    #[test]
    fn a_pod_says_why_it_does_not_run_in_the_words_of_whoever_knows() {
        let container = |state: serde_json::Value, last: serde_json::Value| {
            json!({
                "phase": "Running",
                "containerStatuses": [
                    { "name": "sidecar", "ready": true, "restartCount": 9 },
                    { "name": "worker", "ready": false, "restartCount": 2, "state": state, "lastState": last },
                ],
            })
        };
        let killed = json!({ "terminated": { "reason": "OOMKilled", "exitCode": 137 } });
        let waits = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such image\u{1b}[2J" } });
        let unplaced = json!({
            "phase": "Pending",
            "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes" }],
        });
        for (status, why) in [
            (unplaced, Some("0/1 nodes")),
            (container(waits, json!({})), Some("ImagePullBackOff: no such image[2J")),
            (container(json!({ "running": {} }), killed.clone()), Some("before: OOMKilled, status 137")),
            (container(killed, json!({})), Some("OOMKilled, status 137")),
            (container(json!({ "terminated": { "reason": "Completed", "exitCode": 0 } }), json!({})), None),
            (json!({ "phase": "Failed", "reason": "Evicted", "message": "low on disk" }), Some("Evicted: low on disk")),
        ] {
            assert_eq!(read(&status).why.as_deref(), why, "{status}");
        }
        let restarted = read(&container(json!({}), json!({})));
        assert_eq!((restarted.restarts, restarted.ready), (2, false), "of the worker's container");
        assert_eq!(read(&json!({})).phase, "Unknown");
    }
}
