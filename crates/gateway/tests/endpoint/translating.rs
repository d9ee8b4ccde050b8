//! Requests whose API the target does not speak.

use http::StatusCode;
use serde_json::{Value, json};

use crate::upstream::Upstream;
use crate::world::{KEY, MODEL, World, served};

fn messages(stream: bool) -> Value {
    json!({
        "model": MODEL, "max_tokens": 50, "stream": stream, "system": "Be brief.",
        "messages": [{ "role": "user", "content": "Say hello." }],
    })
}

#[tokio::test]
async fn anthropics_api_is_answered_by_an_engine_that_speaks_openais() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let body = world.send(world.request("/v1/messages", KEY, &messages(false))).await.json().await;
    assert_eq!((&body["type"], &body["model"]), (&json!("message"), &json!(MODEL)));
    assert_eq!(body["content"][0]["text"], json!("Hello world"));
    assert_eq!(body["usage"]["output_tokens"], json!(3));
    let asked = upstream.last();
    assert_eq!((&*asked.path, &asked.body["messages"][0]["role"]), ("/v1/chat/completions", &json!("system")));

    let text = world.send(world.request("/v1/messages", KEY, &messages(true))).await.text().await;
    assert!(text.starts_with("event: message_start\n") && text.contains("event: message_stop\n"), "{text}");
    let records = world.usage(2).await;
    assert!(records.iter().all(|record| (record.prompt_tokens, record.output_tokens) == (12, 3)), "{records:?}");
}

#[tokio::test]
async fn a_tool_is_called_and_answered_in_anthropics_words() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    for stream in [false, true] {
        let mut body = messages(stream);
        body["tools"] = json!([{ "name": "weather", "input_schema": { "type": "object" } }]);
        let text = world.send(world.request("/v1/messages", KEY, &body)).await.text().await;
        assert!(text.contains("tool_use") && text.contains("weather") && text.contains("Ulm"), "{text}");
        assert_eq!(upstream.last().body["tools"][0]["function"]["name"], json!("weather"));
        body["messages"] = json!([
            { "role": "user", "content": "How is the weather?" },
            { "role": "assistant", "content": [{ "type": "tool_use", "id": "call_1", "name": "weather", "input": {} }] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "call_1", "content": "Rain." }] },
        ]);
        let text = world.send(world.request("/v1/messages", KEY, &body)).await.text().await;
        assert!(text.contains("Hello") && text.contains("end_turn"), "{text}");
    }
}

#[tokio::test]
async fn responses_and_ollamas_chat_are_as_well() {
    let upstream = Upstream::start().await;
    let world = World::start(served(vec![upstream.engine("e1", 4)])).await;
    let body = json!({ "model": MODEL, "input": "Say hello.", "stream": true });
    let text = world.send(world.request("/v1/responses", KEY, &body)).await.text().await;
    assert!(text.contains("response.completed"), "{text}");
    let body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": "Say hello." }] });
    let text = world.send(world.request("/api/chat", KEY, &body)).await.text().await;
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["done"], json!(true), "{text}");
}

#[tokio::test]
async fn errors_have_the_shape_of_the_api_that_was_asked() {
    let world = World::start(served(Vec::new())).await;
    let mut body = messages(false);
    body["model"] = json!("nobody");
    let answer = world.send(world.request("/v1/messages", KEY, &body)).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.json().await["error"]["type"], json!("not_found_error"));
    let answer = world.send(world.request("/v1/chat/completions", KEY, &body)).await;
    assert_eq!(answer.json().await["error"]["code"], json!("model_not_found"));
    let answer = world.send(world.request("/v1/chat/completions", KEY, &json!([1]))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tokens_are_counted_without_an_engine() {
    let world = World::start(served(Vec::new())).await;
    let answer = world.send(world.request("/v1/messages/count_tokens", KEY, &messages(false))).await;
    assert!(answer.json().await["input_tokens"].as_u64().unwrap() > 0);
}
