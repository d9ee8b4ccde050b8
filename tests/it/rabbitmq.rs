//! The contract of a broker on the system's RabbitMQ, and what only RabbitMQ does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::transport::{Announcement, Announcer, ForeignInbox, Transport, TransportError, X};
use fettle_broker_rabbitmq::{Limits, RabbitAnnouncer, RabbitInbox, RabbitOptions, RabbitTransport, submit};
use fettle_tests::brokers::rabbitmq::RabbitServer;
use fettle_tests::contract::transport::{Client, Power, Subject};
use fettle_tests::{contract, skip};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

const HINTS: &str = "fettle.hints";
const FOREIGN: &str = "agent-tasks";
const DEAD: &str = "agent-tasks.dead";
const EVENTS: &str = "fettle.events";
const LISTENER: &str = "listener";

/// Short, so that tests see things come again, and longer than they wait with something in hand.
const UNSETTLED: Duration = Duration::from_secs(6);
const SOON: Duration = Duration::from_secs(10);
/// Until a client has noticed a fault, and beyond its longest pause.
const MEND: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(50);

contract::transport!(on_rabbitmq, Broker::here());

/// A virtual host of the shared node, or a node of its own for a case that turns it off.
struct Broker {
    alone: AtomicBool,
    place: OnceCell<Place>,
    left: AtomicU64,
    buried: Mutex<Vec<(Bytes, String)>>,
    heard: Mutex<Vec<Announcement>>,
}

struct Place {
    server: Arc<RabbitServer>,
    vhost: String,
}

/// Says aloud when it is not.
fn is_here() -> bool {
    let is_here = RabbitServer::is_installed();
    if !is_here {
        skip::skip("there is no rabbitmq-server here");
    }
    is_here
}

impl Place {
    async fn shared() -> Self {
        let server = RabbitServer::shared().await.unwrap();
        let vhost = server.vhost().await.unwrap();
        Self { server, vhost }
    }

    /// With queues that are older than a moment: killed while it makes one, RabbitMQ 3.10 has a queue afterwards that answers
    /// and takes nothing, since nobody leads it, until its operator triggers an election.
    async fn alone() -> Self {
        let place = Self { server: Arc::new(RabbitServer::start().await.unwrap()), vhost: "/".to_owned() };
        let make = async |channel: &Channel| {
            for queue in [HINTS, FOREIGN, DEAD] {
                channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), quorum()).await.unwrap();
            }
        };
        place.as_another(make).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        place
    }

    fn options(&self) -> RabbitOptions {
        RabbitOptions { url: self.server.url(&self.vhost), user: None, password: None, ca_pem: None }
    }

    fn transport(&self) -> RabbitTransport {
        RabbitTransport::new(&self.options(), limits()).unwrap()
    }

    fn inbox(&self) -> RabbitInbox {
        RabbitInbox::new(&self.options(), limits()).unwrap()
    }

    fn announcer(&self) -> RabbitAnnouncer {
        RabbitAnnouncer::new(&self.options()).unwrap()
    }

    /// Does something as another program, over a connection of its own.
    async fn as_another<T>(&self, act: impl AsyncFnOnce(&Channel) -> T) -> T {
        let connection = self.server.connect(&self.vhost).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let done = act(&channel).await;
        connection.close(200, "OK".into()).await.ok();
        done
    }

    async fn delete_queue(&self, name: &str) {
        self.as_another(async |channel| {
            channel.queue_delete(name.into(), QueueDeleteOptions::default()).await.unwrap()
        })
        .await;
    }

    /// Messages that wait in a queue, and its consumers.
    async fn counts(&self, queue: &str) -> (u32, u32) {
        let passive = QueueDeclareOptions::durable().passive();
        let declare =
            async |channel: &Channel| channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        let queue = self.as_another(declare).await.unwrap();
        (queue.message_count(), queue.consumer_count())
    }
}

fn limits() -> Limits {
    Limits { unsettled: UNSETTLED }
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

async fn publish(channel: &Channel, queue: &str, body: &[u8], properties: BasicProperties) {
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let properties = properties.with_delivery_mode(2);
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert_eq!(confirm.await.unwrap(), lapin::Confirmation::Ack(None));
}

/// All that lies in a queue, taken away.
async fn take_all(channel: &Channel, queue: &str) -> Vec<Delivery> {
    let mut all = Vec::new();
    while let Ok(Some(got)) = channel.basic_get(queue.into(), BasicGetOptions::default()).await {
        got.delivery.ack(BasicAckOptions::default()).await.unwrap();
        all.push(got.delivery);
    }
    all
}

impl Broker {
    fn here() -> Option<Self> {
        is_here().then(|| Self {
            alone: AtomicBool::new(false),
            place: OnceCell::new(),
            left: AtomicU64::new(0),
            buried: Mutex::default(),
            heard: Mutex::default(),
        })
    }

    async fn place(&self) -> &Place {
        let choose =
            async || if self.alone.load(Ordering::Relaxed) { Place::alone().await } else { Place::shared().await };
        self.place.get_or_init(choose).await
    }
}

#[async_trait]
impl Subject for Broker {
    async fn client(&self) -> Client {
        let place = self.place().await;
        Client {
            transport: Arc::new(place.transport()),
            inbox: Arc::new(place.inbox()),
            announcer: Arc::new(place.announcer()),
        }
    }

    fn comes_again_within(&self) -> Duration {
        UNSETTLED + Duration::from_secs(3)
    }

    async fn wipe(&self) {
        let wipe = async |channel: &Channel| {
            for queue in [HINTS, FOREIGN, DEAD] {
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
            }
            channel.exchange_delete(EVENTS.into(), ExchangeDeleteOptions::default()).await.unwrap();
        };
        self.place().await.as_another(wipe).await;
    }

    fn power(&self) -> Option<&dyn Power> {
        assert!(self.place.get().is_none(), "a case asks for the power before anything else");
        self.alone.store(true, Ordering::Relaxed);
        Some(self)
    }

    async fn leave(&self, body: &Bytes) -> Option<String> {
        let id = format!("message_{}", self.left.fetch_add(1, Ordering::Relaxed));
        let leave = async |channel: &Channel| {
            channel.queue_declare(FOREIGN.into(), QueueDeclareOptions::durable(), quorum()).await.unwrap();
            publish(channel, FOREIGN, body, BasicProperties::default().with_message_id(id.as_str().into())).await;
        };
        self.place().await.as_another(leave).await;
        Some(id)
    }

    async fn buried(&self) -> Vec<(Bytes, String)> {
        let found = self.place().await.as_another(async |channel: &Channel| take_all(channel, DEAD).await).await;
        let mut buried = self.buried.lock().await;
        buried.extend(found.into_iter().map(|Delivery { data, properties, .. }| {
            let headers = properties.headers().as_ref().expect("it has headers").inner();
            let Some(AMQPValue::LongString(reason)) = headers.get("x-fettle-reason") else { panic!("{headers:?}") };
            (Bytes::from(data), String::from_utf8(reason.as_bytes().to_vec()).unwrap())
        }));
        buried.clone()
    }

    async fn listen(&self) {
        let listen = async |channel: &Channel| {
            let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
            channel.exchange_declare(EVENTS.into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
            channel
                .queue_declare(LISTENER.into(), QueueDeclareOptions::durable(), FieldTable::default())
                .await
                .unwrap();
            let all = QueueBindOptions::default();
            channel.queue_bind(LISTENER.into(), EVENTS.into(), "#".into(), all, FieldTable::default()).await.unwrap();
        };
        self.place().await.as_another(listen).await;
    }

    async fn heard(&self) -> Vec<Announcement> {
        let found = self.place().await.as_another(async |channel: &Channel| take_all(channel, LISTENER).await).await;
        let mut heard = self.heard.lock().await;
        heard.extend(found.into_iter().map(|Delivery { routing_key, data, properties, .. }| {
            assert_eq!(properties.content_type().as_ref().unwrap().as_str(), "application/json");
            assert_eq!(*properties.delivery_mode(), Some(2));
            Announcement {
                kind: routing_key.as_str().to_owned(),
                id: properties.message_id().as_ref().unwrap().as_str().to_owned(),
                correlation: properties.correlation_id().as_ref().unwrap().as_str().to_owned(),
                body: String::from_utf8(data).unwrap(),
            }
        }));
        heard.clone()
    }
}

#[async_trait]
impl Power for Broker {
    async fn off(&self) {
        self.place().await.server.kill();
    }

    async fn on(&self) {
        self.place().await.server.restart().await.unwrap();
    }
}

async fn becomes<F: Future<Output = bool>>(what: &str, limit: Duration, mut ask: impl FnMut() -> F) {
    let until = Instant::now() + limit;
    while !ask().await {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks again after the faults that end a wait early.
async fn comes<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let until = Instant::now() + MEND;
    loop {
        if let Some(come) = ask().await {
            return come;
        }
        assert!(Instant::now() < until, "{what} does not come within {MEND:?}");
    }
}

fn is_unreachable<T>(answer: X<T>) -> bool {
    matches!(answer, Err(TransportError::Unreachable(_)))
}

fn refusal<T: std::fmt::Debug>(answer: X<T>) -> String {
    match answer {
        Err(TransportError::Refused(why)) => why,
        other => panic!("this should be refused and is {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_consumed_while_nobody_waits() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let transport = place.transport();
    transport.ring(3).await.unwrap();
    assert_eq!(place.counts(HINTS).await, (3, 0));
    let hint = transport.wait(SOON).await.unwrap();
    // The hint is in hand; the other two hang there for whoever is free.
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Its cancelled consumer is counted until the hint is settled, and gets nothing.
    assert_eq!(place.counts(HINTS).await.0, 2);
    transport.done(hint).await.unwrap();
    becomes("nobody consumes", SOON, async || place.counts(HINTS).await == (2, 0)).await;

    let (first, second) = tokio::join!(transport.wait(SOON), transport.wait(SOON));
    for hint in [first.unwrap(), second.unwrap()] {
        transport.done(hint).await.unwrap();
    }
    let waiting = async {
        assert_eq!(transport.wait(Duration::from_secs(2)).await, None);
    };
    let looking = becomes("one consumes", SOON, async || place.counts(HINTS).await == (0, 1));
    tokio::join!(waiting, looking);
    becomes("nobody consumes any more", SOON, async || place.counts(HINTS).await == (0, 0)).await;
    transport.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_deleted_beneath_its_consumer_is_counted_and_made_again() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let transport = place.transport();
    let deleting = async {
        becomes("somebody consumes", SOON, async || {
            transport.depth().await.is_ok() && place.counts(HINTS).await.1 == 1
        })
        .await;
        place.delete_queue(HINTS).await;
    };
    let began = Instant::now();
    let (waited, ()) = tokio::join!(transport.wait(MEND), deleting);
    assert_eq!(waited, None, "the stream has ended");
    assert!(began.elapsed() < MEND / 2, "who waits is let go early, to look for work elsewhere");
    assert_eq!(transport.consumers_ended_by_broker(), 1);

    becomes("ringing", MEND, async || transport.ring(1).await.is_ok()).await;
    becomes("a hint", MEND, async || match transport.wait(SOON).await {
        Some(hint) => transport.done(hint).await.is_ok(),
        None => false,
    })
    .await;
    assert_eq!(transport.consumers_ended_by_broker(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_from_before_a_reconnect_settles_nothing() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let (transport, inbox) = (place.transport(), place.inbox());
    transport.ring(1).await.unwrap();
    submit(&place.options(), &Bytes::from_static(b"{}")).await.unwrap();
    let old_hint = transport.wait(SOON).await.unwrap();
    let old_message = inbox.next(SOON).await.unwrap();
    assert!(!old_message.redelivered);
    place.server.ctl(&["close_all_connections", "--vhost", &place.vhost, "for a test"]).await.unwrap();

    let hint = comes("the hint", async || transport.wait(SOON).await).await;
    assert_ne!(hint, old_hint);
    let message = comes("the message", async || inbox.next(SOON).await).await;
    assert!(message.redelivered);

    // On the new channel the same tag is the new delivery's.
    assert!(is_unreachable(transport.done(old_hint).await));
    assert!(is_unreachable(inbox.taken(&old_message).await));
    for foreign in ["", "x", "2", "2.", ".1", "18446744073709551616.1", "2.-1"] {
        assert!(is_unreachable(transport.done(fettle_app::ports::transport::Hint(foreign.to_owned())).await));
    }
    // Not settled by any of that, so they are still there when their reader dies.
    transport.close().await;
    inbox.close().await;
    drop((hint, message));
    becomes("both are back", SOON, async || place.counts(HINTS).await.0 == 1 && place.counts(FOREIGN).await.0 == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_queue_of_another_program_is_used_as_it_is() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let (transport, inbox) = (place.transport(), place.inbox());
    let mut limited = FieldTable::default();
    limited.insert("x-max-length".into(), AMQPValue::LongInt(1000));
    let make = async |channel: &Channel| {
        for queue in [FOREIGN, DEAD, HINTS] {
            channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), limited.clone()).await.unwrap();
        }
        // Without a message id, as the founding system's clients publish.
        publish(channel, FOREIGN, b"{\"issue_id\":1}", BasicProperties::default()).await;
    };
    place.as_another(make).await;
    submit(&place.options(), &Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(inbox.depth().await.unwrap(), 2);
    for body in [&b"{\"issue_id\":1}"[..], b"2"] {
        let message = inbox.next(SOON).await.unwrap();
        assert_eq!((&message.body[..], &message.id, message.redelivered), (body, &None, false));
        inbox.taken(&message).await.unwrap();
    }
    inbox.bury(&Bytes::from_static(b"x"), "not_json").await.unwrap();
    transport.ring(2).await.unwrap();
    let hint = transport.wait(SOON).await.unwrap();
    transport.done(hint).await.unwrap();
    becomes("one is left", SOON, async || transport.depth().await.unwrap() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_queue_takes_is_an_error_and_an_event_without_listener_is_not() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let (transport, inbox, announcer) = (place.transport(), place.inbox(), place.announcer());
    let body = Bytes::from_static(b"x");
    transport.ring(1).await.unwrap();
    inbox.bury(&body, "not_json").await.unwrap();
    for queue in [HINTS, DEAD] {
        place.delete_queue(queue).await;
    }
    let Err(error) = transport.ring(3).await else { panic!("nobody keeps these hints") };
    let told = fettle_app::ports::chain(&error);
    assert!(told.contains(HINTS) && told.contains("NO_ROUTE"), "{told}");
    assert!(is_unreachable(inbox.bury(&body, "not_json").await));
    becomes("ringing", MEND, async || transport.ring(1).await.is_ok()).await;
    becomes("burying", MEND, async || inbox.bury(&body, "not_json").await.is_ok()).await;
    assert_eq!(place.counts(DEAD).await.0, 1);

    let announcement = Announcement {
        kind: "TaskCreated".to_owned(),
        id: "event_1".to_owned(),
        correlation: "task_1".to_owned(),
        body: "{}".to_owned(),
    };
    announcer.announce(std::slice::from_ref(&announcement)).await.unwrap();
    let delete = async |channel: &Channel| {
        channel.exchange_delete(EVENTS.into(), ExchangeDeleteOptions::default()).await.unwrap();
    };
    place.as_another(delete).await;
    assert!(is_unreachable(announcer.announce(std::slice::from_ref(&announcement)).await));
    becomes("announcing", MEND, async || announcer.announce(std::slice::from_ref(&announcement)).await.is_ok()).await;
    let too_long = Announcement { id: "x".repeat(256), ..announcement.clone() };
    let why = refusal(announcer.announce(&[too_long]).await);
    assert!(why.contains("256"), "{why}");
    announcer.announce(&[announcement]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_and_missing_rights_are_refused_with_a_sentence() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let with = |user: &str, password: &str, vhost: &str| RabbitOptions {
        url: place.server.url(vhost),
        user: Some(user.to_owned()),
        password: Some(password.to_owned().into()),
        ca_pem: None,
    };
    let bell = |options: &RabbitOptions| RabbitTransport::new(options, limits()).unwrap();

    let wrong = bell(&with("guest", "hunter2", &place.vhost));
    for why in [refusal(wrong.ring(1).await), refusal(wrong.depth().await)] {
        assert!(why.contains("ACCESS_REFUSED") && !why.contains("hunter2"), "{why}");
    }
    let began = Instant::now();
    assert_eq!(wrong.wait(Duration::from_secs(2)).await, None);
    assert!(began.elapsed() >= Duration::from_millis(900), "a pause, or the worker spins");

    let nowhere = bell(&with("guest", "guest", "no-such-vhost"));
    let why = refusal(nowhere.ring(1).await);
    assert!(why.contains("no-such-vhost"), "{why}");

    // The broker's users are not those of one virtual host, so the name is this test's alone.
    place.server.ctl(&["add_user", "limited", "secret"]).await.unwrap();
    place.server.ctl(&["set_permissions", "-p", &place.vhost, "limited", "^$", "^$", "^$"]).await.unwrap();
    let limited = with("limited", "secret", &place.vhost);
    let why = refusal(bell(&limited).ring(1).await);
    assert!(why.contains(HINTS) && why.contains("ACCESS_REFUSED"), "{why}");
    let why = refusal(submit(&limited, &Bytes::from_static(b"{}")).await);
    assert!(why.contains(FOREIGN), "{why}");
    let why = refusal(
        RabbitAnnouncer::new(&limited)
            .unwrap()
            .announce(&[Announcement {
                kind: "TaskCreated".to_owned(),
                id: "event_1".to_owned(),
                correlation: "task_1".to_owned(),
                body: "{}".to_owned(),
            }])
            .await,
    );
    assert!(why.contains(EVENTS), "{why}");

    // The queues are there, and it may not write or read.
    place.transport().ring(1).await.unwrap();
    let reader = bell(&limited);
    let why = refusal(reader.ring(1).await);
    assert!(why.contains("ACCESS_REFUSED"), "{why}");
    assert_eq!(reader.wait(Duration::from_secs(2)).await, None);
    // And with its rights it works, without anybody starting it again.
    place.server.ctl(&["set_permissions", "-p", &place.vhost, "limited", ".*", ".*", ".*"]).await.unwrap();
    becomes("ringing", MEND, async || reader.ring(1).await.is_ok()).await;
    becomes("a hint", MEND, async || reader.wait(SOON).await.is_some()).await;
}

#[test]
fn what_is_no_address_is_refused_when_it_is_given() {
    let options = RabbitOptions { url: "redis://broker".to_owned(), user: None, password: None, ca_pem: None };
    let why = refusal(RabbitTransport::new(&options, limits()).map(drop));
    assert!(why.contains("amqp://"), "{why}");
}

// One node for all of it, since each takes long to start: short of memory, mute, killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_in_trouble_delays_and_loses_nothing_that_was_confirmed() {
    if !is_here() {
        return;
    }
    let place = Place::alone().await;
    let (transport, inbox) = (place.transport(), place.inbox());
    transport.ring(1).await.unwrap();
    let in_time = Duration::from_secs(12);

    // Short of memory: publishers are not listened to, readers are.
    place.server.ctl(&["set_vm_memory_high_watermark", "0.000001"]).await.unwrap();
    for _ in 0..3 {
        let began = Instant::now();
        assert!(is_unreachable(transport.ring(5).await));
        assert!(began.elapsed() < in_time, "{:?}", began.elapsed());
    }
    let began = Instant::now();
    assert!(is_unreachable(inbox.bury(&Bytes::from_static(b"x"), "not_json").await));
    assert!(is_unreachable(submit(&place.options(), &Bytes::from_static(b"{}")).await));
    assert!(began.elapsed() < in_time * 2, "{:?}", began.elapsed());
    let hint = transport.wait(SOON).await.unwrap();
    transport.done(hint).await.unwrap();
    assert_eq!(transport.depth().await.unwrap(), 0);
    place.server.ctl(&["set_vm_memory_high_watermark", "0.6"]).await.unwrap();
    becomes("ringing", MEND, async || transport.ring(1).await.is_ok()).await;
    // What was sent while nobody listened may have arrived meanwhile; the depth says so.
    becomes("nothing hangs there", MEND, async || {
        if let Some(hint) = transport.wait(Duration::from_millis(300)).await {
            transport.done(hint).await.unwrap();
        }
        transport.depth().await.is_ok_and(|depth| depth == 0)
    })
    .await;

    // Mute: every wait ends.
    place.server.suspend();
    let began = Instant::now();
    let (rung, depth, waited) = tokio::join!(transport.ring(1), transport.depth(), transport.wait(SOON));
    assert!(is_unreachable(rung) && is_unreachable(depth));
    assert_eq!(waited, None);
    assert!(began.elapsed() < in_time, "{:?}", began.elapsed());
    assert!(is_unreachable(submit(&place.options(), &Bytes::from_static(b"{}")).await));
    place.server.resume();
    becomes("ringing", MEND, async || transport.ring(2).await.is_ok()).await;

    // Killed: what was confirmed is there, what was in hand comes again.
    becomes("counting", MEND, async || transport.depth().await.is_ok_and(|depth| depth >= 2)).await;
    let before = transport.depth().await.unwrap();
    let hint = transport.wait(SOON).await.unwrap();
    place.server.restart().await.unwrap();
    assert!(is_unreachable(transport.done(hint).await));
    becomes("all are there", MEND, async || transport.depth().await.is_ok_and(|depth| depth == before)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_trusts_the_authority_that_it_was_given_and_no_other() {
    if !is_here() {
        return;
    }
    let place = Place::shared().await;
    let Some((url, ca_pem)) = place.server.tls(&place.vhost) else {
        return skip::skip("there is no openssl here to make certificates");
    };
    let trusting = RabbitOptions { url, user: None, password: None, ca_pem: Some(ca_pem) };
    let strict = RabbitOptions { ca_pem: None, ..trusting.clone() };
    let transport = RabbitTransport::new(&trusting, limits()).unwrap();
    transport.ring(300).await.unwrap();
    let hint = transport.wait(SOON).await.unwrap();
    transport.done(hint).await.unwrap();
    becomes("the rest hangs there", SOON, async || transport.depth().await.unwrap() == 299).await;
    let why = refusal(RabbitTransport::new(&strict, limits()).unwrap().ring(1).await);
    assert!(why.contains("certificate"), "{why}");
    let garbled = RabbitOptions { ca_pem: Some("-----BEGIN CERTIFICATE-----\nx".to_owned()), ..trusting };
    let why = refusal(RabbitTransport::new(&garbled, limits()).unwrap().ring(1).await);
    assert!(why.contains("connecting"), "{why}");
}
