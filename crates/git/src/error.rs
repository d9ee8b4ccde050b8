//! From libgit2's and the file system's errors to the port's.

use fettle_app::ports::git::GitError;

/// Says what was being done when `error` came up.
pub(crate) fn failed<E>(doing: impl Into<String>) -> impl FnOnce(E) -> GitError
where
    E: std::error::Error + Send + Sync + 'static,
{
    let doing = doing.into();
    move |error| GitError::Failed { doing, source: Box::new(error) }
}

/// As [`failed`], but an absent object becomes `NotFound`.
pub(crate) fn finding(what: impl Into<String>) -> impl FnOnce(git2::Error) -> GitError {
    let what = what.into();
    move |error| match error.code() {
        git2::ErrorCode::NotFound => GitError::NotFound { what },
        _ => GitError::Failed { doing: format!("while reading {what}"), source: Box::new(error) },
    }
}
