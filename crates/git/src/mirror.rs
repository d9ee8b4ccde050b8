//! The mirror cache: one bare repository per key, made atomically, fetched into by one process at a time.

use std::fs::TryLockError;
use std::io::ErrorKind;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::GitError;
use git2::{Repository, RepositoryInitOptions};
use tokio::time::Instant;

use crate::error::failed;

/// A fetch by another process may take as long as an operation is allowed to.
const LOCK_WAIT: Duration = Duration::from_secs(30 * 60);
/// How often a lock that somebody else holds is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// Keys are short names; file systems take 255 bytes with our suffixes.
const MAX_KEY_BYTES: usize = 200;

pub(crate) struct Mirrors {
    folder: Utf8PathBuf,
}

/// Held while a mirror is made or fetched into. Objects may be read and written without it: git adds them atomically.
pub(crate) struct MirrorLock {
    _file: fs_err::File,
}

impl Mirrors {
    pub(crate) fn new(folder: Utf8PathBuf) -> Result<Self, GitError> {
        fs_err::create_dir_all(&folder).map_err(failed("while making the mirrors folder"))?;
        Ok(Self { folder })
    }

    fn path(&self, key: &str) -> Result<Utf8PathBuf, GitError> {
        let fits = !key.is_empty()
            && key.len() <= MAX_KEY_BYTES
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if fits {
            Ok(self.folder.join(format!("{key}.git")))
        } else {
            Err(GitError::Invalid(format!("`{}` is not the key of a mirror", key.escape_debug())))
        }
    }

    /// The mirror of `key`, which `resolve` has made before.
    pub(crate) fn open(&self, key: &str) -> Result<Repository, GitError> {
        let path = self.path(key)?;
        if !path.exists() {
            return Err(GitError::NotFound { what: format!("the mirror {key}") });
        }
        Repository::open_bare(&path).map_err(failed(format!("while opening the mirror {key}")))
    }

    /// The mirror of `key`, made when absent.
    pub(crate) fn open_or_make(&self, key: &str) -> Result<Repository, GitError> {
        let path = self.path(key)?;
        if !path.exists() {
            let _lock = self.lock(key)?;
            if !path.exists() {
                self.make(key, &path)?;
            }
        }
        self.open(key)
    }

    /// Under a name of its own first: a crash in the middle leaves no half mirror under the real one.
    fn make(&self, key: &str, path: &Utf8Path) -> Result<(), GitError> {
        let doing = format!("while making the mirror {key}");
        let unfinished = self.folder.join(format!("{key}.new"));
        match fs_err::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(doing)(error)),
            _ => {}
        }
        let mut options = RepositoryInitOptions::new();
        options.bare(true).external_template(false).no_reinit(true).initial_head("refs/heads/none");
        Repository::init_opts(&unfinished, &options).map_err(failed(doing.clone()))?;
        fs_err::rename(&unfinished, path).map_err(failed(doing))
    }

    pub(crate) fn lock(&self, key: &str) -> Result<MirrorLock, GitError> {
        let doing = format!("while locking the mirror {key}");
        self.path(key)?;
        let path = self.folder.join(format!("{key}.lock"));
        let file = fs_err::OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed(doing.clone()))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match file.file().try_lock() {
                Ok(()) => return Ok(MirrorLock { _file: file }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
                Err(error @ (TryLockError::WouldBlock | TryLockError::Error(_))) => return Err(failed(doing)(error)),
            }
        }
    }

    /// Lets the mirror of `key` read the objects in `objects`, a local repository's store, without copying them.
    pub(crate) fn borrow_objects(&self, key: &str, objects: &Utf8Path) -> Result<Repository, GitError> {
        let doing = format!("while joining the mirror {key} to the local repository");
        if objects.as_str().contains(['\n', '"', '#']) {
            return Err(GitError::Invalid(format!(
                "the path {objects} has a character that git's alternates cannot hold"
            )));
        }
        self.open_or_make(key)?;
        let alternates = self.path(key)?.join("objects/info/alternates");
        let line = format!("{objects}\n");
        if !fs_err::read_to_string(&alternates).is_ok_and(|found| found == line) {
            let _lock = self.lock(key)?;
            let unfinished = alternates.with_extension("new");
            fs_err::create_dir_all(alternates.parent().expect("the file stands in a folder"))
                .and_then(|()| fs_err::write(&unfinished, &line))
                .and_then(|()| fs_err::rename(&unfinished, &alternates))
                .map_err(failed(doing))?;
        }
        self.open(key)
    }
}
