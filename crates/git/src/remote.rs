//! Reading from a server: which commit a reference names there, and fetching it when the mirror lacks it.

use std::time::Duration;

use fettle_app::ports::git::{BaseCommit, BaseRef, CommitDescription, GitError, Source};
use fettle_domain::object::{CommitId, TreeId};
use git2::{AutotagOption, Direction, FetchOptions, ObjectType, Oid, Reference, RemoteConnection, Repository};
use jiff::Timestamp;
use reqwest::{Certificate, Client, Url, redirect};
use std::sync::Arc;
use tokio::runtime::Handle;

use crate::error::{failed, finding};
use crate::http::{Fault, Session};
use crate::mirror::Mirrors;
use crate::place::{self, Place};
use crate::{GitOptions, local, objects};

/// A host that does not even answer the handshake in this time is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest silence of a server that works: counting and deltifying a large pack, or checking a pushed one.
const READ_TIMEOUT: Duration = Duration::from_secs(180);
/// When a commit can only be looked for in every branch; a remote with more is asked for its default branch alone.
const MAX_BRANCHES_FETCHED: usize = 5_000;

/// The HTTP client and what it is allowed to reach.
pub(crate) struct Network {
    client: Client,
    plain_http_on_loopback: bool,
}

impl Network {
    pub(crate) fn new(options: &GitOptions) -> Result<Self, GitError> {
        let doing = "while building the HTTP client";
        let extra = match &options.extra_ca_pem {
            Some(pem) => Certificate::from_pem_bundle(pem).map_err(failed(doing))?,
            None => Vec::new(),
        };
        let client = Client::builder()
            .user_agent(&options.user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tls_certs_merge(extra)
            .build()
            .map_err(failed(doing))?;
        Ok(Self { client, plain_http_on_loopback: options.plain_http_on_loopback })
    }

    pub(crate) fn place(&self, source: &Source) -> Result<Place, GitError> {
        place::parse(&source.url, self.plain_http_on_loopback)
    }

    /// Must be called on a thread of the runtime.
    pub(crate) fn session(&self, source: &Source, url: &Url) -> Arc<Session> {
        Session::new(self.client.clone(), Handle::current(), url.clone(), source.token.as_ref())
    }
}

pub(crate) fn resolve(
    mirrors: &Mirrors,
    network: &Network,
    source: &Source,
    base: &BaseRef,
) -> Result<BaseCommit, GitError> {
    let url = match network.place(source)? {
        Place::Local(path) => return local::resolve(mirrors, &source.key, &path, base),
        Place::Remote(url) => url,
    };
    let repo = mirrors.open_or_make(&source.key)?;
    let wanted = match base {
        BaseRef::Default => Wanted::Default,
        BaseRef::Commit(commit) => Wanted::Commit(objects::oid(commit.as_bytes())),
        BaseRef::Named(name) => match name.parse::<CommitId>() {
            Ok(commit) => Wanted::Commit(objects::oid(commit.as_bytes())),
            Err(_) => Wanted::Named(name.clone()),
        },
    };
    if let Wanted::Commit(id) = wanted
        && has_commit(&repo, id)
    {
        return base_commit(&repo, id, None);
    }
    let visit = Visit { mirrors, network, source, url: &url, repo: &repo };
    let (id, branch) = visit.find(&wanted)?;
    base_commit(&repo, id, branch)
}

pub(crate) fn describe_commit(
    mirrors: &Mirrors,
    network: &Network,
    source: &Source,
    commit: CommitId,
) -> Result<Option<CommitDescription>, GitError> {
    match resolve(mirrors, network, source, &BaseRef::Commit(commit)) {
        Ok(_) => objects::describe(&mirrors.open(&source.key)?, commit),
        Err(GitError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes sure that the mirror knows the default branch as it is now, so that a push sends only what is new.
pub(crate) fn refresh_default(
    mirrors: &Mirrors,
    network: &Network,
    source: &Source,
    url: &Url,
    repo: &Repository,
) -> Result<(), GitError> {
    Visit { mirrors, network, source, url, repo }.find(&Wanted::Default).map(|_| ())
}

enum Wanted {
    Default,
    Named(String),
    Commit(Oid),
}

/// A reference as the server advertises it.
struct Advertised {
    name: String,
    id: Oid,
}

struct Visit<'a> {
    mirrors: &'a Mirrors,
    network: &'a Network,
    source: &'a Source,
    url: &'a Url,
    repo: &'a Repository,
}

impl Visit<'_> {
    /// Asks the server, and fetches what the mirror lacks. Gives the commit, and the branch's short name if one was named.
    fn find(&self, wanted: &Wanted) -> Result<(Oid, Option<String>), GitError> {
        let session = self.network.session(self.source, self.url);
        let doing = format!("while reading {}", self.url);
        session.enter(|| {
            let mut remote = self.repo.remote_anonymous(self.url.as_str()).map_err(failed(doing.clone()))?;
            let mut connection = remote
                .connect_auth(Direction::Fetch, None, None)
                .map_err(|error| classify(&session, self.url, &doing, error))?;
            let advertised = advertised(&connection).map_err(failed(doing.clone()))?;
            match wanted {
                Wanted::Commit(id) => {
                    self.fetch_commit(&session, &mut connection, &advertised, *id)?;
                    Ok((*id, None))
                }
                Wanted::Default | Wanted::Named(_) => {
                    let (chosen, branch) = self.choose(wanted, &connection, &advertised)?;
                    if !self.has_commit_behind(chosen.id) {
                        let _lock = self.mirrors.lock(&self.source.key)?;
                        self.fetch(&session, &mut connection, &[refspec(&chosen.name)])?;
                    }
                    Ok((self.peel(chosen.id)?, branch))
                }
            }
        })
    }

    fn choose<'h>(
        &self,
        wanted: &Wanted,
        connection: &RemoteConnection<'_, '_, '_>,
        advertised: &'h [Advertised],
    ) -> Result<(&'h Advertised, Option<String>), GitError> {
        let by_name = |name: &str| advertised.iter().find(|head| head.name == name);
        if advertised.is_empty() {
            return Err(GitError::Invalid(format!("the repository at {} has no commit yet", self.url)));
        }
        let Wanted::Named(name) = wanted else {
            let head = connection
                .default_branch()
                .ok()
                .and_then(|name| by_name(name.as_str().ok()?))
                .or_else(|| by_name("HEAD"))
                .ok_or_else(|| GitError::NotFound { what: format!("a default branch in {}", self.url) })?;
            return Ok((head, head.name.strip_prefix("refs/heads/").map(str::to_owned)));
        };
        let spellings = [format!("refs/heads/{name}"), format!("refs/tags/{name}"), format!("refs/{name}")];
        let full = name.starts_with("refs/").then(|| by_name(name)).flatten();
        let found = full
            .or_else(|| spellings.iter().find_map(|spelling| by_name(spelling)))
            .ok_or_else(|| GitError::NotFound { what: format!("`{name}` in {}", self.url) })?;
        Ok((found, found.name.strip_prefix("refs/heads/").map(str::to_owned)))
    }

    /// By its own name where the server allows it, else by fetching the branches that may hold it.
    fn fetch_commit(
        &self,
        session: &Arc<Session>,
        connection: &mut RemoteConnection<'_, '_, '_>,
        advertised: &[Advertised],
        id: Oid,
    ) -> Result<(), GitError> {
        let _lock = self.mirrors.lock(&self.source.key)?;
        let absent = || GitError::NotFound { what: format!("the commit {id} in {}", self.url) };
        if let Some(tip) = advertised.iter().find(|head| head.id == id) {
            self.fetch(session, connection, &[refspec(&tip.name)])?;
        } else if self.fetch(session, connection, &[format!("{id}:refs/fettle/commits/{id}")]).is_err() {
            let branches: Vec<String> = advertised
                .iter()
                .filter(|head| head.name.starts_with("refs/heads/") && !has_commit(self.repo, head.id))
                .take(MAX_BRANCHES_FETCHED)
                .map(|head| refspec(&head.name))
                .collect();
            if branches.is_empty() {
                return Err(absent());
            }
            // The refused request above has ended the first conversation and left its fault behind.
            session.take_fault();
            let doing = format!("while fetching from {}", self.url);
            let mut remote = self.repo.remote_anonymous(self.url.as_str()).map_err(failed(doing.clone()))?;
            let mut again = remote
                .connect_auth(Direction::Fetch, None, None)
                .map_err(|error| classify(session, self.url, &doing, error))?;
            self.fetch(session, &mut again, &branches)?;
        }
        if has_commit(self.repo, id) { Ok(()) } else { Err(absent()) }
    }

    fn fetch(
        &self,
        session: &Arc<Session>,
        connection: &mut RemoteConnection<'_, '_, '_>,
        refspecs: &[String],
    ) -> Result<(), GitError> {
        let mut options = FetchOptions::new();
        options.download_tags(AutotagOption::None).update_fetchhead(false);
        let doing = format!("while fetching from {}", self.url);
        connection
            .remote()
            .fetch(refspecs, Some(&mut options), Some("fetch"))
            .map_err(|error| classify(session, self.url, &doing, error))
    }

    fn has_commit_behind(&self, id: Oid) -> bool {
        self.repo.find_object(id, None).is_ok_and(|object| object.peel(ObjectType::Commit).is_ok())
    }

    fn peel(&self, id: Oid) -> Result<Oid, GitError> {
        let what = format!("a commit at {id}");
        let object = self.repo.find_object(id, None).map_err(finding(what.clone()))?;
        Ok(object.peel(ObjectType::Commit).map_err(finding(what))?.id())
    }
}

fn advertised(connection: &RemoteConnection<'_, '_, '_>) -> Result<Vec<Advertised>, git2::Error> {
    let heads = connection.list()?;
    Ok(heads
        .iter()
        .filter(|head| Reference::is_valid_name(head.name()))
        .map(|head| Advertised { name: head.name().to_owned(), id: head.oid() })
        .collect())
}

/// References are kept in the mirror under the digest of their name: a branch `a` that becomes `a/b` must not collide.
fn refspec(name: &str) -> String {
    let digest = Oid::hash_object(ObjectType::Blob, name.as_bytes()).expect("a name can be hashed");
    format!("+{name}:refs/fettle/fetched/{digest}")
}

pub(crate) fn has_commit(repo: &Repository, id: Oid) -> bool {
    repo.find_commit(id).is_ok()
}

pub(crate) fn base_commit(repo: &Repository, id: Oid, branch: Option<String>) -> Result<BaseCommit, GitError> {
    let commit = repo.find_commit(id).map_err(finding(format!("the commit {id}")))?;
    let committed_at = Timestamp::from_second(commit.committer().when().seconds())
        .map_err(|_| GitError::Invalid(format!("the commit {id} has no date that a calendar knows")))?;
    Ok(BaseCommit {
        commit: CommitId::from_bytes(objects::bytes(id)),
        tree: TreeId::from_bytes(objects::bytes(commit.tree_id())),
        branch,
        committed_at,
    })
}

fn classify(session: &Session, url: &Url, doing: &str, error: git2::Error) -> GitError {
    let url = url.to_string();
    match session.take_fault() {
        Some(Fault::Denied) => GitError::Denied { url },
        Some(Fault::Server(_)) => GitError::Unreachable { url, source: Box::new(error) },
        Some(Fault::NotConnected(source) | Fault::Interrupted(source)) => GitError::Unreachable { url, source },
        Some(Fault::Unfit(_)) | None => failed(doing)(error),
    }
}
