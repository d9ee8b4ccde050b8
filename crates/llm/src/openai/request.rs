//! The body of a chat completion request.

use fettle_app::ports::model::{Message, ModelRequest, SentCall};
use serde_json::{Map, Value, json};

/// `extra` holds sampling parameters; what Fettle itself decides (messages, tools, limits, streaming) wins over it.
pub(super) fn body(model: &str, extra: &Map<String, Value>, request: &ModelRequest) -> Value {
    let mut body = extra.clone();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), request.messages.iter().map(message).collect());
    body.insert("max_tokens".into(), request.max_tokens.into());
    body.insert("stream".into(), request.stream.into());
    body.remove("stream_options");
    if request.stream {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    body.remove("tools");
    if !request.tools.is_empty() {
        let tools = request.tools.iter().map(|tool| {
            json!({ "type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.parameters,
            }})
        });
        body.insert("tools".into(), tools.collect());
    }
    Value::Object(body)
}

fn message(message: &Message) -> Value {
    match message {
        Message::System { text } => json!({ "role": "system", "content": text }),
        Message::User { text } => json!({ "role": "user", "content": text }),
        Message::Assistant { text, calls } if calls.is_empty() => json!({ "role": "assistant", "content": text }),
        Message::Assistant { text, calls } => {
            // Templates print an empty text beside calls as a turn of its own; null is what the format means.
            let content = if text.is_empty() { Value::Null } else { text.as_str().into() };
            json!({ "role": "assistant", "content": content, "tool_calls": calls.iter().map(call).collect::<Value>() })
        }
        Message::Tool { call_id, text } => json!({ "role": "tool", "tool_call_id": call_id, "content": text }),
    }
}

fn call(call: &SentCall) -> Value {
    let function = json!({ "name": call.name, "arguments": call.arguments.to_string() });
    json!({ "id": call.id, "type": "function", "function": function })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fettle_app::ports::model::ToolSpec;

    #[test]
    fn a_conversation_with_calls_becomes_the_wire_format_and_extra_parameters_override_nothing() {
        let request = ModelRequest {
            messages: vec![
                Message::System { text: "rules".into() },
                Message::User { text: "fix it".into() },
                Message::Assistant {
                    text: String::new(),
                    calls: vec![SentCall { id: "c1".into(), name: "view".into(), arguments: json!({"path": "a"}) }],
                },
                Message::Tool { call_id: "c1".into(), text: "1\tx".into() },
            ],
            tools: vec![ToolSpec {
                name: "view".into(),
                description: "reads".into(),
                parameters: json!({"type": "object"}),
            }],
            max_tokens: 100,
            stream: true,
        };
        let extra = json!({ "temperature": 0.2, "max_tokens": 1, "stream": false });
        let body = body("m", extra.as_object().unwrap(), &request);
        assert_eq!(
            body,
            json!({
                "model": "m", "max_tokens": 100, "temperature": 0.2,
                "stream": true, "stream_options": { "include_usage": true },
                "messages": [
                    { "role": "system", "content": "rules" },
                    { "role": "user", "content": "fix it" },
                    { "role": "assistant", "content": null, "tool_calls": [
                        { "id": "c1", "type": "function", "function": { "name": "view", "arguments": "{\"path\":\"a\"}" } },
                    ]},
                    { "role": "tool", "tool_call_id": "c1", "content": "1\tx" },
                ],
                "tools": [{ "type": "function", "function": {
                    "name": "view", "description": "reads", "parameters": { "type": "object" },
                }}],
            })
        );
    }
}
