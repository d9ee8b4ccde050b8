//! Folders of prepared dependencies on disk. One is made by one process at a time; it counts once its mark is written.
//!
//! A folder is filled where it stays, because virtual environments hold absolute paths. What a crash left behind has no mark and
//! is removed by whoever claims the name next; the lock of a dead process is released by the kernel.

use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::PrepareError;
use crate::removal::remove;

/// Longer than one installation may take.
const LOCK_WAIT: Duration = Duration::from_secs(35 * 60);
/// How often a held lock is looked at again.
const LOCK_POLL: Duration = Duration::from_millis(100);

pub(super) enum Claim {
    Ready(Utf8PathBuf),
    Mine(Claimed),
}

/// An empty folder that nobody else fills meanwhile.
pub(super) struct Claimed {
    folder: Utf8PathBuf,
    mark: Utf8PathBuf,
    /// Held until drop.
    _lock: fs_err::File,
}

impl Claimed {
    pub(super) fn folder(&self) -> &Utf8Path {
        &self.folder
    }

    /// Marks the folder as whole.
    pub(super) async fn complete(self) -> Result<Utf8PathBuf, PrepareError> {
        let partial = self.mark.with_extension("partial");
        fs_err::tokio::write(&partial, b"").await.map_err(PrepareError::Cache)?;
        fs_err::tokio::rename(&partial, &self.mark).await.map_err(PrepareError::Cache)?;
        Ok(self.folder)
    }
}

/// Finds the whole folder `name`, or claims it, waiting while another fills it.
pub(super) async fn claim(cache: &Utf8Path, name: &str, cancel: &CancellationToken) -> Result<Claim, PrepareError> {
    let folder = cache.join(name);
    let mark = cache.join(format!("{name}.complete"));
    if mark.exists() && folder.exists() {
        return Ok(Claim::Ready(folder));
    }
    fs_err::tokio::create_dir_all(cache).await.map_err(PrepareError::Cache)?;
    let lock = lock(&cache.join(format!("{name}.lock")), cancel).await?;
    if mark.exists() && folder.exists() {
        return Ok(Claim::Ready(folder));
    }
    remove_if_there(fs_err::tokio::remove_file(&mark).await)?;
    remove(folder.clone()).await.map_err(PrepareError::Cache)?;
    fs_err::tokio::create_dir(&folder).await.map_err(PrepareError::Cache)?;
    Ok(Claim::Mine(Claimed { folder, mark, _lock: lock }))
}

async fn lock(path: &Utf8Path, cancel: &CancellationToken) -> Result<fs_err::File, PrepareError> {
    let file = fs_err::OpenOptions::new().create(true).append(true).open(path).map_err(PrepareError::Cache)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.file().try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::Error(error)) => return Err(PrepareError::Cache(error)),
            Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(PrepareError::TooSlow {
                    what: format!("waiting for {path}"),
                    seconds: LOCK_WAIT.as_secs(),
                });
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                tokio::select! {
                    () = cancel.cancelled() => return Err(PrepareError::Cancelled),
                    () = tokio::time::sleep(LOCK_POLL) => {}
                }
            }
        }
    }
}

fn remove_if_there(result: io::Result<()>) -> Result<(), PrepareError> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PrepareError::Cache(error)),
        _ => Ok(()),
    }
}

/// Copies files, folders and symbolic links as they are. An existing target is left alone.
pub(super) fn copy_tree(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    if to.exists() {
        return Ok(());
    }
    fs_err::create_dir_all(to)?;
    for entry in from.read_dir_utf8()? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(entry.path(), &target)?;
        } else if kind.is_symlink() {
            fs_err::os::unix::fs::symlink(fs_err::read_link(entry.path())?, &target)?;
        } else if kind.is_file() {
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn what_a_crash_left_is_removed_and_only_a_marked_folder_is_reused() {
        let (_guard, cache) = home();
        let cancel = CancellationToken::new();
        let Claim::Mine(first) = claim(&cache, "x", &cancel).await.unwrap() else { panic!("nothing is there yet") };
        fs_err::write(first.folder().join("half"), "…").unwrap();
        drop(first);
        let Claim::Mine(second) = claim(&cache, "x", &cancel).await.unwrap() else { panic!("it has no mark") };
        assert!(!second.folder().join("half").exists());
        fs_err::write(second.folder().join("whole"), "…").unwrap();
        second.complete().await.unwrap();
        let Claim::Ready(folder) = claim(&cache, "x", &cancel).await.unwrap() else { panic!("it has a mark") };
        assert!(folder.join("whole").exists());
    }

    #[tokio::test]
    async fn a_second_claim_waits_and_finds_the_work_done() {
        let (_guard, cache) = home();
        let cancel = CancellationToken::new();
        let Claim::Mine(first) = claim(&cache, "x", &cancel).await.unwrap() else { panic!("nothing is there yet") };
        let (second, done) = tokio::join!(claim(&cache, "x", &cancel), first.complete());
        done.unwrap();
        assert!(matches!(second.unwrap(), Claim::Ready(_)));
    }

    #[tokio::test]
    async fn waiting_for_a_claim_can_be_cancelled() {
        let (_guard, cache) = home();
        let cancel = CancellationToken::new();
        let _first = claim(&cache, "x", &cancel).await.unwrap();
        cancel.cancel();
        assert!(matches!(claim(&cache, "x", &cancel).await, Err(PrepareError::Cancelled)));
    }
}
