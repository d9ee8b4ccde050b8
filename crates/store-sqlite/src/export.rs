//! Hands out every row and blob of a ledger that no process has open.

use camino::Utf8Path;
use fettle_app::archive::{ArchiveError, ArchiveWriter, Cell, Counts, Kind, TABLES, Table};
use fettle_app::ports::ledger::{L, LedgerError};
use rusqlite::types::FromSql;
use rusqlite::{Connection, Row};
use uuid::Uuid;

use crate::blob::Blobs;
use crate::error::{OrLedger, unreadable};
use crate::open::{self, OpenError};

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("could not open the ledger")]
    Open(#[from] OpenError),
    #[error("could not read the ledger")]
    Ledger(#[from] LedgerError),
    #[error("could not write what was read")]
    Archive(#[from] ArchiveError),
}

/// Writes the ledger beneath `data_dir` to `out`, to its end. It is brought up to this program's schema first.
///
/// Errors when another process has it open: what that writes meanwhile would be lost.
pub async fn export<W: std::io::Write + Send>(
    data_dir: &Utf8Path,
    options: crate::Options,
    out: W,
) -> Result<(W, Counts), ExportError> {
    // An opening of its own makes the newest schema, takes the lock, and puts every job into its lane.
    crate::SqliteLedger::open(data_dir, options).await?.close().await?;
    let (conn, lock) = open::alone(data_dir).await?;
    let blobs = Blobs::names(data_dir).map_err(|error| LedgerError::Unavailable(error.to_string()))?;
    let mut writer = ArchiveWriter::begin(out)?;
    for table in TABLES {
        match table.name {
            "blob" => {
                for id in &blobs {
                    let content = Blobs::read(data_dir, *id)?;
                    writer.row(table, &[Cell::Bytes(id.as_bytes().to_vec()), Cell::Bytes(content)])?;
                }
            }
            _ => rows(&conn, table, &mut writer)?,
        }
    }
    conn.close().map_err(|(_, error)| error).or_ledger()?;
    drop(lock);
    Ok(writer.end()?)
}

fn rows<W: std::io::Write>(
    conn: &Connection,
    table: &'static Table,
    writer: &mut ArchiveWriter<W>,
) -> Result<(), ExportError> {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    // Names of a constant table.
    let sql = format!("SELECT {} FROM {} ORDER BY rowid", names.join(", "), table.name);
    let mut statement = conn.prepare(&sql).or_ledger()?;
    let mut rows = statement.query(()).or_ledger()?;
    while let Some(row) = rows.next().or_ledger()? {
        let cells = table.columns.iter().enumerate().map(|(nth, (_, kind))| cell(row, nth, *kind));
        writer.row(table, &cells.collect::<L<Vec<_>>>()?)?;
    }
    Ok(())
}

fn cell(row: &Row<'_>, nth: usize, kind: Kind) -> L<Cell> {
    fn get<T: FromSql>(row: &Row<'_>, nth: usize) -> L<Option<T>> {
        row.get(nth).map_err(unreadable)
    }
    let found = match kind {
        Kind::Number => get(row, nth)?.map(Cell::Number),
        Kind::Instant => get(row, nth)?.map(Cell::Instant),
        Kind::Text => get(row, nth)?.map(Cell::Text),
        Kind::Id => get::<Uuid>(row, nth)?.map(Cell::Id),
        Kind::Bytes => get(row, nth)?.map(Cell::Bytes),
        Kind::Flag => get(row, nth)?.map(Cell::Flag),
    };
    Ok(found.unwrap_or(Cell::Null))
}
