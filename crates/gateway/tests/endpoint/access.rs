//! Keys, run tokens and budgets.

use std::time::Duration;

use fettle_app::run_token::RunBudgets;
use fettle_gateway::End;
use futures::future::join_all;
use http::StatusCode;
use serde_json::json;

use crate::upstream::{Upstream, delta, piece};
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

#[tokio::test]
async fn whoever_hangs_up_before_the_answer_has_spent_what_may_have_been_written() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(vec![upstream.engine("e1", 16)])).await;
    let key = token(1, tokens(150), LATER);
    for nth in 1..=2 {
        let _silent = upstream.stream();
        let asking = world.send(world.request(CHAT, &key, &chat_body(true)));
        let hanging_up = async {
            upstream.asked(nth).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        tokio::select! {
            _ = asking => panic!("nobody answers"),
            () = hanging_up => {}
        }
        world.inflight(0).await;
        let records = world.usage(nth).await;
        assert_eq!((records[nth - 1].end, records[nth - 1].first_byte_ms), (End::Cancelled, None));
        assert!(records[nth - 1].run.is_some() && records[nth - 1].output_tokens == 50, "{records:?}");
    }
    assert_eq!(world.send(world.request(CHAT, &key, &chat_body(false))).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn the_largest_limit_is_set_aside_and_two_that_differ_are_refused() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 16)])).await;
    let key = token(1, tokens(100), LATER);
    let status = async |limits: serde_json::Value| {
        let mut body = chat_body(false);
        body.as_object_mut().unwrap().remove("max_tokens");
        body.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        world.send(world.request(CHAT, &key, &body)).await.status
    };
    let differ = json!({ "max_completion_tokens": 1, "max_tokens": 1_000_000 });
    assert_eq!(status(differ).await, StatusCode::BAD_REQUEST);
    for dear in
        [json!({ "n_predict": 1_000_000 }), json!({ "max_tokens": 30, "best_of": 9 }), json!({ "n_predict": -1 })]
    {
        assert_eq!(status(dear.clone()).await, StatusCode::TOO_MANY_REQUESTS, "{dear}");
    }
    assert_eq!(upstream.times(), 0);
    assert_eq!(status(json!({ "max_completion_tokens": 30, "max_tokens": 30 })).await, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_ends_when_its_lease_is_followed_by_another() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 16)])).await;
    let pieces = upstream.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let old = world.request(CHAT, &token(1, RunBudgets::default(), LATER), &chat_body(true));
    let mut answer = world.send(old).await;
    assert!(answer.next().await.unwrap().contains("one"));
    let new = world.request(CHAT, &token(2, RunBudgets::default(), LATER), &chat_body(false));
    assert_eq!(world.send(new).await.status, StatusCode::OK);
    let rest = answer.text().await;
    assert!(rest.contains("no longer the newest") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(world.usage(2).await[1].end, End::Cancelled);
    drop(pieces);
}
