//! The Run's side of the step journal: written before a result is used, read once after leasing.

use async_trait::async_trait;
use bytes::Bytes;
use fettle_domain::object::BlobId;
use fettle_domain::step::StepRecord;

/// Why a Run must stop where it is and write nothing more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The lease has gone to another holder, or could not be renewed in time.
    #[error("the lease was lost")]
    Lost,
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// The process ends; the job is released and goes on elsewhere.
    #[error("the worker is shutting down")]
    Shutdown,
    /// The journal itself refuses: a bug or a damaged ledger.
    #[error("the journal refused: {0}")]
    Refused(String),
}

#[async_trait]
pub trait Journal: Send + Sync {
    /// Durable when it returns.
    async fn record(&self, step: &StepRecord) -> Result<(), Stop>;
    async fn put_blob(&self, content: Bytes) -> Result<BlobId, Stop>;
    async fn blob(&self, id: BlobId) -> Result<Bytes, Stop>;
    /// Messages from permitted persons since the last call; each is given once.
    fn take_messages(&self) -> Vec<String>;
    /// Why the Run must stop, once it must.
    fn ended(&self) -> Option<Stop>;
}
