//! Takes in a whole ledger that was another store's: in one transaction, into a database that has none yet.

use std::io::BufRead;

use fettle_app::archive::{ArchiveError, ArchiveReader, Cell, Counts, Kind, Table};
use fettle_app::ports::ledger::LedgerError;
use fettle_domain::event::EventBody;
use jiff::Timestamp;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Postgres};
use uuid::Uuid;

use crate::database::Database;
use crate::error::{Failed, OrLedger, R, unreadable};
use crate::open::{self, OpenError};
use crate::stored;
use crate::time::Instant;
use crate::{event, lock};

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("could not open the database")]
    Open(#[from] OpenError),
    #[error("the database has a ledger with {0} Tasks already; nothing was changed. Import into a new database")]
    NotEmpty(i64),
    #[error("the database has accounts or an audit log already; nothing was changed. Import into a new database")]
    HasAccounts,
    #[error("a dashboard runs on this database; stop it first. Nothing was changed")]
    InUse,
    #[error("could not write to the database; nothing was changed")]
    Ledger(#[from] LedgerError),
    #[error("the file cannot be taken in; nothing was changed")]
    Archive(#[from] ArchiveError),
}

impl From<Failed> for ImportError {
    fn from(failed: Failed) -> Self {
        Self::Ledger(failed.error)
    }
}

/// Numbers that the database gives out go on after the greatest that came.
const COUNTED: [(&str, &str); 5] =
    [("delivery", "seq"), ("job", "seq"), ("message", "seq"), ("pool", "id"), ("lane", "id")];

/// Brings the schema up to date and takes in all of `archive`, or nothing.
pub async fn import<R: BufRead>(database: &Database, archive: R) -> Result<Counts, ImportError> {
    open::migrate(database).await?;
    let mut conn = open::session(database).await?;
    if !lock::try_presence_alone(&mut conn).await? {
        return Err(ImportError::InUse);
    }
    let mut transaction = conn.begin().await.or_ledger()?;
    let counts = take_in(&mut transaction, archive).await?;
    transaction.commit().await.or_ledger()?;
    conn.close().await.or_ledger()?;
    Ok(counts)
}

async fn take_in<R: BufRead>(conn: &mut PgConnection, archive: R) -> Result<Counts, ImportError> {
    sqlx::query("LOCK TABLE task, delivery, job, event, account, audit_log IN EXCLUSIVE MODE")
        .execute(&mut *conn)
        .await
        .or_ledger()?;
    let there: i64 = sqlx::query_scalar("SELECT (SELECT count(*) FROM task) + (SELECT count(*) FROM delivery)")
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    if there > 0 {
        return Err(ImportError::NotEmpty(there));
    }
    let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM account) OR EXISTS (SELECT FROM audit_log)")
        .fetch_one(&mut *conn)
        .await
        .or_ledger()?;
    if known {
        return Err(ImportError::HasAccounts);
    }
    let mut rows = ArchiveReader::begin(archive)?;
    while let Some((table, row)) = rows.next()? {
        insert(conn, table, row).await?;
    }
    for (table, column) in COUNTED {
        let sql = format!(
            "SELECT setval(pg_get_serial_sequence('{table}', '{column}'), greatest(max({column}), 1), max({column}) IS NOT NULL) FROM {table}"
        );
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *conn).await.or_ledger()?;
    }
    sqlx::query("SELECT setval('event_feed', greatest(max(seq), 1), max(seq) IS NOT NULL) FROM event")
        .execute(conn)
        .await
        .or_ledger()?;
    Ok(rows.counts().clone())
}

async fn insert(conn: &mut PgConnection, table: &'static Table, row: Vec<Cell>) -> R<()> {
    if table.name == "ledger" {
        return bound(sqlx::query("UPDATE ledger SET announced_seq = $1"), table, row)
            .execute(conn)
            .await
            .or_ledger()
            .map(|_| ());
    }
    let mut columns: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let mut row = row;
    if table.name == "event" {
        // The type is in the body, and here in a column too.
        let body = row.iter().rev().find_map(|cell| if let Cell::Text(body) = cell { Some(body) } else { None });
        let body: EventBody = stored::read(body.ok_or_else(|| unreadable("an event without a body"))?)?;
        columns.push("kind");
        row.push(Cell::Text(event::kind(&body).to_owned()));
    }
    let places: Vec<String> = (1..=columns.len()).map(|nth| format!("${nth}")).collect();
    // Names of a constant table.
    let sql = AssertSqlSafe(format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
        table.name,
        columns.join(", "),
        places.join(", ")
    ));
    bound(sqlx::query(sql), table, row).execute(conn).await.or_ledger().map(|_| ())
}

fn bound<'q>(
    query: Query<'q, Postgres, PgArguments>,
    table: &Table,
    row: Vec<Cell>,
) -> Query<'q, Postgres, PgArguments> {
    let kinds = table.columns.iter().map(|(_, kind)| *kind).chain([Kind::Text]);
    kinds.zip(row).fold(query, |query, (kind, cell)| match cell {
        Cell::Null => match kind {
            Kind::Number => query.bind(None::<i64>),
            Kind::Text => query.bind(None::<String>),
            Kind::Id => query.bind(None::<Uuid>),
            Kind::Instant => query.bind(None::<Instant>),
            Kind::Bytes => query.bind(None::<Vec<u8>>),
            Kind::Flag => query.bind(None::<bool>),
        },
        Cell::Number(number) => query.bind(number),
        Cell::Text(text) => query.bind(stored::text(&text)),
        Cell::Id(id) => query.bind(id),
        Cell::Instant(micros) => query.bind(Timestamp::from_microsecond(micros).ok().map(Instant)),
        Cell::Bytes(bytes) => query.bind(bytes),
        Cell::Flag(flag) => query.bind(flag),
    })
}
