//! Raw Redis Streams: what a queue of nothing but `XADD`, and of read, acknowledge and delete in one script, can do.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use camino::Utf8Path;
use fettle_test_kit::brokers::redis::{RedisServer, Settings};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client};

use crate::callers::{Pace, drive};
use crate::ledger::PAYLOAD_BYTES;

const STREAM: &str = "bench";
/// What one entry's life needs after it was added. A worker gets the payload, so that is the answer.
const TAKE: &str = "
    local read = redis.call('XREADGROUP', 'GROUP', 'g', ARGV[1], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
    if not read then return false end
    local entry = read[1][2][1]
    redis.call('XACK', KEYS[1], 'g', entry[1])
    redis.call('XDEL', KEYS[1], entry[1])
    return entry[2][2]";
/// A flush of a slow disk is far below.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// When Redis makes durable what it has answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fsync {
    Always,
    EverySecond,
}

/// A Redis with its data below `folder`; `None`, said visibly, where there is no `redis-server`.
pub(crate) async fn redis(folder: &Utf8Path, fsync: Fsync) -> Option<RedisServer> {
    let fsync = match fsync {
        Fsync::Always => "always",
        Fsync::EverySecond => "everysec",
    };
    let settings = Settings::default().with(format!("dir {folder}")).with(format!("appendfsync {fsync}"));
    RedisServer::start(settings).await
}

/// What `server` calls itself.
pub(crate) async fn version(server: &RedisServer) -> String {
    let told: String = server.say("INFO server").await;
    let version = told.lines().find_map(|line| line.strip_prefix("redis_version:"));
    version.unwrap_or("unknown").trim().to_owned()
}

/// Cycles a second of `callers` for `time`, after `warm_up`. All of them share one connection, which sends what has queued
/// in one write.
pub(crate) async fn cycles(
    server: &RedisServer,
    callers: u32,
    warm_up: Duration,
    time: Duration,
) -> anyhow::Result<f64> {
    server.flush().await;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(ANSWER_LIMIT));
    let client = Client::open(server.url())?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut group = redis::cmd("XGROUP");
    group.arg("CREATE").arg(STREAM).arg("g").arg("0").arg("MKSTREAM");
    group.query_async::<()>(&mut connection).await?;
    let script: String = redis::cmd("SCRIPT").arg("LOAD").arg(TAKE).query_async(&mut connection).await?;

    let payload = "x".repeat(PAYLOAD_BYTES);
    let call = {
        let connection = connection.clone();
        move |caller: u32| cycle(connection.clone(), script.clone(), payload.clone(), caller)
    };
    drive(callers, Pace::AsFastAsAnswered, warm_up, call.clone()).await?;
    let answered = drive(callers, Pace::AsFastAsAnswered, time, call).await?;
    let left: u64 = redis::cmd("XLEN").arg(STREAM).query_async(&mut connection).await?;
    ensure!(left == 0, "{left} entries are left in a stream that was read to its end");
    Ok(answered.per_second)
}

async fn cycle(
    mut connection: MultiplexedConnection,
    script: String,
    payload: String,
    caller: u32,
) -> anyhow::Result<()> {
    let mut add = redis::cmd("XADD");
    add.arg(STREAM).arg("*").arg("payload").arg(&payload).query_async::<()>(&mut connection).await?;
    let mut take = redis::cmd("EVALSHA");
    take.arg(&script).arg(1).arg(STREAM).arg(caller);
    let taken: Option<Vec<u8>> = take.query_async(&mut connection).await?;
    let taken = taken.context("no entry, though there is one for each who asks")?;
    ensure!(taken.len() == PAYLOAD_BYTES, "a payload came back with {} bytes", taken.len());
    Ok(())
}
