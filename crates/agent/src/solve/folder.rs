//! The folder of one Run: made when it begins, gone when it ends, however it ends.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_domain::id::RunId;
use tracing::warn;

/// Removed on drop: after success, failure, cancellation and panic alike.
pub(crate) struct RunFolder {
    path: Utf8PathBuf,
    keep: bool,
}

impl RunFolder {
    /// An empty folder; what a killed process left under the same name is removed first.
    ///
    /// With `keep` it stays after all, for a person who wants to look.
    pub(crate) async fn make(scratch: &Utf8Path, run: RunId, keep: bool) -> std::io::Result<Self> {
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
pub async fn clear_leftovers(scratch: &Utf8Path) -> std::io::Result<()> {
    remove(scratch.to_owned()).await?;
    fs_err::tokio::create_dir_all(scratch).await
}

async fn remove(path: Utf8PathBuf) -> std::io::Result<()> {
    tokio::task::spawn_blocking(move || remove_now(&path)).await.map_err(std::io::Error::other)?
}

fn remove_now(path: &Utf8Path) -> std::io::Result<()> {
    match fs_err::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // A build may have made folders that even their owner cannot write to.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            make_writable(path);
            fs_err::remove_dir_all(path)
        }
        other => other,
    }
}

fn make_writable(folder: &Utf8Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let _ = fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o700));
    let Ok(entries) = fs_err::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if let (true, Ok(path)) = (is_folder, Utf8PathBuf::from_path_buf(entry.path())) {
            make_writable(&path);
        }
    }
}
