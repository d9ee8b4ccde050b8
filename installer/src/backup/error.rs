//! Why a backup or a restoration ends.

use camino::{Utf8Path, Utf8PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The archive, or what it was made of, is not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// It is not done as asked, and what to ask instead.
    #[error("{0}")]
    Refused(String),
    #[error("{what} {path}")]
    Path {
        what: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

pub(super) type BackupResult<T> = Result<T, BackupError>;

/// Names the path in the error of what was done with it.
pub(super) fn at<'a>(what: &'static str, path: &'a Utf8Path) -> impl Fn(std::io::Error) -> BackupError + 'a {
    move |source| BackupError::Path { what, path: path.to_owned(), source }
}
