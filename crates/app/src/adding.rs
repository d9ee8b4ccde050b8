//! Models and repositories that people add in the browser, beside those of the configuration. All that use them are told through one
//! channel, and see them as they stand in the ledger: another dashboard's change within [`READ_EVERY`], one's own at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::model_profile::{BadProfile, ModelProfile, plain_name};
use fettle_domain::repo::{Repo, RepoName};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tracing::warn;

use crate::live::Live;
use crate::ports::additions::{Addition, Additions, Kept, MAX_ADDITIONS, Sort};
use crate::ports::clock::{Clock, SecretSource};
use crate::ports::forge::{ForgeError, ForgeReader};
use crate::ports::ledger::LedgerError;
use crate::ports::model::ModelInfo;
use crate::reconciling::{Reconcile, Trouble};
use crate::sealing::{KeyRing, SealError};
use crate::submit::SubmitError;
use crate::submitting::parse_repository;
use crate::vitals::Pulse;

/// How soon what another dashboard was told is known here.
pub const READ_EVERY: Duration = Duration::from_secs(5);
/// A provider's keys have at most some hundred characters.
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
}

#[derive(Debug, Clone, PartialEq)]
pub struct AddedModel {
    pub profile: ModelProfile,
    pub key: ModelKey,
    pub changed_at: Timestamp,
}

/// What its server is shown.
#[derive(Debug, Clone)]
pub enum ModelKey {
    None,
    Open(SecretString),
    /// It was entered, and cannot be read any more: it has to be entered again.
    Lost(SealError),
}

impl PartialEq for ModelKey {
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

    /// Keys that must not leave in what is published.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretString> {
        self.models.iter().filter_map(|model| match &model.key {
            ModelKey::Open(key) => Some(key),
            ModelKey::None | ModelKey::Lost(_) => None,
        })
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
    /// `None`: there is no model.
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
    #[error("`{0}` and `{1}` differ by a slash alone, which the gateway cannot tell apart")]
    Alike(String, String),
    #[error("the key has more than {MAX_KEY_BYTES} bytes, or characters that cannot be sent")]
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
    /// Secrets that do not open with any key, by model.
    pub lost: Vec<String>,
    /// Keys that nothing needs any more. Where the file is the operator's, he takes them out.
    pub retired: Vec<String>,
    /// The file is Fettle's own: a new key was made, and old ones are gone.
    pub own_file: bool,
}

/// What it is made of.
pub struct Parts {
    pub store: Arc<dyn Additions>,
    pub forge: Arc<dyn ForgeReader>,
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
        self.tell_apart(&profile)?;
        let _turn = self.turn.lock().await;
        let before = self.stored(Sort::Model, &profile.name).await?;
        let secret = match key {
            KeyChange::Take => None,
            KeyChange::New(key) => {
                let sendable = |byte: u8| (0x21..=0x7e).contains(&byte);
                let text = key.expose_secret();
                if text.is_empty() || text.len() > MAX_KEY_BYTES || !text.bytes().all(sendable) {
                    return Err(AddError::OddKey);
                }
                let sealed = self.ring.now().seal(&key, &purpose(&profile), self.parts.random.secret());
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
        if self.parts.configured.iter().any(|known| known == name) {
            return Err(AddError::Configured(name.to_owned()));
        }
        self.remove(Sort::Model, name).await
    }

    /// Adds a repository that the forge shows us, by name or URL. `true`: it is new.
    pub async fn add_repository(&self, text: &str) -> Result<(Repo, bool), AddError> {
        let name = parse_repository(text, &self.parts.hosts).map_err(AddError::Repository)?;
        let repo =
            self.parts.forge.repository(&name).await.map_err(|error| AddError::Repository(unseen(error, &name)))?;
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
            let purpose = purpose(&profile_of(&addition)?);
            let Ok(secret) = ring.open(&sealed, &purpose) else {
                rotated.lost.push(addition.name);
                continue;
            };
            let anew = ring.seal(&secret, &purpose, self.parts.random.secret()).ok_or(AddError::NoRing)?;
            // Another dashboard changed it meanwhile, and sealed it with a key that it has.
            if self.parts.store.reseal_addition(addition.sort, &addition.name, sealed, anew).await? {
                rotated.resealed += 1;
            }
        }
        let still_needed = self.parts.store.additions().await?.into_iter().filter_map(|one| Some(one.secret?.key));
        let still_needed: Vec<String> = still_needed.collect();
        rotated.retired.retain(|id| !still_needed.contains(id));
        // What is lost opens with none of them.
        if own_file && rotated.retired.len() + 1 == ring.ids().count() {
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

    /// Refuses what the configuration or the gateway would take for another model.
    fn tell_apart(&self, profile: &ModelProfile) -> Result<(), AddError> {
        if self.parts.configured.contains(&profile.name) {
            return Err(AddError::Configured(profile.name.clone()));
        }
        let now = self.now();
        let others = now.models.iter().map(|model| &model.profile.name).filter(|name| **name != profile.name);
        let alike = self.parts.configured.iter().chain(others).find(|name| plain_name(name) == profile.plain_name());
        match alike {
            Some(other) => Err(AddError::Alike(other.clone(), profile.name.clone())),
            None => Ok(()),
        }
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
        let ring = self.ring.now();
        let mut added = Added::default();
        for addition in self.parts.store.additions().await? {
            match addition.sort {
                Sort::Model => {
                    let profile = profile_of(&addition)?;
                    // The operator's word counts, should he name one so later.
                    if self.parts.configured.contains(&profile.name) {
                        continue;
                    }
                    let key = match &addition.secret {
                        None => ModelKey::None,
                        Some(sealed) => match ring.open(sealed, &purpose(&profile)) {
                            Ok(key) => ModelKey::Open(key),
                            Err(why) => ModelKey::Lost(why),
                        },
                    };
                    added.models.push(AddedModel { profile, key, changed_at: addition.changed_at });
                }
                Sort::Repository => {
                    let name = addition.name.parse().map_err(|_| unreadable(&addition))?;
                    added.repositories.push(name);
                }
            }
        }
        self.parts.told.send_if_modified(|before| {
            let changed = **before != added;
            if changed {
                for model in &added.models {
                    if let ModelKey::Lost(why) = &model.key {
                        warn!(
                            model = model.profile.name,
                            "the key of the model `{}` cannot be used: {why}", model.profile.name
                        );
                    }
                }
                *before = Arc::new(added);
            }
            changed
        });
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
