//! The journal of a Run without a ledger: in memory, for `fettle fix`, whose Run ends with its process.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::journal::{Journal, Stop};
use fettle_domain::object::BlobId;
use fettle_domain::step::StepRecord;
use tokio_util::sync::CancellationToken;

pub(crate) struct MemoryJournal {
    blobs: Mutex<BTreeMap<BlobId, Bytes>>,
    cancel: CancellationToken,
}

impl MemoryJournal {
    /// `cancel` is the person's own wish to stop.
    pub(crate) fn new(cancel: CancellationToken) -> Self {
        Self { blobs: Mutex::default(), cancel }
    }
}

#[async_trait]
impl Journal for MemoryJournal {
    async fn record(&self, _step: &StepRecord) -> Result<(), Stop> {
        self.ended().map_or(Ok(()), Err)
    }

    async fn put_blob(&self, content: Bytes) -> Result<BlobId, Stop> {
        let id = BlobId::of(&content);
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(id, content);
        Ok(id)
    }

    async fn blob(&self, id: BlobId) -> Result<Bytes, Stop> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.get(&id).cloned().ok_or_else(|| Stop::Refused(format!("there is no blob {id}")))
    }

    fn take_messages(&self) -> Vec<String> {
        Vec::new()
    }

    fn ended(&self) -> Option<Stop> {
        self.cancel.is_cancelled().then(|| Stop::Cancelled("interrupted".into()))
    }
}
