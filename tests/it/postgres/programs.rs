//! The real programs with their ledger in PostgreSQL.

use std::process::Command;

use fettle_tests::brokers::redis::{RedisServer, Settings};
use fettle_tests::postgres;
use fettle_tests::world::{Layout, PATIENCE, SERVER, Setup, TestBox, program, repository};

use crate::webhook::assert_solved_once;

fn setup<'a>(layout: Layout, store: &'a str, broker: Option<&'a str>) -> Setup<'a> {
    Setup { layout, store: Some(store), broker, ..Setup::with(repository::solving().script()) }
}

// Three changed lines of a configuration, and the same things happen.
#[tokio::test(flavor = "multi_thread")]
async fn an_issue_becomes_a_pull_request_with_the_ledger_in_postgresql_and_hints_on_redis() {
    let Some(server) = postgres::own("fettle").await.unwrap() else { return };
    let Some(redis) = RedisServer::start(Settings::default()).await else { return };
    let (store, broker) = (server.tcp_url("fettle"), redis.url());
    let fettle = TestBox::start(setup(Layout::Two, &store, Some(&broker))).await.unwrap();
    let issue = fettle.issue();
    let ended = fettle.solve(issue).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
    let (_, metrics) = fettle.api.health("/metrics").await.unwrap();
    let value = |series: &str| metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
    let commits = value("fettle_ledger_commit_seconds_count").unwrap();
    assert!(commits > 10.0 && value("fettle_ledger_batch_changes_sum") == Some(commits), "{commits}");
    assert!(value("fettle_ledger_connection_wait_seconds_count").unwrap() > commits);
    assert_eq!(value("fettle_broker_up"), Some(1.0));
    assert!(value("fettle_broker_depth{queue=\"hints\"}").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_dashboards_one_is_killed_and_the_other_goes_on_with_its_task() {
    let Some(server) = postgres::own("fettle").await.unwrap() else { return };
    let store = server.tcp_url("fettle");
    let mut fettle = TestBox::start(setup(Layout::Dashboard, &store, None)).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    fettle.start_another_dashboard().await.unwrap();
    fettle.kill(SERVER);
    fettle.killed(SERVER).await.unwrap();
    fettle.start_worker(None).unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
    fettle.restart(SERVER, None).await.unwrap();
}

// Its dashboards are away for as long as the server is, and nobody works twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_killed_under_a_worker_costs_time_and_nothing_else() {
    let Some(mut server) = postgres::own("fettle").await.unwrap() else { return };
    let store = server.tcp_url("fettle");
    let fettle = TestBox::start(setup(Layout::Two, &store, None)).await.unwrap();
    let issue = fettle.issue();
    fettle.label(issue).await.unwrap();
    let task = fettle.api.task_opened(0, PATIENCE).await.unwrap();
    while fettle.model.requests().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.kill().unwrap();
    server.run().await.unwrap();
    let ended = fettle.api.task_ended(&task, PATIENCE).await.unwrap();
    assert_solved_once(&fettle, issue, &ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_forgot_to_migrate_or_gives_a_wrong_password_is_told_what_to_do() {
    let Some(server) = postgres::own("fettle").await.unwrap() else { return };
    let home = tempfile::tempdir().unwrap();
    let (config, password) = (home.path().join("fettle.toml"), home.path().join("password"));
    let url = server.tcp_url("fettle");
    let text = format!(
        "[store]\nurl = '{url}'\nuser = 'postgres'\npassword_file = 'password'\n[server]\nlisten = '127.0.0.1:0'\ninternal_listen = '127.0.0.1:0'\n"
    );
    fs_err::write(&config, text).unwrap();
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(program("fettle-dashboard").unwrap());
        command.arg("--config").arg(&config).arg("--data-dir").arg(home.path().join("data")).args(arguments);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    fs_err::write(&password, postgres::PASSWORD).unwrap();
    let told = refused(&[]);
    assert!(told.contains("fettle-dashboard migrate"), "{told}");
    fs_err::write(&password, "another").unwrap();
    let told = refused(&["migrate"]);
    assert!(told.contains("password authentication failed") && !told.contains("another"), "{told}");
}
