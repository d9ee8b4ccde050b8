//! The parts of a process that live as long as it does: each has an owner, and none can end unnoticed.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::error;

/// A part ended although nobody had asked the process to stop; the log tells of a panic before it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0} ended unexpectedly, so the whole process stopped; start it again, and look in the log above for the cause"
)]
pub struct Fallen(&'static str);

/// Owns the parts of one process. When one of them panics or returns early, the others are told to stop and the process
/// ends with failure: half of a program that answers `/healthz` is worse than none, and whoever started it starts it again.
#[derive(Debug, Clone, Default)]
pub struct Supervisor {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    fallen: Arc<OnceLock<&'static str>>,
}

impl Supervisor {
    /// Cancelled when the process shall stop.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// For tasks that come and go, such as connections.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Starts a part, which must go on until the shutdown.
    pub fn spawn(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let notice = Notice { name, supervisor: self.clone() };
        self.tasks.spawn(async move {
            let _at_its_end = notice;
            part.await;
        });
    }

    /// Held by whoever starts the parts: one that fails to start the next has said why, and those that end with it need not be told
    /// of as fallen.
    #[must_use]
    pub fn while_held(&self) -> DropGuard {
        self.shutdown.clone().drop_guard()
    }

    /// Waits until every part has ended after the shutdown.
    ///
    /// Errors when it was a part that brought the shutdown about.
    pub async fn ended(&self) -> Result<(), Fallen> {
        self.tasks.close();
        self.tasks.wait().await;
        self.fallen.get().map_or(Ok(()), |name| Err(Fallen(name)))
    }
}

/// Dropped when its part ends, by returning or by a panic.
struct Notice {
    name: &'static str,
    supervisor: Supervisor,
}

impl Drop for Notice {
    fn drop(&mut self) {
        if !self.supervisor.shutdown.is_cancelled() {
            error!("{} ended unexpectedly; the process stops", self.name);
            self.supervisor.fallen.get_or_init(|| self.name);
            self.supervisor.shutdown.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_ends_the_others_and_is_named() {
        let supervisor = Supervisor::default();
        let stop = supervisor.shutdown().clone();
        supervisor.spawn("the publisher", async move { stop.cancelled().await });
        supervisor.spawn("intake", async { panic!("a bug") });
        supervisor.shutdown().cancelled().await;
        assert!(supervisor.ended().await.unwrap_err().to_string().starts_with("intake ended unexpectedly"));
    }

    #[tokio::test]
    async fn parts_that_end_when_they_are_told_to_end_well() {
        let supervisor = Supervisor::default();
        let stop = supervisor.shutdown().clone();
        supervisor.spawn("the publisher", async move { stop.cancelled().await });
        supervisor.shutdown().cancel();
        assert!(supervisor.ended().await.is_ok());
    }
}
