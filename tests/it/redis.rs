//! The contract of a broker on a real Redis, and what only Redis can do to us.

#![expect(clippy::unwrap_used, reason = "fixtures are a part of tests: what fails here fails the test")]

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fettle_app::ports::clock::IdSource as _;
use fettle_app::ports::transport::{Announcement, ForeignMessage, Hint, Transport, TransportError};
use fettle_broker_redis::{DEAD, EVENTS, HINTS, Limits, MESSAGES, Redis, RedisOptions, submit};
use fettle_runtime::system::RandomIds;
use fettle_tests::brokers::redis::{Failover, MASTER, RedisServer, Settings};
use fettle_tests::contract;
use fettle_tests::contract::transport::{Client, Power, Subject};
use fettle_tests::skip::skip;
use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio::time::Instant;

contract::transport!(redis_contract, OnRedis::start().await);

/// Time for a client to find its server again, wherever it is now.
const MEND: Duration = Duration::from_secs(40);
const SOON: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

struct OnRedis {
    server: RedisServer,
    limits: Limits,
    /// The newest announcement when the listener began.
    heard: Mutex<String>,
}

impl OnRedis {
    async fn start() -> Option<Self> {
        Self::with(Limits::for_tests()).await
    }

    async fn with(limits: Limits) -> Option<Self> {
        let server = RedisServer::start(Settings::default()).await?;
        Some(Self { server, limits, heard: Mutex::new("0".to_owned()) })
    }
}

/// Limits under which nobody takes over what another holds, for cases that must be mended in another way.
fn never_claiming() -> Limits {
    Limits { unsettled_after: Duration::from_secs(3600), ..Limits::for_tests() }
}

/// A process that starts now.
fn options(url: impl Into<String>) -> RedisOptions {
    RedisOptions { limits: Limits::for_tests(), ..RedisOptions::new(url, RandomIds.uuid().to_string()) }
}

fn client(options: &RedisOptions) -> Client {
    let redis = Redis::new(options).unwrap();
    Client {
        transport: std::sync::Arc::new(redis.transport()),
        inbox: std::sync::Arc::new(redis.inbox()),
        announcer: std::sync::Arc::new(redis.announcer()),
    }
}

type Fields = Vec<(String, Vec<u8>)>;

#[async_trait]
impl Subject for OnRedis {
    async fn client(&self) -> Client {
        client(&RedisOptions { limits: self.limits, ..options(self.server.url()) })
    }

    fn comes_again_within(&self) -> Duration {
        self.limits.unsettled_after * 4
    }

    async fn wipe(&self) {
        self.server.flush().await;
    }

    fn power(&self) -> Option<&dyn Power> {
        Some(&self.server as &dyn Power)
    }

    async fn leave(&self, body: &Bytes) -> Option<String> {
        Some(self.server.ask(redis::cmd("XADD").arg(MESSAGES).arg("*").arg("payload").arg(&body[..])).await)
    }

    async fn buried(&self) -> Vec<(Bytes, String)> {
        let all: Vec<(String, Fields)> = self.server.say(&format!("XRANGE {DEAD} - +")).await;
        let one = |fields: Fields| {
            let [(_, payload), (_, reason)] = <[_; 2]>::try_from(fields).unwrap();
            (Bytes::from(payload), String::from_utf8(reason).unwrap())
        };
        all.into_iter().map(|(_, fields)| one(fields)).collect()
    }

    async fn listen(&self) {
        let newest: Vec<(String, Fields)> = self.server.say(&format!("XREVRANGE {EVENTS} + - COUNT 1")).await;
        *self.heard.lock().await = newest[0].0.clone();
    }

    async fn heard(&self) -> Vec<Announcement> {
        let after = self.heard.lock().await.clone();
        let all: Vec<(String, [(String, String); 4])> = self.server.say(&format!("XRANGE {EVENTS} ({after} +")).await;
        let one = |[kind, id, correlation, body]: [(String, String); 4]| {
            assert_eq!([&kind.0, &id.0, &correlation.0, &body.0], ["kind", "id", "correlation", "body"]);
            Announcement { kind: kind.1, id: id.1, correlation: correlation.1, body: body.1 }
        };
        all.into_iter().map(|(_, fields)| one(fields)).collect()
    }
}

fn secret(text: &str) -> Option<SecretString> {
    Some(SecretString::from(text))
}

async fn hint_within(transport: &dyn Transport, limit: Duration) -> Hint {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no hint within {limit:?}");
        if let Some(hint) = transport.wait(left).await {
            return hint;
        }
    }
}

async fn message_within(client: &Client, limit: Duration) -> ForeignMessage {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "no message within {limit:?}");
        if let Some(message) = client.inbox.next(left).await {
            return message;
        }
    }
}

async fn ring_until_it_works(transport: &dyn Transport) {
    let until = Instant::now() + MEND;
    while let Err(error) = transport.ring(1).await {
        assert!(matches!(error, TransportError::Unreachable(_)), "{error:?}");
        assert!(Instant::now() < until, "{error:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// All three ports do their work.
async fn works(client: &Client) {
    client.transport.ring(1).await.unwrap();
    let hint = hint_within(&*client.transport, SOON).await;
    client.transport.done(hint).await.unwrap();
    assert_eq!(client.transport.depth().await.unwrap(), 0);
    client.inbox.bury(&Bytes::from_static(b"x"), "not_json").await.unwrap();
    client.announcer.announce(&[announcement()]).await.unwrap();
}

fn is_refused<T: std::fmt::Debug>(answer: Result<T, TransportError>, with: &str) {
    let Err(TransportError::Refused(why)) = answer else { panic!("not refused: {answer:?}") };
    assert!(why.contains(with), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submitted_message_and_flat_fields_reach_intake() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let options = options(server.url());
    let client = client(&options);
    let body = Bytes::from_static(b"{\"issue_id\": 9}");
    submit(&options, &body).await.unwrap();
    let id: String =
        server.say(&format!("XADD {MESSAGES} * repo_url https://x/a issue_id 7 mode quickfix trigger_user ada")).await;
    let first = message_within(&client, SOON).await;
    assert_eq!(first.body, body);
    client.inbox.taken(&first).await.unwrap();
    let second = message_within(&client, SOON).await;
    let object: serde_json::Value = serde_json::from_slice(&second.body).unwrap();
    let wanted =
        serde_json::json!({"repo_url": "https://x/a", "issue_id": "7", "mode": "quickfix", "trigger_user": "ada"});
    assert_eq!((object, second.id), (wanted, Some(id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_evicts_is_refused_until_it_does_not() {
    let settings = Settings::default().with("maxmemory 64mb").with("maxmemory-policy allkeys-lru");
    let Some(server) = RedisServer::start(settings).await else { return };
    let options = options(server.url());
    let client = client(&options);
    is_refused(client.transport.ring(1).await, "allkeys-lru");
    is_refused(client.inbox.depth().await, "noeviction");
    is_refused(submit(&options, &Bytes::from_static(b"{}")).await, "noeviction");
    assert_eq!(client.transport.wait(Duration::from_millis(200)).await, None);
    assert_eq!(server.say::<u64>(&format!("EXISTS {HINTS} {MESSAGES}")).await, 0, "nothing was written");

    server.say::<()>("CONFIG SET maxmemory-policy noeviction").await;
    works(&client).await;
    // Without a limit nothing is evicted, whatever the policy.
    server.say::<()>("CONFIG SET maxmemory 0").await;
    server.say::<()>("CONFIG SET maxmemory-policy allkeys-lru").await;
    works(&self::client(&options)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_takes_nothing_and_is_emptied_as_ever() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let ringer = client(&options(server.url()));
    ringer.transport.ring(2).await.unwrap();
    server.say::<()>("CONFIG SET maxmemory 1").await;
    is_refused(ringer.transport.ring(1).await, "OOM");
    is_refused(ringer.announcer.announce(&[announcement()]).await, "OOM");
    let worker = client(&options(server.url()));
    for left in [1, 0] {
        let hint = hint_within(&*worker.transport, SOON).await;
        worker.transport.done(hint).await.unwrap();
        assert_eq!(ringer.transport.depth().await.unwrap(), left);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acl_user_needs_its_password_and_the_streams_only() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let rights = "resetchannels ~{fettle}:* ~agent-tasks* ~fettle.events -@all \
                  +multi +exec +xadd +xreadgroup +xgroup|create +xack +xdel +xlen +xpending +xclaim";
    server.say::<()>(&format!("ACL SETUSER fettle on >correct {rights}")).await;
    server.say::<()>("ACL SETUSER default off").await;
    let told = |password: &str| RedisOptions {
        user: Some("fettle".into()),
        password: secret(password),
        ..options(server.url())
    };
    is_refused(client(&told("wrong")).transport.ring(1).await, "authentication failed");
    is_refused(client(&options(server.url())).transport.ring(1).await, "NOAUTH");
    // It may read neither INFO nor CONFIG, and run no scripts.
    works(&client(&told("correct"))).await;
    let in_the_address = format!("redis://fettle:correct@127.0.0.1:{}", server.port());
    works(&client(&options(in_the_address))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_a_refusal() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    server.say::<()>("ACL SETUSER narrow on >word ~* +@all -xadd").await;
    let narrow = RedisOptions { user: Some("narrow".into()), password: secret("word"), ..options(server.url()) };
    let client = client(&narrow);
    is_refused(client.transport.ring(1).await, "NOPERM");
    is_refused(client.announcer.announce(&[announcement()]).await, "NOPERM");
    server.say::<u64>(&format!("LPUSH {EVENTS} x")).await;
    is_refused(self::client(&options(server.url())).announcer.announce(&[announcement()]).await, "WRONGTYPE");
}

fn announcement() -> Announcement {
    Announcement { kind: "k".into(), id: "i".into(), correlation: "c".into(), body: "{}".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_trusts_the_given_authority_and_no_other() {
    let Some(server) = RedisServer::start_tls(Settings::default()).await else { return };
    let trusting = RedisOptions { ca_pem: Some(server.ca_pem()), ..options(server.url()) };
    works(&client(&trusting)).await;
    let system_only = client(&options(server.url()));
    let refused = system_only.transport.ring(1).await;
    assert!(refused.is_err(), "the system does not know this authority");
    let plain = client(&options(format!("redis://127.0.0.1:{}", server.port())));
    assert!(plain.transport.ring(1).await.is_err(), "it speaks TLS only");
}

#[test]
fn options_that_can_never_work_are_refused_at_once_and_without_secrets() {
    let refused = |options: RedisOptions| Redis::new(&options).err().map(|error| error.to_string());
    let url = |url: &str| refused(options(url));
    for bad in [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://localhost:99999",
        "redis://localhost/notanumber",
        "rediss://localhost/#insecure",
        "redis://a:1,b:2",
        "redis://u:hunter2@:0",
    ] {
        let said = url(bad).unwrap_or_else(|| panic!("{bad:?} was taken"));
        assert!(!said.contains("hunter2") && said.starts_with("the address of Redis"), "{said}");
    }
    for good in ["redis://localhost", "rediss://localhost:6380/3", "redis+unix:///run/redis.sock", "redis://[::1]:7"] {
        assert_eq!(url(good), None, "{good}");
    }
    let sentinels = |url: &str| RedisOptions { sentinel_master: Some(MASTER.into()), ..options(url) };
    assert_eq!(refused(sentinels("redis://a,b:26380, redis://c")), None);
    assert_eq!(refused(sentinels("rediss://a,b")), None);
    assert!(refused(sentinels("redis://a,rediss://b")).is_some(), "half of them in clear text");
    assert!(refused(sentinels("redis+unix:///run/redis.sock")).is_some());
    let with_ca = |url: &str, pem: &[u8]| refused(RedisOptions { ca_pem: Some(pem.to_vec()), ..options(url) });
    assert!(with_ca("rediss://a", b"no certificate").is_some());
    assert!(with_ca("redis://a", b"-----BEGIN CERTIFICATE-----").is_some());
    let debug = format!("{:?}", RedisOptions { password: secret("hunter2"), ..options("redis://a") });
    assert!(!debug.contains("hunter2"), "{debug}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sentinels_lead_to_the_master_that_is_now() {
    let Some(failover) = Failover::start("hush").await else { return };
    let sentinels = format!("redis://127.0.0.1:1,127.0.0.1:{}", failover.sentinel.port());
    let told = RedisOptions {
        password: secret("hush"),
        sentinel_password: secret("hush"),
        sentinel_master: Some(MASTER.into()),
        ..options(sentinels)
    };
    let client = client(&told);
    works(&client).await;

    // Both alive, places changed: what was the master now refuses writes.
    failover.swap().await;
    ring_until_it_works(&*client.transport).await;
    let hint = hint_within(&*client.transport, MEND).await;
    client.transport.done(hint).await.unwrap();
    works(&client).await;

    // And by a death, while somebody waits.
    let waiting = hint_within(&*client.transport, MEND * 2);
    let dying = async {
        let dead = failover.kill_master().await;
        ring_until_it_works(&*client.transport).await;
        dead
    };
    let (hint, dead) = tokio::join!(waiting, dying);
    client.transport.done(hint).await.unwrap();
    submit(&told, &Bytes::from_static(b"{}")).await.unwrap();
    let message = message_within(&client, MEND).await;
    client.inbox.taken(&message).await.unwrap();
    works(&client).await;

    // The old master comes back as it was, and is not used.
    dead.go_on().await;
    works(&client).await;

    let unknown = RedisOptions { sentinel_master: Some("nobody".into()), ..told.clone() };
    let away = self::client(&unknown).transport.ring(1).await;
    assert!(matches!(away, Err(TransportError::Unreachable(_))), "{away:?}");
    let unasked = RedisOptions { sentinel_password: None, ..told };
    assert!(self::client(&unasked).transport.ring(1).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_or_stream_that_somebody_deleted_is_made_again() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let client = client(&options(server.url()));
    works(&client).await;
    for deletion in [format!("XGROUP DESTROY {HINTS} workers"), format!("DEL {HINTS}"), format!("RENAME {HINTS} other")]
    {
        client.transport.ring(2).await.unwrap();
        let hint = hint_within(&*client.transport, SOON).await;
        server.say::<()>(&deletion).await;
        client.transport.done(hint).await.unwrap();
        assert!(client.transport.depth().await.unwrap() <= 2, "{deletion}");
        // Whoever rings makes the group as well: a scaler looks at it before there is a worker.
        client.transport.ring(1).await.unwrap();
        assert_eq!(group(&server, HINTS).await.name, "workers");
        while client.transport.depth().await.unwrap() > 0 {
            let hint = hint_within(&*client.transport, MEND).await;
            client.transport.done(hint).await.unwrap();
        }
        // And while somebody waits.
        let (hint, ()) = tokio::join!(hint_within(&*client.transport, MEND), async {
            assert_eq!(client.transport.wait(Duration::from_millis(300)).await, None);
            server.say::<()>(&deletion).await;
            client.transport.ring(1).await.unwrap();
        });
        client.transport.done(hint).await.unwrap();
    }
}

struct Group {
    name: String,
    consumers: u64,
    pending: u64,
    lag: Option<u64>,
}

impl Group {
    fn numbers(&self) -> (Option<u64>, u64) {
        (self.lag, self.pending)
    }
}

/// What scalers see of the only group of a stream.
async fn group(server: &RedisServer, stream: &str) -> Group {
    let [told]: [std::collections::HashMap<String, redis::Value>; 1] =
        <[_; 1]>::try_from(server.say::<Vec<_>>(&format!("XINFO GROUPS {stream}")).await).unwrap();
    let number = |name: &str| told.get(name).and_then(|value| redis::from_redis_value_ref(value).unwrap());
    Group {
        name: redis::from_redis_value_ref(&told["name"]).unwrap(),
        consumers: number("consumers").unwrap(),
        pending: number("pending").unwrap(),
        lag: number("lag"),
    }
}

// KEDA takes a lag that is unknown for zero, and so would never start a worker again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_that_scalers_look_at_stays_known() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let client = client(&options(server.url()));
    client.transport.ring(5).await.unwrap();
    if server.version().await < 7 {
        return skip("Redis below 7 tells no lag");
    }
    assert_eq!(group(&server, HINTS).await.lag, Some(5), "before anybody has read");
    for left in [4, 3] {
        let hint = hint_within(&*client.transport, SOON).await;
        client.transport.done(hint).await.unwrap();
        assert_eq!(group(&server, HINTS).await.lag, Some(left));
    }
    for _ in 0..3 {
        let hint = hint_within(&*client.transport, SOON).await;
        client.transport.done(hint).await.unwrap();
    }
    // Read for somebody who went away meanwhile, and put back.
    for rung in 1..=3 {
        let gone = tokio::time::timeout(Duration::from_millis(50), client.transport.wait(SOON)).await;
        assert!(gone.is_err(), "nothing hangs there");
        client.transport.ring(1).await.unwrap();
        let until = Instant::now() + SOON;
        while group(&server, HINTS).await.numbers() != (Some(1), 0) {
            assert!(Instant::now() < until, "{:?} in round {rung}", group(&server, HINTS).await.numbers());
            tokio::time::sleep(LOOK).await;
        }
        let hint = hint_within(&*client.transport, SOON).await;
        client.transport.done(hint).await.unwrap();
    }
    assert_eq!(group(&server, HINTS).await.numbers(), (Some(0), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_consumer_held_does_not_count_and_is_taken_over() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let limits = Limits::for_tests();
    let client = client(&options(server.url()));
    client.transport.ring(5).await.unwrap();
    server.say::<redis::Value>(&format!("XREADGROUP GROUP workers dead COUNT 2 STREAMS {HINTS} >")).await;
    server.say::<redis::Value>(&format!("XREADGROUP GROUP workers idle COUNT 1 STREAMS {HINTS} >")).await;
    let held: Vec<(String, String, u64, u64)> = server.say(&format!("XPENDING {HINTS} workers - + 9 dead")).await;
    assert_eq!(client.transport.depth().await.unwrap(), 5, "they were read just now");
    let until = Instant::now() + limits.unsettled_after * 3;
    while client.transport.depth().await.unwrap() != 2 {
        assert!(Instant::now() < until, "what dead readers hold still counts");
        tokio::time::sleep(LOOK).await;
    }
    // One of them is gone from the stream, as after a trim by hand.
    server.say::<()>(&format!("XDEL {HINTS} {}", held[0].0)).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let hint = hint_within(&*client.transport, SOON).await;
        ids.push(hint.0.clone());
        client.transport.done(hint).await.unwrap();
    }
    assert!(ids.contains(&held[1].0) && !ids.contains(&held[0].0), "{ids:?}");
    let left = group(&server, HINTS).await;
    assert_eq!((left.pending, server.say::<u64>(&format!("XLEN {HINTS}")).await), (0, 0));

    // Consumers that hold nothing are removed by who comes later.
    assert_eq!(left.consumers, 3);
    tokio::time::sleep(limits.forgotten_after).await;
    let later = self::client(&options(server.url()));
    later.transport.ring(1).await.unwrap();
    hint_within(&*later.transport, SOON).await;
    let left = group(&server, HINTS).await;
    assert!(left.consumers < 4 && left.pending == 1, "{} consumers", left.consumers);
}

// The connection is there and nothing comes: a machine that is suspended, a network that swallows packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_answers_nothing_is_unreachable_in_time() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let client = client(&options(server.url()));
    works(&client).await;
    server.suspend().await;
    let began = Instant::now();
    let rung = client.transport.ring(1).await;
    assert!(matches!(rung, Err(TransportError::Unreachable(_))), "{rung:?}");
    assert_eq!(client.transport.wait(Duration::from_secs(1)).await, None);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    server.resume().await;
    ring_until_it_works(&*client.transport).await;
    let hint = hint_within(&*client.transport, MEND).await;
    client.transport.done(hint).await.unwrap();
}

// Others may be free: what was read for nobody is for all again at once, not when it may be claimed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_wait_gives_its_hint_back_without_a_claim() {
    let Some(subject) = OnRedis::with(never_claiming()).await else { return };
    let until = tokio::time::timeout(MEND, contract::transport::a_dropped_wait_loses_no_hint_for_good(&subject));
    until.await.expect("hints that were given back come at once");
}

// The answer to a read is lost with its connection: the server believes that it was delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_believes_to_be_delivered_is_asked_for_after_a_fault() {
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let options = RedisOptions { limits: never_claiming(), ..options(server.url()) };
    let client = client(&options);
    works(&client).await;
    client.transport.ring(3).await.unwrap();
    let in_hand = hint_within(&*client.transport, SOON).await;
    let read = format!("XREADGROUP GROUP workers {} COUNT 1 STREAMS {HINTS} >", options.process);
    let lost: Vec<(String, Vec<(String, Fields)>)> = server.say(&read).await;
    server.say::<()>("CLIENT KILL TYPE normal SKIPME yes").await;

    let mut found = Vec::new();
    for _ in 0..2 {
        let hint = hint_within(&*client.transport, SOON).await;
        client.transport.done(hint.clone()).await.unwrap();
        found.push(hint);
    }
    assert!(found.contains(&Hint(lost[0].1[0].0.clone())) && !found.contains(&in_hand), "{found:?}");
    client.transport.done(in_hand).await.unwrap();
    assert_eq!(client.transport.depth().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_under_a_read_loses_no_hint() {
    const ROUNDS: u32 = 40;
    let Some(server) = RedisServer::start(Settings::default()).await else { return };
    let client = client(&RedisOptions { limits: never_claiming(), ..options(server.url()) });
    let mut found = 0;
    for round in 0..ROUNDS {
        client.transport.wait(Duration::ZERO).await;
        let cutting = async {
            tokio::time::sleep(Duration::from_micros(u64::from(round) * 131 % 1500)).await;
            client.transport.ring(1).await.unwrap();
            server.say::<()>("CLIENT KILL TYPE normal SKIPME yes").await;
        };
        let (hint, ()) = tokio::join!(client.transport.wait(Duration::from_millis(1 + u64::from(round % 5))), cutting);
        if let Some(hint) = hint {
            client.transport.done(hint).await.unwrap();
            found += 1;
        }
    }
    while found < ROUNDS {
        let hint = hint_within(&*client.transport, MEND).await;
        client.transport.done(hint).await.unwrap();
        found += 1;
    }
    assert_eq!(client.transport.depth().await.unwrap(), 0);
}
