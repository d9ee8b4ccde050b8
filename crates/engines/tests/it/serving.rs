//! From an order to answers, as each of the engines.

use std::collections::BTreeSet;
use std::time::Duration;

use fettle_app::ports::serving::{Endpoint, EngineAddress, EngineHost, ExitClass, ProcessState};
use fettle_fake_engine::{Behaviour, Fault};
use fettle_placement::id::{EngineId, Epoch};
use fettle_placement::recipe::EngineKind;
use secrecy::ExposeSecret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hosts::{Home, address, ask, order};

const KINDS: [(EngineKind, &str); 5] = [
    (EngineKind::LlamaServer, "llama-server"),
    (EngineKind::Vllm, "vllm"),
    (EngineKind::Sglang, "sglang"),
    (EngineKind::Ollama, "ollama"),
    (EngineKind::Command, "fake"),
];

/// What is asked of all of them at once here.
fn behaviour(home: &Home) -> Behaviour {
    Behaviour { load_ms: 100, gpu: Some(home.gpu(1 << 30)), workers: 1, ..Behaviour::default() }
}

#[tokio::test]
async fn every_engine_loads_serves_and_ends() {
    let home = Home::new();
    let host = home.open().await;
    for (kind, name) in KINDS {
        home.engine(name, &behaviour(&home));
        host.engines.start(order(name, 1, kind));
    }
    for (kind, name) in KINDS {
        let ready = host.ready(name).await;
        assert_eq!(ready.pids.len(), 2, "{name}: the first process and its worker");
        let at = address(&ready);
        // What the log says of its cache: two sequences of one context each.
        let says = matches!(kind, EngineKind::LlamaServer | EngineKind::Vllm | EngineKind::Sglang);
        assert_eq!(at.kv_tokens, says.then_some(8192), "{name}");
        let body =
            format!(r#"{{"model": "{}", "messages": [{{"role": "user", "content": "hello there"}}]}}"#, at.model);
        let (status, text) = ask(&at, "/v1/chat/completions", Some(&body)).await;
        assert!(status == 200 && text.contains("hello there"), "{name}: {text}");
        let (without_key, _) = ask(&EngineAddress { key: None, ..at }, "/v1/chat/completions", Some(&body)).await;
        assert_eq!(without_key, if kind == EngineKind::Ollama { 200 } else { 401 }, "{name}");
    }
    let told: BTreeSet<u32> = host.now().iter().flat_map(|one| one.pids.clone()).collect();
    assert_eq!(told, home.held().0, "the processes that are told are those that hold memory");
    assert_eq!(told, home.marked());
    for (_, name) in KINDS {
        host.engines.stop(&EngineId::new(name), Epoch(1));
    }
    for (_, name) in KINDS {
        assert_eq!(host.gone(name).await.class, ExitClass::Asked, "{name}");
        host.engines.forget(&EngineId::new(name), Epoch(1));
    }
    assert!(host.now().is_empty());
    home.becomes_empty(Duration::from_secs(5)).await;
    assert_eq!(host.engines.orphans_ended(), 0);
}

#[tokio::test]
async fn an_engine_sees_only_what_it_may() {
    let home = Home::new();
    home.engine("fake", &Behaviour::default());
    let host = home.open().await;
    host.engines.start(order("m.1", 7, EngineKind::Command));
    let ready = host.ready("m.1").await;
    let pid = ready.pids.first().unwrap();
    let environ = String::from_utf8(fs_err::read(format!("/proc/{pid}/environ")).unwrap()).unwrap();
    for wanted in ["FETTLE_ENGINE=m.1:7", "HF_HUB_OFFLINE=1", "CUDA_DEVICE_ORDER=PCI_BUS_ID", "PATH=/usr/bin:/bin"] {
        assert!(environ.split('\0').any(|pair| pair == wanted), "{wanted} in {environ}");
    }
    assert!(!environ.contains("OPENAI_API_KEY"));
    // Keys are on no command line, which everybody can read.
    let key = address(&ready).key.unwrap();
    let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(key.expose_secret()));
}

#[tokio::test]
async fn an_answer_can_be_streamed_and_a_crash_while_serving_is_told() {
    let home = Home::new();
    let behaviour = Behaviour {
        faults: vec![Fault::Crash],
        // The token that made it ready, and one more.
        answered_before_crash: 2,
        ..Behaviour::default()
    };
    home.engine("fake", &behaviour);
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    let at = address(&host.ready("m.1").await);
    let body = r#"{"model": "m", "stream": true, "messages": [{"role": "user", "content": "one two"}]}"#;
    let (status, text) = ask(&at, "/v1/chat/completions", Some(body)).await;
    assert_eq!((status, text.matches("data: ").count()), (200, 5), "{text}");
    assert!(text.contains("data: [DONE]"));
    let asked = tokio::time::timeout(Duration::from_secs(5), ask_and_lose(&at, body));
    let (_, exit) = tokio::join!(asked, host.gone("m.1"));
    assert_eq!((exit.class, exit.why.as_str()), (ExitClass::Unknown, "it was ended by signal 6"));
    assert!(matches!(host.now()[0].state, ProcessState::Gone(_)));
    assert!(host.log("m.1").await.contains("about to crash"));
}

/// A request that nobody lives to answer.
async fn ask_and_lose(at: &EngineAddress, body: &str) {
    let Endpoint::Unix(path) = &at.at else { panic!("{at:?}") };
    let mut stream = tokio::net::UnixStream::connect(path.as_std_path()).await.unwrap();
    let key = at.key.as_ref().unwrap().expose_secret();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut nothing = Vec::new();
    let _cut_off = stream.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty());
}
