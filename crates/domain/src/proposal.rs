//! The last decision before anything is written to the forge: publish, publish as a draft, ask a person, or reject.
//!
//! The publisher computes every fact itself from the objects it is about to push; nothing is taken from the worker's word.

use serde::{Deserialize, Serialize};

use crate::branch::{BranchName, PREFIX};
use crate::object::{CommitId, TreeId};
use crate::outgoing::{MAX_BODY_CHARS, MAX_TITLE_CHARS};
use crate::patch::{Change, FileMode, Patch};
use crate::path::RepoPath;
use crate::path_policy::{PathPolicy, PathVerdict};
use crate::proof::{Level, Proof};
use crate::secret::{self, KnownSecrets};

/// Beyond this the change is a draft: nobody reviews it well.
pub const DRAFT_LINES: u64 = 400;
pub const DRAFT_FILES: usize = 30;
/// Beyond this it is rejected.
pub const MAX_LINES: u64 = 2_000;
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Patch, proof and every text that would go out.
#[derive(Debug, Clone, Copy)]
pub struct Proposal<'a> {
    /// As the publisher computes it from base and rebuilt tree.
    pub patch: &'a Patch,
    pub proof: &'a Proof,
    /// The parent and tree of the commit that would be pushed.
    pub commit_parent: CommitId,
    pub commit_tree: TreeId,
    pub branch: &'a BranchName,
    /// Where the texts stand: (`title`, text), (`body`, text), (`commit message`, text).
    pub texts: &'a [(&'a str, &'a str)],
    /// Content of each new or changed text file; symlinks hold their target.
    pub added: &'a [(RepoPath, FileMode, Vec<u8>)],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "reasons", rename_all = "snake_case")]
pub enum Verdict {
    Publish,
    Draft(Vec<String>),
    NeedsHuman(Vec<String>),
    Reject(Vec<String>),
}

/// Judges the whole proposal. The strictest rule decides; its peers are listed with it.
pub fn validate(proposal: &Proposal<'_>, policy: &PathPolicy, known: &KnownSecrets) -> Verdict {
    let mut reasons = Reasons::default();
    binding(proposal, &mut reasons);
    paths(proposal.patch, policy, &mut reasons);
    sizes(proposal.patch, &mut reasons);
    links(proposal, policy, &mut reasons);
    texts(proposal, &mut reasons);
    secrets(proposal, known, &mut reasons);
    proof(proposal.proof, &mut reasons);
    reasons.verdict()
}

#[derive(Default)]
struct Reasons {
    reject: Vec<String>,
    human: Vec<String>,
    draft: Vec<String>,
}

impl Reasons {
    fn verdict(self) -> Verdict {
        if !self.reject.is_empty() {
            Verdict::Reject(self.reject)
        } else if !self.human.is_empty() {
            Verdict::NeedsHuman(self.human)
        } else if !self.draft.is_empty() {
            Verdict::Draft(self.draft)
        } else {
            Verdict::Publish
        }
    }
}

fn binding(p: &Proposal<'_>, reasons: &mut Reasons) {
    if p.patch.is_empty() {
        reasons.reject.push("the patch changes nothing".into());
    }
    if p.commit_parent != p.proof.base || p.patch.base != p.proof.base {
        reasons.reject.push(format!("the commit's parent is not the proof's base {}", p.proof.base.short()));
    }
    if p.commit_tree != p.proof.head_tree || p.patch.head_tree != p.proof.head_tree {
        reasons.reject.push(format!("the commit's tree is not the proven tree {}", p.proof.head_tree.short()));
    }
    if !p.branch.as_str().starts_with(PREFIX) {
        reasons.reject.push(format!("the branch {} is not Fettle's", p.branch));
    }
}

fn paths(patch: &Patch, policy: &PathPolicy, reasons: &mut Reasons) {
    for change in &patch.changes {
        match policy.judge(&change.path) {
            PathVerdict::Allowed => {}
            PathVerdict::NeedsHuman { rule } => {
                reasons.human.push(format!("{} is protected (rule {rule})", change.path))
            }
            PathVerdict::Forbidden { rule } => {
                reasons.reject.push(format!("{} must not be changed (rule {rule})", change.path))
            }
        }
        let modes = [change.before, change.after].into_iter().flatten().map(|entry| entry.mode);
        if modes.into_iter().any(|mode| mode == FileMode::Submodule) {
            reasons.reject.push(format!("{} is a submodule", change.path));
        }
        if is_new_binary(change) {
            reasons.human.push(format!("{} is a new binary file", change.path));
        }
    }
}

fn is_new_binary(change: &Change) -> bool {
    change.binary && change.after.is_some_and(|after| after.mode != FileMode::Symlink)
}

fn sizes(patch: &Patch, reasons: &mut Reasons) {
    let counted: Vec<&Change> = patch.changes.iter().filter(|c| !is_generated(&c.path)).collect();
    let lines: u64 = counted.iter().map(|c| u64::from(c.lines_added) + u64::from(c.lines_removed)).sum();
    if lines > MAX_LINES {
        reasons.reject.push(format!("{lines} changed lines; at most {MAX_LINES} can be published"));
    } else if lines > DRAFT_LINES {
        reasons.draft.push(format!("{lines} changed lines are more than {DRAFT_LINES}; consider splitting the change"));
    }
    if counted.len() > DRAFT_FILES {
        reasons.draft.push(format!(
            "{} changed files are more than {DRAFT_FILES}; consider splitting the change",
            counted.len()
        ));
    }
    for change in &patch.changes {
        if change.after.is_some_and(|after| after.size_bytes > MAX_FILE_BYTES) {
            reasons.reject.push(format!("{} is larger than {} KiB", change.path, MAX_FILE_BYTES / 1024));
        }
    }
}

/// Lock files and generated files are counted apart: nobody reads their lines.
pub fn is_generated(path: &RepoPath) -> bool {
    const LOCK_FILES: [&[u8]; 9] = [
        b"Cargo.lock",
        b"package-lock.json",
        b"npm-shrinkwrap.json",
        b"pnpm-lock.yaml",
        b"yarn.lock",
        b"poetry.lock",
        b"uv.lock",
        b"go.sum",
        b"flake.lock",
    ];
    let name = path.file_name();
    LOCK_FILES.contains(&name) || name.ends_with(b".snap") || name.ends_with(b".min.js")
}

fn links(p: &Proposal<'_>, policy: &PathPolicy, reasons: &mut Reasons) {
    for (path, _, target) in p.added.iter().filter(|(_, mode, _)| *mode == FileMode::Symlink) {
        match resolve_link(path, target) {
            LinkTarget::Outside => reasons.reject.push(format!("the symlink {path} leaves the repository")),
            LinkTarget::UpFromBelow => {
                reasons
                    .reject
                    .push(format!("the symlink {path} goes up again behind a name, which may be a symlink too"));
            }
            LinkTarget::Inside(inside) => match policy.judge(&inside) {
                PathVerdict::Allowed => {}
                PathVerdict::NeedsHuman { rule } => {
                    reasons.human.push(format!("the symlink {path} names a protected file (rule {rule})"));
                }
                PathVerdict::Forbidden { rule } => {
                    reasons.reject.push(format!("the symlink {path} names a forbidden file (rule {rule})"));
                }
            },
        }
    }
}

/// Where a symlink leads by its name alone.
enum LinkTarget {
    Inside(RepoPath),
    /// Outside, or nowhere.
    Outside,
    /// `..` behind a name: where that leads depends on whether the name is itself a symlink, so names cannot tell.
    UpFromBelow,
}

fn resolve_link(path: &RepoPath, target: &[u8]) -> LinkTarget {
    if target.first() == Some(&b'/') {
        return LinkTarget::Outside;
    }
    let mut parts: Vec<&[u8]> = path.components().collect();
    parts.pop();
    let mut is_below = false;
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." if is_below => return LinkTarget::UpFromBelow,
            b".." => {
                if parts.pop().is_none() {
                    return LinkTarget::Outside;
                }
            }
            name => {
                is_below = true;
                parts.push(name);
            }
        }
    }
    RepoPath::parse(parts.join(&b'/')).map_or(LinkTarget::Outside, LinkTarget::Inside)
}

fn texts(p: &Proposal<'_>, reasons: &mut Reasons) {
    for (place, text) in p.texts {
        let limit = if *place == "title" { MAX_TITLE_CHARS } else { MAX_BODY_CHARS };
        if text.chars().count() > limit {
            reasons.reject.push(format!("the {place} is longer than {limit} characters"));
        }
    }
}

fn secrets(p: &Proposal<'_>, known: &KnownSecrets, reasons: &mut Reasons) {
    let mut findings = Vec::new();
    for (place, text) in p.texts {
        findings.extend(secret::scan(known, place, text));
    }
    findings.extend(secret::scan(known, "branch name", p.branch.as_str()));
    let names: String = p.patch.changes.iter().map(|c| c.path.lossy() + "\n").collect();
    findings.extend(secret::scan(known, "file names", &names));
    for (path, _, content) in p.added {
        findings.extend(secret::scan(known, &path.lossy(), &String::from_utf8_lossy(content)));
    }
    reasons.reject.extend(findings.into_iter().map(|f| format!("{} in {}", f.rule, f.place)));
}

fn proof(proof: &Proof, reasons: &mut Reasons) {
    match proof.level {
        Level::Proven => {}
        Level::Weak | Level::Unproven if proof.reasons.is_empty() => {
            reasons.draft.push("the proof is not complete".into())
        }
        Level::Weak | Level::Unproven => reasons.draft.extend(proof.reasons.iter().map(|r| r.text.clone())),
    }
}

#[cfg(test)]
mod tests;
