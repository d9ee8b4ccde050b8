//! Keys of accounts for programs.

use fettle_app::ports::accounts::{ApiKey, Digest, MAX_API_KEYS, NewApiKey, User};
use fettle_domain::access::Scope;
use fettle_domain::audit_log::Note;
use fettle_domain::id::{ApiKeyId, UserId};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::error::{Failed, OrLedger, R, unreadable};
use crate::time::Instant;
use crate::writer::{Tx, Verb};
use crate::{account, audit_log, stored};

struct Row {
    id: Uuid,
    account_id: Uuid,
    name: String,
    prefix: String,
    scopes: String,
    created_at: Instant,
    expires_at: Option<Instant>,
    last_used_at: Option<Instant>,
}

impl TryFrom<Row> for ApiKey {
    type Error = Failed;

    fn try_from(row: Row) -> R<Self> {
        let scope = |word| Scope::parse(word).ok_or_else(|| unreadable(format!("the scope `{word}`")));
        Ok(Self {
            id: ApiKeyId::from_uuid(row.id),
            user: UserId::from_uuid(row.account_id),
            name: row.name,
            prefix: row.prefix,
            scopes: row.scopes.split(',').map(scope).collect::<Result<_, _>>()?,
            created_at: row.created_at.0,
            expires_at: row.expires_at.map(|at| at.0),
            last_used_at: row.last_used_at.map(|at| at.0),
        })
    }
}

pub(crate) async fn find(conn: &mut PgConnection, id: ApiKeyId) -> R<Option<ApiKey>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at FROM api_key WHERE id = $1",
        id.as_uuid(),
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    row.map(ApiKey::try_from).transpose()
}

pub(crate) async fn find_by_secret(conn: &mut PgConnection, secret: Digest) -> R<Option<(ApiKey, User)>> {
    let row = sqlx::query_as!(
        Row,
        "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at
         FROM api_key WHERE digest = $1",
        &secret[..],
    )
    .fetch_optional(&mut *conn)
    .await
    .or_ledger()?;
    let Some(key) = row.map(ApiKey::try_from).transpose()? else { return Ok(None) };
    let user = account::find(conn, key.user).await?.ok_or_else(|| unreadable("a key without its account"))?;
    Ok(Some((key, user)))
}

/// The newest first.
pub(crate) async fn list(conn: &mut PgConnection, user: UserId) -> R<Vec<ApiKey>> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, account_id, name, prefix, scopes, created_at, expires_at, last_used_at
         FROM api_key WHERE account_id = $1 ORDER BY created_at DESC LIMIT $2",
        user.as_uuid(),
        i64::from(MAX_API_KEYS),
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

pub(crate) struct Add {
    pub(crate) key: NewApiKey,
    pub(crate) note: Note,
}

impl Verb for Add {
    type Out = Option<ApiKey>;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Option<ApiKey>> {
        let NewApiKey { id, user, name, prefix, secret, scopes, expires_at } = &self.key;
        // Counted under the account's row, or two at once would be one too many.
        account::lock(tx, *user).await?;
        let have =
            sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM api_key WHERE account_id = $1"#, user.as_uuid())
                .fetch_one(&mut *tx.conn)
                .await
                .or_ledger()?;
        if have >= i64::from(MAX_API_KEYS) {
            return Ok(None);
        }
        let scopes: Vec<&str> = scopes.iter().map(|scope| scope.name()).collect();
        sqlx::query!(
            "INSERT INTO api_key (id, account_id, name, prefix, digest, scopes, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            id.as_uuid(),
            user.as_uuid(),
            stored::text(name),
            prefix,
            &secret[..],
            scopes.join(","),
            Instant(tx.now),
            expires_at.map(Instant),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        audit_log::append(tx, &self.note).await?;
        find(tx.conn, *id).await
    }
}

pub(crate) struct Touch(pub(crate) ApiKeyId);

impl Verb for Touch {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        sqlx::query!("UPDATE api_key SET last_used_at = $1 WHERE id = $2", Instant(tx.now), self.0.as_uuid())
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(())
    }
}

pub(crate) struct Remove {
    pub(crate) id: ApiKeyId,
    pub(crate) note: Note,
}

impl Verb for Remove {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        let removed = sqlx::query!("DELETE FROM api_key WHERE id = $1", self.id.as_uuid())
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        let removed = removed.rows_affected() == 1;
        if removed {
            audit_log::append(tx, &self.note).await?;
        }
        Ok(removed)
    }
}
