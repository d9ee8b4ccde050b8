//! A few cases of the crash matrix; `cargo xtask crash-matrix` runs them all.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use fettle_app::crash::Point;
use fettle_tests::brokers::rabbitmq::RabbitServer;
use fettle_tests::crash::{self, Backend, Calm, Case, Crash, SHORT_JOB, Side};
use fettle_tests::skip::skip;
use futures::StreamExt as _;
use tokio::sync::OnceCell;

/// Measured once, by whoever comes first.
async fn calm() -> &'static Calm {
    static CALM: OnceCell<Calm> = OnceCell::const_new();
    CALM.get_or_init(async || {
        crash::armable().unwrap();
        crash::calm().await.unwrap()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_programs_come_back_and_nothing_is_lost_published_twice_or_paid_twice() {
    let calm = calm().await;
    let answered = Crash { nth: calm.steps.model / 2, ..Crash::at(Point::WorkerModelRecord, Side::Before) };
    let cases = [
        Case::apart(&[answered]),
        Case::apart(&[Crash::at(Point::WorkerComplete, Side::After)]),
        Case::apart(&[Crash::at(Point::PushSend, Side::After)]),
        Case::apart(&[Crash::at(Point::PullSettle, Side::Before)]),
        Case::apart(&[Crash::at(Point::CommentSettle, Side::Before)]),
        Case::together(Crash::at(Point::WorkerToolRecord, Side::After)),
    ];
    let backend = Backend::embedded();
    let rows = futures::stream::iter(&cases).map(|case| crash::run(case, calm, &backend)).buffer_unordered(2);
    let violated: Vec<_> = rows.filter(|row| std::future::ready(!row.held())).collect().await;
    assert!(violated.is_empty(), "{violated:#?}");
}

/// `cargo xtask crash-matrix --backend redis --points C37 --full` holds it for as many leases as four hours have.
async fn a_long_job_is_executed_once_over(broker: &str) {
    let backend = Backend::named(broker, "sqlite").await.unwrap();
    let row = crash::run(&Case::long_job(SHORT_JOB), calm().await, &backend).await;
    assert!(row.held(), "{row:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_job_is_executed_once_though_redis_restarts_and_rings_for_it_again() {
    if Backend::named("redis", "sqlite").await.is_ok() {
        a_long_job_is_executed_once_over("redis").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_job_is_executed_once_though_rabbitmq_restarts_and_rings_for_it_again() {
    match RabbitServer::is_installed() {
        true => a_long_job_is_executed_once_over("rabbitmq").await,
        false => skip("rabbitmq-server is not installed"),
    }
}
