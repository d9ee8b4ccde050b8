//! A repository of the user's on this machine: read through its object store, and written to in one place, a branch.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::git::{BaseCommit, BaseRef, GitError, Pushed};
use fettle_domain::object::CommitId;
use git2::{ErrorCode, ObjectType, Odb, Oid, Reference, Repository};

use crate::error::{failed, finding};
use crate::mirror::Mirrors;
use crate::objects::{self, bytes, oid};
use crate::remote::base_commit;

/// What a reflog of the user's shows beside the branch's new place.
const REFLOG_MESSAGE: &str = "fettle: publish";

/// Names are looked up as `git rev-parse` does in that repository; then the mirror borrows its objects.
pub(crate) fn resolve(mirrors: &Mirrors, key: &str, path: &Utf8Path, base: &BaseRef) -> Result<BaseCommit, GitError> {
    let user = open(path)?;
    let (id, branch) = match base {
        BaseRef::Commit(commit) => (commit_at(&user, &commit.to_string(), path)?, None),
        BaseRef::Default => head(&user, path)?,
        BaseRef::Named(name) => named(&user, name, path)?,
    };
    let objects = common_folder(&user)?.join("objects");
    let mirror = mirrors.borrow_objects(key, &objects)?;
    base_commit(&mirror, id, branch)
}

fn open(path: &Utf8Path) -> Result<Repository, GitError> {
    Repository::discover(path).map_err(|error| match error.code() {
        ErrorCode::NotFound => GitError::NotFound { what: format!("a git repository at {path}") },
        ErrorCode::Owner => {
            GitError::Invalid(format!("the repository at {path} belongs to another user of this machine"))
        }
        _ => failed(format!("while opening the repository at {path}"))(error),
    })
}

fn common_folder(repo: &Repository) -> Result<Utf8PathBuf, GitError> {
    let folder = fs_err::canonicalize(repo.commondir()).map_err(failed("while finding the repository's folder"))?;
    Utf8PathBuf::from_path_buf(folder)
        .map_err(|path| GitError::Invalid(format!("the path {} is not UTF-8", path.display())))
}

fn head(user: &Repository, path: &Utf8Path) -> Result<(Oid, Option<String>), GitError> {
    let head = user.head().map_err(|error| match error.code() {
        ErrorCode::UnbornBranch | ErrorCode::NotFound => {
            GitError::Invalid(format!("the repository at {path} has no commit yet; commit something first"))
        }
        _ => failed(format!("while reading HEAD of {path}"))(error),
    })?;
    let branch = short_branch(&head);
    let commit = head.peel_to_commit().map_err(finding(format!("the commit at HEAD of {path}")))?;
    Ok((commit.id(), branch))
}

fn named(user: &Repository, name: &str, path: &Utf8Path) -> Result<(Oid, Option<String>), GitError> {
    let what = || format!("`{name}` in the repository at {path}");
    let (object, reference) = user.revparse_ext(name).map_err(|error| match error.code() {
        ErrorCode::InvalidSpec | ErrorCode::Ambiguous => GitError::Invalid(format!("`{name}` names no single commit")),
        _ => finding(what())(error),
    })?;
    let commit = object.peel(ObjectType::Commit).map_err(|_| GitError::NotFound { what: what() })?;
    Ok((commit.id(), reference.as_ref().and_then(short_branch)))
}

fn commit_at(user: &Repository, name: &str, path: &Utf8Path) -> Result<Oid, GitError> {
    named(user, name, path).map(|(id, _)| id)
}

/// `HEAD` counts as the branch it stands for.
fn short_branch(reference: &Reference<'_>) -> Option<String> {
    let resolved = reference.resolve().ok()?;
    resolved.name().ok()?.strip_prefix("refs/heads/").map(str::to_owned)
}

/// Whether git takes `branch` as the name of a branch, without `refs/heads/`.
pub fn is_branch_name(branch: &str) -> bool {
    Reference::is_valid_name(&format!("refs/heads/{branch}")) && branch != "HEAD" && !branch.starts_with('-')
}

/// Copies what is missing, then swaps the branch. Index, `HEAD` and working tree are not even opened.
pub(crate) fn publish(
    mirror: &Repository,
    path: &Utf8Path,
    branch: &str,
    expected: Option<CommitId>,
    commit: CommitId,
) -> Result<Pushed, GitError> {
    let user = open(path)?;
    let full_ref = format!("refs/heads/{branch}");
    if !is_branch_name(branch) {
        return Err(GitError::Invalid(format!("`{}` is not the name of a branch", branch.escape_debug())));
    }
    let new = oid(commit.as_bytes());
    let expected = expected.map(|commit| oid(commit.as_bytes()));
    let current = tip(&user, &full_ref)?;
    if current == Some(new) {
        return Ok(Pushed::AlreadyThere);
    }
    if current != expected {
        return Ok(conflict(current));
    }
    if let Some(holder) = checked_out_in(&user, &full_ref)? {
        return Err(GitError::Invalid(format!("the branch {branch} is checked out in {holder}; nothing was changed")));
    }
    copy_missing(&objects::store(mirror)?, &objects::store(&user)?, new)?;
    let swapped = match expected {
        Some(old) => user.reference_matching(&full_ref, new, true, old, REFLOG_MESSAGE),
        None => user.reference(&full_ref, new, false, REFLOG_MESSAGE),
    };
    match swapped {
        Ok(_) => Ok(Pushed::Moved),
        Err(error) if matches!(error.code(), ErrorCode::Modified | ErrorCode::Exists | ErrorCode::NotFound) => {
            match tip(&user, &full_ref)? {
                found if found != expected => Ok(conflict(found)),
                _ => Err(failed(format!("while moving the branch {branch}"))(error)),
            }
        }
        Err(error) => Err(failed(format!("while moving the branch {branch}"))(error)),
    }
}

fn conflict(found: Option<Oid>) -> Pushed {
    Pushed::Conflict { found: found.map(|id| CommitId::from_bytes(bytes(id))) }
}

fn tip(user: &Repository, full_ref: &str) -> Result<Option<Oid>, GitError> {
    match user.find_reference(full_ref) {
        Ok(reference) => match reference.target() {
            Some(id) => Ok(Some(id)),
            None => Err(GitError::Invalid(format!("{full_ref} is a symbolic reference"))),
        },
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(failed(format!("while reading {full_ref}"))(error)),
    }
}

/// The folder whose working tree, or whose rebase or bisect, is on the branch.
fn checked_out_in(user: &Repository, full_ref: &str) -> Result<Option<Utf8PathBuf>, GitError> {
    let common = common_folder(user)?;
    let mut folders = Vec::new();
    // A bare repository's HEAD names its default branch, which nobody has checked out there.
    let bare = Repository::open(&common).map_or(user.is_bare(), |main| main.is_bare());
    if !bare {
        folders.push(common.clone());
    }
    if let Ok(entries) = common.join("worktrees").read_dir_utf8() {
        for entry in entries {
            folders.push(entry.map_err(failed("while listing the worktrees"))?.into_path());
        }
    }
    let short = full_ref.trim_start_matches("refs/heads/");
    let holds = |folder: &Utf8Path| {
        let line = |name: &str| fs_err::read_to_string(folder.join(name)).unwrap_or_default().trim().to_owned();
        line("HEAD") == format!("ref: {full_ref}")
            || line("rebase-merge/head-name") == full_ref
            || line("rebase-apply/head-name") == full_ref
            || line("BISECT_START") == short
    };
    Ok(folders.into_iter().find(|folder| holds(folder)))
}

/// Children before parents, so that a crash leaves nothing that points into the void. What the user has is not touched.
fn copy_missing(from: &Odb<'_>, into: &Odb<'_>, commit: Oid) -> Result<(), GitError> {
    let mut pending = vec![(commit, false)];
    while let Some((id, children_are_there)) = pending.pop() {
        if into.exists(id) {
            continue;
        }
        let object = from.read(id).map_err(finding(format!("the object {id}")))?;
        if children_are_there || object.kind() == ObjectType::Blob {
            into.write(object.kind(), object.data()).map_err(failed(format!("while copying {id}")))?;
            continue;
        }
        pending.push((id, true));
        match object.kind() {
            ObjectType::Tree => {
                const SUBMODULE: i32 = 0o160_000;
                let lines = objects::read_tree(from, id)?;
                pending.extend(lines.iter().filter(|line| line.mode != SUBMODULE).map(|line| (line.id, false)));
            }
            _ => pending.extend(commit_links(object.data()).into_iter().map(|link| (link, false))),
        }
    }
    Ok(())
}

/// The tree and the parents in a commit's header.
fn commit_links(data: &[u8]) -> Vec<Oid> {
    String::from_utf8_lossy(data)
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("tree ").or_else(|| line.strip_prefix("parent ")))
        .filter_map(|name| Oid::from_str(name).ok())
        .collect()
}
