//! The publishers' mirrors: commits and patches by name, without any file. A mirror lies on its dashboard's disk and outlives it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::git::{
    BaseCommit, BaseRef, CheckoutKind, CheckoutReport, CommitDescription, CommitSpec, GitError, Pushed, Repositories,
    Source, TreeEdit,
};
use fettle_domain::object::{BlobId, CommitId, ObjectId, TreeId};
use fettle_domain::patch::{Change, Entry, FileMode, Patch};
use fettle_domain::path::RepoPath;
use jiff::Timestamp;

use crate::nature::{Nature, Who, lock};

type G<T> = Result<T, GitError>;

pub(crate) const BASE: CommitId = CommitId::from_bytes([7; 20]);
const BASE_TREE: TreeId = TreeId::from_bytes([8; 20]);

#[derive(Debug, Default)]
struct Objects {
    /// Of all mirrors: a commit is asked for that a branch of the forge shows, and can be fetched from there.
    commits: BTreeMap<CommitId, CommitDescription>,
    /// By the mirror that was handed them.
    patches: BTreeMap<(Who, TreeId), Patch>,
}

/// The mirror of one dashboard.
#[derive(Clone)]
pub(crate) struct Mirror {
    who: Who,
    nature: Arc<Nature>,
    objects: Arc<Mutex<Objects>>,
}

/// The first twenty bytes of the content's name.
fn named(content: &[u8]) -> [u8; 20] {
    let mut name = [0; 20];
    name.copy_from_slice(&BlobId::of(content).as_bytes()[..20]);
    name
}

/// A change of one line, which depends on `seed` alone.
pub(crate) fn patch(seed: &str) -> Patch {
    let entry = |object| Entry { mode: FileMode::Regular, object, size_bytes: 9 };
    Patch {
        base: BASE,
        base_tree: BASE_TREE,
        head_tree: TreeId::from_bytes(named(seed.as_bytes())),
        changes: vec![Change {
            path: path(),
            before: Some(entry(ObjectId::from_bytes([1; 20]))),
            after: Some(entry(ObjectId::from_bytes(named(seed.as_bytes())))),
            lines_added: 1,
            lines_removed: 1,
            binary: false,
        }],
    }
}

fn path() -> RepoPath {
    RepoPath::parse("src/lib.rs").expect("a path")
}

pub(crate) fn bundle(patch: &Patch) -> Bytes {
    serde_json::to_vec(patch).expect("a patch is JSON").into()
}

fn not_simulated<T>(what: &str) -> G<T> {
    Err(GitError::Invalid(format!("{what} is not simulated")))
}

impl Mirror {
    pub(crate) fn new(nature: Arc<Nature>) -> Self {
        Self { who: Who::Outside, nature, objects: Arc::default() }
    }

    pub(crate) fn of(&self, who: Who) -> Arc<Self> {
        Arc::new(Self { who, ..self.clone() })
    }

    pub(crate) fn described(&self, commit: CommitId) -> Option<CommitDescription> {
        lock(&self.objects).commits.get(&commit).cloned()
    }
}

#[async_trait]
impl Repositories for Mirror {
    async fn resolve(&self, source: &Source, _base: &BaseRef) -> G<BaseCommit> {
        self.nature.step(self.who, "mirror.resolve").await;
        if self.nature.wrong(self.nature.weather.forge / 4) {
            return Err(GitError::Unreachable { url: source.url.clone(), source: "no route".into() });
        }
        Ok(BaseCommit { commit: BASE, tree: BASE_TREE, branch: None, committed_at: Timestamp::UNIX_EPOCH })
    }

    async fn diff(&self, _key: &str, base: CommitId, head: TreeId) -> G<Patch> {
        let known = lock(&self.objects).patches.get(&(self.who, head)).filter(|patch| patch.base == base).cloned();
        known.ok_or_else(|| GitError::NotFound { what: head.to_string() })
    }

    async fn read_files(&self, _key: &str, tree: TreeId, paths: Vec<RepoPath>) -> G<Vec<Option<(FileMode, Bytes)>>> {
        let content =
            if tree == BASE_TREE { Bytes::from_static(b"let a = 1;\n") } else { Bytes::from_static(b"a + 1;\n") };
        Ok(paths.iter().map(|path| (*path == self::path()).then(|| (FileMode::Regular, content.clone()))).collect())
    }

    async fn unbundle(&self, _key: &str, bundle: &Bytes) -> G<Patch> {
        let patch: Patch = serde_json::from_slice(bundle).map_err(|error| GitError::Invalid(error.to_string()))?;
        lock(&self.objects).patches.insert((self.who, patch.head_tree), patch.clone());
        Ok(patch)
    }

    async fn commit(&self, _key: &str, spec: &CommitSpec) -> G<CommitId> {
        self.nature.step(self.who, "mirror.commit").await;
        let commit = CommitId::from_bytes(named(format!("{spec:?}").as_bytes()));
        let description = CommitDescription {
            message: spec.message.clone(),
            author_email: spec.author_email.clone(),
            committer_email: spec.author_email.clone(),
            parents: vec![spec.parent],
        };
        lock(&self.objects).commits.insert(commit, description);
        Ok(commit)
    }

    async fn describe_commit(&self, _source: &Source, commit: CommitId) -> G<Option<CommitDescription>> {
        Ok(self.described(commit))
    }

    async fn checkout(&self, _: &str, _: TreeId, _: &camino::Utf8Path, _: CheckoutKind) -> G<CheckoutReport> {
        not_simulated("a checkout")
    }

    async fn snapshot(&self, _: &str, _: TreeId, _: &camino::Utf8Path) -> G<TreeId> {
        not_simulated("a snapshot")
    }

    async fn diff_text(&self, _: &str, _: TreeId, _: TreeId, _: usize) -> G<String> {
        not_simulated("a diff as text")
    }

    async fn read_file(&self, _: &str, _: TreeId, _: &RepoPath) -> G<Option<(FileMode, Bytes)>> {
        not_simulated("a single file")
    }

    async fn list(&self, _: &str, _: TreeId) -> G<Vec<(RepoPath, FileMode, ObjectId)>> {
        not_simulated("a list of files")
    }

    async fn edit_tree(&self, _: &str, _: TreeId, _: Vec<TreeEdit>) -> G<TreeId> {
        not_simulated("an edited tree")
    }

    async fn bundle(&self, _: &str, _: CommitId, _: TreeId) -> G<Bytes> {
        not_simulated("a bundle")
    }

    async fn publish_local(
        &self,
        _: &str,
        _: &camino::Utf8Path,
        _: &str,
        _: Option<CommitId>,
        _: CommitId,
    ) -> G<Pushed> {
        not_simulated("a local repository")
    }
}
