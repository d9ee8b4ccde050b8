//! One run at a time on a host.

use std::os::fd::OwnedFd;

use camino::Utf8Path;
use rustix::fs::{FlockOperation, Mode, OFlags};

/// Held until dropped, also by a process that is killed.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock is the open file")] OwnedFd);

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another run of the installer is at work on this host; wait for it, `fettle-installer status` shows it")]
    Held,
    #[error("could not lock {0}")]
    Io(camino::Utf8PathBuf, #[source] std::io::Error),
}

/// Takes the lock in the installer's own folder, which exists.
pub fn take(home: &Utf8Path) -> Result<Lock, LockError> {
    let path = home.join("lock");
    let failed = |error: rustix::io::Errno| LockError::Io(path.clone(), error.into());
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path.as_std_path(), flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LockError::Held),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_is_told_of_the_first_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let home = Utf8Path::from_path(folder.path()).unwrap();
        let first = take(home).unwrap();
        assert!(matches!(take(home), Err(LockError::Held)));
        drop(first);
        assert!(take(home).is_ok());
    }
}
