//! What is written down of each request.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::serving::EngineMeter;
use fettle_gateway::{End, Price, Provider, ProviderKind, ProviderModel};
use fettle_placement::id::{EngineId, Epoch};
use http::StatusCode;
use serde_json::json;

use crate::upstream::{Act, Upstream, delta, piece};
use crate::world::{KEY, World, chat_body, served};

fn meter(seconds: u64, millijoules: u64) -> Arc<Vec<EngineMeter>> {
    let busy = Duration::from_secs(seconds);
    Arc::new(vec![EngineMeter { engine: EngineId::new("e1"), epoch: Epoch(1), busy, millijoules: Some(millijoules) }])
}

#[tokio::test]
async fn a_record_says_who_asked_for_what_and_what_it_took() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    for stream in [false, true] {
        let mut request = world.chat(stream);
        request.headers_mut().insert("x-correlation-id", "corr-9".parse().unwrap());
        world.send(request).await.text().await;
    }
    let records = world.usage(2).await;
    for record in &records {
        assert_eq!((&*record.owner, &*record.model, &*record.target), ("ada", "coder", "e1"));
        assert_eq!((record.recipe.as_deref(), &*record.correlation), (Some("recipe"), "corr-9"));
        assert_eq!((record.prompt_tokens, record.output_tokens, record.end), (12, 3, End::Complete));
        assert_eq!((record.attempts, record.estimated, record.id.get_version_num()), (1, false, 7));
    }
    assert_eq!((records[0].cached_tokens, records[1].cached_tokens), (4, 0));
}

#[tokio::test]
async fn what_was_cut_off_is_counted_by_what_was_seen() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let pieces = upstream.stream();
    pieces.send(piece(delta("one"))).await.unwrap();
    let mut answer = world.send(world.chat(true)).await;
    answer.next().await.unwrap();
    drop(answer);
    let record = world.usage(1).await.remove(0);
    assert_eq!((record.end, record.estimated), (End::Cancelled, true));
    assert!(record.prompt_tokens > 0 && record.output_tokens >= 1);
}

#[tokio::test]
async fn an_engines_time_and_energy_are_on_its_requests() {
    let upstream = Upstream::start().await;
    let mut world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    world.meters.send_replace(meter(10, 1_000));
    // The load is told after the meters were read.
    world.send(world.chat(false)).await.text().await;
    world.inflight(0).await;
    let mut reading = 10;
    let records = loop {
        reading += 1;
        world.meters.send_replace(meter(reading, 1_000 + reading));
        tokio::select! {
            records = world.usage(1) => break records,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    };
    assert!(records[0].gpu_micros <= (reading - 10) * 1_000_000);
}

#[tokio::test]
async fn a_providers_prices_make_the_cost() {
    let cloud = Upstream::start().await;
    let world = World::with(served(Vec::new()), |settings| {
        let mut provider = Provider::new("cloud", ProviderKind::OpenAiCompatible);
        provider.base_url = Some(cloud.url());
        let price = Price { prompt: 1_000_000, cached: 500_000, output: 10_000_000 };
        provider.models = vec![ProviderModel { name: "big".to_owned(), context_tokens: None, price: Some(price) }];
        settings.providers = vec![provider];
    })
    .await;
    let mut body = chat_body(false);
    body["model"] = json!("cloud/big");
    let answer = world.send(world.request("/v1/chat/completions", KEY, &body)).await;
    assert_eq!(answer.status, StatusCode::OK);
    let record = world.usage(1).await.remove(0);
    assert_eq!((record.cost_micros, &*record.target), (8 + 2 + 30, "cloud"));
}

#[tokio::test]
async fn what_an_answer_begins_with_saying_is_not_what_it_took() {
    let claude = Upstream::start().await;
    let world = World::with(served(Vec::new()), |settings| {
        let mut provider = Provider::new("claude", ProviderKind::Anthropic);
        provider.base_url = Some(claude.url());
        provider.models = vec![ProviderModel { name: "big".to_owned(), context_tokens: None, price: None }];
        settings.providers = vec![provider];
    })
    .await;
    let event = |data: serde_json::Value| piece(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap()));
    let pieces = claude.stream();
    let usage = json!({ "input_tokens": 12, "output_tokens": 1 });
    let message =
        json!({ "id": "m", "type": "message", "role": "assistant", "model": "big", "content": [], "usage": usage });
    pieces.send(event(json!({ "type": "message_start", "message": message }))).await.unwrap();
    let body = json!({ "model": "claude/big", "max_tokens": 9_000, "stream": true, "messages": [] });
    let mut answer = world.send(world.request("/v1/messages", KEY, &body)).await;
    let text = "word ".repeat(800);
    for _ in 0..10 {
        let delta = json!({ "type": "text_delta", "text": text });
        pieces.send(event(json!({ "type": "content_block_delta", "index": 0, "delta": delta }))).await.unwrap();
    }
    let mut read = 0;
    while read < 40_000 {
        read += answer.next().await.unwrap().len();
    }
    drop(answer);
    while pieces.send(event(json!({ "type": "ping" }))).await.is_ok() {}
    let record = world.usage(1).await.remove(0);
    assert_eq!((record.end, record.prompt_tokens, record.estimated), (End::Cancelled, 12, true));
    assert!((9_900..10_200).contains(&record.output_tokens), "{record:?}");
}

#[tokio::test]
async fn an_answer_without_a_count_is_as_long_as_its_text_and_one_beyond_reason_is_cut_down() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let answer = |content: &str, usage: serde_json::Value| {
        let message = json!({ "role": "assistant", "content": content });
        let choices = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
        Act::Status(200, Vec::new(), json!({ "model": "wire-name", "choices": choices, "usage": usage }).to_string())
    };
    upstream.act(answer(&"word ".repeat(20_000), serde_json::Value::Null));
    let most = u64::MAX;
    let cached = json!({ "cached_tokens": most });
    upstream
        .act(answer("x", json!({ "prompt_tokens": most, "completion_tokens": most, "prompt_tokens_details": cached })));
    for _ in 0..2 {
        assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
    }
    let records = world.usage(2).await;
    assert!((24_000..26_000).contains(&records[0].output_tokens) && records[0].estimated, "{records:?}");
    assert!(records[1].prompt_tokens < 1 << 32 && records[1].output_tokens < 1 << 32, "{records:?}");
    assert!(records[1].cached_tokens <= records[1].prompt_tokens);
}
