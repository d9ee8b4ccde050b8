//! Where accounts, their sessions and keys are kept, and the log of what was done.
//!
//! Every change is noted in the transaction that makes it, so that the log and what it tells of cannot part.

use std::fmt;

use async_trait::async_trait;
use fettle_domain::access::{Role, Scope};
use fettle_domain::account::{Email, Failures, Standing, Tries, Username};
use fettle_domain::audit_log::{Entry, Note};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use fettle_domain::session::{Kind, Life};
use jiff::Timestamp;

use super::ledger::L;

/// Sessions of one account at most; one more ends the oldest. Nobody signs in on so many machines.
pub const MAX_SESSIONS: u16 = 100;
/// Keys of one account at most.
pub const MAX_API_KEYS: u16 = 50;

/// SHA-256 of a secret of 256 random bits; such a secret needs no slow hash.
pub type Digest = [u8; 32];

/// What a password is checked against; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(pub String);

impl PasswordHash {
    /// Of an account that has no password: no password is right.
    pub fn none() -> Self {
        Self(String::new())
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub username: Username,
    pub email: Email,
    pub password: PasswordHash,
    pub standing: Standing,
    /// From all addresses together.
    pub failures: Failures,
    pub created_at: Timestamp,
    pub last_login_at: Option<Timestamp>,
}

/// Who somebody is to a provider of sign-ins. Nothing else that it says identifies anybody: an address can pass to another person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    pub id: UserId,
    pub username: Username,
    pub email: Email,
    pub password: PasswordHash,
    pub role: Role,
    /// The account is found by it from now on.
    pub identity: Option<Identity>,
}

/// Whether an account may be added where there is an admin already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Founding {
    /// Only as the first admin.
    First,
    Later,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    Added(User),
    UsernameTaken,
    EmailTaken,
    /// Another request made its account meanwhile.
    IdentityTaken,
    AdminExists,
}

/// `None`: as it was. A new password and being made inactive end the account's sessions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserChange {
    pub role: Option<Role>,
    pub active: Option<bool>,
    pub password: Option<PasswordHash>,
    /// Goes on although the password changes.
    pub keep: Option<SessionId>,
    /// Removes its keys.
    pub without_keys: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    Changed(User),
    NotFound,
    LastAdmin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub user: UserId,
    pub kind: Kind,
    pub address: String,
    pub user_agent: String,
    pub life: Life,
    pub last_used_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSession {
    pub id: SessionId,
    pub user: UserId,
    pub kind: Kind,
    pub secret: Digest,
    pub address: String,
    pub user_agent: String,
}

/// What somebody has shown who signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignInBy {
    /// A password that `verified` was right for, which is exchanged for `upgraded`.
    Password { verified: PasswordHash, upgraded: Option<PasswordHash> },
    /// What a provider said.
    Identity,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchanged {
    Rotated(Session, User),
    /// A copy is about: the family has ended.
    Reused(Session),
    Over,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: ApiKeyId,
    pub user: UserId,
    pub name: String,
    /// How the key begins, so that its owner knows it again.
    pub prefix: String,
    pub scopes: Vec<Scope>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    pub id: ApiKeyId,
    pub user: UserId,
    pub name: String,
    pub prefix: String,
    pub secret: Digest,
    pub scopes: Vec<Scope>,
    pub expires_at: Option<Timestamp>,
}

/// Signs access tokens.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    pub id: uuid::Uuid,
    pub secret: [u8; 32],
    pub created_at: Timestamp,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[async_trait]
pub trait Accounts: Send + Sync {
    /// Whether there is any admin, active or not.
    async fn has_admin(&self) -> L<bool>;
    async fn add_user(&self, user: NewUser, founding: Founding, note: Note) -> L<Added>;
    async fn find_user(&self, id: UserId) -> L<Option<User>>;
    /// By user name or e-mail address, in small letters.
    async fn find_user_by_login(&self, login: &str) -> L<Option<User>>;
    async fn find_user_by_identity(&self, identity: &Identity) -> L<Option<User>>;
    /// Those that were added after `after`, in their order.
    async fn list_users(&self, after: Option<UserId>, limit: u16) -> L<Vec<User>>;
    async fn change_user(&self, id: UserId, change: UserChange, note: Note) -> L<Changed>;

    /// What counts of an account at an address.
    async fn tries(&self, id: UserId, address: &str) -> L<Tries>;
    /// The password was wrong. What counts from now on.
    async fn fail_login(&self, id: UserId, address: &str, note: Note) -> L<Tries>;
    /// Begins a session. Its address is familiar from now on, and wrong passwords are forgotten. `None`: the account has another
    /// password by now, or is not active; nothing changed.
    async fn begin_session(&self, session: NewSession, by: SignInBy, note: Note) -> L<Option<Session>>;
    /// The session that this secret is good for, with its account; also one that is over.
    async fn find_session(&self, secret: Digest) -> L<Option<(Session, User)>>;
    async fn find_session_by_id(&self, id: SessionId) -> L<Option<(Session, User)>>;
    /// It was used: prolongs it. Nothing if it is over.
    async fn touch_session(&self, id: SessionId) -> L<()>;
    /// A refresh token for its successor. Of many who show the same one, one gets it. Only `Rotated` and `Reused` are noted.
    async fn exchange(&self, shown: Digest, next: Digest, note: Note) -> L<Exchanged>;
    /// The account's live ones, the newest first.
    async fn list_sessions(&self, user: UserId) -> L<Vec<Session>>;
    /// `false`: it was over, or never was; then nothing is noted.
    async fn end_session(&self, id: SessionId, note: Note) -> L<bool>;

    /// `None`: the account has [`MAX_API_KEYS`].
    async fn add_api_key(&self, key: NewApiKey, note: Note) -> L<Option<ApiKey>>;
    async fn find_api_key(&self, secret: Digest) -> L<Option<(ApiKey, User)>>;
    async fn find_api_key_by_id(&self, id: ApiKeyId) -> L<Option<ApiKey>>;
    async fn touch_api_key(&self, id: ApiKeyId) -> L<()>;
    /// The newest first.
    async fn list_api_keys(&self, user: UserId) -> L<Vec<ApiKey>>;
    /// `false`: there is none; then nothing is noted.
    async fn remove_api_key(&self, id: ApiKeyId, note: Note) -> L<bool>;

    async fn note(&self, note: Note) -> L<Entry>;
    /// Those before `before`, the newest first.
    async fn newest_entries(&self, before: Option<u64>, limit: u16) -> L<Vec<Entry>>;
    /// Those after `after`, in their order.
    async fn entries_after(&self, after: u64, limit: u16) -> L<Vec<Entry>>;

    /// The newest first.
    async fn signing_keys(&self) -> L<Vec<SigningKey>>;
    /// Adds a key unless there is one that was made at `newest_before` or later, as another process may have done meanwhile.
    async fn add_signing_key(&self, id: uuid::Uuid, secret: [u8; 32], newest_before: Timestamp) -> L<()>;
    /// Forgets keys made before this.
    async fn forget_signing_keys(&self, before: Timestamp) -> L<u64>;

    /// Forgets up to `max` sessions that expired before `before`, with their spent tokens: until then a copy of one is still told apart from none.
    async fn forget_sessions(&self, before: Timestamp, max: u16) -> L<u64>;
    /// Forgets up to `max` addresses from which nobody came or failed since `before`.
    async fn forget_addresses(&self, before: Timestamp, max: u16) -> L<u64>;
}
