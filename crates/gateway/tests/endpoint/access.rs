//! Keys, run tokens and budgets.

use fettle_app::run_token::RunBudgets;
use futures::future::join_all;
use http::StatusCode;
use serde_json::json;

use crate::upstream::Upstream;
use crate::world::{World, chat_body, served, token};

const CHAT: &str = "/v1/chat/completions";
const LATER: i64 = 2_000_000;

fn tokens(limit: u64) -> RunBudgets {
    RunBudgets { tokens: Some(limit), ..RunBudgets::default() }
}

#[tokio::test]
async fn keys_tokens_models_and_fences_are_checked_before_anything_is_sent() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let status = async |key: String, model: &str| {
        let mut body = chat_body(false);
        body["model"] = json!(model);
        world.send(world.request(CHAT, &key, &body)).await.status
    };
    let free = RunBudgets::default();
    assert_eq!(status("wrong".to_owned(), "coder").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(token(5, free, 999_999), "coder").await, StatusCode::UNAUTHORIZED, "expired");
    assert_eq!(status(format!("{}x", token(5, free, LATER)), "coder").await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(token(5, free, LATER), "other").await, StatusCode::FORBIDDEN);
    assert_eq!(upstream.times(), 0);
    assert_eq!(status(token(5, free, LATER), "coder").await, StatusCode::OK);
    assert_eq!(status(token(6, free, LATER), "coder").await, StatusCode::OK);
    assert_eq!(status(token(5, free, LATER), "coder").await, StatusCode::FORBIDDEN, "an old fence");
}

#[tokio::test]
async fn requests_at_once_cannot_spend_more_than_the_run_has() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 16)])).await;
    // Each request may take about 60 tokens and then takes 15, so some fit at once and few altogether.
    let key = token(1, tokens(150), LATER);
    let answers = join_all((0..20).map(|_| world.send(world.request(CHAT, &key, &chat_body(false))))).await;
    let served = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!(served + refused, 20);
    assert!(refused > 0 && served * 15 <= 150, "{served} served");
    let refused = answers.into_iter().find(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).unwrap();
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!(refused.text().await.contains("insufficient_quota"));
}

#[tokio::test]
async fn what_a_run_has_spent_is_remembered_over_a_restart() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let key = token(1, tokens(80), LATER);
    assert_eq!(world.send(world.request(CHAT, &key, &chat_body(false))).await.status, StatusCode::OK);
    let folder = world.end().await;
    let world = World::within(folder, served(vec![upstream.engine("e1", 4)]), |_| {}).await;
    let answer = world.send(world.request(CHAT, &token(1, tokens(60), LATER), &chat_body(false))).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn usage_that_cannot_be_written_stops_those_with_a_budget_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("usage"), b"a file where the folder should be").unwrap();
    let upstream = Upstream::start().await;
    let world = World::within(folder, served(vec![upstream.engine("e1", 4)]), |_| {}).await;
    let limited = world.send(world.request(CHAT, &token(1, tokens(10_000), LATER), &chat_body(false))).await;
    assert_eq!(limited.status, StatusCode::SERVICE_UNAVAILABLE);
    let free = world.request(CHAT, &token(1, RunBudgets::default(), LATER), &chat_body(false));
    assert_eq!(world.send(free).await.status, StatusCode::OK);
    assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    // The disk comes back: what was counted in memory is written.
    fs_err::remove_file(world.folder.path().join("usage")).unwrap();
    assert_eq!(world.usage(2).await.len(), 2);
}
