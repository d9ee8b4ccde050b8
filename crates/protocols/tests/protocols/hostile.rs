//! Bodies and answers that nobody sends honestly: they are refused or read, and nothing panics or takes for ever.

use bytes::Bytes;
use fettle_protocols::{
    AnswerReader, AnswerWriter, Edit, Head, Peek, Protocol, Target, Watch, WatchOptions, edit, read_error,
    read_request, write_request,
};
use proptest::prelude::*;

use crate::fixture::{self, SPOKEN};

fn try_request(protocol: Protocol, body: &[u8]) {
    drop(Peek::of(protocol, body));
    if let Ok(edited) = edit(protocol, &Bytes::copy_from_slice(body), Edit { model: "other", ask_usage: true }) {
        serde_json::from_slice::<Box<serde_json::value::RawValue>>(&edited).unwrap();
    }
    let Ok(request) = read_request(protocol, body) else { return };
    for (_, protocol) in SPOKEN {
        let target = Target { protocol, model: "m", takes_thoughts: false, default_max_tokens: 1 };
        if let Ok(written) = write_request(&request, &target) {
            assert!(written.dropped.iter().all(|name| name.is_ascii() && !name.contains(['\r', '\n'])));
            serde_json::from_slice::<Box<serde_json::value::RawValue>>(&written.body).unwrap();
        }
    }
}

fn try_answer(protocol: Protocol, streamed: bool, bytes: &[u8]) {
    let mut reader = AnswerReader::new(protocol, streamed);
    let mut events = reader.push(bytes);
    events.extend(reader.finish());
    for (_, caller) in SPOKEN {
        let head = Head {
            id: "1".to_owned(),
            model: "m".to_owned(),
            created: i64::MAX,
            streamed,
            usage: false,
            tools: Vec::new(),
        };
        let mut writer = AnswerWriter::new(caller, head);
        events.iter().for_each(|event| drop(writer.write(event)));
        drop(writer.finish());
    }
    let options = WatchOptions { streamed, model: Some("m".to_owned()), hide_usage: true };
    let mut watch = Watch::new(protocol, options);
    watch.push(Bytes::copy_from_slice(bytes));
    watch.finish();
    read_error(500, None, bytes);
}

const PIECES: [&[u8]; 13] = [
    b"null",
    b"{",
    b"[",
    b"\"",
    b"{}",
    b"[]",
    b"-1e999",
    b"\xff",
    b"\\u0000",
    b"\n\n",
    b",\"model\":1",
    b"{\"type\":\"text\"},",
    b"18446744073709551616",
];

/// Replaces, removes or repeats a stretch.
fn mutated(bytes: &[u8], at: prop::sample::Index, length: usize, with: &[u8], repeat: usize) -> Vec<u8> {
    let start = at.index(bytes.len());
    let end = (start + length).min(bytes.len());
    [&bytes[..start], &with.repeat(repeat), &bytes[end..]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn mutated_requests_and_answers_do_no_harm(
        at: prop::sample::Index,
        length in 0..40_usize,
        with in prop::sample::select(&PIECES[..]),
        repeat in 0..4_usize,
    ) {
        for fixture in fixture::all("requests") {
            try_request(fixture.protocol, &mutated(&fixture.bytes, at, length, with, repeat));
        }
        for fixture in fixture::all("answers") {
            try_answer(fixture.protocol, fixture.streamed, &mutated(&fixture.bytes, at, length, with, repeat));
        }
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for (_, protocol) in SPOKEN {
            try_request(protocol, &bytes);
            try_answer(protocol, true, &bytes);
        }
    }
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for place in ["\"tools\"", "\"messages\"", "\"unknown\"", "\"response_format\""] {
        try_request(Protocol::OpenAiChat, format!("{{\"model\":\"m\",\"messages\":[],{place}:{deep}}}").as_bytes());
    }
    let tool = format!(
        r#"{{"model":"m","max_tokens":1,"messages":[],"tools":[{{"name":"t","input_schema":{{"a":{deep}}}}}]}}"#
    );
    let refused = read_request(Protocol::AnthropicMessages, tool.as_bytes()).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("tools[0].input_schema"));
    try_answer(Protocol::OpenAiChat, true, format!("data: {{\"choices\":{deep}}}\n\n").as_bytes());
}

#[test]
fn counts_beyond_all_honesty_are_refused() {
    let fields: String = (0..20_000).map(|n| format!("\"f{n}\":1,")).collect();
    assert!(Peek::of(Protocol::OpenAiChat, format!("{{{fields}\"model\":\"m\"}}").as_bytes()).is_err());
    let messages = "{\"role\":\"user\",\"content\":\"x\"},".repeat(100_001);
    let body = format!("{{\"model\":\"m\",\"messages\":[{}]}}", messages.trim_end_matches(','));
    let refused = read_request(Protocol::OpenAiChat, body.as_bytes()).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("messages"));
    assert!(Peek::of(Protocol::OpenAiChat, body.as_bytes()).is_ok());
}
