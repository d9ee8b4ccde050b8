//! The adapter of production against each fault of the scripted server: what a worker's model port makes of it.

use std::time::Duration;

use fettle_app::ports::model::{
    Finish, Message, Model, ModelError, ModelInfo, ModelRequest, RawArguments, RawCall, RawTurn, Usage,
};
use fettle_llm::{OpenAiCompatible, OpenAiOptions};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Answer, Fault, ModelServer, Script};

/// No wait of these tests is meant to last; this ends one that does.
const PATIENCE: Duration = Duration::from_secs(20);

fn answer() -> Answer {
    Answer::call("view", json!({ "path": "src/lib.rs" })).saying("Let me look.").reasoning("A file, surely.")
}

async fn ask(answer: Answer, stream: bool) -> Result<RawTurn, ModelError> {
    // Only what is meant to stall meets a short limit: the machine that runs this may be busy.
    let stalls = matches!(&answer.fault, Some(Fault::Stall(time) | Fault::StallAfter { lasting: time, .. }) if *time >= PATIENCE);
    let stall_limit = if stalls { Duration::from_millis(200) } else { PATIENCE };
    let server = ModelServer::start(Script::always(answer).requiring_key("sk-test"));
    let info = ModelInfo { name: "scripted".into(), context_tokens: 32_768 };
    let mut options = OpenAiOptions::new(info, server.base_url(), "scripted");
    options.api_key = Some("sk-test".into());
    options.stall_limit = stall_limit;
    let model = OpenAiCompatible::new(options).expect("the options are right");
    let messages = vec![Message::User { text: "Phase: fix".into() }];
    let request = ModelRequest { messages, tools: Vec::new(), max_tokens: 100, stream };
    let cancel = CancellationToken::new();
    tokio::time::timeout(PATIENCE, model.call(&request, &|_, _| (), &cancel)).await.expect("the call ends in time")
}

fn whole() -> RawTurn {
    RawTurn {
        text: "Let me look.".into(),
        reasoning: "A file, surely.".into(),
        calls: vec![RawCall {
            index: 0,
            id: Some("call_0_0".into()),
            name: Some("view".into()),
            arguments: RawArguments::Text(r#"{"path":"src/lib.rs"}"#.into()),
        }],
        finish: Finish::ToolCalls,
        usage: Some(Usage { prompt_tokens: 3, generated_tokens: 13 }),
    }
}

fn with_call(change: impl FnOnce(&mut RawCall)) -> RawTurn {
    let mut turn = whole();
    change(&mut turn.calls[0]);
    turn
}

#[tokio::test]
async fn a_turn_is_the_same_streamed_and_unstreamed() {
    for stream in [true, false] {
        assert_eq!(ask(answer(), stream).await.unwrap(), whole());
    }
    assert_eq!(ask(answer().paced(Duration::from_millis(1)), true).await.unwrap(), whole());
    assert_eq!(ask(Answer::empty(), true).await.unwrap().finish, Finish::Stop);
}

#[tokio::test]
async fn faults_that_leave_a_turn_reach_the_agent_unrepaired() {
    let nameless = || with_call(|call| call.name = None);
    let object = || with_call(|call| call.arguments = RawArguments::Json(json!({ "path": "src/lib.rs" })));
    let repeated = with_call(|call| call.name = Some("view".repeat(4)));
    let doubled = with_call(|call| {
        let twice = r#"{"path"{"path":"src/l:"src/lib.rs"}ib.rs"}"#;
        call.arguments = RawArguments::Text(twice.into());
    });
    for (fault, stream, expected) in [
        (Fault::MissingName, true, nameless()),
        (Fault::MissingName, false, whole()),
        (Fault::NamelessCalls, false, nameless()),
        (Fault::RepeatedName, true, repeated),
        (Fault::DuplicatedFragments, true, doubled),
        (Fault::MissingIndex, true, whole()),
        (Fault::ArgumentsAsObject, true, object()),
        (Fault::ArgumentsAsObject, false, object()),
        (Fault::IgnoresStream, true, whole()),
        (Fault::NoEndMark, true, whole()),
        (Fault::Stall(Duration::from_millis(1)), true, whole()),
    ] {
        let turn = ask(answer().with_fault(fault.clone()), stream).await.unwrap();
        assert_eq!(turn, expected, "{fault:?}, stream {stream}");
    }
    let early = ask(answer().with_fault(Fault::EndsAfter { pieces: 5 }), true).await.unwrap();
    assert_eq!((early.text.as_str(), early.finish), ("Let me ", Finish::Missing));
    let unmetered = ask(answer().with_usage(json!({ "prompt_tokens": "many" })), true).await.unwrap();
    assert_eq!(unmetered.usage, None);
    for stream in [true, false] {
        let endless = ask(Answer::text("So: ").with_fault(Fault::Repetition("again ".into())), stream).await.unwrap();
        assert!(matches!(endless.finish, Finish::Cut(_)) && endless.text.len() < 20, "{endless:?}");
    }
}

#[tokio::test]
async fn faults_that_leave_no_turn_are_errors_by_what_can_be_done() {
    for stream in [true, false] {
        let fails = async |fault| ask(answer().with_fault(fault), stream).await.expect_err("the fault leaves no turn");
        assert!(matches!(fails(Fault::busy(None)).await, ModelError::Busy { retry_after: None, .. }));
        assert!(matches!(fails(Fault::busy(Some(2))).await, ModelError::Busy { retry_after: Some(_), .. }));
        assert!(matches!(fails(Fault::context_exceeded()).await, ModelError::ContextExceeded));
        assert!(matches!(fails(Fault::status(400, "no")).await, ModelError::Refused(_)));
        for fault in [
            Fault::status(500, "broken"),
            Fault::status(503, "loading"),
            Fault::CutAfter { pieces: 3 },
            Fault::Stall(PATIENCE),
            Fault::MalformedJson,
            Fault::ErrorInside(json!({ "message": "out of memory" })),
        ] {
            let error = fails(fault.clone()).await;
            assert!(matches!(error, ModelError::Unavailable(_)), "{fault:?}, stream {stream}: {error:?}");
        }
    }
    for fault in [Fault::MalformedEvents, Fault::StallAfter { pieces: 3, lasting: PATIENCE }] {
        let error = ask(answer().with_fault(fault.clone()), true).await.expect_err("the fault leaves no turn");
        assert!(matches!(error, ModelError::Unavailable(_)), "{fault:?}: {error:?}");
    }
}
