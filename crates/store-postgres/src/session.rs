//! Sessions, and the refresh tokens that were exchanged within them.

use fettle_app::ports::accounts::{Digest, Exchanged, MAX_SESSIONS, NewSession, Session, SignInBy, User};
use fettle_domain::account::network;
use fettle_domain::audit_log::Note;
use fettle_domain::id::{SessionId, UserId};
use fettle_domain::session::{Exchange, Kind, Life, Shown};
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Failed, OrLedger, R, unreadable};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{account, audit_log, stored};

struct Row {
    id: Uuid,
    account_id: Uuid,
    kind: String,
    address: String,
    user_agent: String,
    created_at: Instant,
    last_used_at: Instant,
    expires_at: Instant,
    ended_at: Option<Instant>,
}

impl TryFrom<Row> for Session {
    type Error = Failed;

    fn try_from(row: Row) -> R<Self> {
        Ok(Self {
            id: SessionId::from_uuid(row.id),
            user: UserId::from_uuid(row.account_id),
            kind: Kind::parse(&row.kind).ok_or_else(|| unreadable(format!("a session of kind `{}`", row.kind)))?,
            address: row.address,
            user_agent: row.user_agent,
            life: Life {
                created_at: row.created_at.0,
                expires_at: row.expires_at.0,
                ended_at: row.ended_at.map(|at| at.0),
            },
            last_used_at: row.last_used_at.0,
        })
    }
}

async fn find(conn: &mut PgConnection, id: SessionId) -> R<Option<Session>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
         FROM session WHERE id = $1",
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    row.map(Session::try_from).transpose()
}

/// Until the commit, nobody else changes its row.
async fn lock(tx: &mut Tx<'_>, id: SessionId) -> R<Option<Session>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
         FROM session WHERE id = $1 FOR NO KEY UPDATE",
        id.as_uuid(),
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()?;
    row.map(Session::try_from).transpose()
}

async fn with_user(conn: &mut PgConnection, session: Option<Session>) -> R<Option<(Session, User)>> {
    let Some(session) = session else { return Ok(None) };
    let user = account::find(conn, session.user).await?;
    Ok(Some((session, user.ok_or_else(|| unreadable("a session without its account"))?)))
}

pub(crate) async fn find_by_id(conn: &mut PgConnection, id: SessionId) -> R<Option<(Session, User)>> {
    let session = find(conn, id).await?;
    with_user(conn, session).await
}

pub(crate) async fn find_by_secret(conn: &mut PgConnection, secret: Digest) -> R<Option<(Session, User)>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
         FROM session WHERE digest = $1",
        &secret[..],
    )
    .fetch_optional(&mut *conn)
    .await
    .or_ledger()?;
    let session = row.map(Session::try_from).transpose()?;
    with_user(conn, session).await
}

/// The account's live ones, the newest first.
pub(crate) async fn list(conn: &mut PgConnection, user: UserId, now: Timestamp) -> R<Vec<Session>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, account_id, kind, address, user_agent, created_at, last_used_at, expires_at, ended_at
         FROM session WHERE account_id = $1 AND ended_at IS NULL AND expires_at > $2
         ORDER BY created_at DESC LIMIT $3",
        user.as_uuid(),
        Instant(now),
        i64::from(MAX_SESSIONS),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(Session::try_from).collect()
}

pub(crate) struct Begin {
    pub(crate) session: NewSession,
    pub(crate) by: SignInBy,
    pub(crate) note: Note,
}

impl Verb for Begin {
    type Out = Option<Session>;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Option<Session>> {
        let NewSession { id, user, kind, secret, address, user_agent } = &self.session;
        // By an identity, the password there is stays, whatever it is.
        let (verified, next) = match &self.by {
            SignInBy::Password { verified, upgraded } => {
                (Some(verified.0.as_str()), upgraded.as_ref().map(|upgraded| upgraded.0.as_str()))
            }
            SignInBy::Identity => (None, None),
        };
        let now = Instant(tx.now);
        let begun = sqlx::query!(
            "UPDATE account SET last_login_at = $1, failures = 0, failed_at = NULL,
                                password_hash = coalesce($2, password_hash)
             WHERE id = $3 AND active AND password_hash = coalesce($4, password_hash)",
            now,
            next,
            user.as_uuid(),
            verified,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        if begun.rows_affected() == 0 {
            return Ok(None);
        }
        account::signed_in(tx, *user, &network(address)).await?;
        sqlx::query!(
            "INSERT INTO session (id, account_id, kind, digest, address, user_agent, created_at, last_used_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7, $8)",
            id.as_uuid(),
            user.as_uuid(),
            kind.name(),
            &secret[..],
            stored::text(address),
            stored::text(user_agent),
            now,
            Instant(Life::begin(tx.now).expires_at),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        sqlx::query!(
            "UPDATE session SET ended_at = $1 WHERE id IN (
                 SELECT id FROM session WHERE account_id = $2 AND ended_at IS NULL AND expires_at > $1
                 ORDER BY created_at DESC OFFSET $3)",
            now,
            user.as_uuid(),
            i64::from(MAX_SESSIONS),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        audit_log::append(tx, &self.note).await?;
        find(tx.conn, *id).await
    }
}

pub(crate) struct Touch(pub(crate) SessionId);

impl Verb for Touch {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        let Some(session) = lock(tx, self.0).await?.filter(|session| session.life.live(tx.now)) else {
            return Ok(());
        };
        // A refresh token lasts from its exchange on; using access tokens does not prolong it.
        let expires = match session.kind {
            Kind::Browser => session.life.used(tx.now),
            Kind::Token => session.life.expires_at,
        };
        sqlx::query!(
            "UPDATE session SET last_used_at = $1, expires_at = $2 WHERE id = $3",
            Instant(tx.now),
            Instant(expires),
            self.0.as_uuid(),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(())
    }
}

pub(crate) struct ExchangeToken {
    pub(crate) shown: Digest,
    pub(crate) next: Digest,
    pub(crate) note: Note,
}

impl ExchangeToken {
    /// The family, and which of its tokens was shown.
    async fn family(&self, tx: &mut Tx<'_>) -> R<Option<(SessionId, Shown)>> {
        // Of those who come at once with one token, all but one wait here and then see that the row has another.
        let newest = sqlx::query_scalar!(
            "SELECT id FROM session WHERE digest = $1 AND kind = 'token' FOR NO KEY UPDATE",
            &self.shown[..],
        )
        .fetch_optional(&mut *tx.conn)
        .await
        .or_ledger()?;
        if let Some(id) = newest {
            return Ok(Some((SessionId::from_uuid(id), Shown::Newest)));
        }
        let spent = sqlx::query_scalar!("SELECT session_id FROM spent_token WHERE digest = $1", &self.shown[..])
            .fetch_optional(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(spent.map(|id| (SessionId::from_uuid(id), Shown::Spent)))
    }
}

impl Verb for ExchangeToken {
    type Out = Exchanged;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Exchanged> {
        let Some((id, shown)) = self.family(tx).await? else { return Ok(Exchanged::Unknown) };
        let session = lock(tx, id).await?;
        let Some((session, user)) = with_user(tx.conn, session).await? else { return Ok(Exchanged::Unknown) };
        let now = Instant(tx.now);
        let noted = |result: &str| Note {
            actor: user.username.as_str().to_owned(),
            object: id.to_string(),
            result: result.to_owned(),
            ..self.note.clone()
        };
        match session.life.exchange(shown, tx.now) {
            Exchange::Rotate { expires_at } if user.standing.active => {
                sqlx::query!(
                    "INSERT INTO spent_token (digest, session_id) VALUES ($1, $2)",
                    &self.shown[..],
                    id.as_uuid(),
                )
                .execute(&mut *tx.conn)
                .await
                .or_ledger()?;
                sqlx::query!(
                    "UPDATE session SET digest = $1, last_used_at = $2, expires_at = $3 WHERE id = $4",
                    &self.next[..],
                    now,
                    Instant(expires_at),
                    id.as_uuid(),
                )
                .execute(&mut *tx.conn)
                .await
                .or_ledger()?;
                audit_log::append(tx, &noted("done")).await?;
                let session = find(tx.conn, id).await?;
                let session = session.ok_or_else(|| unreadable("the session that was just written"))?;
                Ok(Exchanged::Rotated(session, user))
            }
            Exchange::Reused => {
                sqlx::query!("UPDATE session SET ended_at = $1 WHERE id = $2", now, id.as_uuid())
                    .execute(&mut *tx.conn)
                    .await
                    .or_ledger()?;
                let note = Note { detail: "a spent refresh token was shown".to_owned(), ..noted("refused") };
                audit_log::append(tx, &note).await?;
                Ok(Exchanged::Reused(session))
            }
            Exchange::Rotate { .. } | Exchange::Over => Ok(Exchanged::Over),
        }
    }
}

pub(crate) struct End {
    pub(crate) id: SessionId,
    pub(crate) note: Note,
}

impl Verb for End {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        let ended = sqlx::query!(
            "UPDATE session SET ended_at = $1 WHERE id = $2 AND ended_at IS NULL AND expires_at > $1",
            Instant(tx.now),
            self.id.as_uuid(),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        let ended = ended.rows_affected() == 1;
        if ended {
            audit_log::append(tx, &self.note).await?;
        }
        Ok(ended)
    }
}

pub(crate) struct Forget {
    pub(crate) before: Timestamp,
    pub(crate) max: u16,
}

impl Verb for Forget {
    type Out = u64;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<u64> {
        let forgotten = sqlx::query!(
            "DELETE FROM session WHERE id IN (
                 SELECT id FROM session WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            Instant(self.before),
            i64::from(self.max),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(forgotten.rows_affected())
    }
}
