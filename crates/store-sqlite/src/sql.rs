//! Statements on one connection: each prepared once, its errors in the ledger's words.
//!
//! What checks them: `plans.rs` prepares every statement of these sources against the migrated schema, the tables are `STRICT`,
//! and the contract suites run each of them.

use fettle_app::ports::ledger::L;
use rusqlite::{Connection, OptionalExtension as _, Params, Row};

use crate::error::OrLedger;

pub(crate) trait Sql {
    /// Gives how many rows it changed.
    fn run(&self, sql: &str, params: impl Params) -> L<usize>;

    /// Errors when there is no row.
    fn one<T>(&self, sql: &str, params: impl Params, read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>) -> L<T>;

    fn maybe<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> L<Option<T>>;

    fn all<T>(&self, sql: &str, params: impl Params, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> L<Vec<T>>;
}

impl Sql for Connection {
    fn run(&self, sql: &str, params: impl Params) -> L<usize> {
        self.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).or_ledger()
    }

    fn one<T>(&self, sql: &str, params: impl Params, read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>) -> L<T> {
        self.prepare_cached(sql).and_then(|mut statement| statement.query_row(params, read)).or_ledger()
    }

    fn maybe<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> L<Option<T>> {
        self.prepare_cached(sql).and_then(|mut statement| statement.query_row(params, read).optional()).or_ledger()
    }

    fn all<T>(&self, sql: &str, params: impl Params, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> L<Vec<T>> {
        self.prepare_cached(sql).and_then(|mut statement| statement.query_map(params, read)?.collect()).or_ledger()
    }
}

/// The only column of a row.
pub(crate) fn first<T: rusqlite::types::FromSql>(row: &Row<'_>) -> rusqlite::Result<T> {
    row.get(0)
}
