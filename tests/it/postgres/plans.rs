//! Every query finds its rows by an index, but for the few that are meant to read a whole table.
//!
//! Plans are made as for any parameters, the way PostgreSQL makes them for a statement that is executed often.

use serde::Deserialize;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{connect, postgres};

/// Parts of the queries that read whole tables, and why they may.
const WHOLE_TABLE: [&str; 14] = [
    // The audit, once a minute.
    "GROUP BY repo_forge_id",
    "FROM run JOIN job ON job.id = run.job_id",
    "FROM run LEFT JOIN step",
    "SELECT DISTINCT run.task_id",
    "SELECT DISTINCT effect.task_id",
    "FROM task LEFT JOIN event",
    "AS \"turn?\"",
    "AS judged",
    "<> (turn_at IS NOT NULL)",
    // It sorts the first job of each lane that has one.
    "CROSS JOIN LATERAL (\n             SELECT job.id",
    // It sorts the lanes in which jobs stand.
    ") AS first_ones) AS counted",
    // It sorts what has the same deadline.
    "ORDER BY job.leased_until, job.seq LIMIT",
    // All of it: a menu's length.
    "FROM addition ORDER BY",
    // One row.
    "ledger",
];

#[derive(Deserialize)]
struct Committed {
    query: String,
    describe: Describe,
}

#[derive(Deserialize)]
struct Describe {
    parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    #[serde(rename = "Left")]
    types: Vec<serde_json::Value>,
}

/// The queries as the macros saw them.
fn committed() -> Vec<Committed> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/store-postgres/.sqlx");
    let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()).collect()
}

async fn execute(conn: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(conn).await.unwrap();
}

async fn plan(conn: &mut PgConnection, query: &Committed) -> String {
    execute(conn, format!("PREPARE planned AS {}", query.query)).await;
    let parameters = vec!["NULL"; query.describe.parameters.types.len()].join(", ");
    let call = if parameters.is_empty() { String::new() } else { format!("({parameters})") };
    let explain = AssertSqlSafe(format!("EXPLAIN EXECUTE planned{call}"));
    let rows = sqlx::raw_sql(explain).fetch_all(&mut *conn).await.unwrap();
    execute(conn, "DEALLOCATE planned").await;
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_query_can_use_an_index() {
    let Some(url) = postgres::migrated().await.unwrap() else { return };
    let mut conn = connect(&url).await;
    execute(&mut conn, "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_sort = off")
        .await;
    let queries = committed();
    assert!(queries.len() > 50, "the committed query data is there");
    let mut slow = Vec::new();
    for query in queries {
        let plan = plan(&mut conn, &query).await;
        let sorts = query.query.contains("LIMIT") && plan.contains("Sort");
        if (plan.contains("Seq Scan") || sorts) && !WHOLE_TABLE.iter().any(|part| query.query.contains(part)) {
            slow.push(format!("{}\n{plan}", query.query));
        }
    }
    assert!(slow.is_empty(), "{}", slow.join("\n\n"));
}

/// 30,000 Tasks at rest, a few hundred at work, a backlog of 5,000: what a planner that may do as it likes meets in use.
const FILLED: &str = "
    INSERT INTO task (id, correlation_id, mode, repo_forge_id, issue_number, generation, actor, trigger_kind, state,
                      event_seq, created_at, updated_at, ended_at, subject)
    SELECT md5('t' || n)::uuid, md5('c' || n)::uuid, 'quickfix', n % 100, n, 1, 'ada', 'label',
           CASE WHEN n > 6000 THEN 'done' WHEN n > 5500 THEN 'cancelled' WHEN n > 500 THEN 'queued'
                WHEN n > 300 THEN 'waiting' ELSE 'running' END, 3,
           now() - n * interval '1 s', now(), CASE WHEN n > 5500 THEN now() END, '{}' FROM generate_series(1, 35500) n;
    INSERT INTO pool (kind, order_version, model, needs) VALUES ('run', 1, '', ''), ('publish', 1, '', '');
    INSERT INTO lane (pool_id, slots_of) SELECT 1, 'repo:' || n FROM generate_series(0, 99) n;
    INSERT INTO lane (pool_id, slots_of) VALUES (2, 'token');
    INSERT INTO job (id, kind, task_id, order_version, state, fence, attempts, crashes, crashes_since_step, delayed_until,
                     leased_until, worker_id, request_id, progress, created_at, priority, lane_id, runnable_at, turn_at)
    SELECT md5('j' || n)::uuid, CASE WHEN n % 10 = 0 THEN 'publish' ELSE 'run' END, md5('t' || n)::uuid, 1,
           CASE WHEN n > 5500 THEN 'done' WHEN n > 500 THEN 'queued' WHEN n > 300 THEN 'delayed' ELSE 'leased' END,
           n, 0, 0, 0, CASE WHEN n BETWEEN 301 AND 500 THEN now() + n * interval '1 s' END,
           CASE WHEN n <= 300 THEN now() + n * interval '1 s' END, CASE WHEN n <= 300 THEN md5('w' || n)::uuid END,
           CASE WHEN n <= 300 THEN md5('r' || n)::uuid END, 0, now(), 4,
           CASE WHEN n % 10 = 0 THEN 101 ELSE 1 + n % 100 END, CASE WHEN n BETWEEN 501 AND 5500 THEN now() END,
           CASE WHEN n BETWEEN 501 AND 5500 THEN now() - interval '40 min' END FROM generate_series(35500, 1, -1) n;
    INSERT INTO event (seq, task_id, task_seq, at, correlation_id, kind, body)
    SELECT n * 3 + k, md5('t' || n)::uuid, k, now(), md5('c' || n)::uuid, 'step', repeat('x', 200)
    FROM generate_series(1, 35500) n, generate_series(1, 3) k;
    INSERT INTO delivery (id, key, event, correlation_id, received_at, closed_at, body)
    SELECT md5('d' || n)::uuid, n::text, 'issues', md5('d' || n)::uuid, now(), CASE WHEN n < 29900 THEN now() END,
           convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, 30000) n;
    ANALYZE;";

#[tokio::test]
async fn what_is_asked_all_the_time_reads_no_more_than_it_gives_however_much_there_is() {
    let Some(url) = postgres::migrated().await.unwrap() else { return };
    let mut conn = connect(&url).await;
    execute(&mut conn, FILLED).await;
    execute(&mut conn, "SET plan_cache_mode = force_generic_plan").await;
    for (part, index) in [
        ("WHERE job.id = $1 AND job.state = 'queued'", "job_id_key"),
        ("WHERE job.leased_until <= $1", "job_leased"),
        ("WHERE job.delayed_until <= $1", "job_delayed"),
        ("FROM job WHERE request_id = $1", "job_request"),
        ("SELECT task_id FROM job WHERE id = ANY($1)", "job_id_key"),
        ("UPDATE job SET state = $1", "job_id_key"),
        ("SELECT id FROM task WHERE id = $1 FOR NO KEY UPDATE", "task_pkey"),
        ("WHERE closed_at IS NULL AND (not_before", "delivery_open"),
        ("WHERE seq > $1 ORDER BY seq", "event_pkey"),
        ("WHERE task_id = $1 AND seq > $2", "event_task"),
        // Which of the two is cheaper depends on how many are in that state.
        ("FROM task WHERE state = $1 AND (created_at, id) <", "using task_"),
        ("FROM task WHERE (created_at, id) <", "task_created"),
        ("AS \"delivery!\"", "delivery_open"),
        ("SELECT max(seq) FROM event", "event_pkey"),
    ] {
        let query = committed().into_iter().find(|committed| committed.query.contains(part)).expect(part);
        let plan = plan(&mut conn, &query).await;
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{}\n{plan}", query.query);
        assert!(!query.query.contains("LIMIT") || !plan.contains("Sort"), "{}\n{plan}", query.query);
    }
}
