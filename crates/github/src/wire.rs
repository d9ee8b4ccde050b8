//! What we read of GitHub's answers: only the fields we use, so that a new or missing other one harms nothing.

use fettle_app::ports::forge::{ForgeError, Issue, IssueComment, LabeledEvent, Permission, Pull};
use fettle_domain::incoming::{IncomingUser, IssueState};
use fettle_domain::missed::Attempt;
use fettle_domain::repo::Repo;
use jiff::Timestamp;
use serde::Deserialize;

/// Stands for a deleted account, as on GitHub's pages.
const GHOST: &str = "ghost";

#[derive(Deserialize)]
pub(crate) struct TokenWire {
    pub(crate) token: String,
    pub(crate) expires_at: Timestamp,
}

#[derive(Deserialize)]
pub(crate) struct InstallationWire {
    pub(crate) id: u64,
    suspended_at: Option<Timestamp>,
}

impl InstallationWire {
    pub(crate) fn is_active(&self) -> bool {
        self.suspended_at.is_none()
    }
}

/// A repository in a list.
#[derive(Deserialize)]
pub(crate) struct ListedWire {
    #[serde(flatten)]
    pub(crate) repo: RepoWire,
    #[serde(default)]
    archived: bool,
    #[serde(default)]
    disabled: bool,
    #[serde(default = "yes")]
    has_issues: bool,
    /// Of whoever asks; an installation's list has what was granted elsewhere.
    permissions: Option<RightsWire>,
}

#[derive(Deserialize)]
struct RightsWire {
    #[serde(default)]
    push: bool,
}

fn yes() -> bool {
    true
}

impl ListedWire {
    /// Somebody can ask for work there, and it can be changed.
    pub(crate) fn is_at_work(&self) -> bool {
        self.has_issues && !self.archived && !self.disabled
    }

    pub(crate) fn can_push(&self) -> bool {
        self.permissions.as_ref().is_some_and(|rights| rights.push)
    }
}

#[derive(Deserialize)]
pub(crate) struct ListedBody {
    pub(crate) repositories: Vec<ListedWire>,
}

/// One attempt to deliver to the App's webhook.
#[derive(Deserialize)]
pub(crate) struct AttemptWire {
    id: u64,
    guid: String,
    pub(crate) delivered_at: Timestamp,
    #[serde(default)]
    status_code: u16,
    event: String,
}

impl From<AttemptWire> for (String, Attempt) {
    fn from(wire: AttemptWire) -> Self {
        let arrived = (200..300).contains(&wire.status_code);
        (wire.event, Attempt { id: wire.id, guid: wire.guid, at: wire.delivered_at, arrived })
    }
}

#[derive(Deserialize)]
pub(crate) struct AppWire {
    pub(crate) slug: String,
}

#[derive(Deserialize)]
pub(crate) struct UserWire {
    #[serde(default)]
    pub(crate) id: u64,
    pub(crate) login: String,
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
}

impl UserWire {
    pub(crate) fn is_bot(&self) -> bool {
        self.kind == "Bot"
    }
}

#[derive(Deserialize)]
pub(crate) struct RepoWire {
    pub(crate) id: u64,
    pub(crate) full_name: String,
    pub(crate) clone_url: String,
    pub(crate) default_branch: String,
    pub(crate) private: bool,
}

impl RepoWire {
    pub(crate) fn into_repo(self, installation: Option<u64>) -> Result<Repo, fettle_domain::repo::ParseRepoNameError> {
        Ok(Repo {
            forge_id: self.id,
            name: self.full_name.parse()?,
            clone_url: self.clone_url,
            default_branch: self.default_branch,
            private: self.private,
            installation,
        })
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum LabelWire {
    Full { name: Option<String> },
    Name(String),
}

impl LabelWire {
    pub(crate) fn into_name(self) -> Option<String> {
        match self {
            Self::Full { name } => name,
            Self::Name(name) => Some(name),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct IssueWire {
    pub(crate) number: u64,
    pub(crate) title: String,
    pub(crate) body: Option<String>,
    pub(crate) user: Option<UserWire>,
    pub(crate) html_url: String,
    /// Some webhooks about pinning lack it; what is not known to be open is not worked on.
    #[serde(default)]
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) locked: bool,
    #[serde(default)]
    pub(crate) labels: Vec<LabelWire>,
    pub(crate) pull_request: Option<serde::de::IgnoredAny>,
    pub(crate) updated_at: Timestamp,
}

impl From<IssueWire> for Issue {
    fn from(wire: IssueWire) -> Self {
        Self {
            number: wire.number,
            title: wire.title,
            body: wire.body.unwrap_or_default(),
            author: login(wire.user),
            url: wire.html_url,
            open: wire.state == "open",
            locked: wire.locked,
            labels: wire.labels.into_iter().filter_map(LabelWire::into_name).collect(),
            is_pull_request: wire.pull_request.is_some(),
            updated_at: wire.updated_at,
        }
    }
}

impl From<IssueWire> for IssueState {
    fn from(wire: IssueWire) -> Self {
        Self {
            number: wire.number,
            title: wire.title,
            body: wire.body.unwrap_or_default(),
            author: known(wire.user),
            labels: wire.labels.into_iter().filter_map(LabelWire::into_name).collect(),
            open: wire.state == "open",
            locked: wire.locked,
            url: wire.html_url,
            is_pull_request: wire.pull_request.is_some(),
            updated_at: wire.updated_at,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct CommentWire {
    pub(crate) id: u64,
    pub(crate) body: Option<String>,
    pub(crate) user: Option<UserWire>,
    pub(crate) html_url: String,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

impl From<CommentWire> for IssueComment {
    fn from(wire: CommentWire) -> Self {
        Self {
            id: wire.id,
            author_is_bot: wire.user.as_ref().is_some_and(UserWire::is_bot),
            author: login(wire.user),
            body: wire.body.unwrap_or_default(),
            created_at: wire.created_at,
            updated_at: wire.updated_at,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct EventWire {
    id: u64,
    event: String,
    actor: Option<UserWire>,
    created_at: Timestamp,
    label: Option<LabelWire>,
}

impl EventWire {
    /// The event, when it set `label`. GitHub compares labels without regard to case.
    pub(crate) fn labeled(self, label: &str) -> Option<LabeledEvent> {
        let name = self.label.and_then(LabelWire::into_name)?;
        (self.event == "labeled" && name.to_lowercase() == label.to_lowercase()).then(|| LabeledEvent {
            id: self.id,
            actor: known(self.actor),
            at: self.created_at,
        })
    }
}

#[derive(Deserialize)]
pub(crate) struct PermissionWire {
    permission: String,
    role_name: Option<String>,
}

impl From<PermissionWire> for Permission {
    /// `permission` knows four levels and is the base of custom roles; only `triage`, which it calls `read`, is told
    /// apart by `role_name`. A level we do not know allows nothing.
    fn from(wire: PermissionWire) -> Self {
        match (wire.permission.as_str(), wire.role_name.as_deref()) {
            ("admin", _) => Self::Admin,
            ("write" | "maintain", _) => Self::Write,
            ("triage", _) | ("read", Some("triage")) => Self::Triage,
            ("read", _) => Self::Read,
            _ => Self::None,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct PullWire {
    number: u64,
    html_url: String,
    state: String,
    /// The list has no `merged`.
    merged_at: Option<Timestamp>,
    #[serde(default)]
    draft: bool,
    body: Option<String>,
    pub(crate) head: BranchWire,
    base: BranchWire,
}

#[derive(Deserialize)]
pub(crate) struct BranchWire {
    #[serde(rename = "ref")]
    pub(crate) name: String,
    sha: String,
}

impl From<PullWire> for Pull {
    fn from(wire: PullWire) -> Self {
        Self {
            number: wire.number,
            url: wire.html_url,
            open: wire.state == "open",
            merged: wire.merged_at.is_some(),
            draft: wire.draft,
            head_sha: wire.head.sha,
            base: wire.base.name,
            body: wire.body.unwrap_or_default(),
        }
    }
}

impl From<UserWire> for IncomingUser {
    fn from(wire: UserWire) -> Self {
        Self { id: wire.id, is_bot: wire.is_bot(), login: wire.login }
    }
}

pub(crate) fn known(user: Option<UserWire>) -> IncomingUser {
    user.map_or_else(|| IncomingUser { id: 0, login: GHOST.to_owned(), is_bot: false }, IncomingUser::from)
}

fn login(user: Option<UserWire>) -> String {
    user.map_or_else(|| GHOST.to_owned(), |user| user.login)
}

/// A name that GitHub itself could not have made.
pub(crate) fn not_a_repository(error: fettle_domain::repo::ParseRepoNameError) -> ForgeError {
    ForgeError::Refused(error.to_string())
}
