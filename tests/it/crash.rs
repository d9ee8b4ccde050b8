//! A few cases of the crash matrix; `cargo xtask crash-matrix` runs them all.

use fettle_app::crash::Point;
use fettle_tests::crash::{self, Backend, Case, Crash, Side};
use futures::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn killed_programs_come_back_and_nothing_is_lost_published_twice_or_paid_twice() {
    crash::armable().unwrap();
    let calm = crash::calm().await.unwrap();
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
    let rows = futures::stream::iter(&cases).map(|case| crash::run(case, &calm, &backend)).buffer_unordered(2);
    let violated: Vec<_> = rows.filter(|row| std::future::ready(!row.held())).collect().await;
    assert!(violated.is_empty(), "{violated:#?}");
}
