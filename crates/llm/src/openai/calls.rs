//! Joins the fragments of native calls. Nothing is repaired: what a server repeats stays repeated, and `agent` judges.

use fettle_app::ports::model::{Progress, RawArguments, RawCall};
use fettle_domain::words::Voice;
use serde_json::Value;

use crate::watch::{Channel, Cut, Watcher};

/// No sane turn comes near (`agent` takes eight); a server that numbers every fragment anew would.
const MAX_CALLS: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: Vec<RawCall>,
    /// One per call.
    watchers: Vec<Watcher>,
    /// The call that the last fragment went to: where a fragment without index and id belongs.
    latest: Option<usize>,
}

/// Why a turn is cut within its calls.
pub(super) type Reason = String;

impl Calls {
    /// Takes `delta.tool_calls`. The fragments of one call share an index or, where that is missing, an id; with
    /// neither, the place among several fragments or else the latest call.
    pub(super) fn join(&mut self, fragments: &Value, progress: &Progress<'_>) -> Result<(), Reason> {
        let fragments = listed(fragments);
        for (place, fragment) in fragments.iter().enumerate() {
            let several = fragments.len() > 1;
            let call = self.find(fragment, several.then_some(place));
            self.extend(call, fragment, progress)?;
        }
        Ok(())
    }

    /// Takes `message.tool_calls`: each entry is a call of its own, even if ids repeat.
    pub(super) fn take_whole(&mut self, calls: &Value, progress: &Progress<'_>) -> Result<(), Reason> {
        for call in listed(calls) {
            self.extend(None, call, progress)?;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    pub(super) fn into_raw(self) -> Vec<RawCall> {
        let mut calls = self.calls;
        calls.sort_by_key(|call| call.index);
        calls
    }

    /// The known call that the fragment continues.
    fn find(&self, fragment: &Value, place: Option<usize>) -> Option<usize> {
        let id = id_of(fragment);
        let Some(index) = index_of(fragment) else {
            return match (id, place.and_then(|place| u32::try_from(place).ok())) {
                (Some(id), _) => self.calls.iter().rposition(|call| call.id.as_deref() == Some(id)),
                (None, Some(place)) => self.calls.iter().rposition(|call| call.index == place),
                (None, None) => self.latest,
            };
        };
        let of_index = self.calls.iter().rposition(|call| call.index == index)?;
        let Some(id) = id else { return Some(of_index) };
        let of_both = self.calls.iter().rposition(|call| call.index == index && call.id.as_deref() == Some(id));
        match &self.calls[of_index].id {
            _ if of_both.is_some() => of_both,
            None => Some(of_index),
            // Some servers number every call 0, others give each fragment an id of its own: the name tells them apart.
            Some(_) if has_name(fragment) => None,
            Some(_) => Some(of_index),
        }
    }

    fn extend(&mut self, call: Option<usize>, fragment: &Value, progress: &Progress<'_>) -> Result<(), Reason> {
        let at = match call {
            Some(at) => at,
            None if self.calls.len() >= MAX_CALLS => return Err(format!("more than {MAX_CALLS} calls in one turn")),
            None => {
                let next = self.calls.iter().map(|call| call.index.saturating_add(1)).max().unwrap_or(0);
                let index = index_of(fragment).unwrap_or(next);
                self.calls.push(RawCall { index, ..RawCall::default() });
                self.watchers.push(Watcher::new(Channel::Arguments));
                self.calls.len() - 1
            }
        };
        self.latest = Some(at);
        let call = &mut self.calls[at];
        if call.id.is_none() {
            call.id = id_of(fragment).map(str::to_owned);
        }
        if let Some(name) = fragment["function"]["name"].as_str() {
            progress(Voice::Call, name);
            call.name.get_or_insert_default().push_str(name);
        }
        let before = match &call.arguments {
            RawArguments::Text(text) => text.len(),
            RawArguments::Json(_) => 0,
        };
        append(&mut call.arguments, &fragment["function"]["arguments"]);
        let RawArguments::Text(text) = &mut call.arguments else { return Ok(()) };
        let cut = self.watchers[at].look(text);
        if let Some(cut) = &cut {
            text.truncate(cut.keep);
        }
        if let Some(piece) = text.get(before..).filter(|piece| !piece.is_empty()) {
            progress(Voice::Arguments, piece);
        }
        cut.map_or(Ok(()), |Cut { reason, .. }| Err(reason))
    }
}

fn append(arguments: &mut RawArguments, more: &Value) {
    let more = match more {
        Value::Null => return,
        Value::String(more) if more.is_empty() => return,
        Value::String(more) => more.clone(),
        whole => {
            if matches!(arguments, RawArguments::Text(text) if text.is_empty()) {
                *arguments = RawArguments::Json(whole.clone());
                return;
            }
            whole.to_string()
        }
    };
    match arguments {
        RawArguments::Text(text) => text.push_str(&more),
        RawArguments::Json(first) => *arguments = RawArguments::Text(format!("{first}{more}")),
    }
}

/// A list, or the one call that some servers send without its list.
fn listed(value: &Value) -> &[Value] {
    match value {
        Value::Array(list) => list,
        Value::Object(_) => std::slice::from_ref(value),
        _ => &[],
    }
}

fn index_of(fragment: &Value) -> Option<u32> {
    fragment["index"].as_u64().and_then(|index| u32::try_from(index).ok())
}

fn id_of(fragment: &Value) -> Option<&str> {
    fragment["id"].as_str().filter(|id| !id.is_empty())
}

fn has_name(fragment: &Value) -> bool {
    fragment["function"]["name"].as_str().is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn joined(deltas: &[Value]) -> Vec<RawCall> {
        let mut calls = Calls::default();
        for delta in deltas {
            calls.join(delta, &|_, _| ()).expect("a turn that is not cut");
        }
        calls.into_raw()
    }

    fn call(index: u32, id: Option<&str>, name: Option<&str>, arguments: &str) -> RawCall {
        RawCall {
            index,
            id: id.map(Into::into),
            name: name.map(Into::into),
            arguments: RawArguments::Text(arguments.into()),
        }
    }

    #[test]
    fn parallel_calls_are_joined_by_index() {
        let calls = joined(&[
            json!([{"index": 0, "id": "a", "function": {"name": "view", "arguments": ""}}]),
            json!([{"index": 1, "id": "b", "function": {"name": "str_"}}]),
            json!([{"index": 1, "function": {"name": "replace", "arguments": "{\"x\""}},
                   {"index": 0, "function": {"arguments": "{}"}}]),
            json!([{"index": 1, "id": null, "function": {"name": null, "arguments": ":1}"}}]),
        ]);
        assert_eq!(
            calls,
            [call(0, Some("a"), Some("view"), "{}"), call(1, Some("b"), Some("str_replace"), "{\"x\":1}")]
        );
    }

    #[test]
    fn without_an_index_the_id_joins_and_without_both_the_latest_call() {
        let calls = joined(&[
            json!([{"id": "a", "function": {"name": "view", "arguments": "{"}}]),
            json!([{"id": "b", "function": {"name": "bash", "arguments": "["}}]),
            json!([{"id": "a", "function": {"arguments": "}"}}]),
            json!({"function": {"arguments": "?"}}),
        ]);
        assert_eq!(calls, [call(0, Some("a"), Some("view"), "{}?"), call(1, Some("b"), Some("bash"), "[")]);
    }

    #[test]
    fn calls_that_share_an_index_are_told_apart_by_id_and_name() {
        let all_zero = joined(&[
            json!([{"index": 0, "id": "a", "function": {"name": "view", "arguments": "{}"}}]),
            json!([{"index": 0, "id": "b", "function": {"name": "bash", "arguments": "{}"}}]),
        ]);
        assert_eq!(all_zero, [call(0, Some("a"), Some("view"), "{}"), call(0, Some("b"), Some("bash"), "{}")]);
        let new_ids = joined(&[
            json!([{"index": 0, "id": "a", "function": {"name": "view", "arguments": "{"}}]),
            json!([{"index": 0, "id": "b", "function": {"arguments": "}"}}]),
        ]);
        assert_eq!(new_ids, [call(0, Some("a"), Some("view"), "{}")]);
    }

    #[test]
    fn nothing_is_repaired() {
        let repeated = json!([{"index": 0, "id": "a", "function": {"name": "bash", "arguments": "{}"}}]);
        assert_eq!(joined(&[repeated.clone(), repeated]), [call(0, Some("a"), Some("bashbash"), "{}{}")]);
        assert_eq!(joined(&[json!([{"index": 0, "function": {"name": ""}}])]), [call(0, None, Some(""), "")]);
        assert_eq!(joined(&[json!([{"index": -1}])]), [call(0, None, None, "")]);
        let object = joined(&[json!([{"index": 0, "function": {"name": "view", "arguments": {"path": "a"}}}])]);
        assert_eq!(object[0].arguments, RawArguments::Json(json!({"path": "a"})));
        let whole = json!([{"id": "a", "function": {"name": "view", "arguments": "{}"}},
                           {"id": "a", "function": {"name": "view", "arguments": "{}"}}]);
        let mut calls = Calls::default();
        calls.take_whole(&whole, &|_, _| ()).unwrap();
        assert_eq!(calls.into_raw().len(), 2);
    }

    #[test]
    fn a_server_that_numbers_each_fragment_anew_is_stopped() {
        let mut calls = Calls::default();
        let stopped = (0..1_000).find_map(|index| calls.join(&json!([{"index": index}]), &|_, _| ()).err());
        assert_eq!(stopped.as_deref(), Some("more than 128 calls in one turn"));
        assert_eq!(calls.into_raw().len(), MAX_CALLS);
    }
}
