//! Models that are not there yet, engines that are full, and callers that do not wait for them.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::serving::When;
use fettle_placement::view::Class;
use futures::future::join_all;
use http::StatusCode;

use crate::upstream::{Upstream, delta, done, finish, piece};
use crate::world::{KEY, MODEL, World, chat_body, served, unserved};

#[tokio::test]
async fn a_request_for_a_cold_model_is_told_as_demand_and_answered_when_an_engine_comes() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(Vec::new())).await;
    let asking = world.request("/v1/chat/completions", KEY, &chat_body(false));
    let supply = world.supply.clone();
    let mut demand = world.told.demand.clone();
    let telling = async {
        let told = demand.wait_for(|demand| !demand.waiting.is_empty()).await.unwrap().clone();
        let one = &told.waiting[0];
        assert_eq!(
            (one.model.as_str(), one.owner.as_str(), one.class, one.requests),
            (MODEL, "ada", Class::Interactive, 1)
        );
        supply.send_replace(Arc::new(served(vec![upstream.engine("e1", 4)])));
    };
    let (answer, ()) = tokio::join!(world.send(asking), telling);
    assert_eq!(answer.status, StatusCode::OK);
    world.waiting(0).await;
}

#[tokio::test]
async fn what_can_never_be_placed_is_refused_at_once_and_what_cannot_be_now_after_the_wait() {
    let world = World::start(unserved("It needs 90 GiB, the largest device has 80.", When::Never)).await;
    let answer = world.send(world.chat(false)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    let text = answer.text().await;
    assert!(
        text.contains("model_unplaceable") && text.contains("It needs 90 GiB, the largest device has 80."),
        "{text}"
    );

    let supply = unserved("Another model is being unloaded.", When::Waiting(Duration::from_secs(500)));
    let world = World::with(supply, |settings| settings.queue.max_wait = Duration::from_millis(50)).await;
    let answer = world.send(world.chat(false)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("60")));
    assert!(answer.text().await.contains("Another model is being unloaded."));
}

#[tokio::test]
async fn those_who_wait_are_told_when_it_turns_out_that_none_will_come() {
    let mut world = World::start(served(Vec::new())).await;
    let (supply, mut demand) = (world.supply.clone(), world.told.demand.clone());
    let telling = async {
        demand.wait_for(|demand| !demand.waiting.is_empty()).await.unwrap();
        supply.send_replace(Arc::new(unserved("No device is new enough.", When::Never)));
    };
    let (answer, ()) = tokio::join!(world.send(world.chat(false)), telling);
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    world.waiting(0).await;
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let mut world = World::with(served(Vec::new()), |settings| settings.queue.per_model = 2).await;
    let supply = world.supply.clone();
    let mut demand = world.told.demand.clone();
    let upstream = Upstream::start().await;
    let waiting = join_all([world.send(world.chat(false)), world.send(world.chat(false))]);
    let third = async {
        demand.wait_for(|demand| demand.waiting.iter().any(|one| one.requests == 2)).await.unwrap();
        let answer = world.send(world.chat(false)).await;
        supply.send_replace(Arc::new(served(vec![upstream.engine("e1", 4)])));
        answer
    };
    let (answers, third) = tokio::join!(waiting, third);
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(third.status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = third.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait));
    world.waiting(0).await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_the_line_or_ends_the_engines_work() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(Vec::new())).await;
    let mut demand = world.told.demand.clone();
    {
        let asking = world.send(world.chat(false));
        let seen = demand.wait_for(|demand| !demand.waiting.is_empty());
        tokio::select! {
            _ = asking => panic!("nobody could answer"),
            seen = seen => drop(seen.unwrap()),
        }
    }
    world.waiting(0).await;

    world.supply.send_replace(Arc::new(served(vec![upstream.engine("e1", 4)])));
    let pieces = upstream.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let mut answer = world.send(world.chat(true)).await;
    answer.next().await.unwrap();
    world.inflight(1).await;
    drop(answer);
    // A server notices only when it writes.
    let writing = async { while pieces.send(piece(delta("more"))).await.is_ok() {} };
    tokio::join!(upstream.left(1), writing);
    world.inflight(0).await;
}

#[tokio::test]
async fn a_draining_engine_ends_what_it_has_and_gets_nothing_new() {
    let (old, new) = (Upstream::start().await, Upstream::start().await);
    let world = World::start(served(vec![old.engine("e1", 4)])).await;
    let pieces = old.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let mut answer = world.send(world.chat(true)).await;
    answer.next().await.unwrap();
    let mut draining = old.engine("e1", 4);
    draining.draining = true;
    world.supply.send_replace(Arc::new(served(vec![draining, new.engine("e2", 4)])));
    // Until the gateway has heard of it.
    while new.times() == 0 {
        assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    }
    let before = old.times();
    for _ in 0..4 {
        assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    }
    assert_eq!(old.times(), before);
    for rest in [finish(), done()] {
        pieces.send(piece(rest)).await.unwrap();
    }
    drop(pieces);
    assert!(answer.text().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn an_engine_has_no_more_than_it_may_and_everybody_is_served() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(vec![upstream.engine("e1", 1)])).await;
    let streams: Vec<_> = (0..3).map(|_| upstream.stream()).collect();
    for stream in &streams {
        stream.send(piece(delta("one"))).await.unwrap();
    }
    let mut begun = join_all((0..3).map(|_| world.send(world.chat(true)))).await;
    let mut demand = world.told.demand.clone();
    let fourth = world.send(world.chat(false));
    let freeing = async {
        demand.wait_for(|demand| !demand.waiting.is_empty()).await.unwrap();
        assert_eq!(upstream.times(), 3);
        drop(begun.pop());
    };
    let (fourth, ()) = tokio::join!(fourth, freeing);
    assert_eq!(fourth.status, StatusCode::OK);
    world.waiting(0).await;
}
