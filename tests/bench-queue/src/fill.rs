//! A backlog of a million jobs, without a million commits: each Task that the verbs have opened is copied, row by row, into a
//! file that nobody has open. The ledger's next start puts the copies in line, and its audit says whether they are what the
//! verbs would have written.

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_store_sqlite::DATABASE_FILE;
use rusqlite::Connection;

/// Copies get ids in the order of time, as UUIDs of version 7 are: what they stand for came one after the other.
const COPY_ID: &str = "unhex(printf('%012x7%03x8%015x', at / 1000, at % 1000, number))";

/// How often to copy the Tasks of one repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copies {
    /// Of the repository with number 1.
    pub(crate) of_first: u64,
    /// Of each other one.
    pub(crate) of_others: u64,
}

/// Multiplies the queued Tasks in `folder`'s ledger, which is closed. Nothing of it is durable before the end.
pub(crate) async fn multiply(folder: &Utf8Path, copies: Copies) -> anyhow::Result<()> {
    let file = folder.join(DATABASE_FILE);
    tokio::task::spawn_blocking(move || fill(&file, copies)).await.context("while waiting for the copies")?
}

fn fill(path: &Utf8Path, copies: Copies) -> anyhow::Result<()> {
    let file = Connection::open(path)?;
    // Without a journal: what a crash would leave is thrown away, as the rest of the folder.
    file.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA foreign_keys = ON; PRAGMA cache_size = -400000; PRAGMA temp_store = MEMORY",
    )?;
    plan(&file, copies)?;
    let later = "+ copy.number";
    copy(
        &file,
        "task",
        "id",
        &[
            ("id", "copy.id"),
            ("correlation_id", "copy.id"),
            // Issues of copies are none of the originals'.
            ("issue_number", "1000000000 + copy.number"),
            ("subject", "json_set(old.subject, '$.value.issue.number', 1000000000 + copy.number)"),
            ("created_at", &format!("old.created_at {later}")),
            ("updated_at", &format!("old.updated_at {later}")),
        ],
    )?;
    let inserted = "INSERT INTO intent (key, task_id) SELECT printf('copy:%d', number), id FROM copy ORDER BY number";
    run(&file, inserted)?;
    copy(
        &file,
        "job",
        "task_id",
        &[
            ("id", "copy.id"),
            ("task_id", "copy.id"),
            ("created_at", &format!("old.created_at {later}")),
            ("runnable_at", &format!("old.runnable_at {later}")),
            ("turn_at", &format!("old.turn_at {later}")),
        ],
    )?;
    copy(&file, "run", "task_id", &[("id", "copy.id"), ("task_id", "copy.id"), ("job_id", "copy.id")])?;
    copy(
        &file,
        "event",
        "task_id",
        &[("task_id", "copy.id"), ("correlation_id", "copy.id"), ("at", &format!("old.at {later}"))],
    )?;
    file.close().map_err(|(_, error)| error).context("while closing the filled ledger")
}

/// The table `copy`: a row for each, with its original, its number and its id.
fn plan(file: &Connection, copies: Copies) -> anyhow::Result<()> {
    run(file, "CREATE TEMP TABLE copy (number INTEGER PRIMARY KEY, original BLOB NOT NULL, id BLOB)")?;
    // By turns, as issues come: one of each repository, again and again, and the first one's in between.
    let numbered = |condition: &str, times: u64| {
        format!(
            "WITH RECURSIVE nth (n) AS (SELECT 1 WHERE {times} > 0 UNION ALL SELECT n + 1 FROM nth WHERE n < {times})
             SELECT nth.n * 1.0 / {times} AS place, task.id AS original FROM nth CROSS JOIN task WHERE {condition}"
        )
    };
    let (first, others) =
        (numbered("task.repo_forge_id = 1", copies.of_first), numbered("task.repo_forge_id <> 1", copies.of_others));
    let both = format!("SELECT * FROM ({first}) UNION ALL SELECT * FROM ({others})");
    run(file, &format!("INSERT INTO copy (original) SELECT original FROM ({both}) ORDER BY place"))?;
    let newest: i64 = file.query_one("SELECT max(created_at) FROM task", (), |row| row.get(0))?;
    run(file, &format!("UPDATE copy SET id = (SELECT {COPY_ID} FROM (SELECT {newest} + copy.number AS at))"))
}

/// Copies one table's rows of each original, with `changed` columns; a column that numbers the rows goes on counting.
fn copy(file: &Connection, table: &str, owner: &str, changed: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut listed = file.prepare("SELECT name FROM pragma_table_info(?) WHERE name <> 'seq'")?;
    let columns = listed.query_map([table], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    let missing = changed.iter().find(|(name, _)| columns.iter().all(|column| column != name));
    ensure!(missing.is_none(), "the table `{table}` has no column {missing:?}");
    let values = columns.iter().map(|column| {
        let change = changed.iter().find(|(name, _)| name == column);
        change.map_or_else(|| format!("old.{column}"), |(_, value)| (*value).to_owned())
    });
    let values = values.collect::<Vec<_>>().join(", ");
    run(file, &format!("CREATE TEMP TABLE old AS SELECT * FROM main.{table}"))?;
    run(file, &format!("CREATE INDEX temp.old_owner ON old ({owner})"))?;
    let columns = columns.join(", ");
    run(
        file,
        &format!(
            "INSERT INTO main.{table} ({columns}) SELECT {values} FROM copy CROSS JOIN old ON old.{owner} = copy.original
             ORDER BY copy.number"
        ),
    )?;
    run(file, "DROP TABLE temp.old")
}

fn run(file: &Connection, statement: &str) -> anyhow::Result<()> {
    file.execute_batch(statement).with_context(|| format!("while filling a ledger: {statement}"))
}
