//! Every query finds its rows by an index, but for the few that are meant to read a whole table.

use serde::Deserialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqliteConnection};

/// Parts of the queries that read whole tables, and why they may.
const WHOLE_TABLE: [&str; 14] = [
    // The audit, once a minute.
    "GROUP BY repo_forge_id",
    "FROM run JOIN job ON job.id = run.job_id",
    "FROM run LEFT JOIN step",
    "SELECT DISTINCT run.task_id",
    "SELECT DISTINCT effect.task_id",
    "FROM task LEFT JOIN event",
    "AS \"turn?: String\"",
    "AS \"fence_back!: bool\"",
    "AS \"first: i64\"",
    "(turn_at IS NOT NULL AND lane_id IS NOT NULL)",
    // As many lanes as it counts.
    "sum(min(slots - held, queued))",
    // It sorts what is held of one repository, which is little.
    "UPDATE lane SET (turn_at, turn_seq)",
    // At start.
    "GROUP BY slots_of",
    // One row.
    "ledger",
];

#[derive(Deserialize)]
struct Committed {
    query: String,
}

async fn scratch() -> SqliteConnection {
    let mut conn = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
    sqlx::migrate!().run_direct(None, &mut conn, false).await.unwrap();
    conn
}

/// The queries as the macros saw them.
fn committed() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let query = |path| serde_json::from_str::<Committed>(&fs_err::read_to_string(path).unwrap()).unwrap().query;
    files.map(query).collect()
}

async fn plan(conn: &mut SqliteConnection, query: &str) -> Vec<String> {
    let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
    let rows = sqlx::query(explained).fetch_all(conn).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail")).collect()
}

#[tokio::test]
async fn every_query_uses_an_index() {
    let mut conn = scratch().await;
    let queries = committed();
    assert!(queries.len() > 50, "the committed query data is there");
    let mut slow = Vec::new();
    for query in queries {
        let details = plan(&mut conn, &query).await;
        let scans = details.iter().any(|detail| {
            detail.starts_with("SCAN ")
                && !detail.contains("INDEX")
                && !detail.contains("VIRTUAL TABLE")
                && detail != "SCAN CONSTANT ROW"
        });
        let sorts = query.contains("LIMIT") && details.iter().any(|detail| detail.contains("TEMP B-TREE"));
        if (scans || sorts) && !WHOLE_TABLE.iter().any(|part| query.contains(part)) {
            slow.push(format!("{query}\n{}", details.join("\n")));
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

#[tokio::test]
async fn the_next_job_the_lapsed_and_the_due_are_found_without_reading_others() {
    let mut conn = scratch().await;
    for (query, index) in [
        ("FROM lane\n               WHERE pool_id = ? AND turn_at IS NOT NULL ORDER BY", "lane_turn"),
        ("UPDATE lane SET (turn_at, turn_seq)", "job_turn"),
        ("WHERE leased_until <= ?", "job_leased"),
        ("WHERE delayed_until <= ?", "job_delayed"),
        ("FROM job WHERE request_id = ?", "job_request"),
        ("FROM delivery WHERE closed_at IS NULL AND coalesce(not_before, 0) <= ? ORDER BY seq", "delivery_open"),
        ("FROM task WHERE state = ? AND (created_at, id) <", "task_state_created"),
        ("FROM task WHERE (created_at, id) <", "task_created"),
    ] {
        let full = committed().into_iter().find(|committed| committed.contains(query)).expect(query);
        let details = plan(&mut conn, &full).await.join("\n");
        assert!(details.contains(&format!("INDEX {index}")), "{full}\n{details}");
    }
}

#[tokio::test]
async fn what_a_model_has_at_work_is_counted_without_reading_the_lanes() {
    let mut conn = scratch().await;
    let full = committed().into_iter().find(|committed| committed.contains("FROM pool WHERE kind = ?")).unwrap();
    let details = plan(&mut conn, &full).await.join("\n");
    assert!(details.contains("SCAN job USING INDEX job_held"), "{full}\n{details}");
    assert!(details.contains("SEARCH lane USING INTEGER PRIMARY KEY"), "{full}\n{details}");
}
