//! Repositories as the worker and the publisher need them: trees in, files out, and one guarded push.

use async_trait::async_trait;
use bytes::Bytes;
use camino::Utf8Path;
use fettle_domain::branch::BranchName;
use fettle_domain::object::{CommitId, ObjectId, TreeId};
use fettle_domain::patch::{FileMode, Patch};
use fettle_domain::path::RepoPath;
use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::BoxError;

/// Where a repository's objects come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// Names the mirror's folder; stable over renames: `github-123` or `local-<digest of the path>`.
    pub key: String,
    /// https URL without user info, or an absolute path.
    pub url: String,
    /// Read access; never stored, never in a URL.
    pub token: Option<SecretString>,
}

/// Which commit a Run starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseRef {
    /// The tip of the remote's default branch.
    Default,
    /// A branch, tag, full ref or (locally) anything `git rev-parse` takes.
    Named(String),
    Commit(CommitId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseCommit {
    pub commit: CommitId,
    pub tree: TreeId,
    /// The branch's short name, when a branch was named.
    pub branch: Option<String>,
    pub committed_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckoutKind {
    /// Plain files only, for verification.
    Plain,
    /// With a private repository of one commit, without remotes, hooks or history, so that `git diff` works for the agent.
    WithPrivateRepository,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckoutReport {
    pub files: u64,
    pub bytes: u64,
    /// Left as empty folders.
    pub submodules: Vec<RepoPath>,
}

/// One path to put into, or take out of, a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEdit {
    pub path: RepoPath,
    pub put: Option<(FileMode, Bytes)>,
}

/// The patch and every content that is new in it: enough to rebuild the tree from the base anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchBundle {
    pub patch: Patch,
    /// In the order of `patch.changes`, one for each `after` that is a file or symlink.
    pub contents: Vec<(ObjectId, Bytes)>,
}

#[derive(Debug, Clone)]
pub struct CommitSpec {
    pub parent: CommitId,
    pub tree: TreeId,
    pub message: String,
    pub author_name: String,
    pub author_email: String,
    /// Author and committer date; the Task's, so that the commit id is the same at each try.
    pub at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The remote could not be reached, or answered 5xx: try again.
    #[error("could not reach {url}")]
    Unreachable {
        url: String,
        #[source]
        source: BoxError,
    },
    /// 401, 403, 404: the token is wrong, expired or lacks access.
    #[error("{url} refused access")]
    Denied { url: String },
    #[error("{what} does not exist")]
    NotFound { what: String },
    /// The workspace holds something git cannot or must not store.
    #[error("{0}")]
    Invalid(String),
    #[error("git failed {doing}")]
    Failed {
        doing: String,
        #[source]
        source: BoxError,
    },
}

type G<T> = Result<T, GitError>;

/// A mirror cache of repositories. All methods may block on disk inside; the adapter moves that off the async threads.
#[async_trait]
pub trait Repositories: Send + Sync {
    /// Finds `base`, fetching only when the mirror lacks it. A `Commit` already in the mirror contacts nobody.
    async fn resolve(&self, source: &Source, base: &BaseRef) -> G<BaseCommit>;

    /// Writes the files of `tree` into the empty or absent folder `into`. Fetches nothing.
    async fn checkout(&self, key: &str, tree: TreeId, into: &Utf8Path, kind: CheckoutKind) -> G<CheckoutReport>;

    /// Reads the folder as plain files (never its `.git`) into a tree. Files that `base`'s tree has are always read; others
    /// unless ignored by the `.gitignore` files of `base`. Special files, set-id bits and nested repositories are refused
    /// or left out as `Invalid` says; bytes, modes and symlinks are kept exactly; no filter runs.
    async fn snapshot(&self, key: &str, base: TreeId, folder: &Utf8Path) -> G<TreeId>;

    async fn diff(&self, key: &str, base: CommitId, head: TreeId) -> G<Patch>;

    /// The patch as `git diff` prints it, for people; binary files as one line. Cut at `max_bytes`.
    async fn diff_text(&self, key: &str, from: TreeId, to: TreeId, max_bytes: usize) -> G<String>;

    async fn read_file(&self, key: &str, tree: TreeId, path: &RepoPath) -> G<Option<(FileMode, Bytes)>>;

    /// [`Repositories::read_file`] for many paths of one tree, in their order.
    async fn read_files(&self, key: &str, tree: TreeId, paths: Vec<RepoPath>) -> G<Vec<Option<(FileMode, Bytes)>>>;

    /// Every file, symlink and submodule of a tree, in path order, with its size.
    async fn list(&self, key: &str, tree: TreeId) -> G<Vec<(RepoPath, FileMode, ObjectId)>>;

    async fn edit_tree(&self, key: &str, tree: TreeId, edits: Vec<TreeEdit>) -> G<TreeId>;

    /// The patch with its contents, encoded for the blob store (versioned).
    async fn bundle(&self, key: &str, base: CommitId, head: TreeId) -> G<Bytes>;

    /// Decodes a bundle and writes its objects; fails unless the result is exactly `patch.head_tree` upon the base's tree.
    async fn unbundle(&self, key: &str, bundle: &Bytes) -> G<Patch>;

    /// Writes the commit into the mirror. The same spec gives the same id.
    async fn commit(&self, key: &str, spec: &CommitSpec) -> G<CommitId>;

    /// The commit's message and author email, when the mirror has or can fetch it.
    async fn describe_commit(&self, source: &Source, commit: CommitId) -> G<Option<CommitDescription>>;

    /// For a local repository: copies the commit's objects from the mirror into the repository at `path` and makes or moves
    /// the branch there; its working tree, index and HEAD stay untouched. Refuses a branch that is checked out anywhere.
    async fn publish_local(
        &self,
        key: &str,
        path: &Utf8Path,
        branch: &str,
        expected: Option<CommitId>,
        commit: CommitId,
    ) -> G<Pushed>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitDescription {
    pub message: String,
    pub author_email: String,
    pub committer_email: String,
    pub parents: Vec<CommitId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    Moved,
    AlreadyThere,
    /// The branch is elsewhere (`None`: it does not exist); nothing changed.
    Conflict {
        found: Option<CommitId>,
    },
}

/// Push target: the mirror that has the commit, the remote, and the only token that may write.
#[derive(Debug, Clone)]
pub struct PushTarget {
    pub source: Source,
    pub branch: BranchName,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Sent, result unknown: read the ref before trying again.
    #[error("the push was not answered")]
    NoAnswer(#[source] BoxError),
    /// Not sent.
    #[error("the remote could not be reached")]
    Unavailable(#[source] BoxError),
    #[error("the remote refused the push: {0}")]
    Refused(String),
    #[error("the write token was refused")]
    Denied,
}

/// The publisher's way to write code.
#[async_trait]
pub trait RefPush: Send + Sync {
    /// Moves the branch from `expected` (`None`: absent) to `new`, or changes nothing and says where it is.
    async fn push(&self, to: &PushTarget, expected: Option<CommitId>, new: CommitId) -> Result<Pushed, PushError>;

    /// Where the branch is on the remote now.
    async fn remote_tip(&self, to: &PushTarget) -> Result<Option<CommitId>, PushError>;
}
