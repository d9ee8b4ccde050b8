//! `queue-peer-apalis URL JOBS CALLERS`: puts that many jobs of 1 KiB into an empty Redis, works them off, and tells both times.
//!
//! At its best: as many pushers as callers, as many handlers at once, and batches of that size.

use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use serde::{Deserialize, Serialize};

const PAYLOAD_BYTES: usize = 1024;

static LEFT: AtomicUsize = AtomicUsize::new(0);
static ENDED: Mutex<Option<Instant>> = Mutex::new(None);

#[derive(Clone, Serialize, Deserialize)]
struct Payload {
    content: String,
}

async fn handle(_: Payload, worker: WorkerContext) -> Result<(), BoxDynError> {
    if LEFT.fetch_sub(1, Ordering::SeqCst) == 1 {
        *ENDED.lock().expect("no holder panics") = Some(Instant::now());
        worker.stop()?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, url, jobs, callers] = arguments.as_slice() else { return Err("URL JOBS CALLERS".into()) };
    let (jobs, callers): (usize, usize) = (jobs.parse()?, callers.parse()?);
    let connection = apalis_redis::connect(url.as_str()).await?;
    let config = Config::default().queue("bench").batch_size(callers);
    let storage: RedisStorage<Payload> = RedisStorage::new(connection).with_config(config);
    LEFT.store(jobs, Ordering::SeqCst);

    let began = Instant::now();
    let mut pushers = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let mut storage = storage.clone();
        let own = jobs / callers + usize::from(caller < jobs % callers);
        pushers.spawn(async move {
            for _ in 0..own {
                storage.push(Payload { content: "x".repeat(PAYLOAD_BYTES) }).await.map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(pushed) = pushers.join_next().await {
        pushed??;
    }
    let pushed = began.elapsed();

    let began = Instant::now();
    WorkerBuilder::new("bench").backend(storage).concurrency(callers).build(handle).run().await?;
    let ended = ENDED.lock().expect("no holder panics").ok_or("the worker ended before its work")?;
    println!("{} {}", pushed.as_secs_f64(), ended.duration_since(began).as_secs_f64());
    Ok(())
}
