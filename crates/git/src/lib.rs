//! Repositories over libgit2: a mirror cache, byte-exact checkouts and snapshots, patches, deterministic commits, and the
//! compare-and-swap push. Never runs a filter, hook, credential helper or the `git` command, never reads a user's or the
//! system's git configuration, and never stores a token.

mod blocking;
mod checkout;
mod error;
mod global;
mod http;
mod ignore_rules;
mod local;
mod mirror;
mod names;
mod objects;
mod pack;
mod patch;
mod place;
mod push;
mod remote;
mod snapshot;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::{
    BaseCommit, BaseRef, CheckoutKind, CheckoutReport, CommitDescription, CommitSpec, GitError, PushError, PushTarget,
    Pushed, RefPush, Repositories, Source, TreeEdit,
};
use fettle_domain::object::{CommitId, ObjectId, TreeId};
use fettle_domain::patch::{FileMode, Patch};
use fettle_domain::path::RepoPath;

pub use crate::local::is_branch_name;

use crate::blocking::Lanes;
use crate::mirror::Mirrors;
use crate::remote::Network;

/// How [`Git`] is set up. No field holds a credential: tokens come with each call.
#[derive(Debug, Clone)]
pub struct GitOptions {
    /// Holds one bare repository per `Source.key`; made when absent. May be shared by several processes.
    pub mirrors: Utf8PathBuf,
    /// What servers see; the default begins with `git/`, which some servers insist on.
    pub user_agent: String,
    /// PEM certificates trusted besides the system's, for a forge with a private authority.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Whether `http://` is taken for hosts that are this machine itself. Tests and local emulators need it; nothing else may.
    pub plain_http_on_loopback: bool,
}

impl GitOptions {
    pub fn new(mirrors: Utf8PathBuf) -> Self {
        Self {
            mirrors,
            user_agent: concat!("git/2.47 fettle/", env!("CARGO_PKG_VERSION")).to_owned(),
            extra_ca_pem: None,
            plain_http_on_loopback: false,
        }
    }
}

/// The adapter of both git ports. Cheap to clone; all clones share the limits.
#[derive(Clone)]
pub struct Git {
    mirrors: Arc<Mirrors>,
    network: Arc<Network>,
    lanes: Lanes,
}

impl Git {
    /// Makes the mirrors folder and the HTTP client. The process must have installed its rustls provider before.
    pub fn new(options: GitOptions) -> Result<Self, GitError> {
        global::initialise();
        let mirrors = Mirrors::new(options.mirrors.clone())?;
        let network = Network::new(&options)?;
        Ok(Self { mirrors: Arc::new(mirrors), network: Arc::new(network), lanes: Lanes::new() })
    }

    /// Runs `work` on a blocking thread among the disk-bound ones.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mirrors) -> Result<T, GitError> + Send + 'static,
    ) -> Result<T, GitError> {
        let mirrors = Arc::clone(&self.mirrors);
        self.lanes.disk(move || work(&mirrors)).await?
    }

    /// Runs `work` on a blocking thread among those that may wait for a server.
    async fn on_network<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mirrors, &Network) -> T + Send + 'static,
    ) -> Result<T, GitError> {
        let mirrors = Arc::clone(&self.mirrors);
        let network = Arc::clone(&self.network);
        self.lanes.network(move || work(&mirrors, &network)).await
    }
}

#[async_trait]
impl Repositories for Git {
    async fn resolve(&self, source: &Source, base: &BaseRef) -> Result<BaseCommit, GitError> {
        let (source, base) = (source.clone(), base.clone());
        self.on_network(move |mirrors, network| remote::resolve(mirrors, network, &source, &base)).await?
    }

    async fn checkout(
        &self,
        key: &str,
        tree: TreeId,
        into: &Utf8Path,
        kind: CheckoutKind,
    ) -> Result<CheckoutReport, GitError> {
        let (key, into) = (key.to_owned(), into.to_owned());
        self.on_disk(move |mirrors| checkout::checkout(&mirrors.open(&key)?, tree, &into, kind)).await
    }

    async fn snapshot(&self, key: &str, base: TreeId, folder: &Utf8Path) -> Result<TreeId, GitError> {
        let (key, folder) = (key.to_owned(), folder.to_owned());
        self.on_disk(move |mirrors| snapshot::snapshot(&mirrors.open(&key)?, base, &folder)).await
    }

    async fn diff(&self, key: &str, base: CommitId, head: TreeId) -> Result<Patch, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| patch::diff(&mirrors.open(&key)?, base, head)).await
    }

    async fn diff_text(&self, key: &str, from: TreeId, to: TreeId, max_bytes: usize) -> Result<String, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| patch::diff_text(&mirrors.open(&key)?, from, to, max_bytes)).await
    }

    async fn read_file(&self, key: &str, tree: TreeId, path: &RepoPath) -> Result<Option<(FileMode, Bytes)>, GitError> {
        let (key, path) = (key.to_owned(), path.clone());
        self.on_disk(move |mirrors| objects::read_file(&mirrors.open(&key)?, tree, &path)).await
    }

    async fn read_files(
        &self,
        key: &str,
        tree: TreeId,
        paths: Vec<RepoPath>,
    ) -> Result<Vec<Option<(FileMode, Bytes)>>, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| objects::read_files(&mirrors.open(&key)?, tree, &paths)).await
    }

    async fn list(&self, key: &str, tree: TreeId) -> Result<Vec<(RepoPath, FileMode, ObjectId)>, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| objects::list(&mirrors.open(&key)?, tree)).await
    }

    async fn edit_tree(&self, key: &str, tree: TreeId, edits: Vec<TreeEdit>) -> Result<TreeId, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| patch::edit_tree(&mirrors.open(&key)?, tree, edits)).await
    }

    async fn bundle(&self, key: &str, base: CommitId, head: TreeId) -> Result<Bytes, GitError> {
        let key = key.to_owned();
        self.on_disk(move |mirrors| patch::bundle(&mirrors.open(&key)?, base, head)).await
    }

    async fn unbundle(&self, key: &str, bundle: &Bytes) -> Result<Patch, GitError> {
        let (key, bundle) = (key.to_owned(), bundle.clone());
        self.on_disk(move |mirrors| patch::unbundle(&mirrors.open(&key)?, &bundle)).await
    }

    async fn commit(&self, key: &str, spec: &CommitSpec) -> Result<CommitId, GitError> {
        let (key, spec) = (key.to_owned(), spec.clone());
        self.on_disk(move |mirrors| objects::write_commit(&mirrors.open(&key)?, &spec)).await
    }

    async fn describe_commit(&self, source: &Source, commit: CommitId) -> Result<Option<CommitDescription>, GitError> {
        let source = source.clone();
        self.on_network(move |mirrors, network| remote::describe_commit(mirrors, network, &source, commit)).await?
    }

    async fn publish_local(
        &self,
        key: &str,
        path: &Utf8Path,
        branch: &str,
        expected: Option<CommitId>,
        commit: CommitId,
    ) -> Result<Pushed, GitError> {
        let (key, path, branch) = (key.to_owned(), path.to_owned(), branch.to_owned());
        self.on_disk(move |mirrors| local::publish(&mirrors.open(&key)?, &path, &branch, expected, commit)).await
    }
}

#[async_trait]
impl RefPush for Git {
    async fn push(&self, to: &PushTarget, expected: Option<CommitId>, new: CommitId) -> Result<Pushed, PushError> {
        let to = to.clone();
        self.on_network(move |mirrors, network| push::push(mirrors, network, &to, expected, new))
            .await
            .map_err(|error| PushError::Unavailable(error.into()))?
    }

    async fn remote_tip(&self, to: &PushTarget) -> Result<Option<CommitId>, PushError> {
        let to = to.clone();
        self.on_network(move |mirrors, network| push::remote_tip(mirrors, network, &to))
            .await
            .map_err(|error| PushError::Unavailable(error.into()))?
    }
}
