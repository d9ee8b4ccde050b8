//! What access tokens are signed with.

use fettle_app::ports::accounts::SigningKey;
use jiff::Timestamp;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::audit_log::whole;
use crate::error::{OrLedger, R};
use crate::lock;
use crate::time::Instant;
use crate::writer::{Tx, Verb};

/// The newest first.
pub(crate) async fn all(conn: &mut PgConnection) -> R<Vec<SigningKey>> {
    let rows = sqlx::query!("SELECT id, secret, created_at FROM signing_key ORDER BY created_at DESC, id DESC")
        .fetch_all(conn)
        .await
        .or_ledger()?;
    rows.into_iter()
        .map(|row| Ok(SigningKey { id: row.id, secret: whole(row.secret)?, created_at: row.created_at.0 }))
        .collect()
}

pub(crate) struct Add {
    pub(crate) id: Uuid,
    pub(crate) secret: [u8; 32],
    pub(crate) newest_before: Timestamp,
}

impl Verb for Add {
    type Out = ();

    async fn apply(&self, tx: &mut Tx<'_>) -> R<()> {
        lock::signing_keys(tx.conn).await?;
        sqlx::query!(
            "INSERT INTO signing_key (id, secret, created_at)
             SELECT $1, $2, $3 WHERE NOT EXISTS (SELECT FROM signing_key WHERE created_at >= $4)",
            self.id,
            &self.secret[..],
            Instant(tx.now),
            Instant(self.newest_before),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(())
    }
}

pub(crate) struct Forget(pub(crate) Timestamp);

impl Verb for Forget {
    type Out = u64;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<u64> {
        let forgotten = sqlx::query!("DELETE FROM signing_key WHERE created_at < $1", Instant(self.0))
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        Ok(forgotten.rows_affected())
    }
}
