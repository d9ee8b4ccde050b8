//! Every statement fits the schema, and finds its rows by an index, but for the few that are meant to read a whole table.

use rusqlite::Connection;

/// Parts of the queries that read whole tables, and why they may.
const WHOLE_TABLE: [&str; 19] = [
    // The audit, once a minute.
    "GROUP BY repo_forge_id",
    "FROM run JOIN job ON job.id = run.job_id",
    "FROM run LEFT JOIN step",
    "SELECT DISTINCT run.task_id",
    "SELECT DISTINCT effect.task_id",
    "FROM task LEFT JOIN event",
    "AS turn\n",
    "AS fence_back",
    "AS first\n",
    "(turn_at IS NOT NULL AND lane_id IS NOT NULL)",
    // It goes through what it counts, which comes from an index.
    "ORDER BY turn_at, turn_seq LIMIT ?2",
    // It sorts what is held of one repository, which is little.
    "UPDATE lane SET served_at = max(served_at, ?4), (turn_at, turn_seq)",
    // It sorts what is at work, which is little.
    "task.mode <> 'probe'",
    // It sorts the messages of one Task, which are few.
    "SELECT author, posted_at, content FROM message",
    // They sort numbers that an index holds, of what waits and of one repository's Tasks.
    "AS open_seq",
    "SELECT id FROM task WHERE repo_forge_id = ? ORDER BY",
    // All of it: a menu's length.
    "FROM addition ORDER BY",
    // At start.
    "GROUP BY slots_of",
    // One row.
    "ledger",
];

fn scratch() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    crate::migrate::migrate(&mut conn).unwrap();
    conn
}

/// How a statement begins that reads or writes rows.
const VERBS: [&str; 4] = ["SELECT ", "INSERT ", "UPDATE ", "DELETE "];

/// Every statement in this crate's sources: each string that begins as one does, but those of tests and those that are put
/// together at run time.
fn statements() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut statements = Vec::new();
    for file in files.filter(|file| !file.ends_with("plans.rs")) {
        let source = fs_err::read_to_string(file).unwrap();
        let (code, _tests) = source.split_once("#[cfg(test)]\nmod tests {").unwrap_or((&source, ""));
        // A statement holds no quotes, and an escape only at the end of a line.
        let strings = code.split('"').skip(1).map(|string| string.replace("\\\n", "\n"));
        statements.extend(
            strings.filter(|string| VERBS.iter().any(|verb| string.starts_with(verb)) && !string.contains("{}")),
        );
    }
    statements
}

fn plan(conn: &Connection, query: &str) -> Vec<String> {
    let mut explained = conn.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
    // What is asked for is not known here, so nothing is bound.
    let mut rows = explained.raw_query();
    let mut details = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        details.push(row.get("detail").unwrap());
    }
    details
}

#[test]
fn every_statement_fits_the_schema() {
    let conn = scratch();
    let statements = statements();
    assert!(statements.len() > 80, "{} statements were found", statements.len());
    let wrong =
        statements.iter().filter_map(|statement| Some(format!("{statement}: {}", conn.prepare(statement).err()?)));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn every_query_uses_an_index() {
    let conn = scratch();
    let mut slow = Vec::new();
    for query in statements() {
        let details = plan(&conn, &query);
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

#[test]
fn the_next_job_the_lapsed_and_the_due_are_found_without_reading_others() {
    let conn = scratch();
    for (query, index) in [
        ("WHERE pool_id = ? AND lane.turn_at IS NOT NULL ORDER BY", "lane_turn"),
        ("UPDATE lane SET served_at = max(served_at, ?4), (turn_at, turn_seq)", "job_turn"),
        ("WHERE leased_until <= ?", "job_leased"),
        ("WHERE delayed_until <= ?", "job_delayed"),
        ("FROM job WHERE request_id = ?", "job_request"),
        ("FROM delivery WHERE closed_at IS NULL AND coalesce(not_before, 0) <= ? ORDER BY seq", "delivery_open"),
        ("FROM task WHERE state = ? AND (created_at, id) <", "task_state_created"),
        ("FROM task WHERE (created_at, id) <", "task_created"),
    ] {
        let full = statements().into_iter().find(|statement| statement.contains(query)).expect(query);
        let details = plan(&conn, &full).join("\n");
        assert!(details.contains(&format!("INDEX {index}")), "{full}\n{details}");
    }
}

#[test]
fn what_a_model_has_at_work_is_counted_without_reading_the_lanes() {
    let conn = scratch();
    let full = statements().into_iter().find(|statement| statement.contains("INDEXED BY job_held")).unwrap();
    let details = plan(&conn, &full).join("\n");
    assert!(details.contains("SCAN job USING INDEX job_held"), "{full}\n{details}");
    assert!(details.contains("SEARCH lane USING INTEGER PRIMARY KEY"), "{full}\n{details}");
}
