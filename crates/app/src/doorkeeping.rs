//! Who comes in: the first admin, sign-ins, sessions and their tokens, keys, and the accounts themselves.
//!
//! Decides nothing by itself: the rules are `domain::{access, account, session}`'s, the order in which things happen is here.

mod access_token;
mod foreign;
mod password;
mod sweeping;

use std::sync::Arc;

use fettle_domain::access::{Actor, Role, Scope, Via};
use fettle_domain::account::{Email, LastAdmin, NameError, Username, WeakPassword, check_password};
use fettle_domain::audit_log::{Note, tidy};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use fettle_domain::oidc::{NotAllowed, Unfit};
use fettle_domain::session::{Kind, TOUCH_EVERY};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use crate::ports::accounts::{
    Accounts, Added, ApiKey, Changed, Digest, Exchanged, Founding, NewApiKey, NewSession, NewUser, Session, SignInBy,
    User, UserChange,
};
use crate::ports::clock::{Clock, IdSource, SecretSource};
use crate::ports::ledger::{L, LedgerError};
use crate::ports::provider::ProviderError;
use access_token::{Keys, Unsound};
use password::{Busy, Checked, Passwords};

pub use access_token::TOKEN_SECONDS;
pub use foreign::{Foreign, Returned};
pub use sweeping::{SWEPT_EVERY, Sweep};

/// How every API key begins, so that it is told from other secrets, by us and by scanners.
pub const API_KEY_PREFIX: &str = "fettle_key_";
/// Hex digits of a key that its owner sees in the list.
const SHOWN_DIGITS: usize = 6;
/// Bytes of a user agent that are kept.
const MAX_USER_AGENT_BYTES: usize = 200;
/// Bytes of a key's name.
const MAX_KEY_NAME_BYTES: usize = 100;
/// In the audit log, whoever was not recognised: what is given instead of a name may be a password.
const UNKNOWN: &str = "unknown";
/// Days that a key lasts at most if it ends at all.
pub const MAX_KEY_DAYS: u16 = 3650;

/// Whether people may make accounts for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Registration {
    #[default]
    Closed,
    Open,
}

/// From where somebody asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    pub address: String,
    pub user_agent: String,
}

/// Who was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub user: User,
    pub session: Option<SessionId>,
    pub actor: Actor,
}

/// A sign-in with the secret that stands for it from now on.
#[derive(Debug)]
pub struct SignedIn {
    pub known: Known,
    pub secret: SecretString,
}

/// What a client works with.
#[derive(Debug)]
pub struct Tokens {
    pub access: SecretString,
    pub refresh: SecretString,
}

/// By what the asker can do about it.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// One answer for all that a guesser would like to tell apart.
    #[error("the user name or password is wrong, or the account is inactive or locked for a while")]
    Wrong,
    #[error("this token is not good, or no longer")]
    WrongToken,
    #[error("the setup token is wrong")]
    WrongSetupToken,
    #[error("there is an admin already")]
    SetUp,
    #[error("accounts are made by an admin here")]
    RegistrationClosed,
    #[error(transparent)]
    Weak(#[from] WeakPassword),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("this user name is taken")]
    UsernameTaken,
    #[error("this e-mail address is taken")]
    EmailTaken,
    #[error(transparent)]
    LastAdmin(#[from] LastAdmin),
    #[error("there is no such user, session or key")]
    NotFound,
    #[error("a key's name has 1 to {MAX_KEY_NAME_BYTES} bytes in one line")]
    KeyName,
    #[error("a key has at least one scope, and lasts 1 to {MAX_KEY_DAYS} days if it ends")]
    KeyReach,
    #[error("there are as many keys as an account can have; remove one")]
    TooManyKeys,
    #[error("this can be done with an account alone")]
    NoAccount,
    #[error("this sign-in was not begun in this browser, or too long ago; begin again")]
    NotBegunHere,
    #[error("this account is inactive; an admin can change that")]
    Inactive,
    #[error("there is an account with this e-mail address, which signs in with its password")]
    EmailHasAccount,
    #[error("whoever has this e-mail address signs in with {0}")]
    EmailOfProvider(String),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error("what the provider of sign-ins says is not good for this sign-in")]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

pub struct Doorkeeper {
    pub store: Arc<dyn Accounts>,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn IdSource>,
    pub secrets: Arc<dyn SecretSource>,
    pub registration: Registration,
    /// Who else says who people are.
    pub foreign: Option<Foreign>,
    keys: Keys,
    passwords: Passwords,
}

impl Doorkeeper {
    /// The second value is the setup token, to be shown on the terminal; `None` once there is an admin.
    pub async fn open(
        store: Arc<dyn Accounts>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
        secrets: Arc<dyn SecretSource>,
        registration: Registration,
    ) -> L<(Self, Option<SecretString>)> {
        let (keys, passwords) = (Keys::default(), Passwords::default());
        let door = Self { store, clock, ids, secrets, registration, foreign: None, keys, passwords };
        door.renew_signing_keys().await?;
        let token = if door.needs_setup().await? { door.keys.setup_tokens().into_iter().next() } else { None };
        Ok((door, token))
    }

    pub async fn needs_setup(&self) -> L<bool> {
        Ok(!self.store.has_admin().await?)
    }

    /// Makes the first admin.
    pub async fn set_up(&self, token: &SecretString, wanted: Wanted, origin: &Origin) -> Result<SignedIn, DoorError> {
        if !self.needs_setup().await? {
            return Err(DoorError::SetUp);
        }
        // Another process may have shown its own, of a key that it made meanwhile.
        self.keys.set(self.store.signing_keys().await?);
        let shown = digest(token);
        let good = |token: &SecretString| bool::from(digest(token).ct_eq(&shown));
        if !self.keys.setup_tokens().iter().any(good) {
            let refused = Note { result: "refused".into(), ..note("", "setup", "", origin) };
            self.store.note(refused).await?;
            return Err(DoorError::WrongSetupToken);
        }
        let user = self.add(wanted, Role::Admin, Founding::First, "setup", None, origin).await?;
        let by = SignInBy::Password { verified: user.password.clone(), upgraded: None };
        self.sign_in(&user, by, Kind::Browser, origin).await
    }

    pub async fn register(&self, wanted: Wanted, origin: &Origin) -> Result<User, DoorError> {
        if self.registration == Registration::Closed {
            return Err(DoorError::RegistrationClosed);
        }
        // Nobody has shown that the address is theirs, and whoever it is could not come in by the provider any more.
        let email = Email::parse(&wanted.email)?;
        if let Some(foreign) = self.foreign.as_ref().filter(|foreign| foreign.allowed.is_for(&email)) {
            return Err(DoorError::EmailOfProvider(foreign.name.clone()));
        }
        self.add(wanted, Role::Viewer, Founding::Later, "register", None, origin).await
    }

    pub async fn create_user(
        &self,
        by: &Actor,
        wanted: Wanted,
        role: Role,
        origin: &Origin,
    ) -> Result<User, DoorError> {
        self.add(wanted, role, Founding::Later, "users.create", Some(by), origin).await
    }

    async fn add(
        &self,
        wanted: Wanted,
        role: Role,
        founding: Founding,
        action: &str,
        by: Option<&Actor>,
        origin: &Origin,
    ) -> Result<User, DoorError> {
        let (username, email) = (Username::parse(&wanted.username)?, Email::parse(&wanted.email)?);
        check_password(wanted.password.expose_secret(), &[username.as_str(), email.as_str(), "fettle"])?;
        let password = self.passwords.hash(&wanted.password, self.secrets.secret()).await?;
        let id = UserId::from_uuid(self.ids.uuid());
        let by = by.map_or(username.as_str(), |by| &by.name);
        let note = Note { detail: format!("{} as {}", username.as_str(), role.name()), ..note(by, action, id, origin) };
        let user = NewUser { id, username, email, password, role, identity: None };
        match self.store.add_user(user, founding, note).await? {
            Added::Added(user) => Ok(user),
            Added::UsernameTaken => Err(DoorError::UsernameTaken),
            Added::EmailTaken => Err(DoorError::EmailTaken),
            // It came with none.
            Added::IdentityTaken => Err(DoorError::UsernameTaken),
            Added::AdminExists => Err(DoorError::SetUp),
        }
    }

    /// A sign-in by user name or address and password. Costs and says the same whoever is asked for.
    pub async fn log_in(
        &self,
        login: &str,
        password: &SecretString,
        kind: Kind,
        origin: &Origin,
    ) -> Result<SignedIn, DoorError> {
        let found = self.store.find_user_by_login(&login.trim().to_lowercase()).await?;
        let stored = found.as_ref().map(|user| &user.password);
        // Asked for nobody as well: an unknown name shows in nothing.
        let id = found.as_ref().map_or_else(|| UserId::from_uuid(Uuid::nil()), |user| user.id);
        // Until it is written down what came of it, so that guesses that come at once are counted one by one.
        let turn = self.passwords.turn().await?;
        let tries = self.store.tries(id, &origin.address).await?;
        let checked = turn.check(password, stored, self.secrets.secret()).await?;
        let name = found.as_ref().map_or(UNKNOWN, |user| user.username.as_str());
        let refused = |why: &str| Note {
            result: "refused".into(),
            detail: why.into(),
            ..note(name, "login", found.as_ref().map_or(String::new(), |user| user.id.to_string()), origin)
        };
        let Some(user) = &found else {
            self.store.note(refused("unknown account")).await?;
            return Err(DoorError::Wrong);
        };
        if tries.locked(self.clock.now()) {
            self.store.note(refused("locked")).await?;
            return Err(DoorError::Wrong);
        }
        let Checked::Right { upgraded } = checked else {
            self.store.fail_login(user.id, &origin.address, refused("wrong password")).await?;
            return Err(DoorError::Wrong);
        };
        if !user.standing.active {
            self.store.note(refused("inactive")).await?;
            return Err(DoorError::Wrong);
        }
        let by = SignInBy::Password { verified: user.password.clone(), upgraded };
        self.sign_in(user, by, kind, origin).await
    }

    async fn sign_in(&self, user: &User, by: SignInBy, kind: Kind, origin: &Origin) -> Result<SignedIn, DoorError> {
        let secret = secret_text("", self.secrets.secret());
        let session = NewSession {
            id: SessionId::from_uuid(self.ids.uuid()),
            user: user.id,
            kind,
            secret: digest(&secret),
            address: origin.address.clone(),
            user_agent: tidy(&origin.user_agent, MAX_USER_AGENT_BYTES),
        };
        let note = note(user.username.as_str(), "login", session.id, origin);
        let begun = self.store.begin_session(session, by, note).await?;
        let session = begun.ok_or(DoorError::Wrong)?;
        let via = match kind {
            Kind::Browser => Via::Session,
            Kind::Token => Via::Token,
        };
        Ok(SignedIn { known: known(user.clone(), Some(session.id), None, via), secret })
    }

    /// As [`Doorkeeper::log_in`], for a client.
    pub async fn log_in_client(
        &self,
        login: &str,
        password: &SecretString,
        origin: &Origin,
    ) -> Result<Tokens, DoorError> {
        let SignedIn { known, secret } = self.log_in(login, password, Kind::Token, origin).await?;
        let session = known.session.ok_or(DoorError::WrongToken)?;
        let (session, user) = self.store.find_session_by_id(session).await?.ok_or(DoorError::WrongToken)?;
        self.tokens(&user, &session, secret)
    }

    /// Exchanges a refresh token for the next. One that was exchanged before ends its family.
    pub async fn refresh(&self, token: &SecretString, origin: &Origin) -> Result<Tokens, DoorError> {
        let next = secret_text("", self.secrets.secret());
        match self.store.exchange(digest(token), digest(&next), note("", "refresh", "", origin)).await? {
            Exchanged::Rotated(session, user) => self.tokens(&user, &session, next),
            Exchanged::Reused(_) | Exchanged::Over | Exchanged::Unknown => Err(DoorError::WrongToken),
        }
    }

    fn tokens(&self, user: &User, session: &Session, refresh: SecretString) -> Result<Tokens, DoorError> {
        let access = self.keys.issue(user, session, self.ids.uuid(), self.clock.now());
        let access = access.ok_or_else(|| LedgerError::Unavailable("there is no signing key".to_owned()))?;
        Ok(Tokens { access: access.into(), refresh })
    }

    /// Ends the session that this secret stands for: a browser's or a refresh token. A wrong one ends nothing.
    pub async fn log_out(&self, secret: &SecretString, origin: &Origin) -> L<()> {
        if let Some((session, user)) = self.store.find_session(digest(secret)).await? {
            self.store.end_session(session.id, note(user.username.as_str(), "logout", session.id, origin)).await?;
        }
        Ok(())
    }

    /// Who shows the browser's secret.
    pub async fn by_session(&self, secret: &SecretString) -> L<Option<Known>> {
        let found = self.store.find_session(digest(secret)).await?;
        self.by(found.filter(|(session, _)| session.kind == Kind::Browser), Via::Session).await
    }

    /// Who shows an access token. It is good as long as its session.
    pub async fn by_access_token(&self, token: &str) -> L<Option<Known>> {
        let now = self.clock.now();
        let session = match self.keys.read(token, now) {
            Err(Unsound::UnknownKey) => {
                self.keys.set(self.store.signing_keys().await?);
                self.keys.read(token, now)
            }
            read => read,
        };
        let Ok(session) = session else { return Ok(None) };
        let found = self.store.find_session_by_id(session).await?;
        self.by(found.filter(|(session, _)| session.kind == Kind::Token), Via::Token).await
    }

    async fn by(&self, found: Option<(Session, User)>, via: Via) -> L<Option<Known>> {
        let now = self.clock.now();
        let Some((session, user)) = found else { return Ok(None) };
        if !session.life.live(now) || !user.standing.active {
            return Ok(None);
        }
        if is_to_be_touched(session.last_used_at, now) {
            self.store.touch_session(session.id).await?;
        }
        Ok(Some(known(user, Some(session.id), None, via)))
    }

    /// Who shows an API key.
    pub async fn by_api_key(&self, key: &SecretString) -> L<Option<Known>> {
        let now = self.clock.now();
        let Some((key, user)) = self.store.find_api_key(digest(key)).await? else { return Ok(None) };
        if key.expires_at.is_some_and(|end| end <= now) || !user.standing.active {
            return Ok(None);
        }
        if key.last_used_at.is_none_or(|last| is_to_be_touched(last, now)) {
            self.store.touch_api_key(key.id).await?;
        }
        // One without a scope cannot be made; should there be one, it reads.
        let scope = key.scopes.iter().copied().max().unwrap_or(Scope::Read);
        Ok(Some(known(user, None, Some(scope), Via::ApiKey)))
    }

    /// Exchanges one's own password; all other sessions end.
    pub async fn change_password(
        &self,
        by: &Known,
        current: &SecretString,
        new: &SecretString,
        origin: &Origin,
    ) -> Result<(), DoorError> {
        let user = &by.user;
        let now = self.clock.now();
        let turn = self.passwords.turn().await?;
        let tries = self.store.tries(user.id, &origin.address).await?;
        let checked = turn.check(current, Some(&user.password), self.secrets.secret()).await?;
        let noted = || note(&by.actor.name, "me.password", user.id, origin);
        if tries.locked(now) {
            self.store.note(Note { result: "refused".into(), detail: "locked".into(), ..noted() }).await?;
            return Err(DoorError::Wrong);
        }
        if checked == Checked::Wrong {
            let refused = Note { result: "refused".into(), ..noted() };
            self.store.fail_login(user.id, &origin.address, refused).await?;
            return Err(DoorError::Wrong);
        }
        check_password(new.expose_secret(), &[user.username.as_str(), user.email.as_str(), "fettle"])?;
        let password = Some(turn.hash(new, self.secrets.secret()).await?);
        drop(turn);
        let change = UserChange { password, keep: by.session, ..UserChange::default() };
        self.changed(user.id, change, noted()).await.map(|_| ())
    }

    /// Changes somebody's role, whether they may come in, or their password.
    pub async fn change_user(
        &self,
        by: &Actor,
        id: UserId,
        edit: UserEdit,
        origin: &Origin,
    ) -> Result<User, DoorError> {
        let user = self.store.find_user(id).await?.ok_or(DoorError::NotFound)?;
        let password = match &edit.password {
            None => None,
            Some(password) => {
                check_password(password.expose_secret(), &[user.username.as_str(), user.email.as_str(), "fettle"])?;
                Some(self.passwords.hash(password, self.secrets.secret()).await?)
            }
        };
        let mut what = Vec::new();
        what.extend(edit.role.map(|role| format!("role {}", role.name())));
        what.extend(edit.active.map(|active| if active { "active" } else { "inactive" }.to_owned()));
        what.extend(password.as_ref().map(|_| "a new password, without its keys".to_owned()));
        // Whoever had the old one may have made keys with it. Nobody but the owner can tell which.
        let without_keys = password.is_some();
        let note = Note { detail: what.join(", "), ..note(&by.name, "users.change", id, origin) };
        let change = UserChange { role: edit.role, active: edit.active, password, keep: None, without_keys };
        self.changed(id, change, note).await
    }

    async fn changed(&self, id: UserId, change: UserChange, note: Note) -> Result<User, DoorError> {
        match self.store.change_user(id, change, note).await? {
            Changed::Changed(user) => Ok(user),
            Changed::NotFound => Err(DoorError::NotFound),
            Changed::LastAdmin => Err(DoorError::LastAdmin(LastAdmin)),
        }
    }

    pub async fn end_session(&self, by: &Actor, id: SessionId, origin: &Origin) -> Result<(), DoorError> {
        match self.store.end_session(id, note(&by.name, "sessions.end", id, origin)).await? {
            true => Ok(()),
            false => Err(DoorError::NotFound),
        }
    }

    /// A new key, which is shown this once.
    pub async fn create_api_key(
        &self,
        by: &Actor,
        wanted: WantedKey,
        origin: &Origin,
    ) -> Result<(ApiKey, SecretString), DoorError> {
        let user = by.user.ok_or(DoorError::NoAccount)?;
        let name = wanted.name.trim();
        if name.is_empty() || tidy(name, MAX_KEY_NAME_BYTES) != name {
            return Err(DoorError::KeyName);
        }
        if wanted.scopes.is_empty() || wanted.days.is_some_and(|days| !(1..=MAX_KEY_DAYS).contains(&days)) {
            return Err(DoorError::KeyReach);
        }
        let (mut scopes, now) = (wanted.scopes, self.clock.now());
        scopes.sort_unstable();
        scopes.dedup();
        let lasts = wanted.days.map(|days| SignedDuration::from_hours(24 * i64::from(days)));
        let key = secret_text(API_KEY_PREFIX, self.secrets.secret());
        let new = NewApiKey {
            id: ApiKeyId::from_uuid(self.ids.uuid()),
            user,
            name: name.to_owned(),
            prefix: key.expose_secret()[..API_KEY_PREFIX.len() + SHOWN_DIGITS].to_owned(),
            secret: digest(&key),
            scopes,
            expires_at: lasts.and_then(|lasts| now.checked_add(lasts).ok()),
        };
        let note = Note { detail: new.name.clone(), ..note(&by.name, "api_keys.create", new.id, origin) };
        let added = self.store.add_api_key(new, note).await?;
        added.map(|added| (added, key)).ok_or(DoorError::TooManyKeys)
    }

    pub async fn remove_api_key(&self, by: &Actor, id: ApiKeyId, origin: &Origin) -> Result<(), DoorError> {
        match self.store.remove_api_key(id, note(&by.name, "api_keys.end", id, origin)).await? {
            true => Ok(()),
            false => Err(DoorError::NotFound),
        }
    }

    /// Writes down what was done, or refused, where no verb of [`Accounts`] does.
    pub async fn record(
        &self,
        by: &str,
        action: &str,
        object: &str,
        result: &str,
        detail: &str,
        origin: &Origin,
    ) -> L<()> {
        let noted = Note { result: result.to_owned(), detail: detail.to_owned(), ..note(by, action, object, origin) };
        self.store.note(noted).await.map(|_| ())
    }
}

/// An account as somebody asks for it.
#[derive(Debug)]
pub struct Wanted {
    pub username: String,
    pub email: String,
    pub password: SecretString,
}

/// `None`: as it is.
#[derive(Debug, Default)]
pub struct UserEdit {
    pub role: Option<Role>,
    pub active: Option<bool>,
    pub password: Option<SecretString>,
}

#[derive(Debug)]
pub struct WantedKey {
    pub name: String,
    pub scopes: Vec<Scope>,
    pub days: Option<u16>,
}

fn known(user: User, session: Option<SessionId>, scope: Option<Scope>, via: Via) -> Known {
    let (name, role) = (user.username.as_str().to_owned(), user.standing.role);
    let actor = Actor { user: Some(user.id), name, role, scope, via };
    Known { user, session, actor }
}

fn note(actor: &str, action: &str, object: impl ToString, origin: &Origin) -> Note {
    Note {
        actor: actor.to_owned(),
        action: action.to_owned(),
        object: object.to_string(),
        address: origin.address.clone(),
        result: "done".to_owned(),
        detail: String::new(),
    }
}

fn is_to_be_touched(last: Timestamp, now: Timestamp) -> bool {
    now.duration_since(last).unsigned_abs() >= TOUCH_EVERY
}

fn secret_text(prefix: &str, bytes: [u8; 32]) -> SecretString {
    SecretString::from(format!("{prefix}{}", hex::encode(bytes)))
}

fn digest(secret: &SecretString) -> Digest {
    Sha256::digest(secret.expose_secret().as_bytes()).into()
}

/// An id as the signing keys have it.
fn key_id(ids: &dyn IdSource) -> Uuid {
    ids.uuid()
}
