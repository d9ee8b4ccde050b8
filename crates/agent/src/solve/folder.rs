//! The folder of one Run: made when it begins, gone when it ends, however it ends.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::id::RunId;
use tracing::warn;

use crate::removal::{remove, remove_now};

/// Removed on drop: after success, failure, cancellation and panic alike.
pub(crate) struct RunFolder {
    path: Utf8PathBuf,
    keep: bool,
}

impl RunFolder {
    /// An empty folder; what a killed process left under the same name is removed first.
    ///
    /// With `keep` it stays after all, for a person who wants to look.
    pub(crate) async fn make(scratch: &Utf8Path, run: RunId, keep: bool) -> io::Result<Self> {
        let path = scratch.join(run.to_string());
        remove(path.clone()).await?;
        fs_err::tokio::create_dir_all(&path).await?;
        Ok(Self { path, keep })
    }

    pub(crate) fn join(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Blocking, but bounded by the workspace limit, and the one way that also holds while a future is dropped.
        if let Err(error) = remove_now(&self.path) {
            warn!("could not remove {}: {error}; it is removed at the next start", self.path);
        }
    }
}

/// Removes folders of Runs that a killed process left in `scratch`. Called before any Run begins.
pub async fn clear_leftovers(scratch: &Utf8Path) -> io::Result<()> {
    remove(scratch.to_owned()).await?;
    fs_err::tokio::create_dir_all(scratch).await
}
