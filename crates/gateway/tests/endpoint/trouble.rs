//! Targets that fail.

use std::time::Duration;

use fettle_app::ports::serving::Endpoint;
use fettle_gateway::{End, Provider, ProviderKind, ProviderModel};
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;

use crate::upstream::{self, Act, Piece, Upstream, delta, engine, piece};
use crate::world::{KEY, World, chat_body, served};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_failed_request_is_tried_elsewhere_and_the_caller_sees_only_the_answer() {
    let (bad, good) = (Upstream::start().await, Upstream::start().await);
    let world = World::start(served(vec![bad.engine("e1", 4), good.engine("e2", 4)])).await;
    for status in [500, 503, 429] {
        bad.fail(status);
        let answer = world.send(session(&world, status)).await;
        assert_eq!(answer.status, StatusCode::OK, "{status}");
    }
    assert!(bad.times() <= 3 && good.times() >= 1);
}

fn session(world: &World, nth: u16) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    let mut request = world.chat(false);
    request.headers_mut().insert("x-session-id", nth.to_string().parse().unwrap());
    request
}

#[tokio::test]
async fn an_engine_that_nobody_answers_for_is_passed_over() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let good = Upstream::start().await;
    let world = World::start(served(vec![engine("e1", 4, Endpoint::Tcp(gone)), good.engine("e2", 4)])).await;
    for nth in 0..8 {
        assert_eq!(world.send(session(&world, nth)).await.status, StatusCode::OK);
    }
    assert_eq!(good.times(), 8);
}

#[tokio::test]
async fn after_two_retries_the_caller_is_told_without_the_engines_words() {
    let bad = Upstream::start().await;
    let world = World::start(served(vec![bad.engine("e1", 4)])).await;
    (0..3).for_each(|_| bad.fail(500));
    let answer = world.send(world.chat(false)).await;
    assert_eq!((answer.status, bad.times()), (StatusCode::BAD_GATEWAY, 3));
    let text = answer.text().await;
    assert!(text.contains("upstream_error") && !text.contains("secret words"), "{text}");
}

#[tokio::test]
async fn what_is_the_callers_fault_is_not_tried_again() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    for _ in 0..8 {
        upstream.fail(400);
        assert_eq!(world.send(world.chat(false)).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(upstream.times(), 8);
    assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK, "the breaker has not heard of it");
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends_with_an_error_and_is_not_tried_again() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let pieces = upstream.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let mut answer = world.send(world.chat(true)).await;
    assert!(answer.next().await.unwrap().contains("one"));
    pieces.send(Piece::BreakOff).await.unwrap();
    let rest = answer.text().await;
    assert!(rest.contains("data: {\"error\"") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(upstream.times(), 1);
    world.inflight(0).await;
}

#[tokio::test]
async fn a_stream_that_breaks_before_its_first_piece_is_tried_again() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let pieces = upstream.stream();
    pieces.send(piece(": still loading\n\n".to_owned())).await.unwrap();
    pieces.send(Piece::BreakOff).await.unwrap();
    let answer = world.send(world.chat(true)).await;
    assert_eq!((answer.status, upstream.times()), (StatusCode::OK, 2));
    assert!(answer.text().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn silence_ends_a_request_and_a_stream() {
    let upstream = Upstream::start().await;
    let world = World::with(served(vec![upstream.engine("e1", 4)]), |settings| {
        settings.timeouts.first_byte_local = Duration::from_secs(1);
        settings.timeouts.between_chunks = Duration::from_millis(100);
    })
    .await;
    let silent = upstream.stream();
    assert_eq!(world.send(world.chat(true)).await.status, StatusCode::GATEWAY_TIMEOUT);
    drop(silent);
    let pieces = upstream.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let rest = world.send(world.chat(true)).await.text().await;
    assert!(rest.contains("one") && rest.contains("data: {\"error\"") && !rest.contains("[DONE]"), "{rest}");
}

#[tokio::test]
async fn the_callers_own_deadline_counts() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let _silent = upstream.stream();
    let mut request = world.chat(true);
    request.headers_mut().insert("x-fettle-deadline-ms", "100".parse().unwrap());
    assert_eq!(world.send(request).await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_short_pause_that_an_engine_asks_for_is_kept() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    upstream.act(Act::Status(429, vec![("retry-after", "1")], "{}".to_owned()));
    let begun = tokio::time::Instant::now();
    assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    assert!(begun.elapsed() >= Duration::from_secs(1) && upstream.times() == 2);
}

#[tokio::test]
async fn deadlines_of_one_caller_do_not_shut_a_model_for_the_others() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let mut silent = Vec::new();
    for deadline in ["60", "0", "60", "0", "60", "60", "60"] {
        silent.push(upstream.stream());
        let mut request = world.chat(true);
        request.headers_mut().insert("x-fettle-deadline-ms", deadline.parse().unwrap());
        assert!(world.send(request).await.status.is_server_error());
    }
    silent.clear();
    let begun = tokio::time::Instant::now();
    while world.send(world.chat(true)).await.text().await.is_empty() {}
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let cancelled = world.usage(5).await.iter().filter(|record| record.end == End::Cancelled).count();
    assert!(cancelled >= 5, "{cancelled}");
}

#[tokio::test]
async fn a_model_that_is_forbidden_shuts_no_provider() {
    let cloud = Upstream::start().await;
    let world = World::with(served(Vec::new()), |settings| settings.providers = vec![provider(&cloud, "a")]).await;
    let mut body = chat_body(false);
    body["model"] = json!("cloud/a");
    cloud.fail(403);
    let refused = world.send(world.request(CHAT, KEY, &body)).await;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert_eq!(world.send(world.request(CHAT, KEY, &body)).await.status, StatusCode::OK);
    cloud.fail(401);
    world.send(world.request(CHAT, KEY, &body)).await;
    let left_alone = world.send(world.request(CHAT, KEY, &body)).await;
    assert_eq!(left_alone.status, StatusCode::BAD_GATEWAY);
    let told = left_alone.text().await;
    assert!(told.contains("key") && told.contains("is asked again"), "{told}");
}

fn provider(upstream: &Upstream, model: &str) -> Provider {
    let mut provider = Provider::new("cloud", ProviderKind::OpenAiCompatible);
    provider.base_url = Some(upstream.url());
    provider.models = vec![ProviderModel { name: model.to_owned(), context_tokens: None, price: None }];
    provider
}

#[tokio::test]
async fn a_caller_that_reads_nothing_loses_its_place() {
    let upstream = Upstream::start().await;
    let mut world = World::with(served(vec![upstream.engine("e1", 4)]), |settings| {
        settings.timeouts.unread = Duration::from_millis(300);
    })
    .await;
    let pieces = upstream.stream();
    let large = delta(&"x".repeat(1 << 20));
    pieces.send(piece(large.clone())).await.unwrap();
    let unread = world.send(world.chat(true)).await;
    // More than all buffers on the way hold.
    let writing = async { while pieces.send(piece(large.clone())).await.is_ok() {} };
    tokio::join!(writing, upstream.left(1));
    world.inflight(0).await;
    assert_eq!(world.usage(1).await[0].end, End::Cancelled);
    let rest = unread.text().await;
    assert!(rest.ends_with("}\n\n") && rest.contains("was not read"), "it ends with an error");
}

#[tokio::test]
async fn what_is_no_answer_is_not_passed_on_as_one() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let page = || "<html>Welcome</html>".to_owned();
    let cases = [
        (vec![("content-type", "text/html")], page()),
        (vec![("content-encoding", "gzip")], upstream::whole()),
        (vec![], page()),
    ];
    for (headers, body) in cases {
        (0..3).for_each(|_| upstream.act(Act::Status(200, headers.clone(), body.clone())));
        let answer = world.send(world.chat(false)).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{headers:?}");
        assert!(!answer.text().await.contains("Welcome"));
        assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    }
}
