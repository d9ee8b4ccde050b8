//! Loads that fail, and what is said about it.

use std::time::Duration;

use fettle_app::ports::serving::{EngineHost, Exit, ExitClass};
use fettle_fake_engine::{Behaviour, Fault};
use fettle_placement::quantity::Millis;
use fettle_placement::recipe::{EngineKind, Recipe};

use crate::hosts::{Home, order};

const KINDS: [(EngineKind, &str); 4] = [
    (EngineKind::LlamaServer, "llama-server"),
    (EngineKind::Vllm, "vllm"),
    (EngineKind::Sglang, "sglang"),
    (EngineKind::Ollama, "ollama"),
];

/// All four engines end so at once.
async fn ends_of(fault: Fault) -> Vec<Exit> {
    let home = Home::new();
    let host = home.open().await;
    for (kind, name) in KINDS {
        let behaviour =
            Behaviour { load_ms: 50, gpu: Some(home.gpu(1 << 30)), faults: vec![fault], ..Behaviour::default() };
        home.engine(name, &behaviour);
        host.engines.start(order(name, 1, kind));
    }
    let mut ends = Vec::new();
    for (_, name) in KINDS {
        ends.push(host.gone(name).await);
    }
    home.becomes_empty(Duration::from_secs(5)).await;
    ends
}

#[tokio::test]
async fn every_engine_without_memory_is_understood() {
    for end in ends_of(Fault::OutOfMemory).await {
        assert_eq!(end.class, ExitClass::OutOfMemory, "{}", end.why);
    }
}

#[tokio::test]
async fn every_engine_with_a_broken_model_is_understood() {
    for end in ends_of(Fault::BadModel).await {
        assert_eq!(end.class, ExitClass::BadModel, "{}", end.why);
    }
}

#[tokio::test]
async fn every_engine_without_a_driver_is_understood() {
    for end in ends_of(Fault::Driver).await {
        assert_eq!(end.class, ExitClass::Driver, "{}", end.why);
    }
}

#[tokio::test]
async fn a_flag_that_the_engine_does_not_know_is_a_bad_flag() {
    let home = Home::new();
    home.engine("vllm", &Behaviour::default());
    let host = home.open().await;
    let mut order = order("m.1", 1, EngineKind::Vllm);
    order.recipe = Recipe { flags: vec!["--no-such-flag".to_owned()], ..order.recipe };
    host.engines.start(order);
    let exit = host.gone("m.1").await;
    let why = "it does not accept its command line: vllm: error: unrecognized arguments: --no-such-flag";
    assert_eq!((exit.class, exit.why.as_str()), (ExitClass::BadFlag, why));
}

#[tokio::test]
async fn a_program_that_is_not_there_was_not_started() {
    let home = Home::new();
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Vllm));
    let exit = host.gone("m.1").await;
    assert_eq!(exit.class, ExitClass::NotStarted);
    assert!(
        exit.why.starts_with("its program could not be started: vllm cannot be started: No such file"),
        "{}",
        exit.why
    );
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_engine_that_does_nothing_more_has_stalled_and_one_that_gets_on_has_not() {
    let mut home = Home::new();
    home.limits.stall = Millis::secs(2);
    home.engine("fake", &Behaviour { load_ms: 200, faults: vec![Fault::Stall], workers: 1, ..Behaviour::default() });
    // A line every 0.7 s: slower than the limit as a whole, and never silent for as long.
    home.engine("vllm", &Behaviour { load_ms: 2800, ..Behaviour::default() });
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    host.engines.start(order("m.2", 1, EngineKind::Vllm));
    let exit = host.gone("m.1").await;
    assert_eq!(exit.class, ExitClass::Stalled, "{}", exit.why);
    host.ready("m.2").await;
}

#[tokio::test]
async fn an_engine_that_is_well_and_never_answers_is_not_ready() {
    let mut home = Home::new();
    home.limits.stall = Millis::secs(1);
    home.engine("fake", &Behaviour { faults: vec![Fault::Mute], ..Behaviour::default() });
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    assert_eq!(host.gone("m.1").await.class, ExitClass::Stalled);
}

#[tokio::test]
async fn a_cache_that_does_not_hold_one_context_is_refused() {
    let home = Home::new();
    home.engine("vllm", &Behaviour { kv_tokens: 4000, ..Behaviour::default() });
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Vllm));
    let exit = host.gone("m.1").await;
    let why = "its cache holds 4000 tokens, and one context has 4096";
    assert_eq!((exit.class, exit.why.as_str()), (ExitClass::OutOfMemory, why));
}
