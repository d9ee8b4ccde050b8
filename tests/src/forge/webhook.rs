//! Webhooks as GitHub sends them: bodies in its shape, signed with the secret.

use std::time::Duration;

use anyhow::Context as _;
use fettle_domain::repo::RepoName;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::json::Links;
use super::model::{Issue, Repository};
use super::state::{Forge, Inner};

/// GitHub gives a receiver ten seconds.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The value of `X-Hub-Signature-256`.
pub fn sign(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

impl Forge {
    /// The body of `issues.opened`, sent by the author.
    pub fn issue_opened(&self, repo: &RepoName, issue: u64) -> Value {
        let author = self.issue(repo, issue).expect("the issue exists").author;
        self.payload(repo, issue, &author, |_, _, _, _| json!({ "action": "opened" }))
    }

    /// The body of `issues.labeled`.
    pub fn issue_labeled(&self, repo: &RepoName, issue: u64, label: &str, sender: &str) -> Value {
        self.payload(
            repo,
            issue,
            sender,
            |links, _, repository, _| json!({ "action": "labeled", "label": links.label(repository, label) }),
        )
    }

    /// The body of `issue_comment.created`, sent by the comment's author.
    pub fn comment_created(&self, repo: &RepoName, issue: u64, comment: u64) -> Value {
        let found = self.issue(repo, issue).expect("the issue exists");
        let comment = found.comments.into_iter().find(|c| c.id == comment).expect("the comment exists");
        self.payload(repo, issue, &comment.author, |links, inner, repository, issue| {
            json!({ "action": "created", "comment": links.comment(inner, repository, issue, &comment) })
        })
    }

    fn payload(
        &self,
        repo: &RepoName,
        issue: u64,
        sender: &str,
        special: impl FnOnce(&Links<'_>, &mut Inner, &Repository, &Issue) -> Value,
    ) -> Value {
        let links = Links { root: &self.url };
        self.with(repo, |repository, inner| {
            let repository = &*repository;
            let issue = repository.issues.get(&issue).expect("the issue exists");
            let mut all = special(&links, inner, repository, issue);
            let sender = inner.user(sender).clone();
            all["sender"] = links.user(&sender);
            all["issue"] = links.issue(inner, repository, issue);
            all["repository"] = links.repository(inner, repository);
            if let Some(app) = &self.app {
                all["installation"] = json!({ "id": app.installation, "node_id": "I_1" });
            }
            all
        })
    }

    /// Posts a new delivery and gives the receiver's answer.
    pub async fn deliver(
        &self,
        url: &str,
        event: &str,
        payload: &Value,
        secret: &str,
    ) -> anyhow::Result<reqwest::Response> {
        let id = self.delivery_id();
        self.redeliver(url, event, payload, secret, &id).await
    }

    /// A new `X-GitHub-Delivery`.
    pub fn delivery_id(&self) -> String {
        let id = self.lock().id();
        format!("72d3162e-cc78-11e3-81ab-{id:012x}")
    }

    /// Posts under an id of choice: a redelivery keeps its own.
    pub async fn redeliver(
        &self,
        url: &str,
        event: &str,
        payload: &Value,
        secret: &str,
        id: &str,
    ) -> anyhow::Result<reqwest::Response> {
        let body = serde_json::to_vec(payload)?;
        let client = self.deliveries.get_or_init(|| reqwest::Client::builder().no_proxy().build());
        let client = client.as_ref().map_err(|error| anyhow::anyhow!("no client for deliveries: {error}"))?;
        client
            .post(url)
            .header("content-type", "application/json")
            .header("user-agent", "GitHub-Hookshot/emulated")
            .header("x-github-event", event)
            .header("x-github-delivery", id)
            .header("x-hub-signature-256", sign(secret, &body))
            .timeout(DELIVERY_TIMEOUT)
            .body(body)
            .send()
            .await
            .with_context(|| format!("while delivering {event} to {url}"))
    }
}
