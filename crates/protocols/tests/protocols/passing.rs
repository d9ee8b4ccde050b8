//! The same protocol on both sides: what is found out, what is changed, and what is learned of the answer.

use bytes::Bytes;
use fettle_protocols::{
    Edit, Finish, PREFIX_BYTES, Peek, Protocol, Seen, UpstreamError, Usage, Watch, WatchOptions, edit,
};
use proptest::prelude::*;

use crate::fixture;

fn changed(protocol: Protocol, body: &str, model: &str, ask_usage: bool) -> String {
    let bytes = edit(protocol, &Bytes::copy_from_slice(body.as_bytes()), Edit { model, ask_usage }).unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn usage_is_asked_for_without_touching_anything_else() {
    let cases = [
        (
            r#"{ "model" : "a","stream":true ,"x":[1 ,2]}"#,
            r#"{ "model" : "b","stream_options":{"include_usage":true},"stream":true ,"x":[1 ,2]}"#,
        ),
        (
            r#"{"stream":true,"stream_options":null,"model":"b"}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true},"model":"b"}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{},"model":"b"}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true},"model":"b"}"#,
        ),
        (
            r#"{"stream_options":{ "continuous_usage_stats":false,"include_usage":false},"model":"a","stream":true}"#,
            r#"{"stream_options":{ "continuous_usage_stats":false,"include_usage":true},"model":"b","stream":true}"#,
        ),
        (
            r#"{"stream_options":{"x":1},"model":"b","stream":true}"#,
            r#"{"stream_options":{"include_usage":true,"x":1},"model":"b","stream":true}"#,
        ),
        (r#"{"mod\u0065l":"a","stream":false}"#, r#"{"mod\u0065l":"b","stream":false}"#),
    ];
    for (before, after) in cases {
        assert_eq!(changed(Protocol::OpenAiChat, before, "b", true), after);
    }
    assert_eq!(
        changed(Protocol::OpenAiResponses, r#"{"model":"a","stream":true}"#, "b\"", true),
        r#"{"model":"b\"","stream":true}"#
    );
}

#[test]
fn a_body_that_needs_no_change_is_not_copied() {
    let body = Bytes::from_static(br#"{"model":"a","messages":[]}"#);
    let same = edit(Protocol::OpenAiChat, &body, Edit { model: "a", ask_usage: true }).unwrap();
    assert_eq!(same.as_ptr(), body.as_ptr());
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map(".{0,6}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn an_edit_keeps_all_but_the_models_name_byte_for_byte(
        before in proptest::collection::vec(("[a-z]{1,4}_", json()), 0..4),
        after in proptest::collection::vec(("[a-z]{1,4}_", json()), 0..4),
        space in "[ \n\t]{0,3}",
        model in ".{1,10}",
        name in ".{1,10}",
    ) {
        let say = |fields: &[(String, serde_json::Value)]| -> String {
            fields.iter().map(|(key, value)| format!("\"{key}\"{space}:{space}{value}")).collect::<Vec<_>>().join(",")
        };
        let comma = |said: &str| if said.is_empty() { "" } else { "," };
        let (head, tail) = (say(&before), say(&after));
        let body = |model: &str| {
            let model = serde_json::Value::from(model);
            format!("{space}{{{head}{}\"model\":{space}{model}{space}{}{tail}}}{space}", comma(&head), comma(&tail))
        };
        for protocol in [Protocol::OpenAiChat, Protocol::AnthropicMessages, Protocol::OllamaChat] {
            prop_assert_eq!(changed(protocol, &body(&model), &name, true), body(&name));
        }
    }

    #[test]
    fn a_watched_answer_is_the_same_wherever_it_is_cut(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        for fixture in fixture::all("answers") {
            let options = WatchOptions { streamed: fixture.streamed, model: Some("coder".to_owned()), hide_usage: true };
            let watched = |pieces: &[&[u8]]| watch(fixture.protocol, options.clone(), pieces);
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(fixture.bytes.len() + 1)).collect();
            places.extend([0, fixture.bytes.len()]);
            places.sort_unstable();
            let pieces: Vec<&[u8]> = places.windows(2).map(|two| &fixture.bytes[two[0]..two[1]]).collect();
            prop_assert_eq!(watched(&[&fixture.bytes]), watched(&pieces), "{}", fixture.case);
        }
    }
}

fn watch(protocol: Protocol, options: WatchOptions, pieces: &[&[u8]]) -> (String, Seen) {
    let mut watch = Watch::new(protocol, options);
    let mut out: Vec<u8> = pieces.iter().flat_map(|piece| watch.push(Bytes::copy_from_slice(piece))).collect();
    out.extend(watch.finish());
    (String::from_utf8(out).unwrap(), watch.seen().clone())
}

#[test]
fn an_answer_that_needs_no_change_passes_byte_for_byte_and_is_understood() {
    let full = Usage { prompt: 120, cached: 100, cache_write: 0, output: 30, thinking: 4 };
    for fixture in fixture::all("answers") {
        if fixture.protocol == Protocol::GoogleGenerate {
            continue; // never passed through
        }
        let options = WatchOptions { streamed: fixture.streamed, model: None, hide_usage: false };
        let (out, seen) = watch(fixture.protocol, options, &[&fixture.bytes]);
        assert_eq!(out.as_bytes(), fixture.bytes, "{}", fixture.case);
        assert!(seen.content && seen.ended && seen.error.is_none(), "{}: {seen:?}", fixture.case);
        let usage = seen.usage.unwrap();
        match fixture.protocol {
            Protocol::OpenAiChat if fixture.streamed => assert_eq!(usage, full),
            Protocol::OpenAiResponses => assert_eq!(usage, full),
            Protocol::AnthropicMessages => assert_eq!(usage, Usage { thinking: 0, ..full }),
            Protocol::OpenAiChat | Protocol::OllamaChat => assert_eq!((usage.prompt, usage.output), (120, 30)),
            _ => assert_eq!((usage.prompt, usage.output), (4, 2)),
        }
        assert!(seen.finish.is_some(), "{}", fixture.case);
    }
}

#[test]
fn the_callers_name_of_the_model_comes_back_and_the_usage_chunk_goes() {
    let chunk = |rest: &str| format!("data: {{\"id\":\"1\",\"model\":\"/srv/qwen\",{rest}}}\n\n");
    let stream = [
        chunk("\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]"),
        chunk("\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]"),
        chunk("\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}"),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat();
    let options = WatchOptions { streamed: true, model: Some("coder".to_owned()), hide_usage: true };
    let (out, seen) = watch(Protocol::OpenAiChat, options, &[stream.as_bytes()]);
    let usage_chunk = stream.split_inclusive("\n\n").nth(2).unwrap();
    assert_eq!(out, stream.replace(usage_chunk, "").replace("/srv/qwen", "coder"));
    assert_eq!(seen.usage, Some(Usage { prompt: 3, output: 1, ..Usage::default() }));
    assert_eq!(seen.finish, Some(Finish::MaxTokens));
    assert!(seen.ended);
}

#[test]
fn nothing_counts_as_content_before_there_is_some() {
    let begin =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n: keep-alive\n\n";
    let options = WatchOptions { streamed: true, model: None, hide_usage: false };
    let mut watch = Watch::new(Protocol::OpenAiChat, options);
    assert_eq!(watch.push(Bytes::from_static(begin.as_bytes())), begin);
    assert!(!watch.seen().content);
    watch.push(Bytes::from_static(b"data: {\"choices\":[{\"delta\":{\"reasoning\":\"x\"}}]}\n\n"));
    assert!(watch.seen().content && !watch.seen().ended);
}

#[test]
fn an_upstreams_error_in_a_stream_is_learned_and_not_passed_on() {
    let streams = [
        (
            Protocol::OpenAiChat,
            "data: {\"error\":{\"message\":\"CUDA /srv\",\"code\":500}}\n\ndata: [DONE]\n\n",
            UpstreamError::Failed,
        ),
        (
            Protocol::AnthropicMessages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n",
            UpstreamError::Overloaded { retry_after: None },
        ),
        (Protocol::OllamaChat, "{\"error\":\"model runner has unexpectedly stopped\"}\n", UpstreamError::Failed),
        (
            Protocol::OpenAiResponses,
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"x\"}}}\n\n",
            UpstreamError::RateLimited { retry_after: None },
        ),
    ];
    for (protocol, stream, error) in streams {
        let options = WatchOptions { streamed: true, model: None, hide_usage: false };
        let (out, seen) = watch(protocol, options, &[stream.as_bytes()]);
        assert_eq!((out.as_str(), seen.error, seen.ended), ("", Some(error), false), "{protocol:?}");
    }
}

#[test]
fn routing_learns_what_it_needs() {
    let peek = |protocol, body: &str| Peek::of(protocol, body.as_bytes()).unwrap();
    let chat = peek(
        Protocol::OpenAiChat,
        r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true,"n":3,"user":"kim","max_tokens":5,"max_completion_tokens":7}"#,
    );
    assert_eq!((chat.model.as_str(), chat.stream, chat.choices, chat.max_tokens), ("m", true, 3, Some(7)));
    assert_eq!((chat.session.as_deref(), chat.usage_in_stream), (Some("kim"), false));
    assert_eq!(chat.prefix, br#"[{"role":"user","content":"hello"}]"#);
    assert_eq!(chat.prompt_tokens, 9);
    let anthropic = peek(
        Protocol::AnthropicMessages,
        r#"{"messages":[],"system":"s","max_tokens":9,"metadata":{"user_id":"u"},"model":"m"}"#,
    );
    assert_eq!(
        (anthropic.session.as_deref(), anthropic.max_tokens, anthropic.usage_in_stream),
        (Some("u"), Some(9), true)
    );
    assert_eq!(anthropic.prefix, b"\"s\"[]");
    let ollama = peek(Protocol::OllamaChat, r#"{"model":"m","messages":[],"options":{"num_predict":-1}}"#);
    assert_eq!((ollama.stream, ollama.max_tokens), (true, None));
    let embed = |input: &str| peek(Protocol::OpenAiEmbeddings, &format!(r#"{{"model":"m","input":{input}}}"#)).prompts;
    assert_eq!([embed("\"a\""), embed("[\"a\",\"b\"]"), embed("[1,2,3]"), embed("[[1],[2],[3]]")], [1, 2, 1, 3]);
    let codex = peek(
        Protocol::OpenAiResponses,
        r#"{"model":"m","instructions":"i","input":[],"prompt_cache_key":"k","user":"u"}"#,
    );
    assert_eq!(codex.session.as_deref(), Some("k"));
}

#[test]
fn a_picture_costs_what_a_picture_costs_and_not_its_bytes() {
    let picture = "A".repeat(1_000_000);
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}}]}}]}}"#
    );
    let peek = Peek::of(Protocol::OpenAiChat, body.as_bytes()).unwrap();
    assert!(peek.prompt_bytes > 1_000_000);
    assert!((1600..1700).contains(&peek.prompt_tokens), "{}", peek.prompt_tokens);
    assert_eq!(peek.prefix.len(), PREFIX_BYTES);
}

#[test]
fn what_decides_is_refused_when_it_is_said_twice_or_wrongly() {
    let cases = [
        (r#"{"model":"cheap","messages":[],"model":"dear"}"#, Some("model")),
        (r#"{"messages":[]}"#, Some("model")),
        (r#"{"model":"","messages":[]}"#, Some("model")),
        (r#"{"model":"m","stream":"yes"}"#, Some("stream")),
        (r#"{"model":"m","max_tokens":-1}"#, Some("max_tokens")),
        (r#"{"model":"m","stream_options":{"include_usage":1}}"#, Some("stream_options.include_usage")),
        ("[]", None),
        ("{\"model\":\"m\"", None),
        ("", None),
    ];
    for (body, field) in cases {
        let refused = Peek::of(Protocol::OpenAiChat, body.as_bytes()).unwrap_err();
        assert_eq!(refused.field.as_deref(), field, "{body}: {refused}");
    }
    assert!(Peek::of(Protocol::OpenAiChat, b"{\"model\":\"\xff\"}").is_err());
}

#[test]
fn a_text_is_counted_whatever_its_script_and_wherever_it_has_no_blank() {
    let tokens = |protocol, body: &str| Peek::of(protocol, body.as_bytes()).unwrap().prompt_tokens;
    let chat = |content: &str| {
        tokens(
            Protocol::OpenAiChat,
            &format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{content}"}}]}}"#),
        )
    };
    assert!(chat(&"\u{6f22}".repeat(260_000)) >= 260_000);
    assert!(chat(&"A".repeat(400_000)) >= 100_000, "a message is no file");
    let quoted = format!(r#"\"url\":\"{}"#, "A".repeat(400_000));
    assert!(chat(&quoted) >= 100_000, "nor what is quoted in one");
    let picture = "iVBORw0K/+".repeat(10_000);
    let ollama =
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x","images":["{picture}","{picture}"]}}]}}"#);
    assert!((3_200..3_300).contains(&tokens(Protocol::OllamaChat, &ollama)));
    let source = format!(r#"{{"type":"base64","media_type":"image/png","data":"{picture}"}}"#);
    let anthropic = format!(
        r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":[{{"type":"image","source":{source}}}]}}]}}"#
    );
    assert!((1_600..1_700).contains(&tokens(Protocol::AnthropicMessages, &anthropic)));
    let foreign = anthropic.replace("iVBORw0K/+", "\u{6f22}");
    assert!(tokens(Protocol::AnthropicMessages, &foreign) >= 10_000, "no file is written so");
}

#[test]
fn the_largest_of_all_limits_and_counts_is_what_an_answer_may_take() {
    let peek = |protocol, rest: &str| Peek::of(protocol, format!(r#"{{"model":"m",{rest}}}"#).as_bytes()).unwrap();
    let chat = |rest| peek(Protocol::OpenAiChat, rest);
    let all = chat(r#""max_completion_tokens":1,"max_tokens":9,"n_predict":70,"n":2,"n_cmpl":5"#);
    assert_eq!((all.max_tokens, all.limits_differ, all.answers()), (Some(70), true, 5));
    let alike = chat(r#""max_completion_tokens":9,"max_tokens":9,"n_predict":null"#);
    assert_eq!((alike.max_tokens, alike.limits_differ), (Some(9), false));
    assert_eq!(chat(r#""max_tokens":9,"n_predict":-1"#).max_tokens, None);
    let ollama = peek(Protocol::OllamaChat, r#""max_tokens":1,"options":{"num_predict":80}"#);
    assert_eq!((ollama.max_tokens, ollama.limits_differ), (Some(80), true));
    let best = peek(Protocol::OpenAiCompletions, r#""prompt":["a","b"],"n":1,"best_of":4"#);
    assert_eq!(best.answers(), 8);
}

/// Servers in Go read names in any case, and of two the last one counts.
#[test]
fn names_that_another_reader_takes_for_ours_are_refused() {
    let cases = [
        (r#"{"model":"m","Model":"huge"}"#, "Model"),
        (r#"{"model":"m","max_tokens":1,"MAX_TOKENS":9}"#, "MAX_TOKENS"),
        (r#"{"model":"m","MAX_TOKENS":9}"#, "MAX_TOKENS"),
        (r#"{"model":"m","max_to\u212aens":9}"#, "max_to\u{212a}ens"),
        (r#"{"model":"m","me\u017f\u017fages":[]}"#, "me\u{17f}\u{17f}ages"),
        (r#"{"model":"m","seed":1,"Seed":2}"#, "Seed"),
        (r#"{"model":"m","options":{"num_predict":1,"Num_Predict":9}}"#, "options.Num_Predict"),
        (r#"{"model":"m","stream_options":{"Include_usage":false}}"#, "stream_options.Include_usage"),
    ];
    for (body, field) in cases {
        let refused = Peek::of(Protocol::OpenAiChat, body.as_bytes()).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(field), "{body}: {refused}");
    }
    assert!(Peek::of(Protocol::OpenAiChat, br#"{"model":"m","myField":1,"X":2}"#).is_ok());
}

#[test]
fn a_models_name_is_short_and_shows_what_it_is() {
    let named =
        |name: &str| Peek::of(Protocol::OpenAiChat, serde_json::json!({ "model": name }).to_string().as_bytes());
    for good in ["hf.co/unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", "claude 4.5 (big)", "\u{6a21}\u{578b}", &"x".repeat(256)] {
        assert!(named(good).is_ok(), "{good}");
    }
    for bad in ["a\u{1b}[31m", "a\nb", "a\u{202e}b", "a\u{200b}b", "", &"x".repeat(257)] {
        assert_eq!(named(bad).unwrap_err().field.as_deref(), Some("model"), "{bad:?}");
    }
}
