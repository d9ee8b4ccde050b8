//! The ledger's contract on PostgreSQL, and what only several dashboards, or a server of one's own, can show.

#![expect(clippy::unwrap_used, reason = "in a test, a panic with its place is the report")]

mod accounts;
mod carry;
mod model;
mod outage;
mod plans;
mod programs;
mod together;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::clock::Clock;
use fettle_app::ports::ledger::{Leases, Ledger};
use fettle_domain::job::JobKind;
use fettle_store_postgres::{Database, OpenError, Options, PostgresLedger};
use fettle_tests::contract::ledger::{CountedIds, ManualTime, Subject, World, slots};
use fettle_tests::{contract, postgres};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};

contract::ledger!(
    on_postgres with lanes,
    match Dashboard::alone().await {
        Some(dashboard) => dashboard,
        None => return,
    }
);

/// One dashboard's ledger under hand-moved time.
struct Dashboard {
    ledger: PostgresLedger,
    url: String,
    time: Arc<ManualTime>,
    /// Ids of several dashboards, and of a reopened one, must not repeat.
    space: u64,
}

impl Dashboard {
    /// On a database of its own. `None`: there is no PostgreSQL here.
    async fn alone() -> Option<Self> {
        let url = postgres::migrated().await.expect("a database can be made")?;
        Some(Self::join(&url, &Arc::default(), 1).await)
    }

    async fn join(url: &str, time: &Arc<ManualTime>, space: u64) -> Self {
        let clock: Arc<dyn Clock> = time.clone();
        let options = Options { clock: Some(clock), ..options(space) };
        let ledger = PostgresLedger::open(&Database::at(url), options).await.expect("the ledger opens");
        Self { ledger, url: url.to_owned(), time: time.clone(), space }
    }
}

fn options(space: u64) -> Options {
    Options { connections: 8, slots: slots(), ..Options::new(Arc::new(CountedIds::of_space(space))) }
}

/// Two dashboards on one database, each in a world of its own.
async fn two() -> Option<(World<Dashboard>, World<Dashboard>)> {
    let url = postgres::migrated().await.expect("a database can be made")?;
    let time = Arc::default();
    let world = async |space: u64| {
        let mut world = World::of(Dashboard::join(&url, &time, space).await);
        world.ids = CountedIds::of_space(0xca5e + space);
        world
    };
    Some((world(1).await, world(2).await))
}

async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().unwrap().connect().await.unwrap()
}

async fn execute(url: &str, sql: &str) {
    let mut conn = connect(url).await;
    sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

/// The server has noticed that no dashboard is there any more, which takes it a moment.
async fn nobody_is_there(url: &str) {
    let mut conn = connect(url).await;
    let there = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    tokio::time::timeout(Duration::from_secs(20), async {
        while sqlx::query_scalar::<_, i64>(there).fetch_one(&mut conn).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    conn.close().await.unwrap();
}

#[async_trait]
impl Subject for Dashboard {
    fn leases(&self) -> &dyn Leases {
        &self.ledger
    }

    fn ledger(&self) -> &dyn Ledger {
        &self.ledger
    }

    fn time(&self) -> &ManualTime {
        &self.time
    }

    async fn crash_and_reopen(self) -> Self {
        let Self { ledger, url, time, space } = self;
        drop(ledger);
        nobody_is_there(&url).await;
        Self::join(&url, &time, space + 100).await
    }
}

/// What stood in a database before a Task had several Runs.
const BEFORE_RUNS: [&str; 7] = [
    include_str!("../../crates/store-postgres/migrations/0001_ledger.sql"),
    include_str!("../../crates/store-postgres/migrations/0002_intake.sql"),
    include_str!("../../crates/store-postgres/migrations/0003_announced.sql"),
    include_str!("../../crates/store-postgres/migrations/0004_lanes.sql"),
    include_str!("../../crates/store-postgres/migrations/0005_poll.sql"),
    include_str!("../../crates/store-postgres/migrations/0006_needs.sql"),
    include_str!("../../crates/store-postgres/migrations/0007_accounts.sql"),
];

#[tokio::test]
async fn runs_keep_their_models_when_others_may_stand_beside_them_whatever_people_had_written() {
    let Some(url) = postgres::empty().await.unwrap() else { return };
    let mut conn = connect(&url).await;
    for migration in BEFORE_RUNS {
        sqlx::raw_sql(migration).execute(&mut conn).await.unwrap();
    }
    let lane =
        "INSERT INTO pool (id, kind, order_version, model, needs) OVERRIDING SYSTEM VALUE VALUES (1, 'run', 1, '', '');
                INSERT INTO lane (id, pool_id, slots_of) OVERRIDING SYSTEM VALUE VALUES (1, 1, 'x')";
    sqlx::raw_sql(lane).execute(&mut conn).await.unwrap();
    let subjects = [
        (
            r#"{"v":"1","value":{"issue":{"body":"\u0000 \"model\":\"no\" \\\\"},"model":"coder","base":null}}"#,
            Some("coder"),
        ),
        (r#"{"v":"1","value":{"issue":{"body":"x"},"model":null,"base":null}}"#, None),
        (r#"{"v":"1","value":{"issue":{"body":"x"},"model":"q\"w:7b"}}"#, Some("q\"w:7b")),
    ];
    for (nth, (subject, _)) in subjects.iter().enumerate() {
        let id = uuid::Uuid::from_u128(nth as u128 + 1);
        let task = "INSERT INTO task (id, correlation_id, mode, generation, actor, trigger_kind, state, event_seq,
                                      created_at, updated_at, subject)
                    VALUES ($1, $1, 'quickfix', 1, 'ada', 'label', 'running', 1, now(), now(), $2)";
        sqlx::query(task).bind(id).bind(subject).execute(&mut conn).await.unwrap();
        for rest in [
            "INSERT INTO job (id, kind, task_id, order_version, state, fence, attempts, crashes, crashes_since_step,
                              progress, created_at, priority, lane_id)
             VALUES ($1, 'run', $1, 1, 'done', 7, 0, 0, 0, 0, now(), 4, 1)",
            "INSERT INTO run (id, task_id, job_id, steps, calls, generated_tokens, prompt_tokens, wall_s)
             VALUES ($1, $1, $1, 1, 2, 3, 4, 5)",
        ] {
            sqlx::query(rest).bind(id).execute(&mut conn).await.unwrap();
        }
    }
    let runs = include_str!("../../crates/store-postgres/migrations/0008_runs.sql");
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {runs} COMMIT"))).execute(&mut conn).await.unwrap();
    let kept = "SELECT run.model FROM task JOIN run ON run.task_id = task.id AND run.ordinal = task.leading_run ORDER BY task.id";
    let kept: Vec<Option<String>> = sqlx::query_scalar(kept).fetch_all(&mut conn).await.unwrap();
    assert_eq!(kept, subjects.map(|(_, model)| model.map(str::to_owned)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_nobody_migrated_is_refused_and_told_how_and_four_may_migrate_it_at_once() {
    let Some(url) = postgres::empty().await.unwrap() else { return };
    let refused = PostgresLedger::open(&Database::at(&url), options(1)).await.err().unwrap();
    assert!(matches!(refused, OpenError::NotMigrated { lacks: 1 }), "{refused:?}");
    assert!(refused.to_string().contains("fettle-dashboard migrate"), "{refused}");

    let database = Database::at(&url);
    let migrated = futures::future::join_all((0..4).map(|_| PostgresLedger::migrate(&database))).await;
    migrated.into_iter().for_each(Result::unwrap);
    let ledger = PostgresLedger::open(&Database::at(&url), options(1)).await.unwrap();
    ledger.probe().await.unwrap();
    assert_eq!(ledger.audit().await.unwrap(), Vec::<String>::new());

    execute(&url, "DELETE FROM _sqlx_migrations WHERE version = 2").await;
    let refused = PostgresLedger::open(&Database::at(&url), options(2)).await.err().unwrap();
    assert!(matches!(refused, OpenError::NotMigrated { lacks: 2 }), "{refused:?}");
}

// Old and new meet in every upgrade and rollback.
#[tokio::test]
async fn a_newer_schema_is_used_until_it_says_that_this_binary_is_too_old() {
    let Some(url) = postgres::migrated().await.unwrap() else { return };
    execute(
        &url,
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (999, 'x', true, '', 0)",
    )
    .await;
    PostgresLedger::migrate(&Database::at(&url)).await.unwrap();
    PostgresLedger::open(&Database::at(&url), options(1)).await.unwrap().probe().await.unwrap();

    execute(&url, "UPDATE ledger SET oldest_reader = 99").await;
    for refused in [
        PostgresLedger::open(&Database::at(&url), options(2)).await.err(),
        PostgresLedger::migrate(&Database::at(&url)).await.err(),
    ] {
        assert!(matches!(refused, Some(OpenError::TooNew { needs: 99 })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_password_is_in_no_error() {
    let nobody = "postgres://ledger:hunter2@127.0.0.1:1/ledger";
    let unreachable = PostgresLedger::open(&Database::at(nobody), options(1)).await.err().unwrap();
    assert!(matches!(unreachable, OpenError::Unreachable(_)), "{unreachable:?}");
    let nonsense = PostgresLedger::migrate(&Database::at("postgres://ledger:hunter2@:x/")).await.err().unwrap();
    assert!(matches!(nonsense, OpenError::Address(_)), "{nonsense:?}");
    for error in [unreachable, nonsense] {
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

// PostgreSQL's text has no such character, and what a command printed may.
#[tokio::test]
async fn what_people_and_programs_say_may_hold_a_null_character() {
    let Some(dashboard) = Dashboard::alone().await else { return };
    let world = World::of(dashboard);
    let mut plan = world.plan(1);
    plan.issue.title = "a\0b".into();
    plan.actor = "ada\0".into();
    world.ledger().open_task(None, &plan).await.unwrap();
    assert_eq!(world.view(plan.id).await.issue.title, "a\0b");
    world.ledger().post_message(plan.id, "bob\0", "see \0 here").await.unwrap();
    let lease = world.lease(JobKind::Run).await.lease;
    let then = fettle_app::ports::ledger::Then::RetryAfter(Duration::from_secs(1));
    world.leases().fail(&lease, "it printed \0", then).await.unwrap();
    assert_eq!(world.view(plan.id).await.note.unwrap(), "it printed \u{fffd}");
    world.finish().await;
}

// A caller that gives up (its client went away) leaves a whole transaction and no lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_leave_nothing_half_done() {
    let Some(dashboard) = Dashboard::alone().await else { return };
    let world = World::of(dashboard);
    let task = world.open(1).await;
    for wait in 0..60 {
        let post = world.ledger().post_message(task, "ada", "more");
        let read = world.ledger().task(task);
        let limit = Duration::from_micros(100 * wait);
        let _ = tokio::time::timeout(limit, async { tokio::join!(post, read) }).await;
    }
    tokio::time::timeout(Duration::from_secs(5), world.ledger().post_message(task, "ada", "last"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(world.view(task).await.id, task);
    world.finish().await;
}
