//! GitHub's JSON. Every property that its OpenAPI description requires is there; those that Fettle never reads are
//! constant.

use serde_json::{Map, Value, json};

use super::model::{Comment, Issue, IssueEvent, Pull, Repository, Role, User};
use super::state::{AppOptions, Inner, now};

/// Makes the links inside the answers.
pub(super) struct Links<'a> {
    pub(super) root: &'a str,
}

impl Links<'_> {
    pub(super) fn repo(&self, repository: &Repository) -> String {
        format!("{}/repos/{}", self.root, repository.name)
    }

    pub(super) fn user(&self, user: &User) -> Value {
        let api = format!("{}/users/{}", self.root, user.login);
        json!({
            "login": user.login,
            "id": user.id,
            "node_id": format!("U_{}", user.id),
            "avatar_url": format!("{}/avatars/{}", self.root, user.id),
            "gravatar_id": "",
            "url": api,
            "html_url": format!("{}/{}", self.root, user.login),
            "followers_url": format!("{api}/followers"),
            "following_url": format!("{api}/following{{/other_user}}"),
            "gists_url": format!("{api}/gists{{/gist_id}}"),
            "starred_url": format!("{api}/starred{{/owner}}{{/repo}}"),
            "subscriptions_url": format!("{api}/subscriptions"),
            "organizations_url": format!("{api}/orgs"),
            "repos_url": format!("{api}/repos"),
            "events_url": format!("{api}/events{{/privacy}}"),
            "received_events_url": format!("{api}/received_events"),
            "type": if user.bot { "Bot" } else { "User" },
            "user_view_type": "public",
            "site_admin": false,
        })
    }

    fn login(&self, inner: &mut Inner, login: &str) -> Value {
        let user = inner.user(login).clone();
        self.user(&user)
    }

    /// The signed-in user.
    pub(super) fn me(&self, user: &User) -> Value {
        let more = json!({
            "name": user.login, "company": null, "blog": "", "location": null, "email": null, "hireable": null,
            "bio": null, "public_repos": 0, "public_gists": 0, "followers": 0, "following": 0,
            "created_at": user.created_at, "updated_at": user.created_at,
            "private_gists": 0, "total_private_repos": 0, "owned_private_repos": 0, "disk_usage": 0,
            "collaborators": 0, "two_factor_authentication": true,
        });
        merged(self.user(user), more)
    }

    pub(super) fn permission(&self, user: &User, role: Option<Role>, private: bool) -> Value {
        let none = if private { "none" } else { "read" };
        let (permission, role_name) = role.map_or((none, none), |role| (role.permission(), role.role_name()));
        let at_least = |names: &[&str]| names.contains(&role_name);
        let more = json!({
            "permissions": {
                "admin": role_name == "admin",
                "maintain": at_least(&["admin", "maintain"]),
                "push": at_least(&["admin", "maintain", "write"]),
                "triage": at_least(&["admin", "maintain", "write", "triage"]),
                "pull": role_name != "none",
            },
            "role_name": role_name,
        });
        json!({ "permission": permission, "user": merged(self.user(user), more), "role_name": role_name })
    }

    pub(super) fn repository(&self, inner: &mut Inner, repository: &Repository) -> Value {
        let api = self.repo(repository);
        let html = format!("{}/{}", self.root, repository.name);
        let open = repository.issues.values().filter(|issue| issue.open).count();
        let mut all = json!({
            "id": repository.id,
            "node_id": format!("R_{}", repository.id),
            "name": repository.name.name(),
            "full_name": repository.name.to_string(),
            "owner": self.login(inner, repository.name.owner()),
            "private": repository.private,
            "visibility": if repository.private { "private" } else { "public" },
            "html_url": html,
            "description": null,
            "fork": false,
            "url": api,
            "git_url": format!("git:{html}.git"),
            "ssh_url": format!("git@forge.invalid:{}.git", repository.name),
            "clone_url": format!("{html}.git"),
            "svn_url": html,
            "mirror_url": null,
            "homepage": null,
            "language": null,
            "license": null,
            "default_branch": repository.default_branch,
            "archived": false,
            "disabled": false,
            "is_template": false,
            "topics": [],
            "open_issues": open,
            "open_issues_count": open,
            "created_at": repository.created_at,
            "updated_at": repository.created_at,
            "pushed_at": repository.created_at,
        });
        let map = all.as_object_mut().expect("an object");
        for name in [
            "forks",
            "forks_count",
            "network_count",
            "size",
            "stargazers_count",
            "subscribers_count",
            "watchers",
            "watchers_count",
        ] {
            map.insert(name.to_owned(), json!(0));
        }
        for name in ["has_discussions", "has_downloads", "has_issues", "has_pages", "has_projects", "has_wiki"] {
            map.insert(name.to_owned(), json!(name == "has_issues"));
        }
        for (name, path) in REPOSITORY_LINKS {
            map.insert((*name).to_owned(), json!(format!("{api}{path}")));
        }
        all
    }

    pub(super) fn label(&self, repository: &Repository, name: &str) -> Value {
        let id = repository.labels.get(name).copied().unwrap_or_default();
        json!({
            "id": id,
            "node_id": format!("LA_{id}"),
            "url": format!("{}/labels/{id}", self.repo(repository)),
            "name": name,
            "color": "ededed",
            "default": false,
            "description": null,
        })
    }

    pub(super) fn labels(&self, repository: &Repository, issue: &Issue) -> Vec<Value> {
        issue.labels.iter().map(|name| self.label(repository, name)).collect()
    }

    pub(super) fn issue(&self, inner: &mut Inner, repository: &Repository, issue: &Issue) -> Value {
        let api = format!("{}/issues/{}", self.repo(repository), issue.number);
        let kind = if issue.pull.is_some() { "pull" } else { "issues" };
        let html = format!("{}/{}/{kind}/{}", self.root, repository.name, issue.number);
        let mut all = json!({
            "id": issue.id,
            "node_id": format!("I_{}", issue.id),
            "url": api,
            "repository_url": self.repo(repository),
            "labels_url": format!("{api}/labels{{/name}}"),
            "comments_url": format!("{api}/comments"),
            "events_url": format!("{api}/events"),
            "html_url": html,
            "number": issue.number,
            "state": state(issue),
            "state_reason": null,
            "title": issue.title,
            "body": issue.body,
            "user": self.login(inner, &issue.author),
            "labels": self.labels(repository, issue),
            "assignee": null,
            "assignees": [],
            "milestone": null,
            "locked": issue.locked,
            "active_lock_reason": null,
            "comments": issue.comments.len(),
            "created_at": issue.created_at,
            "updated_at": issue.updated_at,
            "closed_at": (!issue.open).then_some(issue.updated_at),
            "author_association": "NONE",
            "performed_via_github_app": null,
        });
        if let Some(pull) = &issue.pull {
            all["pull_request"] = json!({
                "url": format!("{}/pulls/{}", self.repo(repository), issue.number),
                "html_url": html,
                "diff_url": format!("{html}.diff"),
                "patch_url": format!("{html}.patch"),
                "merged_at": pull.merged_at,
            });
        }
        all
    }

    pub(super) fn comment(
        &self,
        inner: &mut Inner,
        repository: &Repository,
        issue: &Issue,
        comment: &Comment,
    ) -> Value {
        let of_issue = format!("{}/issues/{}", self.repo(repository), issue.number);
        json!({
            "id": comment.id,
            "node_id": format!("IC_{}", comment.id),
            "url": format!("{}/issues/comments/{}", self.repo(repository), comment.id),
            "html_url": format!("{}/{}/issues/{}#issuecomment-{}", self.root, repository.name, issue.number, comment.id),
            "issue_url": of_issue,
            "user": self.login(inner, &comment.author),
            "body": comment.body,
            "created_at": comment.created_at,
            "updated_at": comment.updated_at,
            "author_association": "NONE",
            "performed_via_github_app": null,
        })
    }

    pub(super) fn event(&self, inner: &mut Inner, repository: &Repository, event: &IssueEvent) -> Value {
        let mut all = json!({
            "id": event.id,
            "node_id": format!("E_{}", event.id),
            "url": format!("{}/issues/events/{}", self.repo(repository), event.id),
            "actor": self.login(inner, &event.actor),
            "event": event.kind,
            "commit_id": null,
            "commit_url": null,
            "created_at": event.at,
            "performed_via_github_app": null,
        });
        if let Some(label) = &event.label {
            all["label"] = json!({ "name": label, "color": "ededed" });
        }
        all
    }

    /// As a list shows it.
    pub(super) fn pull(&self, inner: &mut Inner, repository: &Repository, issue: &Issue, pull: &Pull) -> Value {
        let api = format!("{}/pulls/{}", self.repo(repository), issue.number);
        let of_issue = format!("{}/issues/{}", self.repo(repository), issue.number);
        let html = format!("{}/{}/pull/{}", self.root, repository.name, issue.number);
        let statuses = format!("{}/statuses/{}", self.repo(repository), pull.head_sha);
        let owner = self.login(inner, repository.name.owner());
        let full = self.repository(inner, repository);
        let branch = |name: &str, sha: &str| {
            json!({
                "label": format!("{}:{name}", repository.name.owner()),
                "ref": name,
                "sha": sha,
                "user": owner,
                "repo": full,
            })
        };
        let link = |href: String| json!({ "href": href });
        let around = json!({
            "self": link(api.clone()),
            "html": link(html.clone()),
            "issue": link(of_issue.clone()),
            "comments": link(format!("{of_issue}/comments")),
            "review_comments": link(format!("{api}/comments")),
            "review_comment": link(format!("{}/pulls/comments{{/number}}", self.repo(repository))),
            "commits": link(format!("{api}/commits")),
            "statuses": link(statuses.clone()),
        });
        json!({
            "id": issue.id,
            "node_id": format!("PR_{}", issue.id),
            "url": api,
            "html_url": html,
            "diff_url": format!("{html}.diff"),
            "patch_url": format!("{html}.patch"),
            "issue_url": of_issue,
            "commits_url": format!("{api}/commits"),
            "review_comments_url": format!("{api}/comments"),
            "review_comment_url": format!("{}/pulls/comments{{/number}}", self.repo(repository)),
            "comments_url": format!("{of_issue}/comments"),
            "statuses_url": statuses,
            "number": issue.number,
            "state": state(issue),
            "locked": issue.locked,
            "active_lock_reason": null,
            "title": issue.title,
            "body": issue.body,
            "user": self.login(inner, &issue.author),
            "labels": self.labels(repository, issue),
            "milestone": null,
            "assignee": null,
            "assignees": [],
            "requested_reviewers": [],
            "requested_teams": [],
            "draft": pull.draft,
            "created_at": issue.created_at,
            "updated_at": issue.updated_at,
            "closed_at": (!issue.open).then_some(issue.updated_at),
            "merged_at": pull.merged_at,
            "merge_commit_sha": null,
            "author_association": "NONE",
            "auto_merge": null,
            "head": branch(&pull.head, &pull.head_sha),
            "base": branch(&pull.base, &pull.base_sha),
            "_links": around,
        })
    }

    /// As it shows by itself.
    pub(super) fn full_pull(&self, inner: &mut Inner, repository: &Repository, issue: &Issue, pull: &Pull) -> Value {
        let more = json!({
            "merged": pull.merged_at.is_some(),
            "mergeable": true,
            "rebaseable": true,
            "mergeable_state": if pull.draft { "draft" } else { "clean" },
            "merged_by": null,
            "comments": issue.comments.len(),
            "review_comments": 0,
            "maintainer_can_modify": false,
            "commits": pull.commits,
            "additions": 0,
            "deletions": 0,
            "changed_files": 0,
        });
        merged(self.pull(inner, repository, issue, pull), more)
    }

    pub(super) fn app(&self, inner: &mut Inner, app: &AppOptions) -> Value {
        json!({
            "id": app.id,
            "slug": app.slug,
            "client_id": format!("Iv23li{}", app.id),
            "node_id": format!("A_{}", app.id),
            "owner": self.login(inner, "octo-org"),
            "name": app.slug,
            "description": null,
            "external_url": self.root,
            "html_url": format!("{}/apps/{}", self.root, app.slug),
            "created_at": now(),
            "updated_at": now(),
            "permissions": permissions(),
            "events": ["issues", "issue_comment"],
        })
    }

    pub(super) fn installation(&self, inner: &mut Inner, app: &AppOptions, repository: &Repository) -> Value {
        let account = self.login(inner, repository.name.owner());
        json!({
            "id": app.installation,
            "app_id": app.id,
            "app_slug": app.slug,
            "target_id": account["id"],
            "target_type": "User",
            "account": account,
            "repository_selection": "all",
            "access_tokens_url": format!("{}/app/installations/{}/access_tokens", self.root, app.installation),
            "repositories_url": format!("{}/installation/repositories", self.root),
            "html_url": format!("{}/settings/installations/{}", self.root, app.installation),
            "permissions": permissions(),
            "events": ["issues", "issue_comment"],
            "single_file_name": null,
            "created_at": now(),
            "updated_at": now(),
            "suspended_by": null,
            "suspended_at": null,
        })
    }

    pub(super) fn git_ref(&self, repository: &Repository, name: &str, sha: &str) -> Value {
        let api = self.repo(repository);
        json!({
            "ref": name,
            "node_id": format!("REF_{sha}"),
            "url": format!("{api}/git/{name}"),
            "object": { "type": "commit", "sha": sha, "url": format!("{api}/git/commits/{sha}") },
        })
    }
}

fn state(issue: &Issue) -> &'static str {
    if issue.open { "open" } else { "closed" }
}

/// What the App was granted where it was installed.
pub(super) fn permissions() -> Value {
    json!({ "contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write" })
}

fn merged(first: Value, second: Value) -> Value {
    let map = |value| match value {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    Value::Object(map(first).into_iter().chain(map(second)).collect())
}

const REPOSITORY_LINKS: &[(&str, &str)] = &[
    ("archive_url", "/{archive_format}{/ref}"),
    ("assignees_url", "/assignees{/user}"),
    ("blobs_url", "/git/blobs{/sha}"),
    ("branches_url", "/branches{/branch}"),
    ("collaborators_url", "/collaborators{/collaborator}"),
    ("comments_url", "/comments{/number}"),
    ("commits_url", "/commits{/sha}"),
    ("compare_url", "/compare/{base}...{head}"),
    ("contents_url", "/contents/{+path}"),
    ("contributors_url", "/contributors"),
    ("deployments_url", "/deployments"),
    ("downloads_url", "/downloads"),
    ("events_url", "/events"),
    ("forks_url", "/forks"),
    ("git_commits_url", "/git/commits{/sha}"),
    ("git_refs_url", "/git/refs{/sha}"),
    ("git_tags_url", "/git/tags{/sha}"),
    ("hooks_url", "/hooks"),
    ("issue_comment_url", "/issues/comments{/number}"),
    ("issue_events_url", "/issues/events{/number}"),
    ("issues_url", "/issues{/number}"),
    ("keys_url", "/keys{/key_id}"),
    ("labels_url", "/labels{/name}"),
    ("languages_url", "/languages"),
    ("merges_url", "/merges"),
    ("milestones_url", "/milestones{/number}"),
    ("notifications_url", "/notifications{?since,all,participating}"),
    ("pulls_url", "/pulls{/number}"),
    ("releases_url", "/releases{/id}"),
    ("stargazers_url", "/stargazers"),
    ("statuses_url", "/statuses/{sha}"),
    ("subscribers_url", "/subscribers"),
    ("subscription_url", "/subscription"),
    ("tags_url", "/tags"),
    ("teams_url", "/teams"),
    ("trees_url", "/git/trees{/sha}"),
];
