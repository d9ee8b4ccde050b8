//! Differences between trees: counted, printed, carried elsewhere, and put together again.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fettle_app::ports::git::{GitError, PatchBundle, TreeEdit};
use fettle_domain::object::{CommitId, ObjectId, TreeId};
use fettle_domain::patch::{Change, Entry, FileMode, Patch};
use fettle_domain::path::RepoPath;
use git2::{DiffFormat, DiffOptions, ErrorCode, ObjectType, Odb, Oid, Repository};
use serde::{Deserialize, Serialize};

use crate::error::{failed, finding};
use crate::names;
use crate::objects::{self, Leaf, TreeLine, bytes, oid, store};

/// Larger contents count as binary: nobody reads their lines, and comparing them takes long.
const MAX_COMPARED_BYTES: usize = 32 << 20;
/// Git looks for a NUL in as much to call a content binary.
const BINARY_PROBE_BYTES: usize = 8_000;
/// A bundle crosses the worker API in one body; changes of this size are not reviewed by anybody.
const MAX_BUNDLE_BYTES: usize = 64 << 20;
/// Trees nested deeper were made to hurt.
const MAX_DEPTH: usize = 500;

pub(crate) fn diff(repo: &Repository, base: CommitId, head: TreeId) -> Result<Patch, GitError> {
    let base_tree = objects::tree_of(repo, base)?;
    Ok(Patch { base, base_tree, head_tree: head, changes: changes(&store(repo)?, base_tree, head)? })
}

fn changes(odb: &Odb<'_>, from: TreeId, to: TreeId) -> Result<Vec<Change>, GitError> {
    let mut pairs = BTreeMap::new();
    compare(odb, Some(oid(from.as_bytes())), Some(oid(to.as_bytes())), &mut Vec::new(), 0, &mut pairs)?;
    pairs.into_iter().map(|(path, (before, after))| change(odb, &path, before, after)).collect()
}

type Pairs = BTreeMap<Vec<u8>, (Option<Leaf>, Option<Leaf>)>;

/// Walks both trees, and only where they differ.
fn compare(
    odb: &Odb<'_>,
    before: Option<Oid>,
    after: Option<Oid>,
    prefix: &mut Vec<u8>,
    depth: usize,
    into: &mut Pairs,
) -> Result<(), GitError> {
    if before == after {
        return Ok(());
    }
    if depth > MAX_DEPTH {
        return Err(GitError::Invalid(format!("a tree is nested deeper than {MAX_DEPTH} folders")));
    }
    let before = lines(odb, before)?;
    let after = lines(odb, after)?;
    let names: BTreeSet<&Vec<u8>> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        let length = prefix.len();
        if length > 0 {
            prefix.push(b'/');
        }
        prefix.extend_from_slice(name);
        let tree = |line: Option<&TreeLine>| line.filter(|line| line.is_tree()).map(|line| line.id);
        let leaf = |line: Option<&TreeLine>| {
            line.filter(|line| !line.is_tree()).map(|line| Leaf { mode: line.mode, id: line.id })
        };
        compare(odb, tree(old), tree(new), prefix, depth + 1, into)?;
        let (old, new) = (leaf(old), leaf(new));
        let meaning = |leaf: Option<Leaf>| leaf.map(|leaf| (FileMode::from_git_mode(leaf.mode), leaf.id));
        if meaning(old) != meaning(new) {
            into.insert(prefix.clone(), (old, new));
        }
        prefix.truncate(length);
    }
    Ok(())
}

fn lines(odb: &Odb<'_>, tree: Option<Oid>) -> Result<BTreeMap<Vec<u8>, TreeLine>, GitError> {
    let lines = match tree {
        Some(id) => objects::read_tree(odb, id)?,
        None => Vec::new(),
    };
    Ok(lines.into_iter().map(|line| (line.name.clone(), line)).collect())
}

fn change(odb: &Odb<'_>, path: &[u8], before: Option<Leaf>, after: Option<Leaf>) -> Result<Change, GitError> {
    let old = side(odb, before)?;
    let new = side(odb, after)?;
    let contents = (content(&old), content(&new));
    let binary = is_binary(contents.0) || is_binary(contents.1);
    let (lines_added, lines_removed) =
        if binary || contents.0 == contents.1 { (0, 0) } else { count(contents.0, contents.1)? };
    Ok(Change {
        path: objects::repo_path(path)?,
        before: old.map(|(entry, _)| entry),
        after: new.map(|(entry, _)| entry),
        lines_added,
        lines_removed,
        binary,
    })
}

fn content(side: &Option<(Entry, Bytes)>) -> &[u8] {
    side.as_ref().map_or(&[], |(_, content)| content)
}

/// A submodule has no content here.
fn side(odb: &Odb<'_>, leaf: Option<Leaf>) -> Result<Option<(Entry, Bytes)>, GitError> {
    let Some(leaf) = leaf else { return Ok(None) };
    let mode = leaf.file_mode()?;
    let content = match mode {
        FileMode::Submodule => Bytes::new(),
        FileMode::Regular | FileMode::Executable | FileMode::Symlink => objects::read_blob(odb, leaf.id)?,
    };
    let entry = Entry { mode, object: ObjectId::from_bytes(bytes(leaf.id)), size_bytes: content.len() as u64 };
    Ok(Some((entry, content)))
}

fn is_binary(content: &[u8]) -> bool {
    content.len() > MAX_COMPARED_BYTES || content[..content.len().min(BINARY_PROBE_BYTES)].contains(&0)
}

/// Lines added and removed.
fn count(old: &[u8], new: &[u8]) -> Result<(u32, u32), GitError> {
    let mut options = DiffOptions::new();
    options.context_lines(0).force_text(true);
    let patch = git2::Patch::from_buffers(old, None, new, None, Some(&mut options))
        .map_err(failed("while comparing two contents"))?;
    let (_, added, removed) = patch.line_stats().map_err(failed("while counting lines"))?;
    Ok((u32::try_from(added).unwrap_or(u32::MAX), u32::try_from(removed).unwrap_or(u32::MAX)))
}

pub(crate) fn diff_text(repo: &Repository, from: TreeId, to: TreeId, max_bytes: usize) -> Result<String, GitError> {
    let tree = |id: TreeId| repo.find_tree(oid(id.as_bytes())).map_err(finding(format!("the tree {id}")));
    let (from, to) = (tree(from)?, tree(to)?);
    let mut options = DiffOptions::new();
    options.max_size(MAX_COMPARED_BYTES as i64);
    let doing = "while printing a patch";
    let diff = repo.diff_tree_to_tree(Some(&from), Some(&to), Some(&mut options)).map_err(failed(doing))?;
    let mut text: Vec<u8> = Vec::new();
    let printed = diff.print(DiffFormat::Patch, |_, _, line| {
        if matches!(line.origin(), '+' | '-' | ' ') {
            text.push(line.origin() as u8);
        }
        text.extend_from_slice(line.content());
        text.len() <= max_bytes
    });
    match printed {
        Ok(()) => {}
        Err(error) if error.code() == ErrorCode::User => {}
        Err(error) => return Err(failed(doing)(error)),
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if text.len() > max_bytes {
        let cut = (0..=max_bytes).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
    }
    Ok(text)
}

/// Taking out what is not there changes nothing. A path below a file, or a file in a folder's place, is `Invalid`.
pub(crate) fn edit_tree(repo: &Repository, tree: TreeId, edits: Vec<TreeEdit>) -> Result<TreeId, GitError> {
    let odb = store(repo)?;
    let mut leaves = objects::list_all(&odb, tree)?.leaves;
    for TreeEdit { path, put } in edits {
        check_path(&path)?;
        let Some((mode, content)) = put else {
            leaves.remove(path.as_bytes());
            continue;
        };
        if mode == FileMode::Submodule {
            return Err(GitError::Invalid(format!("`{path}` cannot be made a submodule")));
        }
        let id = objects::write(&odb, ObjectType::Blob, &content)?;
        let leaf = Leaf::replacing(leaves.get(path.as_bytes()), mode, id);
        leaves.insert(path.as_bytes().to_vec(), leaf);
    }
    objects::write_tree(&odb, &leaves)
}

fn check_path(path: &RepoPath) -> Result<(), GitError> {
    if path.components().any(names::is_refused) {
        return Err(GitError::Invalid(format!(
            "`{path}` has a component that could stand for a repository's own folder"
        )));
    }
    Ok(())
}

/// The payload in the blob store.
#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum StoredBundle {
    #[serde(rename = "1")]
    V1 { patch: Patch, contents: Vec<StoredContent> },
}

#[derive(Serialize, Deserialize)]
struct StoredContent {
    object: ObjectId,
    base64: String,
}

pub(crate) fn bundle(repo: &Repository, base: CommitId, head: TreeId) -> Result<Bytes, GitError> {
    let odb = store(repo)?;
    let patch = diff(repo, base, head)?;
    let mut contents = Vec::new();
    let mut size = 0;
    for entry in carried(&patch) {
        let content = objects::read_blob(&odb, oid(entry.object.as_bytes()))?;
        size += content.len();
        if size > MAX_BUNDLE_BYTES {
            return Err(GitError::Invalid(format!("the patch brings more than {MAX_BUNDLE_BYTES} bytes")));
        }
        contents.push(StoredContent { object: entry.object, base64: STANDARD.encode(&content) });
    }
    let text = serde_json::to_vec(&StoredBundle::V1 { patch, contents }).map_err(failed("while encoding a patch"))?;
    Ok(text.into())
}

/// The new entries whose content a bundle carries.
fn carried(patch: &Patch) -> impl Iterator<Item = Entry> {
    patch.changes.iter().filter_map(|change| change.after).filter(|entry| entry.mode != FileMode::Submodule)
}

fn decode(text: &[u8]) -> Result<PatchBundle, GitError> {
    let unfit = |why: &str| GitError::Invalid(format!("the stored patch {why}"));
    // Base64 takes a third more; the rest is names.
    if text.len() > 2 * MAX_BUNDLE_BYTES {
        return Err(unfit("is too large"));
    }
    let StoredBundle::V1 { patch, contents } =
        serde_json::from_slice(text).map_err(failed("while decoding a patch"))?;
    let contents = contents
        .into_iter()
        .map(|stored| {
            let content = STANDARD.decode(&stored.base64).map_err(|_| unfit("is not base64"))?;
            Ok((stored.object, Bytes::from(content)))
        })
        .collect::<Result<Vec<_>, GitError>>()?;
    let promised: Vec<(ObjectId, u64)> = carried(&patch).map(|entry| (entry.object, entry.size_bytes)).collect();
    let present: Vec<(ObjectId, u64)> = contents.iter().map(|(id, content)| (*id, content.len() as u64)).collect();
    if promised != present {
        return Err(unfit("does not carry the contents it lists"));
    }
    Ok(PatchBundle { patch, contents })
}

/// Nothing in the bundle is believed: contents are named again, the tree is built from the base, and its differences are
/// counted again.
pub(crate) fn unbundle(repo: &Repository, text: &Bytes) -> Result<Patch, GitError> {
    let PatchBundle { patch, contents } = decode(text)?;
    let unfit = |why: &str| GitError::Invalid(format!("the stored patch {why}"));
    let odb = store(repo)?;
    if objects::tree_of(repo, patch.base)? != patch.base_tree {
        return Err(unfit("names another tree than its base has"));
    }
    for (id, content) in &contents {
        let found = Oid::hash_object(ObjectType::Blob, content).map_err(failed("while naming a content"))?;
        if found != oid(id.as_bytes()) {
            return Err(unfit(&format!("has a content that is not {id}")));
        }
    }
    let mut leaves = objects::list_all(&odb, patch.base_tree)?.leaves;
    for change in &patch.changes {
        check_path(&change.path)?;
        match change.after {
            Some(entry) => {
                let before = leaves.get(change.path.as_bytes());
                let leaf = Leaf::replacing(before, entry.mode, oid(entry.object.as_bytes()));
                leaves.insert(change.path.as_bytes().to_vec(), leaf);
            }
            None => {
                leaves.remove(change.path.as_bytes());
            }
        }
    }
    for (_, content) in &contents {
        objects::write(&odb, ObjectType::Blob, content)?;
    }
    if objects::write_tree(&odb, &leaves)? != patch.head_tree {
        return Err(unfit("does not lead to its head tree"));
    }
    if changes(&odb, patch.base_tree, patch.head_tree)? != patch.changes {
        return Err(unfit("describes its changes wrongly"));
    }
    Ok(patch)
}
