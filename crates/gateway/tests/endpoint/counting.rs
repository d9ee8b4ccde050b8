//! What is written down of each request.

use std::sync::Arc;
use std::time::Duration;

use fettle_app::ports::serving::EngineMeter;
use fettle_gateway::{End, Price, Provider, ProviderKind, ProviderModel};
use fettle_placement::id::{EngineId, Epoch};
use http::StatusCode;
use serde_json::json;

use crate::upstream::{Upstream, delta, piece};
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
