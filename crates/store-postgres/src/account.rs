//! Accounts, who they are elsewhere, and from where they signed in or failed to.

use fettle_app::ports::accounts::{Added, Changed, Founding, Identity, NewUser, PasswordHash, User, UserChange};
use fettle_domain::access::Role;
use fettle_domain::account::{Email, Failures, Standing, Tries, Username, change_standing};
use fettle_domain::audit_log::Note;
use fettle_domain::id::UserId;
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Failed, OrLedger, R, unreadable};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{audit_log, lock as locks, stored};

struct Row {
    id: Uuid,
    username: String,
    email: String,
    password_hash: String,
    role: String,
    active: bool,
    failures: i64,
    failed_at: Option<Instant>,
    created_at: Instant,
    last_login_at: Option<Instant>,
}

impl TryFrom<Row> for User {
    type Error = Failed;

    fn try_from(row: Row) -> R<Self> {
        let odd = |text: &str| unreadable(format!("`{text}` in an account"));
        Ok(Self {
            id: UserId::from_uuid(row.id),
            username: Username::parse(&row.username).map_err(|_| odd(&row.username))?,
            email: Email::parse(&row.email).map_err(|_| odd(&row.email))?,
            password: PasswordHash(row.password_hash),
            standing: Standing { role: Role::parse(&row.role).ok_or_else(|| odd(&row.role))?, active: row.active },
            failures: failures(row.failures, row.failed_at),
            created_at: row.created_at.0,
            last_login_at: row.last_login_at.map(|at| at.0),
        })
    }
}

fn failures(count: i64, last_at: Option<Instant>) -> Failures {
    Failures { count: u32::try_from(count).unwrap_or(u32::MAX), last_at: last_at.map(|at| at.0) }
}

pub(crate) async fn find(conn: &mut PgConnection, id: UserId) -> R<Option<User>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
         FROM account WHERE id = $1",
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    row.map(User::try_from).transpose()
}

pub(crate) async fn find_by_login(conn: &mut PgConnection, login: &str) -> R<Option<User>> {
    // A user name holds no `@` and an address does, so at most one row is found.
    let row = sqlx::query_as!(
        Row,
        "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
         FROM account WHERE username = $1 OR email = $1",
        stored::text(login),
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    row.map(User::try_from).transpose()
}

pub(crate) async fn find_by_identity(conn: &mut PgConnection, identity: &Identity) -> R<Option<User>> {
    let id = sqlx::query_scalar!(
        "SELECT account_id FROM identity WHERE issuer = $1 AND subject = $2",
        stored::text(&identity.issuer),
        stored::text(&identity.subject),
    )
    .fetch_optional(&mut *conn)
    .await
    .or_ledger()?;
    match id {
        Some(id) => find(conn, UserId::from_uuid(id)).await,
        None => Ok(None),
    }
}

/// Those that were added after `after`, in their order.
pub(crate) async fn list(conn: &mut PgConnection, after: Option<UserId>, limit: u16) -> R<Vec<User>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, username, email, password_hash, role, active, failures, failed_at, created_at, last_login_at
         FROM account WHERE id > $1 ORDER BY id LIMIT $2",
        after.map_or(Uuid::nil(), |id| id.as_uuid()),
        i64::from(limit),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(User::try_from).collect()
}

pub(crate) async fn has_admin(conn: &mut PgConnection) -> R<bool> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM account WHERE role = 'admin') AS "has!""#)
        .fetch_one(conn)
        .await
        .or_ledger()
}

/// Until the commit, nobody else changes the account's row.
pub(crate) async fn lock(tx: &mut Tx<'_>, id: UserId) -> R<()> {
    sqlx::query!("SELECT id FROM account WHERE id = $1 FOR NO KEY UPDATE", id.as_uuid())
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(())
}

pub(crate) struct Add {
    pub(crate) user: NewUser,
    pub(crate) founding: Founding,
    pub(crate) note: Note,
}

impl Add {
    /// Of what is taken. What becomes taken meanwhile a unique index tells, and this is asked again.
    async fn refusal(&self, conn: &mut PgConnection) -> R<Option<Added>> {
        let NewUser { username, email, identity, .. } = &self.user;
        if self.founding == Founding::First && has_admin(conn).await? {
            return Ok(Some(Added::AdminExists));
        }
        if find_by_login(conn, username.as_str()).await?.is_some() {
            return Ok(Some(Added::UsernameTaken));
        }
        if find_by_login(conn, email.as_str()).await?.is_some() {
            return Ok(Some(Added::EmailTaken));
        }
        if let Some(identity) = identity
            && find_by_identity(conn, identity).await?.is_some()
        {
            return Ok(Some(Added::IdentityTaken));
        }
        Ok(None)
    }
}

impl Verb for Add {
    type Out = Added;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Added> {
        let NewUser { id, username, email, password, role, identity } = &self.user;
        if *role == Role::Admin {
            locks::admins(tx.conn).await?;
        }
        if let Some(refusal) = self.refusal(tx.conn).await? {
            return Ok(refusal);
        }
        sqlx::query!(
            "INSERT INTO account (id, username, email, password_hash, role, active, created_at)
             VALUES ($1, $2, $3, $4, $5, true, $6)",
            id.as_uuid(),
            username.as_str(),
            email.as_str(),
            password.0,
            role.name(),
            Instant(tx.now),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        if let Some(Identity { issuer, subject }) = identity {
            sqlx::query!(
                "INSERT INTO identity (issuer, subject, account_id) VALUES ($1, $2, $3)",
                stored::text(issuer),
                stored::text(subject),
                id.as_uuid(),
            )
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        }
        audit_log::append(tx, &self.note).await?;
        Ok(Added::Added(written(tx, *id).await?))
    }
}

async fn written(tx: &mut Tx<'_>, id: UserId) -> R<User> {
    Ok(find(tx.conn, id).await?.ok_or_else(|| unreadable("the account that was just written"))?)
}

pub(crate) struct Change {
    pub(crate) id: UserId,
    pub(crate) change: UserChange,
    pub(crate) note: Note,
}

impl Verb for Change {
    type Out = Changed;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Changed> {
        // Two who demote each other at once would leave none.
        locks::admins(tx.conn).await?;
        lock(tx, self.id).await?;
        let Some(user) = find(tx.conn, self.id).await? else { return Ok(Changed::NotFound) };
        let UserChange { role, active, password, keep, without_keys } = &self.change;
        let wanted =
            Standing { role: role.unwrap_or(user.standing.role), active: active.unwrap_or(user.standing.active) };
        let id = self.id.as_uuid();
        let others = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM account WHERE role = 'admin' AND active AND id <> $1"#,
            id,
        )
        .fetch_one(&mut *tx.conn)
        .await
        .or_ledger()?;
        let Ok(standing) = change_standing(user.standing, wanted, others.unsigned_abs()) else {
            return Ok(Changed::LastAdmin);
        };
        sqlx::query!(
            "UPDATE account SET role = $1, active = $2, password_hash = $3 WHERE id = $4",
            standing.role.name(),
            standing.active,
            password.as_ref().unwrap_or(&user.password).0,
            id,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        if password.is_some() {
            // Whoever sets a password has shown that they may; wrong tries of others no longer matter.
            forget_failures(tx, self.id).await?;
        }
        if password.is_some() || !standing.active {
            let keep = keep.filter(|_| standing.active).map(|session| session.as_uuid());
            sqlx::query!(
                "UPDATE session SET ended_at = $1
                 WHERE account_id = $2 AND ended_at IS NULL AND id IS DISTINCT FROM $3",
                Instant(tx.now),
                id,
                keep,
            )
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        }
        if *without_keys {
            sqlx::query!("DELETE FROM api_key WHERE account_id = $1", id).execute(&mut *tx.conn).await.or_ledger()?;
        }
        audit_log::append(tx, &self.note).await?;
        Ok(Changed::Changed(written(tx, self.id).await?))
    }
}

async fn forget_failures(tx: &mut Tx<'_>, id: UserId) -> R<()> {
    sqlx::query!("UPDATE account SET failures = 0, failed_at = NULL WHERE id = $1", id.as_uuid())
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    sqlx::query!("UPDATE account_address SET failures = 0, failed_at = NULL WHERE account_id = $1", id.as_uuid())
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    Ok(())
}

pub(crate) async fn tries(conn: &mut PgConnection, id: UserId, network: &str) -> R<Tries> {
    let row = sqlx::query!(
        r#"SELECT account.failures, account.failed_at, here.failures AS "here_failures?",
                  here.failed_at AS "here_failed_at?", here.signed_in_at AS "signed_in_at?"
           FROM account LEFT JOIN account_address AS here ON here.account_id = account.id AND here.network = $1
           WHERE account.id = $2"#,
        stored::text(network),
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    Ok(row.map_or_else(Tries::default, |row| Tries {
        here: failures(row.here_failures.unwrap_or(0), row.here_failed_at),
        signed_in_at: row.signed_in_at.map(|at| at.0),
        anywhere: failures(row.failures, row.failed_at),
    }))
}

pub(crate) struct FailLogin {
    pub(crate) id: UserId,
    pub(crate) network: String,
    pub(crate) note: Note,
}

impl Verb for FailLogin {
    type Out = Tries;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Tries> {
        lock(tx, self.id).await?;
        if find(tx.conn, self.id).await?.is_none() {
            audit_log::append(tx, &self.note).await?;
            return Ok(Tries::default());
        }
        let (id, now) = (self.id.as_uuid(), Instant(tx.now));
        let tries = tries(tx.conn, self.id, &self.network).await?.after_one_more(tx.now);
        sqlx::query!(
            "UPDATE account SET failures = $1, failed_at = $2 WHERE id = $3",
            i64::from(tries.anywhere.count),
            now,
            id,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        sqlx::query!(
            "INSERT INTO account_address (account_id, network, failures, failed_at, seen_at) VALUES ($1, $2, $3, $4, $4)
             ON CONFLICT (account_id, network) DO UPDATE SET failures = $3, failed_at = $4, seen_at = $4",
            id,
            stored::text(&self.network),
            i64::from(tries.here.count),
            now,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        audit_log::append(tx, &self.note).await?;
        Ok(tries)
    }
}

/// The account signed in from there.
pub(crate) async fn signed_in(tx: &mut Tx<'_>, id: UserId, network: &str) -> R<()> {
    sqlx::query!(
        "INSERT INTO account_address (account_id, network, signed_in_at, seen_at) VALUES ($1, $2, $3, $3)
         ON CONFLICT (account_id, network) DO UPDATE
         SET failures = 0, failed_at = NULL, signed_in_at = $3, seen_at = $3",
        id.as_uuid(),
        stored::text(network),
        Instant(tx.now),
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(())
}

pub(crate) struct ForgetAddresses {
    pub(crate) before: Timestamp,
    pub(crate) max: u16,
}

impl Verb for ForgetAddresses {
    type Out = u64;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<u64> {
        let forgotten = sqlx::query!(
            "DELETE FROM account_address WHERE (account_id, network) IN (
                 SELECT account_id, network FROM account_address WHERE seen_at < $1
                 ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            Instant(self.before),
            i64::from(self.max),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(forgotten.rows_affected())
    }
}
