//! Accounts, sessions, keys and the chained log, each verb handed to the writer or to a reader.

use async_trait::async_trait;
use fettle_app::ports::accounts::{
    Accounts, Added, ApiKey, Changed, Digest, Exchanged, Founding, Identity, MAX_API_KEYS, MAX_SESSIONS, NewApiKey,
    NewSession, NewUser, PasswordHash, Session, SignInBy, SigningKey, User, UserChange,
};
use fettle_app::ports::ledger::L;
use fettle_domain::access::{Role, Scope};
use fettle_domain::account::{Email, Failures, Standing, Tries, Username, change_standing, network};
use fettle_domain::audit_log::{Entry, Head, Note};
use fettle_domain::id::{ApiKeyId, SessionId, UserId};
use fettle_domain::session::{Exchange, Kind, Life, Shown};
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use crate::SqliteLedger;
use crate::error::unreadable;
use crate::sql::{Sql as _, first};
use crate::task;
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

/// A value that is not what this binary writes.
fn odd(column: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.to_owned().into())
}

/// `id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at`, from column `at` on.
fn user(row: &Row<'_>, at: usize) -> rusqlite::Result<User> {
    let text = |column: usize| row.get::<_, String>(at + column);
    let (username, email, role) = (text(1)?, text(2)?, text(4)?);
    Ok(User {
        id: UserId::from_uuid(row.get(at)?),
        username: Username::parse(&username).map_err(|_| odd(at + 1, &username))?,
        email: Email::parse(&email).map_err(|_| odd(at + 2, &email))?,
        password: PasswordHash(text(3)?),
        standing: Standing { role: Role::parse(&role).ok_or_else(|| odd(at + 4, &role))?, active: row.get(at + 5)? },
        failures: Failures { count: row.get(at + 6)?, last_at: row.get::<_, Option<i64>>(at + 7)?.map(from_micros) },
        created_at: from_micros(row.get(at + 8)?),
        last_login_at: row.get::<_, Option<i64>>(at + 9)?.map(from_micros),
    })
}

/// `id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at`.
fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    let kind: String = row.get(2)?;
    Ok(Session {
        id: SessionId::from_uuid(row.get(0)?),
        user: UserId::from_uuid(row.get(1)?),
        kind: Kind::parse(&kind).ok_or_else(|| odd(2, &kind))?,
        address: row.get(3)?,
        user_agent: row.get(4)?,
        life: Life {
            created_at: from_micros(row.get(5)?),
            expires_at: from_micros(row.get(7)?),
            ended_at: row.get::<_, Option<i64>>(8)?.map(from_micros),
        },
        last_used_at: from_micros(row.get(6)?),
    })
}

/// `id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at`.
fn api_key(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let scopes: String = row.get(4)?;
    let parsed = scopes.split(',').map(|word| Scope::parse(word).ok_or_else(|| odd(4, &scopes)));
    Ok(ApiKey {
        id: ApiKeyId::from_uuid(row.get(0)?),
        user: UserId::from_uuid(row.get(1)?),
        name: row.get(2)?,
        prefix: row.get(3)?,
        scopes: parsed.collect::<Result<_, _>>()?,
        created_at: from_micros(row.get(5)?),
        expires_at: row.get::<_, Option<i64>>(6)?.map(from_micros),
        last_used_at: row.get::<_, Option<i64>>(7)?.map(from_micros),
    })
}

fn sequence(row: &Row<'_>) -> rusqlite::Result<u64> {
    u64::try_from(row.get::<_, i64>(0)?).map_err(|_| odd(0, "a negative sequence"))
}

/// `sequence, at, actor, action, object, address, result, detail, digest`.
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        sequence: sequence(row)?,
        at: from_micros(row.get(1)?),
        note: Note {
            actor: row.get(2)?,
            action: row.get(3)?,
            object: row.get(4)?,
            address: row.get(5)?,
            result: row.get(6)?,
            detail: row.get(7)?,
        },
        digest: row.get(8)?,
    })
}

fn append(tx: &Tx<'_>, note: &Note) -> L<Entry> {
    let head = tx.conn.maybe(
        "SELECT sequence, digest FROM audit_log WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1",
        params![i64::MAX],
        |row| Ok(Head { sequence: sequence(row)?, digest: row.get(1)? }),
    )?;
    let entry = head.unwrap_or(Head::EMPTY).append(tx.now, note.clone());
    let Note { actor, action, object, address, result, detail } = &entry.note;
    tx.conn.run(
        "INSERT INTO audit_log (sequence, at, actor, action, object, address, result, detail, digest)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            task::number(entry.sequence)?,
            tx.now.as_microsecond(),
            actor,
            action,
            object,
            address,
            result,
            detail,
            entry.digest
        ],
    )?;
    Ok(entry)
}

fn find_user(conn: &Connection, id: UserId) -> L<Option<User>> {
    conn.maybe(
        "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
         FROM account WHERE id = ?",
        params![id.as_uuid()],
        |row| user(row, 0),
    )
}

fn find_session(conn: &Connection, id: SessionId) -> L<Option<Session>> {
    conn.maybe(
        "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
         FROM session WHERE id = ?",
        params![id.as_uuid()],
        session,
    )
}

fn with_user(conn: &Connection, session: Option<Session>) -> L<Option<(Session, User)>> {
    let Some(session) = session else { return Ok(None) };
    let user = find_user(conn, session.user)?;
    user.map_or_else(|| Err(unreadable("a session without its account")), |user| Ok(Some((session, user))))
}

fn end(tx: &Tx<'_>, id: SessionId) -> L<bool> {
    let ended = tx.conn.run(
        "UPDATE session SET ended_at = ?1 WHERE id = ?2 AND ended_at IS NULL AND expires_at > ?1",
        params![tx.now.as_microsecond(), id.as_uuid()],
    )?;
    Ok(ended == 1)
}

struct AddUser {
    user: NewUser,
    founding: Founding,
    note: Note,
}

impl Verb for AddUser {
    type Out = Added;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Added> {
        let NewUser { id, username, email, password, role, identity } = &self.user;
        if self.founding == Founding::First && has_admin(tx.conn)? {
            return Ok(Added::AdminExists);
        }
        let taken = |sql: &str, text: &str| tx.conn.maybe(sql, params![text], first::<i64>);
        if taken("SELECT 1 FROM account WHERE username = ?", username.as_str())?.is_some() {
            return Ok(Added::UsernameTaken);
        }
        if taken("SELECT 1 FROM account WHERE email = ?", email.as_str())?.is_some() {
            return Ok(Added::EmailTaken);
        }
        if let Some(identity) = identity
            && find_user_by_identity(tx.conn, identity)?.is_some()
        {
            return Ok(Added::IdentityTaken);
        }
        tx.conn.run(
            "INSERT INTO account (id, username, email, password_hash, role, active, created_at)
             VALUES (?, ?, ?, ?, ?, 1, ?)",
            params![id.as_uuid(), username.as_str(), email.as_str(), password.0, role.name(), tx.now.as_microsecond()],
        )?;
        if let Some(Identity { issuer, subject }) = identity {
            tx.conn.run(
                "INSERT INTO identity (issuer, subject, account_id) VALUES (?, ?, ?)",
                params![issuer, subject, id.as_uuid()],
            )?;
        }
        append(tx, &self.note)?;
        find_user(tx.conn, *id)?.map(Added::Added).ok_or_else(|| unreadable("the account that was just written"))
    }
}

fn find_user_by_identity(conn: &Connection, identity: &Identity) -> L<Option<User>> {
    let id: Option<Uuid> = conn.maybe(
        "SELECT account_id FROM identity WHERE issuer = ? AND subject = ?",
        params![identity.issuer, identity.subject],
        first,
    )?;
    id.map_or(Ok(None), |id| find_user(conn, UserId::from_uuid(id)))
}

fn has_admin(conn: &Connection) -> L<bool> {
    Ok(conn.maybe("SELECT 1 FROM account WHERE role = 'admin' LIMIT 1", (), first::<i64>)?.is_some())
}

struct ChangeUser {
    id: UserId,
    change: UserChange,
    note: Note,
}

impl Verb for ChangeUser {
    type Out = Changed;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Changed> {
        let Some(user) = find_user(tx.conn, self.id)? else { return Ok(Changed::NotFound) };
        let UserChange { role, active, password, keep, without_keys } = &self.change;
        let wanted =
            Standing { role: role.unwrap_or(user.standing.role), active: active.unwrap_or(user.standing.active) };
        let others: u32 = tx.conn.one(
            "SELECT count(*) FROM account WHERE role = 'admin' AND active = 1 AND id <> ?",
            params![self.id.as_uuid()],
            first,
        )?;
        let Ok(standing) = change_standing(user.standing, wanted, others.into()) else { return Ok(Changed::LastAdmin) };
        tx.conn.run(
            "UPDATE account SET role = ?, active = ?, password_hash = ? WHERE id = ?",
            params![
                standing.role.name(),
                standing.active,
                password.as_ref().unwrap_or(&user.password).0,
                self.id.as_uuid()
            ],
        )?;
        if password.is_some() {
            // Whoever sets a password has shown that they may; wrong tries of others no longer matter.
            let id = params![self.id.as_uuid()];
            tx.conn.run("UPDATE account SET failures = 0, failed_at = NULL WHERE id = ?", id)?;
            tx.conn.run("UPDATE account_address SET failures = 0, failed_at = NULL WHERE account_id = ?", id)?;
        }
        if password.is_some() || !standing.active {
            let keep = keep.filter(|_| standing.active).map(|session| session.as_uuid());
            tx.conn.run(
                "UPDATE session SET ended_at = ? WHERE account_id = ? AND ended_at IS NULL AND id IS NOT ?",
                params![tx.now.as_microsecond(), self.id.as_uuid(), keep],
            )?;
        }
        if *without_keys {
            tx.conn.run("DELETE FROM api_key WHERE account_id = ?", params![self.id.as_uuid()])?;
        }
        append(tx, &self.note)?;
        let changed = find_user(tx.conn, self.id)?;
        changed.map(Changed::Changed).ok_or_else(|| unreadable("the account that was just written"))
    }
}

fn tries(conn: &Connection, id: UserId, network: &str) -> L<Tries> {
    let failures = |row: &Row<'_>, at: usize| -> rusqlite::Result<Failures> {
        let last_at = row.get::<_, Option<i64>>(at + 1)?.map(from_micros);
        Ok(Failures { count: row.get::<_, Option<u32>>(at)?.unwrap_or(0), last_at })
    };
    let tries = conn.maybe(
        "SELECT account.failures, account.failed_at, here.failures, here.failed_at, here.signed_in_at
         FROM account LEFT JOIN account_address AS here ON here.account_id = account.id AND here.network = ?
         WHERE account.id = ?",
        params![network, id.as_uuid()],
        |row| {
            let signed_in_at = row.get::<_, Option<i64>>(4)?.map(from_micros);
            Ok(Tries { here: failures(row, 2)?, signed_in_at, anywhere: failures(row, 0)? })
        },
    )?;
    Ok(tries.unwrap_or_default())
}

struct FailLogin {
    id: UserId,
    network: String,
    note: Note,
}

impl Verb for FailLogin {
    type Out = Tries;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Tries> {
        append(tx, &self.note)?;
        if find_user(tx.conn, self.id)?.is_none() {
            return Ok(Tries::default());
        }
        let tries = tries(tx.conn, self.id, &self.network)?.after_one_more(tx.now);
        let now = tx.now.as_microsecond();
        tx.conn.run(
            "UPDATE account SET failures = ?, failed_at = ? WHERE id = ?",
            params![tries.anywhere.count, now, self.id.as_uuid()],
        )?;
        tx.conn.run(
            "INSERT INTO account_address (account_id, network, failures, failed_at, seen_at) VALUES (?1, ?2, ?3, ?4, ?4)
             ON CONFLICT (account_id, network) DO UPDATE SET failures = ?3, failed_at = ?4, seen_at = ?4",
            params![self.id.as_uuid(), self.network, tries.here.count, now],
        )?;
        Ok(tries)
    }
}

struct BeginSession {
    session: NewSession,
    by: SignInBy,
    note: Note,
}

impl Verb for BeginSession {
    type Out = Option<Session>;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Option<Session>> {
        let NewSession { id, user, kind, secret, address, user_agent } = &self.session;
        let now = tx.now.as_microsecond();
        // By an identity, the password there is stays, whatever it is.
        let (verified, next) = match &self.by {
            SignInBy::Password { verified, upgraded } => {
                (Some(&verified.0), upgraded.as_ref().map(|upgraded| &upgraded.0))
            }
            SignInBy::Identity => (None, None),
        };
        let begun = tx.conn.run(
            "UPDATE account SET last_login_at = ?1, failures = 0, failed_at = NULL,
                                password_hash = coalesce(?2, password_hash)
             WHERE id = ?3 AND active = 1 AND password_hash = coalesce(?4, password_hash)",
            params![now, next, user.as_uuid(), verified],
        )?;
        if begun == 0 {
            return Ok(None);
        }
        tx.conn.run(
            "INSERT INTO account_address (account_id, network, signed_in_at, seen_at) VALUES (?1, ?2, ?3, ?3)
             ON CONFLICT (account_id, network) DO UPDATE SET failures = 0, failed_at = NULL, signed_in_at = ?3, seen_at = ?3",
            params![user.as_uuid(), network(address), now],
        )?;
        tx.conn.run(
            "INSERT INTO session (id, account_id, kind, digest, address, user_agent, created_at, last_used_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                id.as_uuid(),
                user.as_uuid(),
                kind.name(),
                secret,
                address,
                user_agent,
                now,
                now,
                Life::begin(tx.now).expires_at.as_microsecond()
            ],
        )?;
        tx.conn.run(
            "UPDATE session SET ended_at = ?1 WHERE id IN (
                 SELECT id FROM session WHERE account_id = ?2 AND ended_at IS NULL AND expires_at > ?1
                 ORDER BY created_at DESC LIMIT -1 OFFSET ?3)",
            params![now, user.as_uuid(), MAX_SESSIONS],
        )?;
        append(tx, &self.note)?;
        find_session(tx.conn, *id)
    }
}

struct TouchSession(SessionId);

impl Verb for TouchSession {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let Some(session) = find_session(tx.conn, self.0)?.filter(|session| session.life.live(tx.now)) else {
            return Ok(());
        };
        // A refresh token lasts from its exchange on; using access tokens does not prolong it.
        let expires = match session.kind {
            Kind::Browser => session.life.used(tx.now),
            Kind::Token => session.life.expires_at,
        };
        tx.conn.run(
            "UPDATE session SET last_used_at = ?, expires_at = ? WHERE id = ?",
            params![tx.now.as_microsecond(), expires.as_microsecond(), self.0.as_uuid()],
        )?;
        Ok(())
    }
}

struct ExchangeToken {
    shown: Digest,
    next: Digest,
    note: Note,
}

impl Verb for ExchangeToken {
    type Out = Exchanged;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Exchanged> {
        let newest: Option<Uuid> =
            tx.conn.maybe("SELECT id FROM session WHERE digest = ? AND kind = 'token'", params![self.shown], first)?;
        let spent: Option<Uuid> =
            tx.conn.maybe("SELECT session_id FROM spent_token WHERE digest = ?", params![self.shown], first)?;
        let (id, shown) = match (newest, spent) {
            (Some(id), _) => (SessionId::from_uuid(id), Shown::Newest),
            (None, Some(id)) => (SessionId::from_uuid(id), Shown::Spent),
            (None, None) => return Ok(Exchanged::Unknown),
        };
        let Some((session, user)) = with_user(tx.conn, find_session(tx.conn, id)?)? else {
            return Ok(Exchanged::Unknown);
        };
        let now = tx.now.as_microsecond();
        let noted = |result: &str| Note {
            actor: user.username.as_str().to_owned(),
            object: id.to_string(),
            result: result.to_owned(),
            ..self.note.clone()
        };
        match session.life.exchange(shown, tx.now) {
            Exchange::Rotate { expires_at } if user.standing.active => {
                tx.conn.run(
                    "INSERT INTO spent_token (digest, session_id) VALUES (?, ?)",
                    params![self.shown, id.as_uuid()],
                )?;
                tx.conn.run(
                    "UPDATE session SET digest = ?, last_used_at = ?, expires_at = ? WHERE id = ?",
                    params![self.next, now, expires_at.as_microsecond(), id.as_uuid()],
                )?;
                append(tx, &noted("done"))?;
                let session = find_session(tx.conn, id)?;
                let session = session.ok_or_else(|| unreadable("the session that was just written"))?;
                Ok(Exchanged::Rotated(session, user))
            }
            Exchange::Reused => {
                tx.conn.run("UPDATE session SET ended_at = ? WHERE id = ?", params![now, id.as_uuid()])?;
                append(tx, &Note { detail: "a spent refresh token was shown".to_owned(), ..noted("refused") })?;
                Ok(Exchanged::Reused(session))
            }
            Exchange::Rotate { .. } | Exchange::Over => Ok(Exchanged::Over),
        }
    }
}

struct EndSession {
    id: SessionId,
    note: Note,
}

impl Verb for EndSession {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let ended = end(tx, self.id)?;
        if ended {
            append(tx, &self.note)?;
        }
        Ok(ended)
    }
}

struct AddApiKey {
    key: NewApiKey,
    note: Note,
}

impl Verb for AddApiKey {
    type Out = Option<ApiKey>;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Option<ApiKey>> {
        let NewApiKey { id, user, name, prefix, secret, scopes, expires_at } = &self.key;
        let have: u16 =
            tx.conn.one("SELECT count(*) FROM api_key WHERE account_id = ?", params![user.as_uuid()], first)?;
        if have >= MAX_API_KEYS {
            return Ok(None);
        }
        let scopes: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
        tx.conn.run(
            "INSERT INTO api_key (id, account_id, name, prefix, digest, scopes, created_at, expires_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                id.as_uuid(),
                user.as_uuid(),
                name,
                prefix,
                secret,
                scopes.join(","),
                tx.now.as_microsecond(),
                expires_at.map(Timestamp::as_microsecond)
            ],
        )?;
        append(tx, &self.note)?;
        find_api_key(tx.conn, *id)
    }
}

fn find_api_key(conn: &Connection, id: ApiKeyId) -> L<Option<ApiKey>> {
    conn.maybe(
        "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at FROM api_key WHERE id = ?",
        params![id.as_uuid()],
        api_key,
    )
}

struct TouchApiKey(ApiKeyId);

impl Verb for TouchApiKey {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let now = tx.now.as_microsecond();
        tx.conn.run("UPDATE api_key SET last_used_at = ? WHERE id = ?", params![now, self.0.as_uuid()])?;
        Ok(())
    }
}

struct RemoveApiKey {
    id: ApiKeyId,
    note: Note,
}

impl Verb for RemoveApiKey {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let removed = tx.conn.run("DELETE FROM api_key WHERE id = ?", params![self.id.as_uuid()])? == 1;
        if removed {
            append(tx, &self.note)?;
        }
        Ok(removed)
    }
}

struct Append(Note);

impl Verb for Append {
    type Out = Entry;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Entry> {
        append(tx, &self.0)
    }
}

struct AddSigningKey {
    id: Uuid,
    secret: [u8; 32],
    newest_before: Timestamp,
}

impl Verb for AddSigningKey {
    type Out = ();

    fn apply(&self, tx: &mut Tx<'_>) -> L<()> {
        let newer = tx.conn.maybe(
            "SELECT 1 FROM signing_key WHERE created_at >= ? LIMIT 1",
            params![self.newest_before.as_microsecond()],
            first::<i64>,
        )?;
        if newer.is_none() {
            tx.conn.run(
                "INSERT INTO signing_key (id, secret, created_at) VALUES (?, ?, ?)",
                params![self.id, self.secret, tx.now.as_microsecond()],
            )?;
        }
        Ok(())
    }
}

struct ForgetSigningKeys(Timestamp);

impl Verb for ForgetSigningKeys {
    type Out = u64;

    fn apply(&self, tx: &mut Tx<'_>) -> L<u64> {
        let before = self.0.as_microsecond();
        Ok(tx.conn.run("DELETE FROM signing_key WHERE created_at < ?", params![before])? as u64)
    }
}

struct ForgetSessions {
    before: Timestamp,
    max: u16,
}

impl Verb for ForgetSessions {
    type Out = u64;

    fn apply(&self, tx: &mut Tx<'_>) -> L<u64> {
        let forgotten = tx.conn.run(
            "DELETE FROM session WHERE id IN (SELECT id FROM session WHERE expires_at < ? ORDER BY expires_at LIMIT ?)",
            params![self.before.as_microsecond(), self.max],
        )?;
        Ok(forgotten as u64)
    }
}

struct ForgetAddresses {
    before: Timestamp,
    max: u16,
}

impl Verb for ForgetAddresses {
    type Out = u64;

    fn apply(&self, tx: &mut Tx<'_>) -> L<u64> {
        let forgotten = tx.conn.run(
            "DELETE FROM account_address WHERE rowid IN (
                 SELECT rowid FROM account_address WHERE seen_at < ? ORDER BY seen_at LIMIT ?)",
            params![self.before.as_microsecond(), self.max],
        )?;
        Ok(forgotten as u64)
    }
}

#[async_trait]
impl Accounts for SqliteLedger {
    async fn has_admin(&self) -> L<bool> {
        self.readers.read(has_admin).await
    }

    async fn add_user(&self, user: NewUser, founding: Founding, note: Note) -> L<Added> {
        self.write(AddUser { user, founding, note }).await
    }

    async fn find_user(&self, id: UserId) -> L<Option<User>> {
        self.readers.read(move |conn| find_user(conn, id)).await
    }

    async fn find_user_by_login(&self, login: &str) -> L<Option<User>> {
        let login = login.to_owned();
        // A user name holds no `@` and an address does, so at most one row is found.
        let read = move |conn: &Connection| {
            conn.maybe(
                "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
                 FROM account WHERE username = ?1 OR email = ?1",
                params![login],
                |row| user(row, 0),
            )
        };
        self.readers.read(read).await
    }

    async fn find_user_by_identity(&self, identity: &Identity) -> L<Option<User>> {
        let identity = identity.clone();
        self.readers.read(move |conn| find_user_by_identity(conn, &identity)).await
    }

    async fn list_users(&self, after: Option<UserId>, limit: u16) -> L<Vec<User>> {
        let after = after.map_or(Uuid::nil(), |id| id.as_uuid());
        let read = move |conn: &Connection| {
            conn.all(
                "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
                 FROM account WHERE id > ? ORDER BY id LIMIT ?",
                params![after, limit],
                |row| user(row, 0),
            )
        };
        self.readers.read(read).await
    }

    async fn change_user(&self, id: UserId, change: UserChange, note: Note) -> L<Changed> {
        self.write(ChangeUser { id, change, note }).await
    }

    async fn tries(&self, id: UserId, address: &str) -> L<Tries> {
        let network = network(address);
        self.readers.read(move |conn| tries(conn, id, &network)).await
    }

    async fn fail_login(&self, id: UserId, address: &str, note: Note) -> L<Tries> {
        self.write(FailLogin { id, network: network(address), note }).await
    }

    async fn begin_session(&self, session: NewSession, by: SignInBy, note: Note) -> L<Option<Session>> {
        self.write(BeginSession { session, by, note }).await
    }

    async fn find_session(&self, secret: Digest) -> L<Option<(Session, User)>> {
        let read = move |conn: &Connection| {
            let found = conn.maybe(
                "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
                 FROM session WHERE digest = ?",
                params![secret],
                session,
            )?;
            with_user(conn, found)
        };
        self.readers.read(read).await
    }

    async fn find_session_by_id(&self, id: SessionId) -> L<Option<(Session, User)>> {
        self.readers.read(move |conn| with_user(conn, find_session(conn, id)?)).await
    }

    async fn touch_session(&self, id: SessionId) -> L<()> {
        self.write(TouchSession(id)).await
    }

    async fn exchange(&self, shown: Digest, next: Digest, note: Note) -> L<Exchanged> {
        self.write(ExchangeToken { shown, next, note }).await
    }

    async fn list_sessions(&self, user: UserId) -> L<Vec<Session>> {
        let now = self.time.now().as_microsecond();
        let read = move |conn: &Connection| {
            conn.all(
                "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
                 FROM session WHERE account_id = ? AND ended_at IS NULL AND expires_at > ?
                 ORDER BY created_at DESC LIMIT ?",
                params![user.as_uuid(), now, MAX_SESSIONS],
                session,
            )
        };
        self.readers.read(read).await
    }

    async fn end_session(&self, id: SessionId, note: Note) -> L<bool> {
        self.write(EndSession { id, note }).await
    }

    async fn add_api_key(&self, key: NewApiKey, note: Note) -> L<Option<ApiKey>> {
        self.write(AddApiKey { key, note }).await
    }

    async fn find_api_key(&self, secret: Digest) -> L<Option<(ApiKey, User)>> {
        let read = move |conn: &Connection| {
            let key = conn.maybe(
                "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at
                 FROM api_key WHERE digest = ?",
                params![secret],
                api_key,
            )?;
            let Some(key) = key else { return Ok(None) };
            let user = find_user(conn, key.user)?;
            user.map_or_else(|| Err(unreadable("a key without its account")), |user| Ok(Some((key, user))))
        };
        self.readers.read(read).await
    }

    async fn find_api_key_by_id(&self, id: ApiKeyId) -> L<Option<ApiKey>> {
        self.readers.read(move |conn| find_api_key(conn, id)).await
    }

    async fn touch_api_key(&self, id: ApiKeyId) -> L<()> {
        self.write(TouchApiKey(id)).await
    }

    async fn list_api_keys(&self, user: UserId) -> L<Vec<ApiKey>> {
        let read = move |conn: &Connection| {
            conn.all(
                "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at
                 FROM api_key WHERE account_id = ? ORDER BY created_at DESC LIMIT ?",
                params![user.as_uuid(), MAX_API_KEYS],
                api_key,
            )
        };
        self.readers.read(read).await
    }

    async fn remove_api_key(&self, id: ApiKeyId, note: Note) -> L<bool> {
        self.write(RemoveApiKey { id, note }).await
    }

    async fn note(&self, note: Note) -> L<Entry> {
        self.write(Append(note)).await
    }

    async fn newest_entries(&self, before: Option<u64>, limit: u16) -> L<Vec<Entry>> {
        let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
        let read = move |conn: &Connection| {
            conn.all(
                "SELECT sequence, at, actor, action, object, address, result, detail, digest
                 FROM audit_log WHERE sequence < ? ORDER BY sequence DESC LIMIT ?",
                params![before, limit],
                entry,
            )
        };
        self.readers.read(read).await
    }

    async fn entries_after(&self, after: u64, limit: u16) -> L<Vec<Entry>> {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let read = move |conn: &Connection| {
            conn.all(
                "SELECT sequence, at, actor, action, object, address, result, detail, digest
                 FROM audit_log WHERE sequence > ? ORDER BY sequence LIMIT ?",
                params![after, limit],
                entry,
            )
        };
        self.readers.read(read).await
    }

    async fn signing_keys(&self) -> L<Vec<SigningKey>> {
        let read = |conn: &Connection| {
            conn.all("SELECT id, secret, created_at FROM signing_key ORDER BY created_at DESC, id DESC", (), |row| {
                Ok(SigningKey { id: row.get(0)?, secret: row.get(1)?, created_at: from_micros(row.get(2)?) })
            })
        };
        self.readers.read(read).await
    }

    async fn add_signing_key(&self, id: Uuid, secret: [u8; 32], newest_before: Timestamp) -> L<()> {
        self.write(AddSigningKey { id, secret, newest_before }).await
    }

    async fn forget_signing_keys(&self, before: Timestamp) -> L<u64> {
        self.write(ForgetSigningKeys(before)).await
    }

    async fn forget_sessions(&self, before: Timestamp, max: u16) -> L<u64> {
        self.write(ForgetSessions { before, max }).await
    }

    async fn forget_addresses(&self, before: Timestamp, max: u16) -> L<u64> {
        self.write(ForgetAddresses { before, max }).await
    }
}
