//! Models, repositories and tokens for the forge that people add in the browser, beside those of the configuration. All that use them are told through one
//! channel, and see them as they stand in the ledger: another dashboard's change within [`READ_EVERY`], one's own at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::model_profile::{BadProfile, ModelProfile};
use fettle_domain::repo::{Repo, RepoName};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tracing::warn;

use crate::live::Live;
use crate::ports::additions::{Addition, Additions, Kept, MAX_ADDITIONS, Sort};
use crate::ports::clock::{Clock, SecretSource};
use crate::ports::forge::{ForgeAccess, ForgeError};
use crate::ports::ledger::LedgerError;
use crate::ports::model::ModelInfo;
use crate::reconciling::{Reconcile, Trouble};
use crate::sealing::{KeyRing, SealError};
use crate::submit::SubmitError;
use crate::submitting::parse_repository;
use crate::vitals::Pulse;

/// How soon what another dashboard was told is known here.
pub const READ_EVERY: Duration = Duration::from_secs(5);
/// Keys and tokens have at most some hundred characters.
const MAX_KEY_BYTES: usize = 4 * 1024;

/// The file with the keys that secrets are sealed with; a key per line, the newest last. Errors are sentences for operators.
pub trait RingFile: Send + Sync {
    /// Empty: there is none, and nothing can be sealed here.
    fn read(&self) -> Result<Vec<SecretString>, String>;
    /// Puts a new key behind the others, durably. `false`: the file is the operator's, who does that himself.
    fn grow(&self) -> Result<bool, String>;
    /// Leaves only the newest, durably. Never called for an operator's file.
    fn shrink(&self) -> Result<(), String>;
}

/// All that was added, as it counts now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Added {
    pub models: Vec<AddedModel>,
    pub repositories: Vec<RepoName>,
    pub forge: ForgeTokens,
    /// What cannot be read, and why.
    pub unread: Vec<String>,
}

/// What we come to the forge with, where the configuration has nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForgeTokens {
    /// Workers clone with it.
    pub read: Entered,
    /// The publisher's alone.
    pub write: Entered,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AddedModel {
    pub profile: ModelProfile,
    pub key: Entered,
    pub changed_at: Timestamp,
}

/// A secret that somebody entered.
#[derive(Debug, Clone, Default)]
pub enum Entered {
    #[default]
    None,
    Open(SecretString),
    /// It was entered, and cannot be read any more: it has to be entered again.
    Lost(SealError),
}

impl Entered {
    pub fn open(&self) -> Option<&SecretString> {
        match self {
            Self::Open(secret) => Some(secret),
            Self::None | Self::Lost(_) => None,
        }
    }
}

impl PartialEq for Entered {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Open(one), Self::Open(other)) => one.expose_secret() == other.expose_secret(),
            (Self::Lost(one), Self::Lost(other)) => one == other,
            _ => false,
        }
    }
}

impl Added {
    pub fn model(&self, name: &str) -> Option<&AddedModel> {
        self.models.iter().find(|model| model.profile.name == name)
    }

    /// What was entered and cannot be read any more.
    fn lost(&self) -> impl Iterator<Item = (String, &SealError)> {
        let keys =
            self.models.iter().map(|model| (format!("the key of the model `{}`", model.profile.name), &model.key));
        let tokens = [("the forge's read token", &self.forge.read), ("the forge's write token", &self.forge.write)];
        let tokens = tokens.map(|(what, token)| (what.to_owned(), token));
        keys.chain(tokens).filter_map(|(what, entered)| match entered {
            Entered::Lost(why) => Some((what, why)),
            Entered::None | Entered::Open(_) => None,
        })
    }

    /// Those that must not leave in what is published, with what they are.
    pub fn secrets(&self) -> impl Iterator<Item = (&'static str, &SecretString)> {
        let keys = self.models.iter().map(|model| ("model key", &model.key));
        let tokens = [("read token", &self.forge.read), ("write token", &self.forge.write)];
        keys.chain(tokens).filter_map(|(name, entered)| Some((name, entered.open()?)))
    }
}

/// The models that Tasks can name: those of the configuration, and those that were added.
#[derive(Clone)]
pub struct KnownModels {
    configured: Vec<String>,
    added: watch::Receiver<Arc<Added>>,
}

impl KnownModels {
    /// The first of the configured is the default.
    pub fn new(configured: Vec<String>, added: watch::Receiver<Arc<Added>>) -> Self {
        Self { configured, added }
    }

    /// Those alone.
    pub fn fixed(configured: Vec<String>) -> Self {
        Self::new(configured, watch::channel(Arc::default()).1)
    }

    pub fn names(&self) -> Vec<String> {
        let added = self.added.borrow();
        let added = added.models.iter().map(|model| model.profile.name.clone());
        self.configured.iter().cloned().chain(added).collect()
    }

    /// Which model a Run asks that wants this one or the default, and what workers cannot know of it: those have the configured ones.
    /// `None`: there is no such model.
    pub fn choose(&self, wanted: Option<&str>) -> Option<(String, Option<ModelInfo>)> {
        let name = match wanted.or(self.configured.first().map(String::as_str)) {
            Some(name) => name.to_owned(),
            None => self.added.borrow().models.first()?.profile.name.clone(),
        };
        let added = self.added.borrow();
        let info = added
            .model(&name)
            .map(|model| ModelInfo { name: name.clone(), context_tokens: model.profile.context_tokens });
        Some((name, info))
    }
}

/// What a token for the forge is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFor {
    Reading,
    Writing,
}

impl TokenFor {
    /// As it is stored.
    const fn name(self) -> &'static str {
        match self {
            Self::Reading => "read",
            Self::Writing => "write",
        }
    }
}

/// What becomes of a model's key when its profile changes.
pub enum KeyChange {
    /// As it was, if it had one.
    Keep,
    Take,
    New(SecretString),
}

#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("{0}")]
    Profile(#[from] BadProfile),
    #[error("`{0}` stands in the configuration, and is changed there")]
    Configured(String),
    #[error("the key is longer than {MAX_KEY_BYTES} bytes, or holds blanks or characters that cannot be sent")]
    OddKey,
    /// Where a model's address changes, its key must not go along unseen.
    #[error("the key was entered for another address; enter it again")]
    KeyAgain,
    #[error(
        "no key can be kept: several dashboards may share this database, and each needs the same sealing keys. Set auth.secrets_key_file"
    )]
    NoRing,
    #[error("there are {MAX_ADDITIONS} already; remove one first")]
    Full,
    #[error("nothing of that name was added here")]
    NotFound,
    #[error("the configuration says what the forge is asked with, and it is changed there")]
    ForgeConfigured,
    #[error("the two tokens are the same: workers need one of their own that can only read")]
    SameToken,
    #[error("the forge does not know it: {1}")]
    UnknownToken(TokenFor, String),
    #[error("the forge could not be asked whose token it is")]
    Forge(#[source] ForgeError),
    #[error("nobody has given access to the forge yet, so nothing could be written there")]
    NoAccess,
    #[error(
        "nothing may be written to {0}: {1}. Give the writing token access to its contents; where two tokens were entered, they may be exchanged"
    )]
    MayNotWrite(RepoName, String),
    #[error(transparent)]
    Repository(SubmitError),
    #[error("{0}")]
    RingFile(String),
    #[error("could not read or write what was added")]
    Ledger(#[from] LedgerError),
}

/// What became of sealing keys and of what they seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// What seals from now on.
    pub key: String,
    /// Secrets that were sealed anew.
    pub resealed: u32,
    /// Secrets that do not open with any key, as in `model coder`.
    pub lost: Vec<String>,
    /// Keys that nothing needs any more. Where the file is the operator's, he takes them out.
    pub retired: Vec<String>,
    /// The file is Fettle's own: a new key was made, and old ones are gone.
    pub own_file: bool,
}

/// What it is made of.
pub struct Parts {
    pub store: Arc<dyn Additions>,
    pub forge: Arc<dyn ForgeAccess>,
    /// Its API's address, for which tokens are kept.
    pub forge_url: String,
    /// The configuration says what it is asked with.
    pub forge_configured: bool,
    /// Hosts that repository URLs may name.
    pub hosts: Vec<String>,
    /// Names of the models in the configuration.
    pub configured: Vec<String>,
    pub ring: Arc<dyn RingFile>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn SecretSource>,
    /// Whoever follows it may have begun before the ledger was open.
    pub told: watch::Sender<Arc<Added>>,
}

pub struct Adding {
    parts: Parts,
    ring: Live<KeyRing>,
    /// One change at a time, and no reading of an older state behind it.
    turn: Mutex<()>,
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
#[serde(tag = "v")]
enum StoredModel {
    #[serde(rename = "1")]
    V1 { profile: ModelProfile },
}

impl Adding {
    /// Knows what is there already.
    pub async fn open(parts: Parts) -> Result<Self, AddError> {
        let keys = parts.ring.read().map_err(AddError::RingFile)?;
        let adding = Self { parts, ring: Live::new(KeyRing::new(&keys)), turn: Mutex::default() };
        adding.read().await?;
        Ok(adding)
    }

    pub fn now(&self) -> Arc<Added> {
        self.parts.told.borrow().clone()
    }

    pub fn follow(&self) -> watch::Receiver<Arc<Added>> {
        self.parts.told.subscribe()
    }

    /// Adds a model, or changes one that was added. `true`: it is new.
    pub async fn put_model(&self, profile: ModelProfile, key: KeyChange) -> Result<bool, AddError> {
        profile.check()?;
        if self.parts.configured.contains(&profile.name) {
            return Err(AddError::Configured(profile.name));
        }
        let _turn = self.turn.lock().await;
        let before = self.stored(Sort::Model, &profile.name).await?;
        let secret = match key {
            KeyChange::Take => None,
            KeyChange::New(key) => {
                if !is_sendable(&key) {
                    return Err(AddError::OddKey);
                }
                let sealed = self.newest_ring().seal(&key, &purpose(&profile), self.parts.random.secret());
                Some(sealed.ok_or(AddError::NoRing)?)
            }
            KeyChange::Keep => match before.as_ref().and_then(|before| Some((before, before.secret.clone()?))) {
                None => None,
                Some((before, sealed)) if purpose(&profile_of(before)?) == purpose(&profile) => Some(sealed),
                Some(_) => return Err(AddError::KeyAgain),
            },
        };
        let name = profile.name.clone();
        let value = text(&StoredModel::V1 { profile });
        self.keep(Addition { sort: Sort::Model, name, value, secret, changed_at: self.parts.clock.now() }).await
    }

    pub async fn remove_model(&self, name: &str) -> Result<(), AddError> {
        match self.remove(Sort::Model, name).await {
            Err(AddError::NotFound) if self.parts.configured.iter().any(|known| known == name) => {
                Err(AddError::Configured(name.to_owned()))
            }
            removed => removed,
        }
    }

    /// Adds a repository that the forge shows us, by name or URL. `true`: it is new.
    pub async fn add_repository(&self, text: &str) -> Result<(Repo, bool), AddError> {
        let name = parse_repository(text, &self.parts.hosts).map_err(AddError::Repository)?;
        if !self.parts.forge.can_write() {
            return Err(AddError::NoAccess);
        }
        let repo =
            self.parts.forge.repository(&name).await.map_err(|error| AddError::Repository(unseen(error, &name)))?;
        match self.parts.forge.may_write(&repo).await {
            Ok(()) => {}
            Err(ForgeError::Denied(why)) => return Err(AddError::MayNotWrite(repo.name, why)),
            Err(other) => return Err(AddError::Repository(unseen(other, &name))),
        }
        let _turn = self.turn.lock().await;
        let addition = Addition {
            sort: Sort::Repository,
            name: repo.name.to_string(),
            value: "{}".to_owned(),
            secret: None,
            changed_at: self.parts.clock.now(),
        };
        let is_new = self.keep(addition).await?;
        Ok((repo, is_new))
    }

    pub async fn remove_repository(&self, name: &RepoName) -> Result<(), AddError> {
        self.remove(Sort::Repository, &name.to_string()).await
    }

    /// Tokens for the forge, in the place of those before. Gives whose the one that writes is.
    pub async fn put_forge_tokens(&self, read: Option<SecretString>, write: SecretString) -> Result<String, AddError> {
        if self.parts.forge_configured {
            return Err(AddError::ForgeConfigured);
        }
        if read.as_ref().is_some_and(|read| read.expose_secret() == write.expose_secret()) {
            return Err(AddError::SameToken);
        }
        let login = self.whose(TokenFor::Writing, &write).await?;
        if let Some(read) = &read {
            self.whose(TokenFor::Reading, read).await?;
        }
        let _turn = self.turn.lock().await;
        for (of, token) in [(TokenFor::Reading, read), (TokenFor::Writing, Some(write))] {
            match token {
                Some(token) => {
                    let sealed = self.newest_ring().seal(&token, &self.token_purpose(of), self.parts.random.secret());
                    let addition = Addition {
                        sort: Sort::ForgeToken,
                        name: of.name().to_owned(),
                        value: "{}".to_owned(),
                        secret: Some(sealed.ok_or(AddError::NoRing)?),
                        changed_at: self.parts.clock.now(),
                    };
                    self.parts.store.keep_addition(addition).await?;
                }
                None => {
                    self.parts.store.drop_addition(Sort::ForgeToken, of.name()).await?;
                }
            }
        }
        self.tell().await?;
        Ok(login)
    }

    pub async fn remove_forge_tokens(&self) -> Result<(), AddError> {
        let _turn = self.turn.lock().await;
        let mut dropped = false;
        for of in [TokenFor::Reading, TokenFor::Writing] {
            dropped |= self.parts.store.drop_addition(Sort::ForgeToken, of.name()).await?;
        }
        self.tell().await?;
        if dropped { Ok(()) } else { Err(AddError::NotFound) }
    }

    /// Whether anything can be written to the forge now.
    pub fn can_write(&self) -> bool {
        self.parts.forge.can_write()
    }

    pub fn is_forge_configured(&self) -> bool {
        self.parts.forge_configured
    }

    async fn whose(&self, of: TokenFor, token: &SecretString) -> Result<String, AddError> {
        if !is_sendable(token) {
            return Err(AddError::UnknownToken(of, "it holds characters that cannot be sent".to_owned()));
        }
        self.parts.forge.login_of(token).await.map_err(|error| match error {
            ForgeError::Denied(_) | ForgeError::Refused(_) | ForgeError::NotFound(_) => {
                AddError::UnknownToken(of, crate::ports::chain(&error))
            }
            other => AddError::Forge(other),
        })
    }

    fn token_purpose(&self, of: TokenFor) -> String {
        format!("forge token {} {}", of.name(), self.parts.forge_url)
    }

    /// What an addition's secret is for. `None`: such a one has none.
    fn purpose_of(&self, addition: &Addition) -> Result<String, AddError> {
        match (addition.sort, addition.name.as_str()) {
            (Sort::Model, _) => Ok(purpose(&profile_of(addition)?)),
            (Sort::ForgeToken, "read") => Ok(self.token_purpose(TokenFor::Reading)),
            (Sort::ForgeToken, "write") => Ok(self.token_purpose(TokenFor::Writing)),
            (Sort::ForgeToken | Sort::Repository, _) => Err(unreadable(addition)),
        }
    }

    fn opened(&self, addition: &Addition) -> Result<Entered, AddError> {
        let Some(sealed) = &addition.secret else { return Ok(Entered::None) };
        Ok(match self.ring.now().open(sealed, &self.purpose_of(addition)?) {
            Ok(secret) => Entered::Open(secret),
            Err(why) => Entered::Lost(why),
        })
    }

    /// Seals all secrets with the newest key: with a new one where the file is Fettle's own. A crash between two steps leaves secrets
    /// that all open, and is mended by another rotation.
    pub async fn rotate(&self) -> Result<Rotated, AddError> {
        let _turn = self.turn.lock().await;
        let own_file = self.parts.ring.grow().map_err(AddError::RingFile)?;
        let ring = KeyRing::new(&self.parts.ring.read().map_err(AddError::RingFile)?);
        let newest = ring.newest().ok_or(AddError::NoRing)?.to_owned();
        let retired = ring.ids().filter(|id| *id != newest).map(str::to_owned).collect();
        self.ring.set(ring);
        let ring = self.ring.now();
        let mut rotated = Rotated { key: newest, resealed: 0, lost: Vec::new(), retired, own_file };
        for addition in self.parts.store.additions().await? {
            let Some(sealed) = addition.secret.clone().filter(|sealed| sealed.key != rotated.key) else { continue };
            let Ok(purpose) = self.purpose_of(&addition) else {
                rotated.lost.push(format!("{} {}", addition.sort.name(), addition.name));
                continue;
            };
            let Ok(secret) = ring.open(&sealed, &purpose) else {
                rotated.lost.push(format!("{} {}", addition.sort.name(), addition.name));
                continue;
            };
            let anew = ring.seal(&secret, &purpose, self.parts.random.secret()).ok_or(AddError::NoRing)?;
            // Another dashboard changed it meanwhile, and sealed it with a key that it has.
            if self.parts.store.reseal_addition(addition.sort, &addition.name, sealed, anew).await? {
                rotated.resealed += 1;
            }
        }
        // What another dashboard has sealed meanwhile with an older key needs that key; what opens with none needs none.
        let mut needed = Vec::new();
        for addition in self.parts.store.additions().await? {
            if let Some(sealed) = addition.secret.as_ref().filter(|sealed| sealed.key != rotated.key)
                && let Ok(purpose) = self.purpose_of(&addition)
                && ring.open(sealed, &purpose).is_ok()
            {
                needed.push(sealed.key.clone());
            }
        }
        rotated.retired.retain(|id| !needed.contains(id));
        if own_file && !needed.is_empty() {
            rotated.retired.clear();
        } else if own_file {
            self.parts.ring.shrink().map_err(AddError::RingFile)?;
            self.ring.set(KeyRing::new(&self.parts.ring.read().map_err(AddError::RingFile)?));
        }
        self.tell().await?;
        Ok(rotated)
    }

    /// What counts is what the ledger says.
    pub async fn read(&self) -> Result<(), AddError> {
        let _turn = self.turn.lock().await;
        self.tell().await
    }

    async fn stored(&self, sort: Sort, name: &str) -> Result<Option<Addition>, AddError> {
        let all = self.parts.store.additions().await?;
        Ok(all.into_iter().find(|one| one.sort == sort && one.name == name))
    }

    async fn keep(&self, addition: Addition) -> Result<bool, AddError> {
        let kept = self.parts.store.keep_addition(addition).await?;
        self.tell().await?;
        match kept {
            Kept::New => Ok(true),
            Kept::Changed => Ok(false),
            Kept::Full => Err(AddError::Full),
        }
    }

    async fn remove(&self, sort: Sort, name: &str) -> Result<(), AddError> {
        let _turn = self.turn.lock().await;
        let dropped = self.parts.store.drop_addition(sort, name).await?;
        self.tell().await?;
        if dropped { Ok(()) } else { Err(AddError::NotFound) }
    }

    async fn tell(&self) -> Result<(), AddError> {
        let additions = self.parts.store.additions().await?;
        self.look_for_keys(&additions);
        let mut added = Added::default();
        for addition in &additions {
            // One that a newer version wrote keeps nobody from the others.
            if let Err(error) = self.take(addition, &mut added) {
                added.unread.push(crate::ports::chain(&error));
            }
        }
        // Before anybody is told of repositories that are reached with them.
        if !self.parts.forge_configured && self.parts.told.borrow().forge != added.forge {
            self.parts.forge.use_tokens(added.forge.read.open().cloned(), added.forge.write.open().cloned());
        }
        self.parts.told.send_if_modified(|before| {
            let changed = **before != added;
            if changed {
                added.lost().for_each(|(what, why)| warn!("{what} cannot be used: {why}"));
                added.unread.iter().for_each(|why| warn!("something that was added is left out: {why}"));
                *before = Arc::new(added);
            }
            changed
        });
        Ok(())
    }

    /// With whatever key was put into the file since: what is sealed with an older one might be lost with it.
    fn newest_ring(&self) -> Arc<KeyRing> {
        if let Ok(keys) = self.parts.ring.read() {
            self.ring.set(KeyRing::new(&keys));
        }
        self.ring.now()
    }

    /// An operator gives dashboards a new key one after the other: what another one has sealed with it opens once it is here.
    fn look_for_keys(&self, additions: &[Addition]) {
        let ring = self.ring.now();
        let unknown =
            |addition: &Addition| addition.secret.as_ref().is_some_and(|sealed| ring.ids().all(|id| id != sealed.key));
        if additions.iter().any(unknown)
            && let Ok(keys) = self.parts.ring.read()
        {
            self.ring.set(KeyRing::new(&keys));
        }
    }

    fn take(&self, addition: &Addition, added: &mut Added) -> Result<(), AddError> {
        match addition.sort {
            Sort::Model => {
                let profile = profile_of(addition)?;
                // The operator's word counts, should he name one so later.
                if !self.parts.configured.contains(&profile.name) {
                    let key = self.opened(addition)?;
                    added.models.push(AddedModel { profile, key, changed_at: addition.changed_at });
                }
            }
            Sort::Repository => added.repositories.push(addition.name.parse().map_err(|_| unreadable(addition))?),
            Sort::ForgeToken if self.parts.forge_configured => {}
            Sort::ForgeToken if addition.name == TokenFor::Reading.name() => {
                added.forge.read = self.opened(addition)?
            }
            Sort::ForgeToken => added.forge.write = self.opened(addition)?,
        }
        Ok(())
    }
}

/// Reads anew by the clock.
pub struct ReadAgain(pub Arc<Adding>);

#[async_trait]
impl Reconcile for ReadAgain {
    async fn tick(&mut self, _: &Pulse) -> Result<(), Trouble> {
        self.0.read().await.map_err(|error| Trouble::new(crate::ports::chain(&error)))
    }
}

/// Whether it can stand in a header.
fn is_sendable(secret: &SecretString) -> bool {
    let text = secret.expose_secret();
    !text.is_empty() && text.len() <= MAX_KEY_BYTES && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

/// What a key is for: this model, at this server.
fn purpose(profile: &ModelProfile) -> String {
    format!("model {} {} {}", profile.name, profile.kind.name(), profile.server().unwrap_or_default())
}

fn text(value: &StoredModel) -> String {
    serde_json::to_string(value).expect("a profile is plain data")
}

fn profile_of(addition: &Addition) -> Result<ModelProfile, AddError> {
    let StoredModel::V1 { profile } = serde_json::from_str(&addition.value).map_err(|_| unreadable(addition))?;
    Ok(profile)
}

fn unreadable(addition: &Addition) -> AddError {
    let what = format!("the {} `{}` was not written by this version", addition.sort.name(), addition.name);
    AddError::Ledger(LedgerError::Unreadable(what))
}

fn unseen(error: ForgeError, name: &RepoName) -> SubmitError {
    crate::submitting::by_reaction(error, crate::submit::Missing::Repository(name.to_string()))
}
