//! Following over a WebSocket, with a client that is another implementation's use of the protocol: it sends what is written here.

use std::time::Duration;

use fettle_app::doorkeeping::Registration;
use fettle_domain::access::Role;
use fettle_domain::event::EventBody;
use fettle_domain::id::TaskId;
use futures::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::accounts::House;
use crate::contract;
use crate::world::{ADMIN_KEY, World};

/// No socket in these tests is silent for this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Socket(WebSocketStream<TcpStream>);

impl Socket {
    pub(crate) async fn open(world: &World, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let host = world.public.strip_prefix("http://").unwrap();
        let mut request = format!("ws://{host}/api/v1/live").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        // A small buffer, so that a reader that does not read is noticed soon.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(host.parse().unwrap()).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(other) => panic!("{other}"),
        }
    }

    /// As the holder of the admin key.
    pub(crate) async fn admin(world: &World) -> Self {
        Self::open(world, &[("authorization", &format!("Bearer {ADMIN_KEY}"))]).await.unwrap()
    }

    async fn say(&mut self, said: &Value) {
        self.0.send(Message::text(said.to_string())).await.unwrap();
    }

    pub(crate) async fn subscribe(&mut self, topic: &str, after: Option<u64>) -> Value {
        self.say(&json!({"type": "subscribe", "topic": topic, "after": after})).await;
        self.next().await
    }

    /// The next message; `Err` with the code when it is closed.
    async fn hear(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(PATIENCE, self.0.next()).await.expect("the socket is not silent") {
                Some(Ok(Message::Text(text))) => {
                    let told: Value = serde_json::from_str(&text).unwrap();
                    contract::check_component("LiveMessage", &told);
                    return Ok(told);
                }
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(0, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
    }

    pub(crate) async fn next(&mut self) -> Value {
        self.hear().await.unwrap()
    }

    /// Topic, number and type of the next event.
    async fn event(&mut self) -> (String, u64, String) {
        let told = self.next().await;
        assert_eq!((&told["type"], &told["sequence"]), (&json!("event"), &told["event"]["seq"]), "{told}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&told["topic"]), told["sequence"].as_u64().unwrap(), text(&told["event"]["what"]["type"]))
    }
}

fn event(topic: &str, sequence: u64, kind: &str) -> (String, u64, String) {
    (topic.to_owned(), sequence, kind.to_owned())
}

fn lapsed() -> EventBody {
    EventBody::RunLapsed { ordinal: 1, again: true }
}

fn failed(number: usize) -> EventBody {
    EventBody::RunFailed { ordinal: 1, why: format!("{number} {}", "x".repeat(2_000)), again: true }
}

fn done() -> EventBody {
    EventBody::TaskDone { outcome: "ready_pr".to_owned(), pull_request: Some(1) }
}

fn topic(task: TaskId) -> String {
    format!("task:{task}")
}

#[tokio::test]
async fn topics_are_told_live_and_a_task_to_its_end() {
    let world = World::start().await;
    let (one, other) = (world.task().await, world.task().await);
    let (one_topic, mut socket) = (topic(one), Socket::admin(&world).await);
    assert_eq!(
        socket.subscribe(&one_topic, Some(0)).await,
        json!({"type": "subscribed", "topic": one_topic, "sequence": 0})
    );
    assert_eq!(socket.event().await, event(&one_topic, 1, "task_created"));
    let begun = socket.subscribe("queue", None).await;
    assert_eq!(begun, json!({"type": "subscribed", "topic": "queue", "sequence": 2}));
    world.ledger.tell(other, lapsed());
    assert_eq!(socket.event().await, event("queue", 3, "run_lapsed"));
    world.ledger.tell(other, EventBody::EffectIntended { effect: "push".to_owned(), what: "a branch".to_owned() });
    world.ledger.tell(one, done());
    let mut told = [socket.next().await, socket.next().await, socket.next().await];
    told.sort_by_key(|told| (told["topic"].to_string(), told["type"].to_string()));
    let seen: Vec<_> = told.iter().map(|told| (&told["type"], &told["topic"], &told["sequence"])).collect();
    let (task_event, end, queue_event) = (seen[2], seen[1], seen[0]);
    assert_eq!(queue_event, (&json!("event"), &json!("queue"), &json!(5)), "an effect changes nothing in the queue");
    assert_eq!((end.0, end.1), (&json!("end"), &json!(one_topic)));
    assert_eq!(task_event, (&json!("event"), &json!(one_topic), &json!(5)));
    socket.say(&json!({"type": "unsubscribe", "topic": "queue"})).await;
    assert_eq!(socket.next().await, json!({"type": "unsubscribed", "topic": "queue"}));
    world.ledger.tell(other, lapsed());
    socket.say(&json!({"type": "unsubscribe", "topic": "queue"})).await;
    assert_eq!(socket.next().await["problem"]["code"], "not_found", "and nothing came of it any more");
}

#[tokio::test]
async fn a_follower_that_comes_again_goes_on_after_the_last_number_it_has_seen() {
    let world = World::start().await;
    let task = world.task().await;
    let mut socket = Socket::admin(&world).await;
    socket.subscribe("tasks", None).await;
    world.ledger.tell(task, lapsed());
    assert_eq!(socket.event().await, event("tasks", 2, "run_lapsed"));
    drop(socket);
    for _ in 0..450 {
        world.ledger.tell(task, lapsed());
    }
    let mut again = Socket::admin(&world).await;
    again.subscribe("tasks", Some(2)).await;
    for number in 3..=452 {
        assert_eq!(again.event().await, event("tasks", number, "run_lapsed"));
    }
    world.ledger.tell(task, lapsed());
    assert_eq!(again.event().await, event("tasks", 453, "run_lapsed"));
    // Backwards as well.
    again.subscribe("tasks", Some(451)).await;
    assert_eq!(again.event().await, event("tasks", 452, "run_lapsed"));
    assert_eq!(again.event().await, event("tasks", 453, "run_lapsed"));
    let gap = again.subscribe("tasks", Some(9_000)).await;
    assert_eq!(gap, json!({"type": "gap", "topic": "tasks", "after": 9_000, "sequence": 453}));
    assert_eq!(again.next().await["sequence"], 453);
}

#[tokio::test]
async fn a_slow_reader_is_told_so_and_misses_nothing() {
    let world = World::start().await;
    let task = world.task().await;
    let mut socket = Socket::admin(&world).await;
    socket.subscribe("tasks", None).await;
    // More than what sockets hold for a reader that does not read.
    let many = 12_000;
    world.ledger.tell_often(task, (0..1_000).map(failed));
    assert_eq!(socket.event().await.1, 2);
    world.ledger.tell_often(task, (1_000..many).map(failed));
    let (mut expected, mut lagged) = (3, 0);
    while expected <= many as u64 + 1 {
        let told = socket.next().await;
        match told["type"].as_str().unwrap() {
            "event" => {
                assert_eq!(told["sequence"], expected);
                expected += 1;
            }
            "lagged" => {
                assert_eq!((&told["sequence"], &told["newest"]), (&json!(expected - 1), &json!(many + 1)));
                lagged += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(lagged, 1);
    world.ledger.tell(task, lapsed());
    assert_eq!(socket.event().await, event("tasks", expected, "run_lapsed"));
}

// The clock is moved while nobody has anything to do, so each ping comes as soon as the one before was answered, or was not.
#[tokio::test]
async fn who_answers_no_ping_is_cut_off() {
    let world = World::start().await;
    let (mut deaf, mut there) = (Socket::admin(&world).await, Socket::admin(&world).await);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(90) {
        drop(timeout(Duration::from_secs(1), there.0.next()).await);
    }
    tokio::time::resume();
    assert_eq!(there.subscribe("tasks", None).await["type"], "subscribed");
    assert_eq!(deaf.hear().await, Err(0));
}

#[tokio::test]
async fn a_page_of_another_origin_follows_nothing() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let cookie = house.cookie("bob").await;
    let own = house.world.public.clone();
    let cookie = ("cookie", cookie.as_str());
    for (headers, opened) in [
        (vec![cookie, ("origin", own.as_str())], None),
        (vec![cookie, ("origin", "https://evil.example")], Some(403)),
        (vec![cookie, ("origin", "null")], Some(403)),
        (vec![cookie], Some(403)),
        (vec![("origin", own.as_str())], Some(401)),
        (vec![], Some(401)),
    ] {
        assert_eq!(Socket::open(&house.world, &headers).await.err(), opened, "{headers:?}");
    }
    let key = format!("Bearer {ADMIN_KEY}");
    let foreign = [("authorization", key.as_str()), ("origin", "https://evil.example")];
    assert_eq!(Socket::open(&house.world, &foreign).await.err(), Some(403));
    let plain = house.by_key(Method::GET, "/api/v1/live", None).await;
    assert_eq!((plain.status, plain.json()["code"].clone()), (400, json!("bad_request")));
}

#[tokio::test]
async fn a_connection_ends_with_the_session_that_it_came_with_and_with_the_server() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    let (cookie, own) = (house.cookie("bob").await, house.world.public.clone());
    let headers = [("cookie", cookie.as_str()), ("origin", own.as_str())];
    let mut socket = Socket::open(&house.world, &headers).await.unwrap();
    let mut admin = Socket::admin(&house.world).await;
    socket.subscribe("tasks", None).await;
    let sessions = house.ask(Method::GET, "/api/v1/sessions", &[headers[0]], None).await.json();
    let session = format!("/api/v1/sessions/{}", sessions["items"][0]["id"].as_str().unwrap());
    assert_eq!(house.by_key(Method::DELETE, &session, None).await.status, 204);
    assert_eq!(socket.hear().await, Err(1008));
    house.world.shutdown.cancel();
    assert_eq!(admin.hear().await, Err(1001));
    timeout(PATIENCE, house.world.tracker.wait()).await.expect("no connection keeps the server");
}

#[tokio::test]
async fn what_a_follower_says_is_limited_and_nonsense_is_answered() {
    let world = World::start().await;
    let task = world.task().await;
    let mut socket = Socket::admin(&world).await;
    for (said, code) in [
        ("{".to_owned(), "bad_request"),
        (json!({"type": "dance"}).to_string(), "refused"),
        (json!({"type": "subscribe", "topic": "tasks", "more": 1}).to_string(), "refused"),
        (json!({"type": "subscribe", "topic": "tusks"}).to_string(), "refused"),
        (json!({"type": "subscribe", "topic": "task:task_00000000000000000000000000000099"}).to_string(), "not_found"),
    ] {
        socket.0.send(Message::text(said.clone())).await.unwrap();
        let told = socket.next().await;
        assert_eq!((&told["type"], &told["problem"]["code"]), (&json!("error"), &json!(code)), "{said}");
    }
    socket.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.next().await["problem"]["code"], "unsupported_media_type");
    assert_eq!(socket.subscribe(&topic(task), None).await["type"], "subscribed", "and it goes on");
    socket.say(&json!({"type": "subscribe", "topic": "x".repeat(5_000)})).await;
    assert_eq!(socket.hear().await, Err(1009));

    let mut socket = Socket::admin(&world).await;
    let tasks = futures::future::join_all((0..64).map(|_| world.task())).await;
    for task in &tasks {
        assert_eq!(socket.subscribe(&topic(*task), None).await["type"], "subscribed");
    }
    assert_eq!(socket.subscribe("tasks", None).await["problem"]["code"], "too_many");
    assert_eq!(socket.subscribe(&topic(tasks[0]), None).await["type"], "subscribed", "one of them again");
    for _ in 0..200 {
        // It may be closed before all was said.
        drop(socket.0.send(Message::Ping(vec![1].into())).await);
    }
    assert_eq!(socket.hear().await, Err(1008));
}

#[tokio::test]
async fn one_actor_has_a_limited_number_of_feeds_of_both_kinds_and_leaves_the_rest_to_others() {
    let house = House::open(Registration::Closed).await;
    house.user("bob", Role::Viewer).await;
    house.user("eve", Role::Viewer).await;
    let (bobs, eves) = (house.tokens("bob").await.0, house.tokens("eve").await.0);
    let bearer = |token: &str| format!("Bearer {token}");
    let (bob, eve) = (bearer(&bobs), bearer(&eves));
    let url = format!("{}/api/v1/events", house.world.public);
    let feed = |token: &str| house.world.http.get(&url).header("authorization", token).send();
    let (mut sockets, mut feeds) = (Vec::new(), Vec::new());
    for _ in 0..8 {
        sockets.push(Socket::open(&house.world, &[("authorization", &bob)]).await.unwrap());
        feeds.push(feed(&bob).await.unwrap());
    }
    assert_eq!(Socket::open(&house.world, &[("authorization", &bob)]).await.err(), Some(429));
    let refused = feed(&bob).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (429, true));
    assert_eq!(feed(&eve).await.unwrap().status(), 200);
    let mut left = sockets.pop().unwrap();
    left.0.close(None).await.unwrap();
    assert_eq!(left.hear().await, Err(0), "the server has let go of it");
    assert_eq!(feed(&bob).await.unwrap().status(), 200);
}
