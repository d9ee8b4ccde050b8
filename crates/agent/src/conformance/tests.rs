//! Models that answer every order rightly, but for one thing each.

use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::model::{
    Finish, Message, Model, ModelError, ModelInfo, ModelRequest, Progress, RawArguments, RawCall, RawTurn, RunAccess,
    SentCall,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::cases::Expected;
use super::*;
use crate::dialect::{ParsedCall, ParsedTurn, parse, render_turn};
use crate::tools::Call;

const WINDOW: u64 = 32_768;
const MARK: &str = "c0nf0rm4nce";

/// The calls that are the right answer.
fn right(case: &Case) -> Vec<Call> {
    match (&case.expected, case.format) {
        (Expected::Calls(calls), _) => calls.clone(),
        (Expected::Silence, _) => Vec::new(),
        (Expected::Edited { path, before, after }, Some(EditFormat::StrReplace)) => {
            vec![Call::StrReplace { path: path.clone(), old: before.clone(), new: after.clone() }]
        }
        (Expected::Edited { path, after, .. }, Some(EditFormat::Create)) => {
            vec![Call::Create { path: path.clone(), content: after.clone() }]
        }
        (Expected::Edited { path, before, after }, _) => {
            let lines = |sign: char, text: &str| text.lines().map(|line| format!("{sign}{line}\n")).collect::<String>();
            let text = format!(
                "*** Begin Patch\n*** Update File: {path}\n@@\n{}{}*** End Patch",
                lines('-', before),
                lines('+', after)
            );
            let files = crate::edit::patch::parse(&text).unwrap();
            vec![Call::ApplyPatch { text, files }]
        }
    }
}

/// As a server sends it.
fn turn(calls: Vec<Call>, dialect: Dialect) -> RawTurn {
    let sent = |(nth, call): (usize, Call)| {
        let sent = SentCall { id: format!("c{nth}"), name: call.tool().into(), arguments: call.arguments() };
        ParsedCall { id: sent.id.clone(), call, sent }
    };
    let prose = if calls.is_empty() { "Five.".to_owned() } else { String::new() };
    let parsed =
        ParsedTurn { prose, calls: calls.into_iter().enumerate().map(sent).collect(), ..ParsedTurn::default() };
    let patch = parsed.calls.iter().any(|call| matches!(call.call, Call::ApplyPatch { .. }));
    if dialect != Dialect::Native || patch {
        let text_dialect = if dialect == Dialect::Native { Dialect::Xml } else { dialect };
        let Message::Assistant { text, .. } = render_turn(text_dialect, MARK, &parsed) else { unreachable!() };
        return RawTurn { text, finish: Finish::Stop, ..RawTurn::default() };
    }
    let calls = parsed.calls.into_iter().enumerate().map(|(index, call)| RawCall {
        index: index as u32,
        id: Some(call.id),
        name: Some(call.sent.name),
        arguments: RawArguments::Text(call.sent.arguments.to_string()),
    });
    RawTurn { text: parsed.prose, calls: calls.collect(), finish: Finish::ToolCalls, ..RawTurn::default() }
}

#[test]
fn there_are_two_hundred_orders_and_the_right_answer_to_each_is_right_in_every_dialect() {
    let all = cases(WINDOW);
    assert_eq!(all.len(), 200);
    let mut ids: Vec<&str> = all.iter().map(|case| case.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200, "each has a name of its own");
    for case in &all {
        for (dialect, _) in NEEDED {
            let answer = parse(&turn(right(case), dialect), dialect, MARK);
            assert_eq!(case.fault(&answer), None, "{} in {}", case.id, dialect.name());
        }
    }
}

#[test]
fn an_answer_to_another_order_is_wrong() {
    let all = cases(WINDOW);
    for pair in all.windows(2).filter(|pair| right(&pair[0]) != right(&pair[1])) {
        let answer = parse(&turn(right(&pair[1]), Dialect::Native), Dialect::Native, MARK);
        assert!(pair[0].fault(&answer).is_some(), "{} for {}", pair[1].id, pair[0].id);
    }
}

/// What is wrong with a model or its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    Nothing,
    /// Native calls have no name (M1).
    NoNativeNames,
    /// Streamed, the second of two calls is lost.
    StreamsOneCall,
    /// It talks about calls.
    NoCalls,
    /// It has no idea how to replace text.
    NoReplacing,
    Slow,
    Away,
}

struct Scripted {
    info: ModelInfo,
    cases: Vec<Case>,
    flaw: Flaw,
    asked: std::sync::atomic::AtomicUsize,
}

impl Scripted {
    fn new(flaw: Flaw) -> Self {
        let info = ModelInfo { name: "scripted".into(), context_tokens: WINDOW };
        Self { info, cases: cases(WINDOW), flaw, asked: Default::default() }
    }

    fn dialect(request: &ModelRequest) -> Dialect {
        let Some(Message::System { text }) = request.messages.first() else { panic!("no rules") };
        match (request.tools.is_empty(), text.contains("<tool name=")) {
            (false, _) => Dialect::Native,
            (true, true) => Dialect::Xml,
            (true, false) => Dialect::Fenced,
        }
    }

    async fn examined(&self, extent: Extent) -> Result<Vec<Seen>, Unfinished> {
        let examination = Examination { extent, parallel: 4, limit: Duration::from_secs(300) };
        examine(self, examination, &CancellationToken::new()).await
    }
}

#[async_trait]
impl Model for Scripted {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn for_run(&self, _: RunAccess) -> Arc<dyn Model> {
        unreachable!("no Run asks here")
    }

    async fn call(
        &self,
        request: &ModelRequest,
        _: &Progress<'_>,
        _: &CancellationToken,
    ) -> Result<RawTurn, ModelError> {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dialect = Self::dialect(request);
        let is_asked = |case: &&Case| case.messages(dialect, MARK) == request.messages[1..];
        let case = self.cases.iter().find(is_asked).expect("it is one of the orders");
        let mut answer = turn(right(case), dialect);
        match self.flaw {
            Flaw::Nothing => {}
            Flaw::NoNativeNames => answer.calls.iter_mut().for_each(|call| call.name = None),
            Flaw::StreamsOneCall if request.stream => answer.calls.truncate(1),
            Flaw::StreamsOneCall => {}
            Flaw::NoCalls => answer = RawTurn { text: "I would look at the file.".into(), ..RawTurn::default() },
            Flaw::NoReplacing if case.format == Some(EditFormat::StrReplace) => {
                answer = RawTurn { text: "I cannot.".into(), ..RawTurn::default() };
            }
            Flaw::NoReplacing => {}
            Flaw::Slow => tokio::time::sleep(Duration::from_secs(30)).await,
            Flaw::Away => return Err(ModelError::Refused("no such model".into())),
        }
        Ok(answer)
    }
}

#[tokio::test]
async fn a_model_without_a_flaw_is_asked_natively_and_streamed() {
    let seen = Scripted::new(Flaw::Nothing).examined(Extent::Whole).await.unwrap();
    assert_eq!(verdict(&seen), Verdict::Works(Form::default()));
    assert_eq!((seen.len(), seen[0].score), (1, Score { right: 200, asked: 200 }));
    assert_eq!(seen[0].streaming, Score { right: 20, asked: 20 });
}

#[tokio::test]
async fn a_server_that_loses_the_names_of_native_calls_is_asked_in_text() {
    let seen = Scripted::new(Flaw::NoNativeNames).examined(Extent::Whole).await.unwrap();
    assert_eq!(verdict(&seen), Verdict::Works(Form { dialect: Dialect::Xml, ..Form::default() }));
    assert!(seen[0].score.asked < 60, "it is given up early: {}", seen[0].score);
    assert!(!seen[0].wrong.is_empty());
}

#[tokio::test]
async fn a_server_that_loses_calls_while_streaming_is_not_streamed() {
    let seen = Scripted::new(Flaw::StreamsOneCall).examined(Extent::Whole).await.unwrap();
    assert_eq!(verdict(&seen), Verdict::Works(Form { stream: false, ..Form::default() }));
}

#[tokio::test]
async fn a_model_that_calls_nothing_is_for_chat_only_and_the_reason_is_said() {
    let seen = Scripted::new(Flaw::NoCalls).examined(Extent::Whole).await.unwrap();
    let Verdict::ChatOnly(why) = verdict(&seen) else { panic!("{seen:?}") };
    assert!(why.contains("native") && why.contains("xml") && why.contains("fenced calls were right"), "{why}");
}

#[tokio::test]
async fn the_edit_format_that_a_model_knows_best_is_chosen() {
    // Seven wrong answers of two hundred are too many for native calls.
    let seen = Scripted::new(Flaw::NoReplacing).examined(Extent::Whole).await.unwrap();
    let wanted = Form { dialect: Dialect::Xml, edits: EditFormat::Create, stream: true };
    assert_eq!(verdict(&seen), Verdict::Works(wanted));
}

#[tokio::test]
async fn a_known_model_is_asked_a_dozen() {
    let model = Scripted::new(Flaw::Nothing);
    let seen = model.examined(Extent::Smoke(Dialect::Fenced)).await.unwrap();
    assert_eq!(seen[0].score, Score { right: 12, asked: 12 });
}

#[tokio::test(start_paused = true)]
async fn a_slow_model_ends_the_examination_with_what_was_done() {
    let Err(Unfinished::Late { dialect, asked, of }) = Scripted::new(Flaw::Slow).examined(Extent::Whole).await else {
        panic!("it has five minutes")
    };
    assert_eq!((dialect, of), (Dialect::Native, 200));
    assert!((1..60).contains(&asked), "{asked}");
}

#[tokio::test]
async fn nothing_follows_when_the_model_cannot_be_asked() {
    let ended = Scripted::new(Flaw::Away).examined(Extent::Whole).await;
    assert!(matches!(ended, Err(Unfinished::Away(why)) if why.contains("no such model")));
}
