//! From a Run's result to a commit that may be pushed: rebuilt here, from the base and the patch's own bytes.

use std::collections::BTreeSet;

use fettle_domain::branch::BranchName;
use fettle_domain::object::CommitId;
use fettle_domain::patch::{FileMode, Patch};
use fettle_domain::path::RepoPath;
use fettle_domain::path_policy::PathPolicy;
use fettle_domain::proof::Proof;
use fettle_domain::proposal::{Proposal, Verdict, validate};
use fettle_domain::repo::Repo;
use fettle_domain::run::ProvenChange;
use fettle_domain::secret::KnownSecrets;

use super::texts::{self, Identity};
use super::{Halt, PublishOptions, Publisher};
use crate::ports::git::{BaseRef, CommitSpec, GitError, Repositories, Source};
use crate::ports::ledger::Publication;

/// A commit in our mirror with the verdict on everything that would go out with it.
pub(super) struct Prepared {
    pub(super) source: Source,
    pub(super) commit: CommitId,
    pub(super) verdict: Verdict,
}

impl Publisher {
    /// Rebuilds tree and commit and judges them. Fetches the base when the mirror lacks it; writes nothing to the forge.
    pub(super) async fn prepare(
        &self,
        publication: &Publication,
        repo: &Repo,
        change: &ProvenChange,
        options: &PublishOptions,
    ) -> Result<Prepared, Halt> {
        let source = self.source(repo).await?;
        self.repositories.resolve(&source, &BaseRef::Commit(change.proof.base)).await?;
        let bundle = self.ledger.blob(change.bundle).await?;
        let patch = self.repositories.unbundle(&source.key, &bundle).await?;
        // The worker's own account of the diff is not used: this one is computed from the rebuilt tree.
        let patch = self.repositories.diff(&source.key, patch.base, patch.head_tree).await?;
        let texts = texts::pull_request(publication, change);
        let message = texts::commit_message(publication, change);
        let spec = CommitSpec {
            parent: patch.base,
            tree: patch.head_tree,
            message: message.clone(),
            author_name: Identity::NAME.into(),
            author_email: Identity::EMAIL.into(),
            at: publication.task.created_at,
        };
        let commit = self.repositories.commit(&source.key, &spec).await?;
        let reasons: Vec<String> = change.proof.reasons.iter().map(|reason| reason.text.clone()).collect();
        let reasons = texts::why_a_draft(&reasons, change.proof.level);
        let outgoing = Outgoing {
            key: &source.key,
            patch: &patch,
            proof: &change.proof,
            branch: &publication.branch,
            texts: &[
                ("title", &texts.title),
                ("body", &texts.body),
                ("reasons", &reasons),
                ("commit message", &message),
            ],
        };
        let verdict = judge(&*self.repositories, outgoing, &options.paths, &options.secrets).await?;
        Ok(Prepared { source, commit, verdict })
    }

    /// Where the publisher's mirror reads the repository: with read access only.
    async fn source(&self, repo: &Repo) -> Result<Source, Halt> {
        Ok(Source {
            key: format!("forge-{}", repo.forge_id),
            url: repo.clone_url.clone(),
            token: self.forge.read_token(repo).await?,
        })
    }
}

/// A change with everything that would leave together with it.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    pub key: &'a str,
    /// As computed from the rebuilt tree.
    pub patch: &'a Patch,
    pub proof: &'a Proof,
    pub branch: &'a BranchName,
    pub texts: &'a [(&'a str, &'a str)],
}

/// The verdict on a change, from the objects in the mirror.
pub async fn judge(
    repositories: &dyn Repositories,
    outgoing: Outgoing<'_>,
    paths: &PathPolicy,
    secrets: &KnownSecrets,
) -> Result<Verdict, GitError> {
    let added = added(repositories, outgoing.key, outgoing.patch).await?;
    let proposal = Proposal {
        patch: outgoing.patch,
        proof: outgoing.proof,
        commit_parent: outgoing.patch.base,
        commit_tree: outgoing.patch.head_tree,
        branch: outgoing.branch,
        texts: outgoing.texts,
        added: &added,
    };
    Ok(validate(&proposal, paths, secrets))
}

/// The added lines of each changed text file, and the target of each new symlink.
async fn added(
    repositories: &dyn Repositories,
    key: &str,
    patch: &Patch,
) -> Result<Vec<(RepoPath, FileMode, Vec<u8>)>, GitError> {
    let paths: Vec<RepoPath> = patch.changes.iter().map(|change| change.path.clone()).collect();
    let heads = repositories.read_files(key, patch.head_tree, paths.clone()).await?;
    let bases = repositories.read_files(key, patch.base_tree, paths).await?;
    let mut added = Vec::new();
    for ((change, head), base) in patch.changes.iter().zip(heads).zip(bases) {
        let Some((mode, head)) = head.filter(|_| change.after.is_some()) else { continue };
        let before = base.filter(|_| change.before.is_some() && mode != FileMode::Symlink);
        let content = match before {
            Some((_, base)) => lines_not_in(&head, &base),
            None => head.to_vec(),
        };
        added.push((change.path.clone(), mode, content));
    }
    Ok(added)
}

/// The lines of `head` that do not stand anywhere in `base`, in order: what a patch brings in. A moved line is not new.
fn lines_not_in(head: &[u8], base: &[u8]) -> Vec<u8> {
    let known: BTreeSet<&[u8]> = base.split(|b| *b == b'\n').collect();
    let new: Vec<&[u8]> = head.split(|b| *b == b'\n').filter(|line| !known.contains(line)).collect();
    new.join(&b'\n')
}
