//! The task behind a handle: it ends with the handle.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Dropped, it asks its task to end and does not wait.
pub(crate) struct Task {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Task {
    /// Begins what `make` gives, which ends soon after its token is cancelled. Panics outside of a Tokio runtime.
    pub(crate) fn start<F>(make: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(make(stop.clone()));
        tasks.close();
        Self { stop, tasks }
    }

    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
