//! Trees, blobs and commits as bytes.
//!
//! Trees are written here and not by libgit2's builder, because libgit2 touches an object that is there already, and that
//! one may lie in a user's own repository, of which nothing may change.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use fettle_app::ports::git::{CommitDescription, CommitSpec, GitError};
use fettle_domain::object::{CommitId, ObjectId, TreeId};
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use git2::{ObjectType, Odb, Oid, Repository, Signature, Time};

use crate::error::{failed, finding};

/// A tree nested deeper is made to hurt; real ones stay below fifty.
const MAX_TREE_DEPTH: usize = 500;
/// Far above the largest repositories known; a tree that names itself a billion times stops here.
const MAX_TREE_FILES: usize = 3_000_000;

/// From so many paths on, one walk over the whole tree is cheaper than the folders of each.
const WALK_FROM: usize = 8;

const TREE_MODE: i32 = 0o040_000;

pub(crate) fn oid(bytes: &[u8; 20]) -> Oid {
    Oid::from_bytes(bytes).expect("a SHA-1 name has 20 bytes")
}

pub(crate) fn bytes(oid: Oid) -> [u8; 20] {
    oid.as_bytes().try_into().expect("a SHA-1 name has 20 bytes")
}

pub(crate) fn store(repo: &Repository) -> Result<Odb<'_>, GitError> {
    repo.odb().map_err(failed("while opening the object store"))
}

/// One line of a tree, with the mode as it stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeLine {
    pub(crate) mode: i32,
    pub(crate) name: Vec<u8>,
    pub(crate) id: Oid,
}

impl TreeLine {
    pub(crate) fn is_tree(&self) -> bool {
        self.mode == TREE_MODE
    }
}

/// What a path names in a tree. `mode` is as written: old trees have 100664, which a snapshot must give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) mode: i32,
    pub(crate) id: Oid,
}

impl Leaf {
    /// A leaf that takes the place of `before`. Old trees write 100664 for a regular file; one that stays regular keeps that.
    pub(crate) fn replacing(before: Option<&Leaf>, mode: FileMode, id: Oid) -> Self {
        let as_before = before.map(|before| before.mode).filter(|&raw| FileMode::from_git_mode(raw) == Some(mode));
        Self { mode: as_before.unwrap_or(mode.git_mode()), id }
    }

    pub(crate) fn file_mode(self) -> Result<FileMode, GitError> {
        FileMode::from_git_mode(self.mode)
            .ok_or_else(|| GitError::Invalid(format!("a tree has the mode {:o}", self.mode)))
    }
}

/// Reads one tree.
pub(crate) fn read_tree(odb: &Odb<'_>, id: Oid) -> Result<Vec<TreeLine>, GitError> {
    let object = odb.read(id).map_err(finding(format!("the tree {id}")))?;
    if object.kind() != ObjectType::Tree {
        return Err(GitError::NotFound { what: format!("the tree {id}") });
    }
    parse_tree(object.data()).ok_or_else(|| GitError::Invalid(format!("the tree {id} is damaged")))
}

fn parse_tree(mut rest: &[u8]) -> Option<Vec<TreeLine>> {
    let mut lines = Vec::new();
    while !rest.is_empty() {
        let blank = rest.iter().position(|&b| b == b' ')?;
        let mode = i32::from_str_radix(std::str::from_utf8(&rest[..blank]).ok()?, 8).ok()?;
        rest = &rest[blank + 1..];
        let end = rest.iter().position(|&b| b == 0)?;
        let name = rest[..end].to_vec();
        if name.is_empty() || name.contains(&b'/') {
            return None;
        }
        let id = Oid::from_bytes(rest.get(end + 1..end + 21)?).ok()?;
        rest = &rest[end + 21..];
        lines.push(TreeLine { mode, name, id });
    }
    Some(lines)
}

/// A whole tree: its leaves by path, and the trees in it by path (the root's is empty).
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) leaves: BTreeMap<Vec<u8>, Leaf>,
    pub(crate) trees: BTreeMap<Vec<u8>, Oid>,
}

pub(crate) fn list_all(odb: &Odb<'_>, tree: TreeId) -> Result<Listing, GitError> {
    let mut listing = Listing::default();
    descend(odb, oid(tree.as_bytes()), &mut Vec::new(), 0, &mut listing)?;
    Ok(listing)
}

fn descend(odb: &Odb<'_>, id: Oid, prefix: &mut Vec<u8>, depth: usize, into: &mut Listing) -> Result<(), GitError> {
    if depth > MAX_TREE_DEPTH {
        return Err(GitError::Invalid(format!("the tree is nested deeper than {MAX_TREE_DEPTH} folders")));
    }
    into.trees.insert(prefix.clone(), id);
    for line in read_tree(odb, id)? {
        let length = prefix.len();
        if length > 0 {
            prefix.push(b'/');
        }
        prefix.extend_from_slice(&line.name);
        if into.leaves.contains_key(prefix) || into.trees.contains_key(prefix) {
            return Err(GitError::Invalid(format!("the tree names `{}` twice", String::from_utf8_lossy(prefix))));
        }
        if line.is_tree() {
            descend(odb, line.id, prefix, depth + 1, into)?;
        } else {
            into.leaves.insert(prefix.clone(), Leaf { mode: line.mode, id: line.id });
        }
        if into.leaves.len() + into.trees.len() > MAX_TREE_FILES {
            return Err(GitError::Invalid(format!("the tree has more than {MAX_TREE_FILES} entries")));
        }
        prefix.truncate(length);
    }
    Ok(())
}

/// Writes an object unless it is there, in the mirror or in what it borrows from; then nothing is touched.
pub(crate) fn write(odb: &Odb<'_>, kind: ObjectType, data: &[u8]) -> Result<Oid, GitError> {
    let id = Oid::hash_object(kind, data).map_err(failed("while naming an object"))?;
    if !odb.exists(id) {
        odb.write(kind, data).map_err(failed(format!("while writing the {kind} {id}")))?;
    }
    Ok(id)
}

/// Writes the tree that has exactly these leaves.
pub(crate) fn write_tree(odb: &Odb<'_>, leaves: &BTreeMap<Vec<u8>, Leaf>) -> Result<TreeId, GitError> {
    let sorted: Vec<(&[u8], Leaf)> = leaves.iter().map(|(path, leaf)| (path.as_slice(), *leaf)).collect();
    write_level(odb, &sorted).map(|id| TreeId::from_bytes(bytes(id)))
}

/// `leaves` is sorted, and its paths are relative to this level.
fn write_level(odb: &Odb<'_>, leaves: &[(&[u8], Leaf)]) -> Result<Oid, GitError> {
    let mut lines: Vec<TreeLine> = Vec::new();
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let mut at = 0;
    while at < leaves.len() {
        let (path, leaf) = leaves[at];
        let name = path.split(|&b| b == b'/').next().expect("a path has a component");
        if !seen.insert(name) {
            return Err(GitError::Invalid(format!("`{}` would be a file and a folder", String::from_utf8_lossy(name))));
        }
        if name.len() == path.len() {
            lines.push(TreeLine { mode: leaf.mode, name: name.to_vec(), id: leaf.id });
            at += 1;
            continue;
        }
        let inside: Vec<(&[u8], Leaf)> = leaves[at..]
            .iter()
            .take_while(|(other, _)| other.len() > name.len() && other.starts_with(name) && other[name.len()] == b'/')
            .map(|(other, leaf)| (&other[name.len() + 1..], *leaf))
            .collect();
        at += inside.len();
        lines.push(TreeLine { mode: TREE_MODE, name: name.to_vec(), id: write_level(odb, &inside)? });
    }
    // Git orders a folder as if its name ended with a slash.
    lines.sort_by(|a, b| sort_key(a).cmp(sort_key(b)));
    let mut data = Vec::new();
    for line in &lines {
        data.extend_from_slice(format!("{:o} ", line.mode).as_bytes());
        data.extend_from_slice(&line.name);
        data.push(0);
        data.extend_from_slice(line.id.as_bytes());
    }
    write(odb, ObjectType::Tree, &data)
}

fn sort_key(line: &TreeLine) -> impl Iterator<Item = u8> {
    line.name.iter().copied().chain(line.is_tree().then_some(b'/'))
}

/// The entry at `path`, or `None`; a folder is none.
pub(crate) fn find(odb: &Odb<'_>, tree: TreeId, path: &RepoPath) -> Result<Option<Leaf>, GitError> {
    let mut current = oid(tree.as_bytes());
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let Some(line) = read_tree(odb, current)?.into_iter().find(|line| line.name == component) else {
            return Ok(None);
        };
        match (components.peek(), line.is_tree()) {
            (Some(_), true) => current = line.id,
            (None, false) => return Ok(Some(Leaf { mode: line.mode, id: line.id })),
            (Some(_), false) | (None, true) => return Ok(None),
        }
    }
    Ok(None)
}

pub(crate) fn read_blob(odb: &Odb<'_>, id: Oid) -> Result<Bytes, GitError> {
    let object = odb.read(id).map_err(finding(format!("the content {id}")))?;
    if object.kind() != ObjectType::Blob {
        return Err(GitError::NotFound { what: format!("the content {id}") });
    }
    Ok(Bytes::copy_from_slice(object.data()))
}

pub(crate) fn read_file(
    repo: &Repository,
    tree: TreeId,
    path: &RepoPath,
) -> Result<Option<(FileMode, Bytes)>, GitError> {
    let odb = store(repo)?;
    find(&odb, tree, path)?.map(|leaf| read_leaf(&odb, leaf)).transpose()
}

/// As [`read_file`]. Many paths take one walk over the tree: looking for each alone reads its folders anew every time.
pub(crate) fn read_files(
    repo: &Repository,
    tree: TreeId,
    paths: &[RepoPath],
) -> Result<Vec<Option<(FileMode, Bytes)>>, GitError> {
    let odb = store(repo)?;
    if paths.len() < WALK_FROM {
        return paths
            .iter()
            .map(|path| find(&odb, tree, path)?.map(|leaf| read_leaf(&odb, leaf)).transpose())
            .collect();
    }
    let listing = list_all(&odb, tree)?;
    let leaf = |path: &RepoPath| listing.leaves.get(path.as_bytes()).copied();
    paths.iter().map(|path| leaf(path).map(|leaf| read_leaf(&odb, leaf)).transpose()).collect()
}

/// A submodule's content is the name of its commit, as git prints it.
fn read_leaf(odb: &Odb<'_>, leaf: Leaf) -> Result<(FileMode, Bytes), GitError> {
    let mode = leaf.file_mode()?;
    let content = match mode {
        FileMode::Submodule => Bytes::from(leaf.id.to_string()),
        FileMode::Regular | FileMode::Executable | FileMode::Symlink => read_blob(odb, leaf.id)?,
    };
    Ok((mode, content))
}

pub(crate) fn list(repo: &Repository, tree: TreeId) -> Result<Vec<(RepoPath, FileMode, ObjectId)>, GitError> {
    list_all(&store(repo)?, tree)?
        .leaves
        .into_iter()
        .map(|(path, leaf)| Ok((repo_path(&path)?, leaf.file_mode()?, ObjectId::from_bytes(bytes(leaf.id)))))
        .collect()
}

pub(crate) fn repo_path(path: &[u8]) -> Result<RepoPath, GitError> {
    RepoPath::parse(path).map_err(|error| GitError::Invalid(error.to_string()))
}

/// The tree of a commit.
pub(crate) fn tree_of(repo: &Repository, commit: CommitId) -> Result<TreeId, GitError> {
    let found = repo.find_commit(oid(commit.as_bytes())).map_err(finding(format!("the commit {commit}")))?;
    Ok(TreeId::from_bytes(bytes(found.tree_id())))
}

/// Date and zone come from the spec alone, so that the same spec gives the same id.
pub(crate) fn write_commit(repo: &Repository, spec: &CommitSpec) -> Result<CommitId, GitError> {
    let doing = "while writing a commit";
    let parent =
        repo.find_commit(oid(spec.parent.as_bytes())).map_err(finding(format!("the commit {}", spec.parent)))?;
    let tree = repo.find_tree(oid(spec.tree.as_bytes())).map_err(finding(format!("the tree {}", spec.tree)))?;
    let at = Time::new(spec.at.as_second(), 0);
    let who = Signature::new(&spec.author_name, &spec.author_email, &at).map_err(failed(doing))?;
    let buffer = repo.commit_create_buffer(&who, &who, &spec.message, &tree, &[&parent]).map_err(failed(doing))?;
    let id = write(&store(repo)?, ObjectType::Commit, &buffer)?;
    Ok(CommitId::from_bytes(bytes(id)))
}

pub(crate) fn describe(repo: &Repository, commit: CommitId) -> Result<Option<CommitDescription>, GitError> {
    match repo.find_commit(oid(commit.as_bytes())) {
        Ok(found) => Ok(Some(CommitDescription {
            message: String::from_utf8_lossy(found.message_bytes()).into_owned(),
            author_email: String::from_utf8_lossy(found.author().email_bytes()).into_owned(),
            committer_email: String::from_utf8_lossy(found.committer().email_bytes()).into_owned(),
            parents: found.parent_ids().map(|id| CommitId::from_bytes(bytes(id))).collect(),
        })),
        Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
        Err(error) => Err(failed(format!("while reading the commit {commit}"))(error)),
    }
}
