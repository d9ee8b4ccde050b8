//! What the publisher writes. Each write is sent once; a lost answer is the caller's to read back.

use async_trait::async_trait;
use fettle_app::ports::forge::{F, Forge, ForgeError, ForgeReader, IssueComment, Pull, PullOpened, PullSpec};
use fettle_domain::repo::Repo;
use http::Method;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;

use crate::GitHub;
use crate::access::Purpose;
use crate::exchange::Call;
use crate::reader::{List, in_repo};
use crate::wire::{CommentWire, PullWire};

/// GitHub's words for a second pull request with the same head and base; long-standing, though no documented contract.
const ALREADY_EXISTS: &str = "A pull request already exists";

#[derive(Deserialize)]
struct Created {
    id: u64,
}

#[async_trait]
impl Forge for GitHub {
    async fn write_token(&self, repo: &Repo) -> F<SecretString> {
        let token = self.token(repo, Purpose::Write).await?;
        token.ok_or_else(|| ForgeError::Denied("no write token is configured".to_owned()))
    }

    async fn pulls_by_head(&self, repo: &Repo, head: &str) -> F<Vec<Pull>> {
        let owned = format!("{}:{head}", repo.name.owner());
        let query = [("head", owned.as_str()), ("state", "all")];
        let pulls: Vec<PullWire> = self.every_page(&List::of_pulls(repo, &query)).await?;
        // A `head` that GitHub cannot read is no filter to it.
        Ok(pulls.into_iter().filter(|pull| pull.head.name == head).map(Pull::from).collect())
    }

    async fn open_pull(&self, repo: &Repo, pull: &PullSpec) -> F<PullOpened> {
        let body = json!({
            "title": pull.title, "body": pull.body, "head": pull.head, "base": pull.base, "draft": pull.draft,
        });
        let call = Call::write(Method::POST, in_repo(repo, &["pulls"]), format!("repository {}", repo.name)).with(body);
        match self.ask(repo, Purpose::Write, &call).await {
            Ok(answer) => Ok(PullOpened::Created(answer.parse::<PullWire>()?.into())),
            Err(ForgeError::Refused(words)) if words.contains(ALREADY_EXISTS) => Ok(PullOpened::Exists),
            Err(other) => Err(other),
        }
    }

    async fn edit_pull_body(&self, repo: &Repo, number: u64, body: &str) -> F<()> {
        let path = in_repo(repo, &["pulls", &number.to_string()]);
        let call = Call::write(Method::PATCH, path, format!("pull request {number}")).with(json!({ "body": body }));
        self.ask(repo, Purpose::Write, &call).await.map(drop)
    }

    async fn own_comments(&self, repo: &Repo, issue: u64, marker: &str) -> F<Vec<IssueComment>> {
        let own = self.own_login().await?;
        let all: Vec<CommentWire> = self.every_page(&List::of_issue(repo, issue, "comments")).await?;
        let mut ours: Vec<IssueComment> = all
            .into_iter()
            .map(IssueComment::from)
            .filter(|comment| comment.author.eq_ignore_ascii_case(&own) && comment.body.contains(marker))
            .collect();
        ours.sort_by_key(|comment| comment.id);
        Ok(ours)
    }

    async fn put_comment(&self, repo: &Repo, issue: u64, id: Option<u64>, body: &str) -> F<u64> {
        let call = match id {
            None => {
                let path = in_repo(repo, &["issues", &issue.to_string(), "comments"]);
                Call::write(Method::POST, path, format!("issue {issue}"))
            }
            Some(id) => Call::write(Method::PATCH, comment_path(repo, id), format!("comment {id}")),
        };
        let answer = self.ask(repo, Purpose::Write, &call.with(json!({ "body": body }))).await?;
        Ok(answer.parse::<Created>()?.id)
    }

    async fn delete_comment(&self, repo: &Repo, id: u64) -> F<()> {
        let call = Call::write(Method::DELETE, comment_path(repo, id), format!("comment {id}"));
        self.ask(repo, Purpose::Write, &call).await.map(drop)
    }

    async fn add_labels(&self, repo: &Repo, issue: u64, labels: &[String]) -> F<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let path = in_repo(repo, &["issues", &issue.to_string(), "labels"]);
        let call = Call::write(Method::POST, path, format!("issue {issue}")).with(json!({ "labels": labels }));
        self.ask(repo, Purpose::Write, &call).await.map(drop)
    }

    async fn remove_label(&self, repo: &Repo, issue: u64, label: &str) -> F<()> {
        let path = in_repo(repo, &["issues", &issue.to_string(), "labels", label]);
        let call = Call::write(Method::DELETE, path, format!("label {label}"));
        match self.ask(repo, Purpose::Write, &call).await {
            Ok(_) | Err(ForgeError::NotFound(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }
}

fn comment_path(repo: &Repo, id: u64) -> String {
    in_repo(repo, &["issues", "comments", &id.to_string()])
}
