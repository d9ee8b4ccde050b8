//! Recorded requests and answers in every other protocol, as snapshots beside them.

use std::fmt::Write;

use fettle_protocols::{
    AnswerReader, AnswerWriter, Event, Head, Protocol, Target, ToolKind, read_request, write_request,
};
use proptest::prelude::*;

use crate::fixture::{self, SPOKEN};

fn target(protocol: Protocol) -> Target<'static> {
    Target { protocol, model: "upstream-model", takes_thoughts: true, default_max_tokens: 4096 }
}

fn head(streamed: bool) -> Head {
    Head {
        id: "0001".to_owned(),
        model: "coder".to_owned(),
        created: 1_790_000_000,
        streamed,
        usage: true,
        tools: vec![("list".to_owned(), ToolKind::Grouped { namespace: "fs".to_owned(), name: "ls".to_owned() })],
    }
}

fn snapshot(folder: &str, case: &str, shown: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("../../fixtures/{folder}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(case, shown));
}

#[test]
fn each_recorded_request_is_said_in_each_protocol_or_refused_with_a_reason() {
    for fixture in fixture::all("requests") {
        let request = read_request(fixture.protocol, &fixture.bytes).unwrap();
        let mut shown = String::new();
        for (word, protocol) in SPOKEN.iter().filter(|(_, protocol)| *protocol != fixture.protocol) {
            match write_request(&request, &target(*protocol)) {
                Ok(written) => {
                    serde_json::from_slice::<serde_json::Value>(&written.body).unwrap();
                    let body = str::from_utf8(&written.body).unwrap();
                    let dropped = written.dropped.join(", ");
                    writeln!(shown, "## {word}\nPOST {}\ndropped: {dropped}\n{body}\n", written.path).unwrap();
                }
                Err(refused) => writeln!(shown, "## {word}\nrefused: {refused}\n").unwrap(),
            }
        }
        snapshot("requests", &fixture.case, &shown);
    }
}

fn events(protocol: Protocol, streamed: bool, pieces: &[&[u8]]) -> Vec<Event> {
    let mut reader = AnswerReader::new(protocol, streamed);
    let mut events: Vec<Event> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    events.extend(reader.finish());
    events
}

#[test]
fn each_recorded_answer_is_said_in_each_callers_protocol() {
    for fixture in fixture::all("answers") {
        let events = events(fixture.protocol, fixture.streamed, &[&fixture.bytes]);
        let mut shown = String::from("## events\n");
        events.iter().for_each(|event| writeln!(shown, "{event:?}").unwrap());
        for (word, protocol) in SPOKEN {
            if matches!(protocol, Protocol::OpenAiEmbeddings | Protocol::GoogleGenerate) {
                continue;
            }
            let mut writer = AnswerWriter::new(protocol, head(fixture.streamed));
            let mut bytes: Vec<u8> = events.iter().flat_map(|event| writer.write(event)).collect();
            bytes.extend(writer.finish().unwrap());
            writeln!(shown, "\n## {word}\n{}", str::from_utf8(&bytes).unwrap()).unwrap();
        }
        snapshot("answers", &fixture.case, &shown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(80) })]

    #[test]
    fn an_answer_tells_the_same_wherever_it_is_cut(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        for fixture in fixture::all("answers") {
            let whole = events(fixture.protocol, fixture.streamed, &[&fixture.bytes]);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(fixture.bytes.len() + 1)).collect();
            places.extend([0, fixture.bytes.len()]);
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|two| &fixture.bytes[two[0]..two[1]]).collect();
            prop_assert_eq!(whole, events(fixture.protocol, fixture.streamed, &pieces), "{}", fixture.case);
        }
    }
}

#[test]
fn an_answer_byte_by_byte_tells_the_same() {
    for fixture in fixture::all("answers") {
        let whole = events(fixture.protocol, fixture.streamed, &[&fixture.bytes]);
        let pieces: Vec<&[u8]> = fixture.bytes.chunks(1).collect();
        assert_eq!(whole, events(fixture.protocol, fixture.streamed, &pieces), "{}", fixture.case);
    }
}

#[test]
fn an_answer_that_is_cut_off_says_so() {
    for fixture in fixture::all("answers").iter().filter(|fixture| fixture.streamed) {
        let half = events(fixture.protocol, true, &[&fixture.bytes[..fixture.bytes.len() / 3]]);
        assert!(matches!(half.last(), Some(Event::Failed(_))), "{}: {half:?}", fixture.case);
    }
}

#[test]
fn an_error_in_a_stream_ends_it_without_the_upstreams_words() {
    let streams = [
        (Protocol::OpenAiChat, "data: {\"error\":{\"message\":\"secret /srv/x\",\"code\":500}}\n\n"),
        (
            Protocol::AnthropicMessages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"secret\"}}\n\n",
        ),
        (Protocol::OllamaChat, "{\"error\":\"secret\"}\n"),
        (
            Protocol::OpenAiResponses,
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"server_error\",\"message\":\"secret\"}}}\n\n",
        ),
        (
            Protocol::GoogleGenerate,
            "data: {\"error\":{\"code\":503,\"message\":\"secret\",\"status\":\"UNAVAILABLE\"}}\n\n",
        ),
    ];
    for (protocol, stream) in streams {
        let told = events(protocol, true, &[stream.as_bytes()]);
        let [.., Event::Failed(failure)] = told.as_slice() else { panic!("{protocol:?}: {told:?}") };
        assert!(!failure.sentence().contains("secret"), "{protocol:?}");
        for (_, caller) in SPOKEN {
            let mut writer = AnswerWriter::new(caller, head(true));
            let said: Vec<u8> = told.iter().flat_map(|event| writer.write(event)).collect();
            let said = String::from_utf8(said).unwrap();
            assert!(!said.contains("secret") && !said.contains("[DONE]"), "{said}");
            assert_eq!(writer.finish(), Err(failure.clone()));
        }
    }
}

#[test]
fn what_changes_the_meaning_is_refused_and_the_field_named() {
    let cases = [
        (Protocol::OpenAiChat, r#"{"model":"m","messages":[],"n":2}"#, "n"),
        (Protocol::OpenAiChat, r#"{"model":"m","messages":[],"logit_bias":{"5":1}}"#, "logit_bias"),
        (Protocol::OpenAiChat, r#"{"model":"m","messages":[],"logprobs":true}"#, "logprobs"),
        (Protocol::OllamaGenerate, r#"{"model":"m","prompt":"x","context":[1]}"#, "context"),
        (
            Protocol::AnthropicMessages,
            r#"{"model":"m","max_tokens":1,"messages":[],"mcp_servers":[{}]}"#,
            "mcp_servers",
        ),
    ];
    for (protocol, body, field) in cases {
        let request = read_request(protocol, body.as_bytes()).unwrap();
        for (_, other) in SPOKEN.iter().filter(|(_, other)| *other != protocol) {
            let refused = write_request(&request, &target(*other)).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
        }
    }
}

#[test]
fn a_wrong_type_is_refused_and_the_field_named() {
    let cases = [
        (
            Protocol::OpenAiChat,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":5}]}]}"#,
            "messages[0].content[0].text",
        ),
        (Protocol::OpenAiChat, r#"{"model":"m","messages":{}}"#, "messages"),
        (Protocol::OpenAiChat, r#"{"model":"m","messages":[],"temperature":"hot"}"#, "temperature"),
        (Protocol::OpenAiChat, r#"{"model":"m","messages":[{"role":"wizard"}]}"#, "messages[0].role"),
        (Protocol::OpenAiChat, r#"{"model":"m","model":"n","messages":[]}"#, "model"),
        (Protocol::AnthropicMessages, r#"{"model":"m","messages":[]}"#, "max_tokens"),
        (
            Protocol::AnthropicMessages,
            r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"tool_use","id":"1","name":"n","input":[]}]}]}"#,
            "messages[0].content[0].input",
        ),
        (
            Protocol::OpenAiResponses,
            r#"{"model":"m","input":"x","previous_response_id":"resp_1"}"#,
            "previous_response_id",
        ),
        (
            Protocol::OpenAiResponses,
            r#"{"model":"m","input":[{"type":"function_call_output","output":"x"}]}"#,
            "input[0].call_id",
        ),
        (Protocol::OllamaChat, r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#, "messages[0]"),
        (
            Protocol::OllamaChat,
            r#"{"model":"m","messages":[{"role":"user","images":["AAAA"]}]}"#,
            "messages[0].images[0]",
        ),
    ];
    for (protocol, body, field) in cases {
        let refused = read_request(protocol, body.as_bytes()).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
        assert!(refused.sentence.contains(field), "{refused}");
    }
}

#[test]
fn a_tool_that_takes_plain_text_comes_back_as_one() {
    let body = fixture::all("requests").into_iter().find(|fixture| fixture.case == "codex.responses").unwrap().bytes;
    let request = read_request(Protocol::OpenAiResponses, &body).unwrap();
    let mut writer = AnswerWriter::new(Protocol::OpenAiResponses, request.head("7".to_owned(), 0));
    let told = [
        Event::CallBegun { id: "c1".to_owned(), name: "apply_patch".to_owned() },
        Event::CallArguments("{\"inp".to_owned()),
        Event::CallArguments("ut\":\"*** Begin\\n\"}".to_owned()),
        Event::CallEnded,
        Event::CallBegun { id: String::new(), name: "mcp__docs__find".to_owned() },
        Event::CallArguments("{}".to_owned()),
        Event::CallEnded,
        Event::Finished(fettle_protocols::Finish::Calls),
    ];
    let said: Vec<u8> = told.iter().flat_map(|event| writer.write(event)).collect();
    let said = String::from_utf8(said).unwrap();
    let items: Vec<serde_json::Value> = said
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap())
        .filter(|event| event["type"] == "response.output_item.done")
        .map(|event| event["item"].clone())
        .collect();
    assert_eq!(items[0]["type"], "custom_tool_call");
    assert_eq!(items[0]["input"], "*** Begin\n");
    assert_eq!((&items[1]["namespace"], &items[1]["name"]), (&"mcp__docs".into(), &"find".into()));
    assert_eq!(items[1]["call_id"], "call_7_2");
}
