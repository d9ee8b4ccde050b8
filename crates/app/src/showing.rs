//! A Run's change as people read it: rebuilt from the bundle in this process's own mirror, as the publisher does it. Writes
//! nothing to the forge.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_domain::run::ProvenChange;

use crate::ports::forge::{Forge, ForgeError};
use crate::ports::git::{BaseRef, GitError, Repositories, Source};
use crate::ports::ledger::{Ledger, LedgerError, TaskView};

/// What a browser still shows; patches that may be published stay far below.
pub const MAX_DIFF_BYTES: usize = 2 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the forge gave no access to the base")]
    Forge(#[from] ForgeError),
    #[error("the change could not be rebuilt")]
    Git(#[from] GitError),
    #[error("the Task has no repository")]
    NoRepository,
}

#[async_trait]
pub trait ShowChange: Send + Sync {
    /// As `git diff` prints it, cut at [`MAX_DIFF_BYTES`]. Fetches the base when the mirror lacks it.
    async fn diff(&self, task: &TaskView, change: &ProvenChange) -> Result<String, ShowError>;
}

pub struct Showing {
    pub ledger: Arc<dyn Ledger>,
    pub forge: Arc<dyn Forge>,
    pub repositories: Arc<dyn Repositories>,
}

#[async_trait]
impl ShowChange for Showing {
    async fn diff(&self, task: &TaskView, change: &ProvenChange) -> Result<String, ShowError> {
        let repo = task.repo.as_ref().ok_or(ShowError::NoRepository)?;
        let source = Source {
            key: format!("forge-{}", repo.forge_id),
            url: repo.clone_url.clone(),
            token: self.forge.read_token(repo).await?,
        };
        self.repositories.resolve(&source, &BaseRef::Commit(change.proof.base)).await?;
        let bundle = self.ledger.blob(change.bundle).await?;
        let patch = self.repositories.unbundle(&source.key, &bundle).await?;
        Ok(self.repositories.diff_text(&source.key, patch.base_tree, patch.head_tree, MAX_DIFF_BYTES).await?)
    }
}
