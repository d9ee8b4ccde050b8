//! The fault matrix: what goes wrong with one GPU, or with the driver, while an engine there is not there yet, loads, or serves. Each
//! cell reaches its state soon, and the other GPU serves on throughout.

use std::time::Duration;

use fettle_fake_engine::Behaviour;
use fettle_fake_nvml::{Fabric, Remapped, Slice, State, code};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Host, KNOWN, says, uuid};

/// A call that hangs is given up after a second, and a sample is old after another.
const KNOWN_BY_SILENCE: Duration = Duration::from_secs(6);
/// Devices are listed every five seconds.
const KNOWN_BY_LISTING: Duration = Duration::from_secs(9);
/// One that is asked to end has ten seconds for it.
const GONE: Duration = Duration::from_secs(15);
/// Longer than a fault takes to be known.
const LOADS: u64 = 4_000;

/// What is seen of the first GPU, or of its pool.
#[derive(Debug, Clone, Copy)]
enum Becomes {
    Health(&'static str),
    /// Its memory offers nothing, and what is loaded serves on.
    Closed,
    /// Nothing: it is told, or it is none.
    Same,
}

/// How it comes to be known.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// By what is asked every second or more often.
    Asked,
    /// By the next list of all devices.
    Listed,
    /// By a call that does not come back.
    Silent,
}

struct Row {
    name: &'static str,
    seen: Seen,
    happens: fn(&mut State),
    becomes: Becomes,
}

const MEMORY: &[&str] = &["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo"];

const ROWS: &[Row] = &[
    Row {
        name: "lost",
        seen: Seen::Asked,
        happens: |state| state.gpus[0].lost = true,
        becomes: Becomes::Health("lost"),
    },
    Row {
        name: "fallen off the bus",
        seen: Seen::Asked,
        happens: |state| xid(state, 79),
        becomes: Becomes::Health("lost"),
    },
    Row {
        name: "double bit error",
        seen: Seen::Asked,
        happens: |state| xid(state, 48),
        becomes: Becomes::Health("quarantined"),
    },
    Row { name: "a fault of an engine", seen: Seen::Asked, happens: |state| xid(state, 31), becomes: Becomes::Same },
    Row { name: "a warning", seen: Seen::Asked, happens: |state| xid(state, 63), becomes: Becomes::Health("degraded") },
    Row {
        name: "rows that cannot be replaced",
        seen: Seen::Asked,
        happens: |state| state.gpus[0].remapped = Some(Remapped { pending: false, failure: true }),
        becomes: Becomes::Health("quarantined"),
    },
    Row {
        name: "a reset is asked for",
        seen: Seen::Asked,
        happens: |state| state.gpus[0].recovery_action = Some(1),
        becomes: Becomes::Health("quarantined"),
    },
    Row {
        name: "the fabric is not ready",
        seen: Seen::Listed,
        happens: |state| state.gpus[0].fabric = Some(Fabric { state: 2, status: 0, clique: 0 }),
        becomes: Becomes::Health("waiting"),
    },
    Row {
        name: "unknown error",
        seen: Seen::Asked,
        happens: |state| refuses(state, code::UNKNOWN),
        becomes: Becomes::Closed,
    },
    Row {
        name: "not supported",
        seen: Seen::Asked,
        happens: |state| refuses(state, code::NOT_SUPPORTED),
        becomes: Becomes::Closed,
    },
    Row {
        name: "the driver was exchanged",
        seen: Seen::Asked,
        happens: |state| state.errors.extend(named(MEMORY, code::LIB_RM_VERSION_MISMATCH)),
        becomes: Becomes::Closed,
    },
    Row {
        name: "the driver hangs",
        seen: Seen::Silent,
        happens: |state| state.hanging = MEMORY.iter().map(ToString::to_string).collect(),
        becomes: Becomes::Closed,
    },
    Row { name: "numbers change", seen: Seen::Listed, happens: |state| state.gpus.reverse(), becomes: Becomes::Same },
    Row { name: "it is cut into slices", seen: Seen::Listed, happens: slice, becomes: Becomes::Health("lost") },
];

fn xid(state: &mut State, xid: u32) {
    state.xids.push((state.gpus[0].uuid.clone(), xid));
}

fn refuses(state: &mut State, error: u32) {
    state.gpus[0].errors.extend(named(MEMORY, error));
}

fn named(functions: &[&str], error: u32) -> impl Iterator<Item = (String, u32)> {
    functions.iter().map(move |function| ((*function).to_owned(), error))
}

fn slice(state: &mut State) {
    let memory =
        state.gpus[0].memory.map(|memory| fettle_fake_nvml::Memory { total: memory.total / 2, used: 0, ..memory });
    let uuid = "MIG-00000001-0000-0000-0000-000000000000".to_owned();
    let one = Slice { uuid, name: "MIG 3g.40gb".into(), gi: 1, ci: 0, memory, processes: Vec::new() };
    state.gpus[0].slices = Some(vec![one]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum While {
    Idle,
    Loading,
    Serving,
}

/// Two GPUs, each with room for one model alone.
async fn host(load_ms: u64) -> Host {
    let slow = Behaviour { load_ms, ..says("big") };
    Host::with_gpus(&[80, 40])
        .model("big", "vllm", 60, 1, slow)
        .model("small", "command", 30, 2, says("small"))
        .up()
        .await
}

fn is_reached(row: &Row, gpus: &Value) -> bool {
    let first = uuid(1);
    let device = gpus["devices"].as_array().unwrap().iter().find(|device| device["id"] == first.as_str());
    let pool = format!("gpu:{first}");
    let closed =
        gpus["pools"].as_array().unwrap().iter().any(|one| one["id"] == pool.as_str() && one["closed"].is_string());
    match row.becomes {
        Becomes::Health("lost") => device.is_none_or(|device| device["health"] == "lost"),
        Becomes::Health(health) => device.is_some_and(|device| device["health"] == health),
        Becomes::Closed => closed,
        Becomes::Same => device.is_some_and(|device| device["health"] == "ok") && !closed,
    }
}

/// Goes through one column of the matrix, and tells every cell that does not hold.
async fn holds(during: While) {
    let mut wrong = Vec::new();
    for row in ROWS {
        if let Err(why) = cell(row, during).await {
            wrong.push(format!("{} while {during:?}: {why}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn cell(row: &Row, during: While) -> Result<(), String> {
    let host = host(if during == While::Loading { LOADS } else { 0 }).await;
    assert_eq!(host.answers("small").await, "small");
    let mut asked = JoinSet::new();
    match during {
        While::Idle => {}
        While::Serving => assert_eq!(host.answers("big").await, "big"),
        While::Loading => {
            let body = json!({ "model": "big", "messages": [{ "role": "user", "content": "hi" }] });
            asked.spawn(host.http.post(format!("{}/v1/chat/completions", host.gateway)).json(&body).send());
            let loads = |models: &Value| Host::state_of(models, "big") == Some("loading");
            host.until(&["models"], KNOWN, loads).await;
        }
    }
    host.change(row.happens);
    let limit = match row.seen {
        Seen::Asked => KNOWN,
        Seen::Listed => KNOWN_BY_LISTING,
        Seen::Silent => KNOWN_BY_SILENCE,
    };
    soon(&host, &["gpus"], limit, |gpus| is_reached(row, gpus)).await?;
    let mut served = host.ask("small").await.0;
    match row.becomes {
        // Its engine goes, and nobody else's GPU has room for it.
        Becomes::Health("lost" | "quarantined") => {
            // What it had of a GPU that nobody can look at is not known to be free.
            let gone = |models: &Value| {
                Host::state_of(models, "big").is_none_or(|state| matches!(state, "backoff" | "reclaiming"))
            };
            soon(&host, &["models"], GONE, gone).await?;
            let status = host.ask("big").await.0;
            ensure(status == 503, || format!("who asks for what was there gets {status}"))?;
        }
        _ if during == While::Serving => {
            let status = host.ask("big").await.0;
            ensure(status == 200, || format!("what was loaded answers {status}"))?;
        }
        _ => {}
    }
    // Whoever waits is answered in the end, with an answer or a reason.
    for answer in asked.join_all().await {
        let status = answer.unwrap().status().as_u16();
        ensure(matches!(status, 200 | 503), || format!("who waited for the load gets {status}"))?;
    }
    served = served.max(host.ask("small").await.0);
    ensure(served == 200, || format!("the other GPU answers {served}"))
}

fn ensure(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

async fn soon(host: &Host, arguments: &[&str], limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<(), String> {
    let end = Instant::now() + limit;
    loop {
        let value = host.json(arguments);
        if wanted(&value) {
            return Ok(());
        }
        ensure(Instant::now() < end, || {
            let shown =
                json!({ "devices": value["devices"][0], "pools": value["pools"][0], "engines": value["engines"][0] });
            format!("not within {limit:?}: {shown}")
        })?;
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn every_fault_is_known_soon_and_the_other_gpu_serves_on_while_nothing_is_loaded() {
    holds(While::Idle).await;
}

#[tokio::test]
async fn every_fault_is_known_soon_and_the_other_gpu_serves_on_during_a_load() {
    holds(While::Loading).await;
}

#[tokio::test]
async fn every_fault_is_known_soon_and_the_other_gpu_serves_on_beside_an_engine_that_serves() {
    holds(While::Serving).await;
}
