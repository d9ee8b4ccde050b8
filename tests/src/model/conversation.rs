//! What a script may look at: the conversation in one request.

use serde_json::Value;

/// One message, reduced to what scripts decide on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    pub text: String,
    /// Names of the native calls, in order.
    pub calls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub model: String,
    pub messages: Vec<Said>,
    /// Names of the tools offered natively.
    pub tools: Vec<String>,
    pub stream: bool,
    /// 1 when this server sees these messages for the first time, 2 when they are sent again, and so on. Only faults
    /// that pass by themselves should depend on it.
    pub attempt: u32,
}

impl Conversation {
    pub fn of_body(body: &Value, attempt: u32) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let name = |tool: &Value| tool["function"]["name"].as_str().unwrap_or_default().to_owned();
        let messages = list(&body["messages"]).into_iter().map(|message| Said {
            role: message["role"].as_str().unwrap_or_default().to_owned(),
            text: text(&message["content"]),
            calls: list(&message["tool_calls"]).iter().map(name).collect(),
        });
        Self {
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            messages: messages.collect(),
            tools: list(&body["tools"]).iter().map(name).collect(),
            stream: body["stream"].as_bool().unwrap_or(false),
            attempt,
        }
    }

    /// The phase that the latest marked user message names in a line `Phase: <name>`. Results of tools may come as user
    /// messages too; they carry no mark and change nothing.
    pub fn phase(&self) -> Option<&str> {
        self.phase_start().map(|(_, phase)| phase)
    }

    /// Assistant turns since the phase began, or of the whole conversation if no phase is named. Starts at 0.
    pub fn turn(&self) -> usize {
        let start = self.phase_start().map_or(0, |(at, _)| at);
        self.messages[start..].iter().filter(|message| message.role == "assistant").count()
    }

    /// The last message, usually the result of a tool or an error that the model is told.
    pub fn last_text(&self) -> &str {
        self.messages.last().map_or("", |message| &message.text)
    }

    fn phase_start(&self) -> Option<(usize, &str)> {
        let mut users = self.messages.iter().enumerate().rev().filter(|(_, message)| message.role == "user");
        users.find_map(|(at, message)| Some((at, message.text.lines().find_map(phase_of)?)))
    }
}

fn phase_of(line: &str) -> Option<&str> {
    line.trim().strip_prefix("Phase:").map(str::trim).filter(|phase| !phase.is_empty())
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_marked_user_message_names_the_phase_and_turns_count_from_there() {
        let body = json!({ "model": "m", "stream": true, "messages": [
            { "role": "system", "content": "Phase: none" },
            { "role": "user", "content": "The issue\nPhase: triage\nDecide." },
            { "role": "assistant", "content": "go" },
            { "role": "user", "content": [{ "type": "text", "text": "Phase: fix" }] },
            { "role": "assistant", "content": null, "tool_calls": [{ "function": { "name": "view" } }] },
            { "role": "user", "content": "result of view: Phase: nothing" },
            { "role": "assistant", "content": "hm" },
            { "role": "tool", "content": "Phase: other" },
        ]});
        let conversation = Conversation::of_body(&body, 1);
        assert_eq!((conversation.phase(), conversation.turn()), (Some("fix"), 2));
        assert_eq!(conversation.messages[4].calls, ["view"]);
        let unmarked = Conversation::of_body(&json!({ "messages": [{ "role": "assistant", "content": "x" }] }), 1);
        assert_eq!((unmarked.phase(), unmarked.turn()), (None, 1));
    }
}
