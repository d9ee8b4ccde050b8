//! Requests whose API the target speaks.

use std::time::Duration;

use fettle_app::ports::serving::When;
use fettle_gateway::{Provider, ProviderKind, ProviderModel, Served};
use http::StatusCode;
use serde_json::json;

use crate::upstream::{self, Upstream, delta, done, finish, piece, usage};
use crate::world::{KEY, MODEL, World, chat_body, served, unserved};

#[tokio::test]
async fn an_answer_passes_with_only_the_names_and_the_key_changed() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let mut request = world.chat(false);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (name, value) in [("x-request-id", "req-7"), ("x-correlation-id", "corr-9"), ("traceparent", trace)] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = world.send(request).await;
    assert_eq!(answer.status, StatusCode::OK);
    for (name, value) in [("x-request-id", "req-7"), ("request-id", "req-7"), ("x-correlation-id", "corr-9")] {
        assert_eq!(answer.header(name), Some(value));
    }
    let body = answer.json().await;
    assert_eq!((&body["model"], &body["usage"]["prompt_tokens"]), (&json!(MODEL), &json!(12)));

    let asked = upstream.last();
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.headers["authorization"], format!("Bearer {}", upstream::KEY));
    assert_eq!(
        (&asked.headers["x-request-id"], &asked.headers["traceparent"]),
        (&"req-7".parse().unwrap(), &trace.parse().unwrap())
    );
    let mut expected = chat_body(false);
    expected["model"] = json!("wire-name");
    assert_eq!(asked.body, expected);
}

#[tokio::test]
async fn each_piece_of_a_stream_goes_on_before_the_next_one_is_there() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let pieces = upstream.stream();
    let asking = world.send(world.chat(true));
    let telling = async {
        upstream.asked(1).await;
        pieces.send(piece(delta("one"))).await.unwrap();
    };
    let (mut answer, ()) = tokio::join!(asking, telling);
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert!(answer.next().await.unwrap().contains("\"one\""));
    pieces.send(piece(delta("two"))).await.unwrap();
    assert!(answer.next().await.unwrap().contains("\"two\""));
    for rest in [finish(), usage(), done()] {
        pieces.send(piece(rest)).await.unwrap();
    }
    drop(pieces);
    let rest = answer.text().await;
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    assert!(!rest.contains("completion_tokens"), "usage that nobody asked for: {rest}");
    assert_eq!(upstream.last().body["stream_options"]["include_usage"], json!(true));
}

#[tokio::test]
async fn an_engine_on_a_unix_socket_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let socket = camino::Utf8PathBuf::from_path_buf(folder.path().join("e.sock")).unwrap();
    let upstream = Upstream::start_unix(&socket);
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_conversation_stays_at_its_engine() {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    let world = World::start(served(vec![one.engine("e1", 4), other.engine("e2", 4)])).await;
    for _ in 0..6 {
        let mut request = world.chat(false);
        request.headers_mut().insert("x-session-id", "talk".parse().unwrap());
        assert_eq!(world.send(request).await.status, StatusCode::OK);
    }
    assert!([one.times(), other.times()].contains(&6));
}

#[tokio::test]
async fn providers_are_asked_by_name_with_their_own_key_and_profiles_fall_back_to_them() {
    let cloud = Upstream::start().await;
    let supply = unserved("All devices are busy.", When::Waiting(Duration::from_secs(9)));
    let world = World::with(supply, |settings| {
        let mut provider = Provider::new("cloud", ProviderKind::OpenAi);
        provider.base_url = Some(format!("{}/v1", cloud.url()));
        provider.api_key = Some("cloud key".to_owned().into());
        provider.models = vec![ProviderModel { name: "big".to_owned(), context_tokens: None, price: None }];
        settings.providers = vec![provider];
        settings.names.insert("best".to_owned(), vec![MODEL.to_owned(), "cloud/big".to_owned()]);
    })
    .await;
    for name in ["cloud/big", "best"] {
        let mut body = chat_body(false);
        body["model"] = json!(name);
        let answer = world.send(world.request("/v1/chat/completions", KEY, &body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{name}");
        let asked = cloud.last();
        assert_eq!(asked.body["model"], json!("big"));
        assert_eq!(asked.headers["authorization"], "Bearer cloud key");
    }
    let mut dear = chat_body(false);
    dear["model"] = json!("cloud/another of the account's");
    let answer = world.send(world.request("/v1/chat/completions", KEY, &dear)).await;
    assert_eq!((answer.status, cloud.times()), (StatusCode::NOT_FOUND, 2));
}

#[tokio::test]
async fn providers_come_change_and_go_while_the_gateway_serves() {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    let world = World::with(served(Vec::new()), |settings| {
        let small = ProviderModel { name: "small".to_owned(), context_tokens: None, price: None };
        let fixed = Provider::new("fixed", ProviderKind::OpenAi);
        let provider = Provider { base_url: Some(one.url()), models: vec![small], ..fixed };
        settings.providers = vec![provider];
    })
    .await;
    let served_by = |at: &Upstream, key: &str| {
        let model = ProviderModel { name: "big".to_owned(), context_tokens: Some(65_536), price: None };
        let provider = Provider {
            base_url: Some(at.url()),
            api_key: Some(key.to_owned().into()),
            models: vec![model],
            ..Provider::new("browser", ProviderKind::OpenAiCompatible)
        };
        Served { name: "mine".to_owned(), provider }
    };
    let ask = async || {
        let mut body = chat_body(false);
        body["model"] = json!("mine");
        world.send(world.request("/v1/chat/completions", KEY, &body)).await.status
    };
    assert_eq!(ask().await, StatusCode::NOT_FOUND);
    for (at, key) in [(&one, "first"), (&one, "second"), (&other, "second")] {
        assert!(world.providers.set(vec![served_by(at, key)]).is_empty());
        assert_eq!(ask().await, StatusCode::OK);
        let asked = at.last();
        assert_eq!(asked.headers["authorization"], format!("Bearer {key}"));
        assert_eq!(asked.body["model"], json!("big"));
    }
    assert_eq!((one.times(), other.times()), (2, 1));

    // One that cannot be asked keeps nobody else out, and what is gone is gone.
    let nowhere = Provider { base_url: None, ..served_by(&one, "x").provider };
    let nowhere = Served { name: "nowhere".to_owned(), provider: nowhere };
    let refused = world.providers.set(vec![nowhere, served_by(&one, "third")]);
    assert_eq!(refused.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["nowhere"]);
    assert_eq!(ask().await, StatusCode::OK);
    assert_eq!(one.last().headers["authorization"], "Bearer third");

    // A name of the settings' own stays theirs.
    let theirs = Served { name: "fixed/small".to_owned(), ..served_by(&other, "x") };
    assert!(world.providers.set(vec![theirs, served_by(&one, "third")]).is_empty());
    let mut body = chat_body(false);
    body["model"] = json!("fixed/small");
    world.send(world.request("/v1/chat/completions", KEY, &body)).await;
    assert_eq!((one.last().body["model"].clone(), other.times()), (json!("small"), 1));
    assert_eq!(ask().await, StatusCode::OK);
    let listed = world.get("/v1/models").await.json().await;
    assert!(listed["data"].as_array().unwrap().iter().any(|model| model["id"] == json!("mine")), "{listed}");
    assert!(world.providers.set(Vec::new()).is_empty());
    assert_eq!(ask().await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn models_are_listed_in_the_shape_that_is_asked_for() {
    let world = World::start(served(Vec::new())).await;
    let listed = world.get("/v1/models").await.json().await;
    assert_eq!(listed["data"][0]["id"], json!(MODEL));
    assert_eq!(world.get("/v1/models/coder").await.json().await["id"], json!(MODEL));
    assert_eq!(world.get("/v1/models/some/other").await.status, StatusCode::NOT_FOUND);
    let tags = world.get("/api/tags").await.json().await;
    assert!(tags["models"][0]["name"].as_str().unwrap().starts_with(MODEL), "{tags}");
    assert_eq!(world.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(world.get("/v1/nothing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(world.get("/v1/chat/completions").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let mut body = chat_body(false);
    body["messages"][0]["content"] = json!("x".repeat(33 << 20));
    let answer = world.send(world.request("/v1/chat/completions", KEY, &body)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(upstream.times(), 0);
}

#[tokio::test]
async fn bodies_without_room_are_refused_for_now() {
    let upstream = Upstream::start().await;
    let world =
        World::with(served(vec![upstream.engine("e1", 4)]), |settings| settings.most_body_bytes = 64 << 10).await;
    let mut body = chat_body(false);
    body["messages"][0]["content"] = json!("x".repeat(65 << 10));
    for (path, status) in [("/v1/chat/completions", 503), ("/v1/messages/count_tokens", 529)] {
        let answer = world.send(world.request(path, KEY, &body)).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (status, Some("1")));
    }
    assert_eq!(world.send(world.chat(false)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_tell_of_requests_and_of_nobody() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    world.send(world.chat(false)).await.text().await;
    let mut body = chat_body(false);
    body["model"] = json!("a name that a caller made up");
    assert_eq!(world.send(world.request("/v1/chat/completions", KEY, &body)).await.status, StatusCode::NOT_FOUND);
    let metrics = world.metrics();
    assert!(metrics.contains(r#"fettle_gateway_requests_total{protocol="openai_chat",status="2xx"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"fettle_gateway_rejected_total{reason="unknown_model"} 1"#), "{metrics}");
    assert!(!metrics.contains("made up") && !metrics.contains("ada"));
}
