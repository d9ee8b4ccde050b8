//! What people added in the browser.

use async_trait::async_trait;
use fettle_app::ports::additions::{Addition, Additions, Kept, MAX_ADDITIONS, Sealed, Sort};
use fettle_app::ports::ledger::L;
use sqlx::PgConnection;

use crate::error::{OrLedger, R};
use crate::time::Instant;
use crate::writer::{Tx, Verb, within};
use crate::{PostgresLedger, lock, stored};

struct Row {
    sort: String,
    name: String,
    value: String,
    secret_key: Option<String>,
    secret: Option<Vec<u8>>,
    changed_at: Instant,
}

async fn all(conn: &mut PgConnection) -> R<Vec<Addition>> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT sort, name, value, secret_key, secret, changed_at AS "changed_at: Instant"
           FROM addition ORDER BY sort, name"#
    )
    .fetch_all(conn)
    .await
    .or_ledger()?;
    // A sort that a newer version knows is left out.
    let known = rows.into_iter().filter_map(|row| Some((Sort::parse(&row.sort)?, row)));
    let addition = |(sort, row): (Sort, _)| {
        let Row { name, value, secret_key, secret, changed_at, .. } = row;
        let secret = secret_key.zip(secret).map(|(key, bytes)| Sealed { key, bytes });
        Addition { sort, name, value, secret, changed_at: changed_at.0 }
    };
    Ok(known.map(addition).collect())
}

struct Keep(Addition);

impl Verb for Keep {
    type Out = Kept;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Kept> {
        let Addition { sort, name, value, secret, changed_at } = &self.0;
        // Two that are added at once are counted one after the other.
        lock::additions(tx.conn).await?;
        let changed = sqlx::query!(
            "UPDATE addition SET value = $1, secret_key = $2, secret = $3, changed_at = $4 WHERE sort = $5 AND name = $6",
            stored::text(value),
            secret.as_ref().map(|sealed| sealed.key.as_str()),
            secret.as_ref().map(|sealed| sealed.bytes.as_slice()),
            Instant(*changed_at),
            sort.name(),
            stored::text(name),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        if changed.rows_affected() > 0 {
            return Ok(Kept::Changed);
        }
        let there = sqlx::query_scalar!(r#"SELECT count(*) AS "there!" FROM addition WHERE sort = $1"#, sort.name())
            .fetch_one(&mut *tx.conn)
            .await
            .or_ledger()?;
        if there >= i64::from(MAX_ADDITIONS) {
            return Ok(Kept::Full);
        }
        sqlx::query!(
            "INSERT INTO addition (sort, name, value, secret_key, secret, changed_at) VALUES ($1, $2, $3, $4, $5, $6)",
            sort.name(),
            stored::text(name),
            stored::text(value),
            secret.as_ref().map(|sealed| sealed.key.as_str()),
            secret.as_ref().map(|sealed| sealed.bytes.as_slice()),
            Instant(*changed_at),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(Kept::New)
    }
}

struct DropOne {
    sort: Sort,
    name: String,
}

impl Verb for DropOne {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        let dropped = sqlx::query!(
            "DELETE FROM addition WHERE sort = $1 AND name = $2",
            self.sort.name(),
            stored::text(&self.name),
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(dropped.rows_affected() > 0)
    }
}

struct Reseal {
    sort: Sort,
    name: String,
    from: Sealed,
    to: Sealed,
}

impl Verb for Reseal {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        let resealed = sqlx::query!(
            "UPDATE addition SET secret_key = $1, secret = $2 WHERE sort = $3 AND name = $4 AND secret_key = $5 AND secret = $6",
            self.to.key,
            self.to.bytes,
            self.sort.name(),
            stored::text(&self.name),
            self.from.key,
            self.from.bytes,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
        Ok(resealed.rows_affected() > 0)
    }
}

#[async_trait]
impl Additions for PostgresLedger {
    async fn additions(&self) -> L<Vec<Addition>> {
        within(async {
            let mut conn = self.store.lend().await?;
            let found = all(&mut conn).await;
            conn.give_back(found)
        })
        .await
    }

    async fn keep_addition(&self, addition: Addition) -> L<Kept> {
        self.write(Keep(addition)).await
    }

    async fn drop_addition(&self, sort: Sort, name: &str) -> L<bool> {
        self.write(DropOne { sort, name: name.to_owned() }).await
    }

    async fn reseal_addition(&self, sort: Sort, name: &str, from: Sealed, to: Sealed) -> L<bool> {
        self.write(Reseal { sort, name: name.to_owned(), from, to }).await
    }
}
