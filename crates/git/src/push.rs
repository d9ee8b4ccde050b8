//! The only write to a remote: one reference moves from a known place to a known place, or nothing happens.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use fettle_app::ports::git::{GitError, PushError, PushTarget, Pushed};
use fettle_domain::branch::PREFIX;
use fettle_domain::object::CommitId;
use git2::{Direction, ErrorClass, ErrorCode, Oid, PushOptions, Reference, RemoteCallbacks, Repository};
use reqwest::Url;

use crate::http::{Fault, Session};
use crate::mirror::Mirrors;
use crate::objects::{bytes, oid};
use crate::place::Place;
use crate::remote::{self, Network};

/// How much of a server's refusal is passed on.
const MAX_REFUSAL_CHARS: usize = 300;
/// A remote with more branches is not searched for the parent; its default branch is fetched instead.
const MAX_HEADS_SEARCHED: usize = 500;

/// How the advertised place of the branch compares with the expected one.
#[derive(Clone, Copy)]
enum Verdict {
    AsExpected,
    AlreadyThere,
    Conflict(Option<Oid>),
}

pub(crate) fn push(
    mirrors: &Mirrors,
    network: &Network,
    to: &PushTarget,
    expected: Option<CommitId>,
    new: CommitId,
) -> Result<Pushed, PushError> {
    let url = target_url(network, to)?;
    let full_ref = checked_ref(to)?;
    let repo = mirrors.open(&to.source.key).map_err(before_sending)?;
    let new = oid(new.as_bytes());
    let expected = expected.map(|commit| oid(commit.as_bytes()));
    let parents: Vec<Oid> = match repo.find_commit(new) {
        Ok(commit) => commit.parent_ids().collect(),
        Err(error) => return Err(PushError::Unavailable(error.into())),
    };

    let session = network.session(&to.source, &url);
    let answer = session.enter(|| -> Result<Answer, PushError> {
        let mut remote = repo.remote_anonymous(url.as_str()).map_err(|error| PushError::Unavailable(error.into()))?;
        let knows_parent = {
            let connection =
                remote.connect_auth(Direction::Push, None, None).map_err(|error| classify(&session, error))?;
            let heads = connection.list().map_err(|error| classify(&session, error))?;
            let tips: Vec<Oid> = heads.iter().map(git2::RemoteHead::oid).collect();
            parents.iter().all(|&parent| reaches(&repo, &tips, parent))
        };
        if !knows_parent {
            // Otherwise libgit2 would send the whole history: it leaves out only what it knows the server to have.
            remote::refresh_default(mirrors, network, &to.source, &url, &repo).map_err(before_sending)?;
        }
        send(&session, &mut remote, &full_ref, expected, new)
    })?;
    match answer {
        Answer::Decided(pushed) => Ok(pushed),
        Answer::Refused(text) => Ok(after_refusal(network, to, &url, &repo, expected, new, text)?),
    }
}

enum Answer {
    Decided(Pushed),
    Refused(String),
}

/// `Remote::push` is `Ok` even when the server refused; only the report about our reference counts.
fn send(
    session: &Arc<Session>,
    remote: &mut git2::Remote<'_>,
    full_ref: &str,
    expected: Option<Oid>,
    new: Oid,
) -> Result<Answer, PushError> {
    let verdict = Cell::new(None);
    let report: RefCell<Option<Option<String>>> = RefCell::new(None);
    let outcome = {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.push_negotiation(|updates| {
            let advertised = updates
                .iter()
                .find(|update| update.dst_refname_bytes() == full_ref.as_bytes())
                .map(git2::PushUpdate::src)
                .filter(|id| !id.is_zero());
            let found = match advertised {
                tip if tip == Some(new) => Verdict::AlreadyThere,
                tip if tip == expected => Verdict::AsExpected,
                tip => Verdict::Conflict(tip),
            };
            verdict.set(Some(found));
            match found {
                Verdict::AsExpected => Ok(()),
                Verdict::AlreadyThere | Verdict::Conflict(_) => {
                    Err(git2::Error::new(ErrorCode::User, ErrorClass::Callback, "stopped before sending"))
                }
            }
        });
        callbacks.push_update_reference(|name, refusal| {
            if name == full_ref {
                *report.borrow_mut() = Some(refusal.map(str::to_owned));
            }
            Ok(())
        });
        let mut options = PushOptions::new();
        options.remote_callbacks(callbacks);
        // The `+` only keeps libgit2 from refusing a non-fast-forward; the advertised value travels along and is swapped.
        remote.push(&[format!("+{new}:{full_ref}")], Some(&mut options))
    };
    match verdict.get() {
        Some(Verdict::AlreadyThere) => return Ok(Answer::Decided(Pushed::AlreadyThere)),
        Some(Verdict::Conflict(found)) => return Ok(Answer::Decided(conflict(found))),
        Some(Verdict::AsExpected) | None => {}
    }
    match (report.into_inner(), outcome) {
        (Some(None), _) => Ok(Answer::Decided(Pushed::Moved)),
        (Some(Some(text)), _) => Ok(Answer::Refused(text.chars().take(MAX_REFUSAL_CHARS).collect())),
        (None, Err(error)) => Err(classify(session, error)),
        (None, Ok(())) if session.pack_was_sent() => {
            Err(PushError::NoAnswer("the server did not report on the branch".into()))
        }
        (None, Ok(())) => Err(PushError::Unavailable("libgit2 sent nothing".into())),
    }
}

/// A server also refuses when the branch moved after the advertisement; where it is now tells this from a rule of the server.
fn after_refusal(
    network: &Network,
    to: &PushTarget,
    url: &Url,
    repo: &Repository,
    expected: Option<Oid>,
    new: Oid,
    text: String,
) -> Result<Pushed, PushError> {
    match tip(network, to, url, repo) {
        Ok(found) if found == Some(new) => Ok(Pushed::AlreadyThere),
        Ok(found) if found != expected => Ok(conflict(found)),
        Ok(_) | Err(_) => Err(PushError::Refused(text)),
    }
}

pub(crate) fn remote_tip(mirrors: &Mirrors, network: &Network, to: &PushTarget) -> Result<Option<CommitId>, PushError> {
    let url = target_url(network, to)?;
    checked_ref(to)?;
    let repo = mirrors.open_or_make(&to.source.key).map_err(before_sending)?;
    Ok(tip(network, to, &url, &repo)?.map(|id| CommitId::from_bytes(bytes(id))))
}

fn tip(network: &Network, to: &PushTarget, url: &Url, repo: &Repository) -> Result<Option<Oid>, PushError> {
    let full_ref = to.branch.full_ref();
    let session = network.session(&to.source, url);
    session.enter(|| {
        let mut remote = repo.remote_anonymous(url.as_str()).map_err(|error| PushError::Unavailable(error.into()))?;
        let connection =
            remote.connect_auth(Direction::Fetch, None, None).map_err(|error| classify(&session, error))?;
        let heads = connection.list().map_err(|error| classify(&session, error))?;
        Ok(heads.iter().find(|head| head.name() == full_ref).map(git2::RemoteHead::oid))
    })
}

/// Whether the mirror knows a way from one of the server's tips to `parent`.
fn reaches(repo: &Repository, tips: &[Oid], parent: Oid) -> bool {
    tips.contains(&parent)
        || tips
            .iter()
            .take(MAX_HEADS_SEARCHED)
            .filter(|&&tip| remote::has_commit(repo, tip))
            .any(|&tip| repo.graph_descendant_of(tip, parent).unwrap_or(false))
}

fn target_url(network: &Network, to: &PushTarget) -> Result<Url, PushError> {
    match network.place(&to.source) {
        Ok(Place::Remote(url)) => Ok(url),
        Ok(Place::Local(_)) => Err(PushError::Refused("a local repository is published to, not pushed to".into())),
        Err(error) => Err(PushError::Refused(error.to_string())),
    }
}

/// A `BranchName` read from storage could hold anything, so the prefix is looked at again where it matters.
fn checked_ref(to: &PushTarget) -> Result<String, PushError> {
    let full_ref = to.branch.full_ref();
    if to.branch.as_str().starts_with(PREFIX) && Reference::is_valid_name(&full_ref) {
        Ok(full_ref)
    } else {
        Err(PushError::Refused(format!("`{}` is not a branch of ours", to.branch.as_str().escape_debug())))
    }
}

fn conflict(found: Option<Oid>) -> Pushed {
    Pushed::Conflict { found: found.map(|id| CommitId::from_bytes(bytes(id))) }
}

fn before_sending(error: GitError) -> PushError {
    match error {
        GitError::Denied { .. } => PushError::Denied,
        other => PushError::Unavailable(other.into()),
    }
}

fn classify(session: &Session, error: git2::Error) -> PushError {
    let sent = session.pack_was_sent();
    match session.take_fault() {
        // These two are answers, given before the server looked at the pack.
        Some(Fault::Denied) => PushError::Denied,
        Some(Fault::Unfit(text)) if !sent => PushError::Refused(text),
        Some(Fault::NotConnected(source)) => PushError::Unavailable(source),
        Some(Fault::Interrupted(source)) if sent => PushError::NoAnswer(source),
        Some(Fault::Interrupted(source)) => PushError::Unavailable(source),
        Some(Fault::Server(_) | Fault::Unfit(_)) | None if sent => PushError::NoAnswer(error.into()),
        Some(Fault::Server(_) | Fault::Unfit(_)) | None => PushError::Unavailable(error.into()),
    }
}
