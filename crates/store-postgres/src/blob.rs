//! Blobs: rows named by the SHA-256 of their content, committed before any row names them. In the database, because every
//! dashboard must have what one of them was given.

use bytes::Bytes;
use fettle_app::ports::ledger::{LedgerError, MAX_BLOB_BYTES};
use fettle_domain::object::BlobId;
use sqlx::PgConnection;
use tokio::sync::Semaphore;

use crate::error::{OrLedger, R};

/// Blobs read or written at once: each takes a connection and twice its 64 MiB of memory.
const AT_ONCE: usize = 4;

pub(crate) struct Blobs {
    permits: Semaphore,
}

impl Blobs {
    pub(crate) fn new() -> Self {
        Self { permits: Semaphore::new(AT_ONCE) }
    }

    pub(crate) async fn put(&self, conn: &mut PgConnection, content: Bytes) -> R<BlobId> {
        if content.len() > MAX_BLOB_BYTES {
            return Err(LedgerError::Invalid(format!("a blob has at most {MAX_BLOB_BYTES} bytes")).into());
        }
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        // 64 MiB take a tenth of a second.
        let named = tokio::task::spawn_blocking(move || (BlobId::of(&content), content)).await;
        let (id, content) = named.map_err(|join| LedgerError::Unavailable(join.to_string()))?;
        let (name, content) = (id.as_bytes().as_slice(), content.as_ref());
        // A twin that is being put is waited for: whoever returns from here finds the content durable.
        sqlx::query!("INSERT INTO blob (id, content) VALUES ($1, $2) ON CONFLICT DO NOTHING", name, content)
            .execute(conn)
            .await
            .or_ledger()?;
        Ok(id)
    }

    pub(crate) async fn get(&self, conn: &mut PgConnection, id: BlobId) -> R<Bytes> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let content = sqlx::query_scalar!("SELECT content FROM blob WHERE id = $1", id.as_bytes().as_slice())
            .fetch_optional(conn)
            .await
            .or_ledger()?
            .ok_or_else(|| LedgerError::NotFound(format!("blob {id}")))?;
        let checked = tokio::task::spawn_blocking(move || (BlobId::of(&content) == id).then_some(content)).await;
        match checked.map_err(|join| LedgerError::Unavailable(join.to_string()))? {
            Some(content) => Ok(content.into()),
            None => Err(LedgerError::Corrupt(format!("blob {id} holds another content")).into()),
        }
    }
}

/// Refuses a row that names a blob which was never stored.
pub(crate) async fn require(conn: &mut PgConnection, ids: &[BlobId]) -> R<()> {
    for id in ids {
        let there = sqlx::query_scalar!(
            r#"SELECT EXISTS (SELECT FROM blob WHERE id = $1) AS "there!""#,
            id.as_bytes().as_slice()
        )
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
        if !there {
            return Err(LedgerError::Invalid(format!("blob {id} was not stored before it was named")).into());
        }
    }
    Ok(())
}
