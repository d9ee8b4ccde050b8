//! Stops that are asked for, whatever the engine thinks of it.

use std::time::Duration;

use fettle_app::ports::serving::{EngineHost, ExitClass, ProcessState};
use fettle_fake_engine::{Behaviour, Fault};
use fettle_placement::id::{EngineId, Epoch};
use fettle_placement::recipe::EngineKind;

use crate::hosts::{Home, order};

async fn ends_when_asked(faults: Vec<Fault>) -> Home {
    let home = Home::new();
    let behaviour = Behaviour { gpu: Some(home.gpu(1 << 30)), workers: 2, faults, ..Behaviour::default() };
    home.engine("fake", &behaviour);
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    let ready = host.ready("m.1").await;
    host.sees("m.1", "three processes", |one| one.pids.len() == 3).await;
    host.engines.stop(&ready.engine, ready.epoch);
    assert_eq!(host.gone("m.1").await.class, ExitClass::Asked);
    assert!(home.held().0.is_empty(), "it is gone when nothing of it is left, and not before");
    home
}

#[tokio::test]
async fn an_engine_that_does_not_listen_is_killed() {
    let home = ends_when_asked(vec![Fault::IgnoreTerm]).await;
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn workers_that_would_outlive_it_are_killed_wherever_they_hide() {
    let faults = vec![Fault::OrphanedWorkers, Fault::DetachedWorkers, Fault::HidingWorkers];
    let home = ends_when_asked(faults).await;
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_a_driver_loses_is_nobodys() {
    let home = ends_when_asked(vec![Fault::Leak]).await;
    let (holders, used) = home.held();
    assert!(holders.is_empty());
    assert_eq!(used, (1 << 30) + fettle_fake_nvml::State::one_gpu().gpus[0].memory.unwrap().used);
}

#[tokio::test]
async fn an_engine_can_be_stopped_while_it_loads_or_before_it_has_begun() {
    let home = Home::new();
    home.engine("fake", &Behaviour { load_ms: 60_000, gpu: Some(home.gpu(1)), ..Behaviour::default() });
    let host = home.open().await;
    for engine in ["m.1", "m.2"] {
        host.engines.start(order(engine, 1, EngineKind::Command));
    }
    host.engines.stop(&EngineId::new("m.2"), Epoch(1));
    host.sees("m.1", "loading", |one| matches!(one.state, ProcessState::Loading)).await;
    host.engines.stop(&EngineId::new("m.1"), Epoch(1));
    assert_eq!(host.gone("m.1").await.class, ExitClass::Asked);
    assert_eq!(host.gone("m.2").await.class, ExitClass::Asked);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn words_to_another_life_are_void() {
    let home = Home::new();
    home.engine("fake", &Behaviour::default());
    let host = home.open().await;
    let engine = EngineId::new("m.1");
    host.engines.start(order("m.1", 1, EngineKind::Command));
    let first = host.ready("m.1").await;
    host.engines.stop(&engine, Epoch(2));
    host.engines.start(order("m.1", 2, EngineKind::Command));
    host.engines.forget(&engine, Epoch(1));
    let now = &host.now()[0];
    assert_eq!((now.epoch, &now.pids), (Epoch(1), &first.pids));
    assert!(matches!(now.state, ProcessState::Ready(_)));
    host.engines.stop(&engine, Epoch(1));
    host.gone("m.1").await;
    // The name is free again.
    host.engines.start(order("m.1", 2, EngineKind::Command));
    let second = host.sees("m.1", "a new one", |one| one.epoch == Epoch(2)).await;
    assert!(!matches!(second.state, ProcessState::Gone(_)));
    host.ready("m.1").await;
}

#[tokio::test]
async fn closing_the_host_ends_its_children() {
    let home = Home::new();
    home.engine(
        "fake",
        &Behaviour { gpu: Some(home.gpu(1)), workers: 1, faults: vec![Fault::OrphanedWorkers], ..Behaviour::default() },
    );
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    host.ready("m.1").await;
    host.engines.close().await;
    assert_eq!(host.gone("m.1").await.class, ExitClass::Asked);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_folder_has_one_host() {
    let home = Home::new();
    let _host = home.open().await;
    let second = fettle_engines::Engines::open(home.settings(), fettle_app::ports::serving::Since::now_is_zero());
    assert!(second.err().unwrap().to_string().starts_with("engines cannot be recorded in "));
}
