//! Where libgit2 may block: two lanes of threads, so that slow servers never keep local work waiting.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::git::GitError;
use tokio::sync::Semaphore;

/// Checkouts and snapshots use threads of their own inside; more at once would only fight for the disk.
const DISK_PERMITS: usize = 4;
/// Waiting for servers costs little, but each fetch may hold a pack window.
const NETWORK_PERMITS: usize = 8;
/// Longer than any one piece of disk work; a queue that stands longer is a fault that the caller must hear of.
const PERMIT_WAIT: Duration = Duration::from_secs(15 * 60);

#[derive(Clone)]
pub(crate) struct Lanes {
    disk: Arc<Semaphore>,
    network: Arc<Semaphore>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self { disk: Arc::new(Semaphore::new(DISK_PERMITS)), network: Arc::new(Semaphore::new(NETWORK_PERMITS)) }
    }

    pub(crate) async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GitError> {
        run(&self.disk, work).await
    }

    pub(crate) async fn network<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GitError> {
        run(&self.network, work).await
    }
}

async fn run<T: Send + 'static>(
    lane: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GitError> {
    let permit = tokio::time::timeout(PERMIT_WAIT, Arc::clone(lane).acquire_owned())
        .await
        .map_err(|elapsed| GitError::Failed { doing: "waiting for a free thread".into(), source: elapsed.into() })?
        .expect("the lanes are never closed");
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    })
    .await
    .map_err(|panic| GitError::Failed { doing: "in a blocking thread".into(), source: panic.into() })
}
