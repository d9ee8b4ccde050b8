use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::fake::Mood;
use crate::world::{OLD_SECRET, SECRET, World, sign};

const BODY: &[u8] = br#"{"action":"labeled"}"#;
const MAX_BYTES: usize = 25 * 1024 * 1024;

#[tokio::test]
async fn a_signed_delivery_is_stored_once_and_byte_exact() {
    let world = World::start().await;
    let first = world.deliver("issues", "d-1", BODY, SECRET).await;
    assert_eq!((first.status, first.json()), (StatusCode::ACCEPTED, json!({"delivery": "d-1", "verdict": "new"})));
    let again = world.deliver("issues", "d-1", BODY, SECRET).await;
    assert_eq!(
        (again.status, again.json()),
        (StatusCode::ACCEPTED, json!({"delivery": "d-1", "verdict": "duplicate"}))
    );
    let stored = world.ledger.deliveries();
    assert_eq!(stored.len(), 1);
    assert_eq!((stored[0].key.as_str(), stored[0].event.as_str(), &stored[0].body[..]), ("github:d-1", "issues", BODY));
    assert_eq!(stored[0].correlation.to_string(), first.header("x-correlation-id"));
}

#[tokio::test]
async fn both_secrets_are_good_while_one_replaces_the_other() {
    let world = World::start().await;
    assert_eq!(world.deliver("issues", "d-1", BODY, OLD_SECRET).await.status, StatusCode::ACCEPTED);
    assert_eq!(world.deliver("issues", "d-2", BODY, SECRET).await.status, StatusCode::ACCEPTED);
    assert_eq!(world.deliver("issues", "d-3", BODY, "another").await.problem(), (401, "unauthenticated".to_owned()));
    assert_eq!(world.ledger.deliveries().len(), 2);
}

#[tokio::test]
async fn nothing_is_stored_without_a_good_signature_over_the_raw_bytes() {
    let world = World::start().await;
    let good = sign(SECRET, BODY);
    let flipped = good.replace(&good[7..9], if &good[7..9] == "00" { "11" } else { "00" });
    let upper = good.to_uppercase();
    for signature in
        [None, Some(""), Some("sha256="), Some(&good[7..]), Some(&good[..70]), Some(&flipped), Some(&upper)]
    {
        let mut headers =
            vec![("content-type", "application/json"), ("x-github-event", "issues"), ("x-github-delivery", "d-1")];
        headers.extend(signature.map(|signature| ("x-hub-signature-256", signature)));
        let seen = world.ask(Method::POST, "/webhooks/github", &headers, Some(BODY.to_vec())).await;
        assert_eq!(seen.problem(), (401, "unauthenticated".to_owned()), "{signature:?}");
    }
    // The same value, written otherwise: the signature is over bytes.
    let headers = [
        ("content-type", "application/json"),
        ("x-github-event", "issues"),
        ("x-github-delivery", "d-1"),
        ("x-hub-signature-256", good.as_str()),
    ];
    let seen = world.ask(Method::POST, "/webhooks/github", &headers, Some(br#"{"action": "labeled"}"#.to_vec())).await;
    assert_eq!(seen.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.ledger.deliveries(), []);
}

#[tokio::test]
async fn without_a_secret_webhooks_are_refused_and_the_setting_is_named() {
    let world = World::with(None).await;
    let seen = world.deliver("issues", "d-1", BODY, "").await;
    assert_eq!(seen.problem(), (503, "not_configured".to_owned()));
    assert!(seen.text.contains("forge.webhook_secret_file"), "{}", seen.text);
    assert_eq!(world.ledger.deliveries(), []);
}

#[tokio::test]
async fn ping_is_answered_and_unknown_events_are_not_stored() {
    let world = World::start().await;
    let ping = world.deliver("ping", "d-1", b"{}", SECRET).await;
    assert_eq!((ping.status, ping.json()["verdict"].as_str()), (StatusCode::OK, Some("pong")));
    let other = world.deliver("star", "d-2", b"{}", SECRET).await;
    assert_eq!((other.status, other.json()["verdict"].as_str()), (StatusCode::ACCEPTED, Some("ignored")));
    assert_eq!(world.ledger.deliveries(), []);
}

#[tokio::test]
async fn a_signed_delivery_that_cannot_be_read_says_what_is_wrong() {
    let world = World::start().await;
    for body in [&b"[1]"[..], b"{", b"", b"{} {}", b"{\"a\":}"] {
        assert_eq!(world.deliver("issues", "d-1", body, SECRET).await.problem(), (400, "bad_request".to_owned()));
    }
    for (event, delivery) in [("issues", ""), ("", "d-1"), ("issues", "a b"), ("issues", &"x".repeat(65))] {
        assert_eq!(world.deliver(event, delivery, BODY, SECRET).await.problem(), (400, "bad_request".to_owned()));
    }
    let form = b"payload=%7B%7D";
    let signature = sign(SECRET, form);
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("x-github-event", "ping"),
        ("x-github-delivery", "d-1"),
        ("x-hub-signature-256", &signature),
    ];
    let seen = world.ask(Method::POST, "/webhooks/github", &headers, Some(form.to_vec())).await;
    assert_eq!(seen.problem(), (415, "unsupported_media_type".to_owned()));
    assert!(seen.text.contains("application/json"), "{}", seen.text);
    assert_eq!(world.ledger.deliveries(), []);
}

#[tokio::test]
async fn the_largest_delivery_is_taken_and_one_byte_more_is_not() {
    let world = World::start().await;
    let mut body = vec![b' '; MAX_BYTES];
    body[..2].copy_from_slice(b"{}");
    assert_eq!(world.deliver("issues", "d-1", &body, SECRET).await.status, StatusCode::ACCEPTED);
    body.push(b' ');
    assert_eq!(world.deliver("issues", "d-2", &body, SECRET).await.problem(), (413, "too_large".to_owned()));
    assert_eq!(world.ledger.deliveries().len(), 1);
}

#[tokio::test]
async fn what_the_ledger_cannot_store_is_not_accepted_and_the_cause_stays_inside() {
    let world = World::start().await;
    world.ledger.feel(Mood::Down);
    let down = world.deliver("issues", "d-1", BODY, SECRET).await;
    assert_eq!(down.problem(), (503, "unavailable".to_owned()));
    assert!(down.header("retry-after").parse::<u64>().unwrap() > 0);
    assert!(!down.text.contains("secret cause"), "{}", down.text);
    world.ledger.feel(Mood::Full);
    assert_eq!(world.deliver("issues", "d-1", BODY, SECRET).await.problem(), (507, "ledger_full".to_owned()));
}
