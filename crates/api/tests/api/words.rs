//! What models say, from a worker's speech over the worker API to those who watch.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fettle_app::ports::ledger::{Granted, Holder, Leases as _, LedgerError, Want};
use fettle_app::ports::words::{Heard, Listen as _, Words};
use fettle_app::words::Speech;
use fettle_domain::id::{RequestId, TaskId, WorkerId};
use fettle_domain::job::JobKind;
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::words::{Piece, Voice};
use fettle_store_sqlite::SqliteLedger;
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::time::timeout;
use uuid::Uuid;

use crate::live::Socket;
use crate::sqlite::open;
use crate::world::{ADMIN_KEY, SECRET, World};

const PATIENCE: Duration = Duration::from_secs(30);

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

/// A probe that a worker holds.
async fn held(ledger: &Arc<SqliteLedger>) -> (World, TaskId, LeaseRef) {
    let world = World::on(ledger.clone()).await;
    let made = world.post("/api/v1/tasks", &json!({"mode": "probe"})).await;
    let task = made.header("location").rsplit('/').next().unwrap().parse().unwrap();
    let who = Holder { worker: WorkerId::from_uuid(Uuid::from_u128(5)), name: "host:1".to_owned() };
    let want = Want::anything(JobKind::Run, vec![1]);
    let request = RequestId::from_uuid(Uuid::from_u128(6));
    let granted = world.worker().lease(&who, &want, 1, Duration::from_secs(5), request).await.unwrap();
    let Granted::Leased(leases) = granted else { panic!("the probe is runnable") };
    (world, task, leases[0].lease)
}

fn words(lease: LeaseRef, task: TaskId, from: u32, text: &str) -> Words {
    Words { lease, task, call: 1, step: 4, from, pieces: vec![Piece::new(Voice::Said, text)], over: false }
}

/// The next words, and the text of their pieces.
async fn next(socket: &mut Socket) -> (Value, String) {
    let told = socket.next().await;
    assert_eq!(told["type"], "words", "{told}");
    let pieces = told["words"]["pieces"].as_array().unwrap();
    let text = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    (told["words"].clone(), text)
}

/// All text until some words satisfy `is_last`.
async fn until(socket: &mut Socket, is_last: impl Fn(&Value, &str) -> bool) -> (Value, String) {
    let mut seen = String::new();
    loop {
        let (words, text) = next(socket).await;
        if words["whole"] == json!(true) {
            seen.clear();
        }
        seen.push_str(&text);
        if is_last(&words, &seen) {
            return (words, seen);
        }
    }
}

#[tokio::test]
async fn what_a_model_says_reaches_whoever_watches_while_it_says_it_and_goes_when_it_has_said_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    let (client, speech, topic) = (world.worker(), Speech::default(), format!("words:{task}"));
    let mut socket = Socket::admin(&world).await;
    assert_eq!(socket.subscribe(&topic, None).await["type"], "subscribed");
    let watching = async {
        speech.begin(4);
        speech.say(Voice::Thought, "Hm, ");
        speech.say(Voice::Thought, "a file. ");
        let (first, _) = until(&mut socket, |_, seen| seen == "Hm, a file. ").await;
        assert_eq!((&first["run"], &first["step"], &first["whole"]), (&json!(1), &json!(4), &json!(true)));
        assert_eq!(first["pieces"][0]["voice"], "thought");
        speech.say(Voice::Said, "Let me look. ");
        speech.say(Voice::Call, "view");
        speech.say(Voice::Arguments, "{\"path\": \"src/lib.rs\"}");
        let (later, _) = until(&mut socket, |_, seen| seen.ends_with("src/lib.rs\"}")).await;
        assert_eq!(later["whole"], json!(false));
        // Whoever comes later is told what there is.
        let mut late = Socket::admin(&world).await;
        late.subscribe(&topic, None).await;
        let (_, all) = next(&mut late).await;
        assert_eq!(all, "Hm, a file. Let me look. view{\"path\": \"src/lib.rs\"}");
        speech.end();
        let (over, left) = until(&mut socket, |words, _| words["over"] == json!(true)).await;
        assert_eq!((left.as_str(), &over["pieces"]), ("", &json!([])));
        speech.begin(5);
        speech.say(Voice::Said, "Next.");
        let (next, _) = until(&mut socket, |_, seen| seen == "Next.").await;
        assert_eq!((&next["step"], &next["whole"]), (&json!(5), &json!(true)));
    };
    tokio::select! {
        never = speech.tell(lease, task, &client) => match never {},
        () = watching => {}
    }
    assert_eq!(
        world.get(&format!("/api/v1/tasks/{task}")).await.json()["run"]["steps"],
        json!(0),
        "nothing is recorded"
    );
    ledger.close().await.unwrap();
}

// The secret comes in two pieces, so neither alone gives it away.
#[tokio::test]
async fn of_a_secret_no_part_is_told_and_nothing_that_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    let (client, mut socket) = (world.worker(), Socket::admin(&world).await);
    socket.subscribe(&format!("words:{task}"), None).await;
    let (begin, end) = SECRET.split_at(9);
    client.hear(words(lease, task, 0, "I found ")).await.unwrap();
    client.hear(words(lease, task, 1, begin)).await.unwrap();
    let (_, seen) = until(&mut socket, |_, seen| seen.starts_with("I found")).await;
    assert!("I found ".starts_with(&seen), "{seen}");
    client.hear(words(lease, task, 2, end)).await.unwrap();
    client.hear(words(lease, task, 3, " in a file.")).await.unwrap();
    let (hidden, seen) = until(&mut socket, |words, _| words["hidden"] == json!(true)).await;
    assert!("I found ".starts_with(&seen), "{seen} {hidden}");
    let mut late = Socket::admin(&world).await;
    late.subscribe(&format!("words:{task}"), None).await;
    let (again, all) = next(&mut late).await;
    assert!("I found ".starts_with(&all) && again["hidden"] == json!(true), "{again}");
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_worker_without_the_lease_is_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    let client = world.worker();
    for stale in [Fence::new(lease.fence.get() - 1), Fence::new(lease.fence.get() + 1)] {
        let stale = LeaseRef { fence: stale, ..lease };
        assert_eq!(client.hear(words(stale, task, 0, "not ours")).await.unwrap(), Heard::Stale);
    }
    assert_eq!(client.hear(words(lease, task, 0, "ours")).await.unwrap(), Heard::Has(1));
    let nobodys = TaskId::from_uuid(Uuid::from_u128(77));
    assert!(matches!(client.hear(words(lease, nobodys, 0, "x")).await, Err(LedgerError::NotFound(_))));
    let body = json!({"job": lease.job, "fence": lease.fence, "task": task, "call": 1, "step": 1, "from": 0, "pieces": [], "over": false});
    let path = format!("{}/worker/v1/words", world.internal);
    let unknown = self::client().post(&path).json(&body).send().await.unwrap();
    assert_eq!(unknown.status(), 401);
    let large = words(lease, task, 1, &"x".repeat(1024 * 1024));
    assert!(matches!(client.hear(large).await, Err(LedgerError::Invalid(_))));
    let pieces = |text: &str, count: usize| Words {
        pieces: vec![Piece::new(Voice::Said, text); count],
        ..words(lease, task, 1, "")
    };
    for costly in [pieces("", 1), pieces("x", 65), pieces(&"x".repeat(9 * 1024), 2)] {
        assert!(matches!(client.hear(costly).await, Err(LedgerError::Invalid(_))), "more than an honest worker says");
    }
    ledger.close().await.unwrap();
}

// What a dashboard lacks, as one that was started anew, it asks for: a gap could hide the middle of a secret.
#[tokio::test]
async fn pieces_after_a_gap_wait_for_those_before() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    let client = world.worker();
    assert_eq!(client.hear(words(lease, task, 3, "later")).await.unwrap(), Heard::Has(0));
    assert_eq!(client.hear(words(lease, task, 0, "one. ")).await.unwrap(), Heard::Has(1));
    assert_eq!(
        client.hear(words(lease, task, 0, "one. ")).await.unwrap(),
        Heard::Has(1),
        "the same again is nothing new"
    );
    let mut socket = Socket::admin(&world).await;
    socket.subscribe(&format!("words:{task}"), None).await;
    assert_eq!(next(&mut socket).await.1, "one. ");
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_follower_that_does_not_read_holds_up_nobody_and_is_told_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    let (client, mut slow) = (world.worker(), Socket::admin(&world).await);
    slow.subscribe(&format!("words:{task}"), None).await;
    let line = "a line of a long answer\n";
    let telling = async {
        for number in 0..2_000 {
            client.hear(words(lease, task, number, line)).await.unwrap();
        }
        client.hear(words(lease, task, 2_000, "the end of it. ")).await.unwrap();
    };
    timeout(PATIENCE, telling).await.expect("nobody waits for a slow reader");
    let (_, seen) = until(&mut slow, |_, seen| seen.ends_with("the end of it. ")).await;
    assert!(seen.len() <= 2_001 * line.len(), "{}", seen.len());
    // What is kept for all is the end, however much was said.
    let mut late = Socket::admin(&world).await;
    late.subscribe(&format!("words:{task}"), None).await;
    let (_, kept) = next(&mut late).await;
    assert!(kept.len() <= 16 * 1024 && kept.ends_with("the end of it. "), "{}", kept.len());
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn an_event_stream_has_words_where_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(&dir).await;
    let (world, task, lease) = held(&ledger).await;
    world.worker().hear(words(lease, task, 0, "said on the way")).await.unwrap();
    let follow = async |query: &str, wanted: &str| {
        let path = format!("{}/api/v1/tasks/{task}/events{query}", world.public);
        let answer = client().get(path).bearer_auth(ADMIN_KEY).send().await.unwrap();
        let (mut stream, mut text) = (answer.bytes_stream(), String::new());
        while !text.contains(wanted) {
            let chunk = timeout(PATIENCE, stream.next()).await.expect("the feed is not silent");
            text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
        }
        text
    };
    let with = follow("?words=true", "event: words").await;
    assert!(with.contains("said on the way") && with.contains("task_created"), "{with}");
    let without = follow("", "run_leased").await;
    assert!(!without.contains("said on the way"), "{without}");
    ledger.close().await.unwrap();
}

#[tokio::test]
async fn a_browser_shows_its_key_among_the_protocols_it_offers() {
    let world = World::start().await;
    let offered = |key: &str| format!("fettle, fettle-key.{}", BASE64_URL_SAFE_NO_PAD.encode(key));
    let open = async |key: &str| {
        let protocol = offered(key);
        Socket::open(&world, &[("sec-websocket-protocol", protocol.as_str())]).await
    };
    let mut socket = open(ADMIN_KEY).await.unwrap();
    assert_eq!(socket.subscribe("tasks", None).await["type"], "subscribed");
    assert_eq!(open("another key").await.err(), Some(401));
    let protocol = offered(ADMIN_KEY);
    let elsewhere =
        world.ask(Method::GET, "/api/v1/tasks", &[("sec-websocket-protocol", protocol.as_str())], None).await;
    assert_eq!(elsewhere.status, 401, "a key counts there for the one operation that has no other way");
}
