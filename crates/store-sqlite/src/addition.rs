//! What people added in the browser.

use async_trait::async_trait;
use fettle_app::ports::additions::{Addition, Additions, Kept, MAX_ADDITIONS, Sealed, Sort};
use fettle_app::ports::ledger::L;
use rusqlite::{Connection, Row, params};

use crate::SqliteLedger;
use crate::sql::{Sql as _, first};
use crate::time::from_micros;
use crate::writer::{Tx, Verb};

/// `sort, name, value, secret_key, secret, changed_at`.
///
/// `None`: a sort that a newer version knows.
fn addition(row: &Row<'_>) -> rusqlite::Result<Option<Addition>> {
    let Some(sort) = Sort::parse(&row.get::<_, String>(0)?) else { return Ok(None) };
    let secret = match (row.get(3)?, row.get(4)?) {
        (Some(key), Some(bytes)) => Some(Sealed { key, bytes }),
        _ => None,
    };
    Ok(Some(Addition { sort, name: row.get(1)?, value: row.get(2)?, secret, changed_at: from_micros(row.get(5)?) }))
}

struct Keep(Addition);

impl Verb for Keep {
    type Out = Kept;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Kept> {
        let Addition { sort, name, value, secret, changed_at } = &self.0;
        let (key, bytes) = secret.as_ref().map(|sealed| (&sealed.key, &sealed.bytes)).unzip();
        let at = changed_at.as_microsecond();
        let changed = tx.conn.run(
            "UPDATE addition SET value = ?, secret_key = ?, secret = ?, changed_at = ? WHERE sort = ? AND name = ?",
            params![value, key, bytes, at, sort.name(), name],
        )?;
        if changed > 0 {
            return Ok(Kept::Changed);
        }
        let there: u16 = tx.conn.one("SELECT count(*) FROM addition WHERE sort = ?", params![sort.name()], first)?;
        if there >= MAX_ADDITIONS {
            return Ok(Kept::Full);
        }
        tx.conn.run(
            "INSERT INTO addition (sort, name, value, secret_key, secret, changed_at) VALUES (?, ?, ?, ?, ?, ?)",
            params![sort.name(), name, value, key, bytes, at],
        )?;
        Ok(Kept::New)
    }
}

struct DropOne {
    sort: Sort,
    name: String,
}

impl Verb for DropOne {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let dropped =
            tx.conn.run("DELETE FROM addition WHERE sort = ? AND name = ?", params![self.sort.name(), self.name])?;
        Ok(dropped > 0)
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

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let resealed = tx.conn.run(
            "UPDATE addition SET secret_key = ?, secret = ? WHERE sort = ? AND name = ? AND secret_key = ? AND secret = ?",
            params![
                self.to.key,
                self.to.bytes,
                self.sort.name(),
                self.name,
                self.from.key,
                self.from.bytes
            ],
        )?;
        Ok(resealed > 0)
    }
}

#[async_trait]
impl Additions for SqliteLedger {
    async fn additions(&self) -> L<Vec<Addition>> {
        let read = |conn: &Connection| {
            conn.all(
                "SELECT sort, name, value, secret_key, secret, changed_at FROM addition ORDER BY sort, name",
                (),
                addition,
            )
        };
        Ok(self.readers.read(read).await?.into_iter().flatten().collect())
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
