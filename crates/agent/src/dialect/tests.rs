//! M1–M12 of the design in each dialect they can arrive in, with the exact calls they must become.

use fettle_app::ports::model::{Message, RawArguments, RawCall};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const MARK: &str = "k7f3";

fn native(calls: &[(&str, &str)]) -> RawTurn {
    RawTurn {
        calls: calls
            .iter()
            .enumerate()
            .map(|(index, (name, arguments))| RawCall {
                index: u32::try_from(index).unwrap(),
                id: Some(format!("id{index}")),
                name: (!name.is_empty()).then(|| (*name).to_owned()),
                arguments: RawArguments::Text((*arguments).to_owned()),
            })
            .collect(),
        finish: Finish::ToolCalls,
        ..RawTurn::default()
    }
}

fn text(text: &str) -> RawTurn {
    RawTurn { text: text.to_owned(), ..RawTurn::default() }
}

fn read(turn: &RawTurn, dialect: Dialect) -> ParsedTurn {
    parse(turn, dialect, MARK)
}

fn calls(turn: &ParsedTurn) -> Vec<Call> {
    turn.calls.iter().map(|call| call.call.clone()).collect()
}

fn bash(command: &str) -> Call {
    Call::Bash { command: command.to_owned(), timeout_s: None }
}

fn view(path: &str) -> Call {
    Call::View { path: path.to_owned(), start_line: None, end_line: None }
}

fn finish(summary: &str) -> Call {
    Call::Finish { summary: summary.to_owned() }
}

/// One call and nothing to complain about.
fn only(turn: &RawTurn, dialect: Dialect) -> Call {
    let parsed = read(turn, dialect);
    assert_eq!(parsed.problems, [], "{turn:?}");
    assert_eq!(parsed.calls.len(), 1, "{turn:?}");
    parsed.calls[0].call.clone()
}

/// No call, one `bad_call` whose text holds `words`.
fn refused(turn: &RawTurn, dialect: Dialect, words: &str) -> Problem {
    let parsed = read(turn, dialect);
    assert_eq!(parsed.calls, [], "{turn:?}");
    assert!(!parsed.reminder);
    let problem = parsed.problems.first().unwrap_or_else(|| panic!("no problem in {turn:?}")).clone();
    assert_eq!(problem.code, "bad_call");
    assert!(problem.text.starts_with("error[bad_call]: ") && problem.text.contains(words), "{}", problem.text);
    problem
}

#[test]
fn m1_a_call_without_name_is_asked_for_again_and_never_guessed() {
    for name in ["", "  ", "null"] {
        let mut turn = native(&[("x", r#"{"command":"ls"}"#)]);
        turn.calls[0].name = Some(name.to_owned());
        assert_eq!(refused(&turn, Dialect::Native, "no tool name").retry, Some(Retry::WithoutStreaming));
    }
    let mut turn = native(&[("", r#"{"command":"ls"}"#)]);
    turn.calls[0].name = None;
    assert_eq!(refused(&turn, Dialect::Native, "no tool name").retry, Some(Retry::WithoutStreaming));
    refused(&text("<tool_call>{\"arguments\":{\"command\":\"ls\"}}</tool_call>"), Dialect::Xml, "no tool name");
    refused(&text("<tool name=\"\"><arg name=\"command\">ls</arg></tool>"), Dialect::Xml, "unknown tool");
    refused(&text("```tool\ncommand: ls\n```"), Dialect::Fenced, "tool's name");
}

#[test]
fn m2_what_a_stream_doubled_is_one_and_what_differs_is_refused() {
    let twice = r#"{"command":"ls"}{"command":"ls"}"#;
    assert_eq!(only(&native(&[("bash", twice)]), Dialect::Native), bash("ls"));
    assert_eq!(only(&native(&[("bashbashbash", r#"{"command":"ls"}"#)]), Dialect::Native), bash("ls"));
    let different = native(&[("bash", r#"{"command":"ls"}{"command":"rm"}"#)]);
    assert_eq!(refused(&different, Dialect::Native, "two different").retry, Some(Retry::WithoutStreaming));
    let mut doubled = native(&[("bash", r#"{"command":"ls"}"#), ("bash", r#"{"command":"ls"}"#)]);
    doubled.calls[1].id = doubled.calls[0].id.clone();
    assert_eq!(only(&doubled, Dialect::Native), bash("ls"));
}

#[test]
fn m3_a_call_left_in_the_text_counts_in_every_accepted_shape() {
    let shapes = [
        "<tool name=\"bash\"><arg name=\"command\">ls -l</arg></tool>",
        "<function=bash>\n<parameter=command>\nls -l\n</parameter>\n</function>",
        "<tool_call>\n<function=bash>\n<parameter=command>\nls -l\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n{\"name\": \"bash\", \"arguments\": {\"command\": \"ls -l\"}}\n</tool_call>",
        "[TOOL_CALLS][{\"name\": \"bash\", \"arguments\": {\"command\": \"ls -l\"}}]",
        "[TOOL_CALLS]bash[ARGS]{\"command\": \"ls -l\"}",
        "```tool bash\ncommand: ls -l\n```",
        "```tool bash\n@@command k7f3\nls -l\n@@end k7f3\n```",
        "```xml\n<tool name=\"bash\"><arg name=\"command\">ls -l</arg></tool>\n```\n",
        "```json\n{\"name\": \"bash\", \"arguments\": {\"command\": \"ls -l\"}}\n```",
    ];
    for dialect in [Dialect::Native, Dialect::Xml, Dialect::Fenced] {
        for shape in shapes {
            let parsed = read(&text(&format!("I look around.\n\n{shape}")), dialect);
            assert_eq!((calls(&parsed), parsed.problems), (vec![bash("ls -l")], vec![]), "{dialect:?} {shape}");
            assert_eq!(parsed.prose, "I look around.");
        }
        let whole = "{\"name\": \"bash\", \"arguments\": {\"command\": \"ls -l\"}}";
        assert_eq!(only(&text(whole), dialect), bash("ls -l"));
    }
    // A shell block is the floor of the fenced dialect alone, and only one, at the end.
    assert_eq!(only(&text("Look:\n```bash\nls -l\n```\n"), Dialect::Fenced), bash("ls -l"));
    assert!(read(&text("Look:\n```bash\nls -l\n```\n"), Dialect::Xml).reminder);
    assert!(read(&text("```bash\nls\n```\nthen\n```bash\npwd\n```\n"), Dialect::Fenced).reminder);
    assert!(read(&text("```bash\nls\n```\nThat lists files."), Dialect::Fenced).reminder);
}

#[test]
fn m3_an_example_in_prose_is_no_call() {
    for prose in [
        "You could write `<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>` here.",
        "Like this:\n```\n<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>\n```\nbut I will not.",
        "Result:\n```json\n{\"name\": \"fettle\", \"arguments\": {}}\n```",
        "{\"name\": \"left-pad\", \"version\": \"1.0.0\"}",
    ] {
        let parsed = read(&text(prose), Dialect::Xml);
        assert!(parsed.reminder && parsed.calls.is_empty(), "{prose}");
    }
}

#[test]
fn m4_the_same_call_in_text_and_natively_is_one_and_equal_ids_become_different() {
    let mut turn = native(&[("bash", r#"{"command":"ls"}"#)]);
    turn.text = "Go.\n<tool_call>{\"name\":\"bash\",\"arguments\":{\"command\":\"ls\"}}</tool_call>".to_owned();
    let parsed = read(&turn, Dialect::Native);
    assert_eq!((calls(&parsed), parsed.prose.as_str(), parsed.problems.len()), (vec![bash("ls")], "Go.", 0));

    let mut turn = native(&[("bash", r#"{"command":"ls"}"#), ("view", r#"{"path":"a"}"#), ("view", r#"{"path":"b"}"#)]);
    for call in &mut turn.calls {
        call.id = Some("same".to_owned());
    }
    let parsed = read(&turn, Dialect::Native);
    assert_eq!(calls(&parsed), [bash("ls"), view("a"), view("b")]);
    let ids: Vec<&str> = parsed.calls.iter().map(|call| call.id.as_str()).collect();
    assert_eq!(ids, ["same", "call_2", "call_3"]);
    let mut turn = native(&[("bash", r#"{"command":"ls"}"#)]);
    turn.calls[0].id = None;
    assert_eq!(read(&turn, Dialect::Native).calls[0].sent.id, "call_1");
}

#[test]
fn m5_a_call_that_was_cut_never_runs() {
    let whole = [
        ("<tool name=\"bash\"><arg name=\"command\">rm -rf ./build</arg></tool>", Dialect::Xml),
        ("<function=bash>\n<parameter=command>\nrm -rf ./build\n</parameter>\n</function>", Dialect::Xml),
        ("<tool_call>{\"name\":\"bash\",\"arguments\":{\"command\":\"rm -rf ./build\"}}</tool_call>", Dialect::Xml),
        ("```tool bash\ncommand: rm -rf ./build\n```", Dialect::Fenced),
        ("```tool bash\n@@command k7f3\nrm -rf ./build\n@@end k7f3\n```", Dialect::Fenced),
        ("```bash\nrm -rf ./build\n```", Dialect::Fenced),
        ("*** Begin Patch\n*** Add File: a\n+rm -rf ./build\n*** End Patch", Dialect::Native),
    ];
    for (call, dialect) in whole {
        assert_eq!(read(&text(call), dialect).calls.len(), 1, "{call}");
        for end in 1..call.len() {
            for limit in [Finish::Length, Finish::Stop, Finish::Missing] {
                let turn = RawTurn { finish: limit.clone(), ..text(&call[..end]) };
                assert_eq!(read(&turn, dialect).calls, [], "{limit:?} {}", &call[..end]);
            }
        }
        let turn = RawTurn { finish: Finish::Length, ..text(call) };
        let parsed = read(&turn, dialect);
        assert!(parsed.cut_off && parsed.calls.is_empty());
        assert!(parsed.problems[0].text.contains("cut off"), "{:?}", parsed.problems);
        assert_eq!(parsed.problems[0].retry, Some(Retry::LargerOutput));
    }
    let arguments = r#"{"command":"rm -rf ./build"}"#;
    for end in 1..arguments.len() {
        let problem = refused(&native(&[("bash", &arguments[..end])]), Dialect::Native, "cut off");
        assert_eq!(problem.retry, Some(Retry::LargerOutput));
    }
    // Calls before the cut were whole.
    let mut turn = native(&[("view", r#"{"path":"a"}"#), ("bash", arguments)]);
    turn.finish = Finish::Length;
    assert_eq!(calls(&read(&turn, Dialect::Native)), [view("a")]);
}

#[test]
fn m6_lossless_conversions_are_made_and_counted() {
    let timed = Call::Bash { command: "ls".to_owned(), timeout_s: Some(5) };
    for (arguments, repairs) in [
        (r#"{"command":"ls","timeout_s":5}"#, 0),
        (r#"{"command":"ls","timeout_s":"5"}"#, 1),
        (r#"{"command":"ls","timeout_s":5.0}"#, 1),
        (r#"{"command":"ls","timeout_s":5,}"#, 1),
        (r"{'command': 'ls', 'timeout_s': 5}", 3),
        (r#""{\"command\":\"ls\",\"timeout_s\":5}""#, 1),
        (r#"{"command":"ls","timeout_s":5}<|im_end|>"#, 1),
    ] {
        let parsed = read(&native(&[("bash", arguments)]), Dialect::Native);
        assert_eq!((calls(&parsed), parsed.repairs), (vec![timed.clone()], repairs), "{arguments}");
    }
    assert_eq!(only(&native(&[("bash", "{\"command\":\"a\nb\",\"timeout_s\":null}")]), Dialect::Native), bash("a\nb"));
    assert_eq!(only(&native(&[("bash", r"{'command': 'it\'s', 'timeout_s': None}")]), Dialect::Native), bash("it's"));
    assert_eq!(only(&native(&[("run_tests", "")]), Dialect::Native), Call::RunTests { target: None });
    let mut object = native(&[("bash", "")]);
    object.calls[0].arguments = RawArguments::Json(json!({"command": "ls"}));
    assert_eq!(only(&object, Dialect::Native), bash("ls"));
    assert_eq!(
        only(
            &text("<tool name=\"view\"><arg name=\"path\">a</arg><arg name=\"start_line\"> 7 </arg></tool>"),
            Dialect::Xml
        ),
        Call::View { path: "a".to_owned(), start_line: Some(7), end_line: None }
    );
}

#[test]
fn m6_anything_else_is_refused_with_the_parameter_the_type_and_the_value() {
    let wrong = |arguments: &str, words: &str| refused(&native(&[("bash", arguments)]), Dialect::Native, words);
    let problem = wrong(r#"{"command":"ls","timeout_s":"soon"}"#, "");
    assert_eq!(
        problem.text,
        "error[bad_call]: bash: timeout_s: expected integer from 1 to 1800, got \"soon\". Parameters of bash: command \
         (string of 1 to 16000 characters, required), timeout_s (integer from 1 to 1800). Nothing was executed for it."
    );
    wrong(r#"{"command":5}"#, "bash: command: expected string of 1 to 16000 characters, got 5");
    wrong(r#"{"command":null}"#, "got null");
    wrong(r#"{"command":""}"#, "got 0 characters");
    wrong(r#"{"command":"ls","timeout_s":0}"#, "got 0");
    wrong(r#"{"command":"ls","timeout_s":true}"#, "got true");
    wrong(r#"{"command":"ls","command":"rm"}"#, "given twice");
    wrong(r#"{"command":"ls","cmd":"rm"}"#, "given twice");
    wrong(r#"{"command":"grep \d"}"#, "unknown escape");
    wrong(r#"["ls"]"#, "expected a JSON object");
    wrong("ls", "cut off");
    wrong("ls -l", "expected a JSON object");
}

#[test]
fn m7_known_other_names_are_taken_and_unknown_ones_listed() {
    assert_eq!(only(&native(&[("execute_bash", r#"{"cmd":"ls"}"#)]), Dialect::Native), bash("ls"));
    assert_eq!(only(&native(&[("read_file", r#"{"file_path":"a"}"#)]), Dialect::Native), view("a"));
    let edit = "<tool name=\"edit_file\"><arg name=\"file_path\">a</arg><arg name=\"old_string\">x</arg><arg name=\"new_string\">y</arg></tool>";
    let parsed = read(&text(edit), Dialect::Xml);
    assert_eq!(calls(&parsed), [Call::StrReplace { path: "a".into(), old: "x".into(), new: "y".into() }]);
    assert_eq!(parsed.repairs, 4);
    assert_eq!(parsed.calls[0].sent.name, "str_replace");
    refused(
        &native(&[("web_search", "{}")]),
        Dialect::Native,
        "the tools are bash, view, search, str_replace, create, run_tests, finish.",
    );
    refused(
        &text("```tool bash\ncommand: ls\nuser: root\n```"),
        Dialect::Fenced,
        "bash: user: unknown parameter. Parameters of bash",
    );
    refused(
        &text("<tool name=\"create\"><arg name=\"path\">a</arg></tool>"),
        Dialect::Xml,
        "create: content: expected",
    );
}

#[test]
fn m8_several_calls_keep_their_order_and_finish_comes_last_and_once() {
    let turn =
        native(&[("finish", r#"{"summary":"done"}"#), ("view", r#"{"path":"a"}"#), ("bash", r#"{"command":"ls"}"#)]);
    assert_eq!(calls(&read(&turn, Dialect::Native)), [view("a"), bash("ls"), finish("done")]);

    let nine = "<tool name=\"view\"><arg name=\"path\">a</arg></tool>\n".repeat(9);
    let parsed = read(&text(&nine), Dialect::Xml);
    assert_eq!((parsed.calls.len(), parsed.problems.len()), (8, 1));

    // After a call that cannot be read nothing runs, and the claim to be finished does not count.
    let turn = native(&[
        ("view", r#"{"path":"a"}"#),
        ("nope", "{}"),
        ("bash", r#"{"command":"ls"}"#),
        ("finish", r#"{"summary":"x"}"#),
    ]);
    let parsed = read(&turn, Dialect::Native);
    assert_eq!(calls(&parsed), [view("a")]);
    assert_eq!(
        parsed.problems.iter().map(|problem| problem.code).collect::<Vec<_>>(),
        ["bad_call", "skipped", "skipped"]
    );
    let parsed = read(&text("```tool view\npath: a\n```\n\n```tool finish\nsummary: ok\n```"), Dialect::Fenced);
    assert_eq!(calls(&parsed), [view("a"), finish("ok")]);
}

/// Code that breaks careless parsers.
const CODE: &[&str] = &[
    "let s = \"a \\\"quoted\\\" \\\\ path\";\n",
    "if a < b && c > d { x &amp; y; &lt;tag&gt; }\n",
    "# fence\n```rust\nfn main() {}\n```\nend\n",
    "let t = \"</arg>\"; // </parameter> in the line\n",
    "<div>\n  <arg name=\"x\">not ours</span>\n</div>\n",
    "\n\n  leading and trailing  \n\n",
    "$x \\n \\u0041 %s {} 'single' `tick`\n",
    "<think>\nnot reasoning\n</think>\n<|im_end|>\n",
    "@@old other\n@@end\nkey: value\n",
];

#[test]
fn m9_code_comes_through_byte_for_byte_in_each_dialect() {
    for code in CODE {
        for (old, new) in [(*code, "x"), ("x", *code)] {
            let call = Call::StrReplace { path: "a.rs".into(), old: old.to_owned(), new: new.to_owned() };
            for dialect in [Dialect::Native, Dialect::Xml, Dialect::Fenced] {
                assert_eq!(round_trip(&call, dialect), std::slice::from_ref(&call), "{dialect:?} {code:?}");
            }
        }
        let call = Call::Create { path: "a.rs".into(), content: (*code).to_owned() };
        for dialect in [Dialect::Native, Dialect::Xml, Dialect::Fenced] {
            assert_eq!(round_trip(&call, dialect), std::slice::from_ref(&call), "{dialect:?} {code:?}");
        }
    }
}

#[test]
fn m9_a_value_with_two_readings_is_refused() {
    let evil = "<tool name=\"create\">\n<arg name=\"path\">a</arg>\n<arg name=\"content\">\nx\n</arg>\n</tool>\nmore\n</arg>\n</tool>";
    refused(&text(evil), Dialect::Xml, "two readings");
    refused(
        &text("```tool create\npath: a\n@@content wrong\nx\n@@end wrong\n```"),
        Dialect::Fenced,
        "expected the mark k7f3",
    );
}

/// The call as the model would have sent it, through history's rendering and back.
fn round_trip(call: &Call, dialect: Dialect) -> Vec<Call> {
    let sent = SentCall { id: "1".into(), name: call.tool().into(), arguments: call.arguments() };
    let turn =
        ParsedTurn { calls: vec![ParsedCall { id: "1".into(), call: call.clone(), sent }], ..ParsedTurn::default() };
    let Message::Assistant { text: rendered, calls: sent } = render_turn(dialect, MARK, &turn) else {
        panic!("assistant")
    };
    let raw = RawTurn {
        text: rendered,
        calls: sent
            .into_iter()
            .map(|call| RawCall {
                index: 0,
                id: Some(call.id),
                name: Some(call.name),
                arguments: RawArguments::Text(call.arguments.to_string()),
            })
            .collect(),
        ..RawTurn::default()
    };
    calls(&read(&raw, dialect))
}

#[test]
fn m10_reasoning_holds_no_calls_and_a_turn_without_call_is_reminded() {
    let call = "<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>";
    for turn in [
        String::new(),
        "I am thinking about it.".to_owned(),
        format!("<think>\n{call}\n</think>\nHm."),
        format!("<think>\n{call}\n"),
        format!("{call}\n</think>\nHm."),
        format!("<|channel|>analysis<|message|>{call}"),
    ] {
        let parsed = read(&text(&turn), Dialect::Xml);
        assert!(parsed.reminder && parsed.calls.is_empty() && !parsed.is_malformed(), "{turn}");
        assert!(!parsed.prose.contains("<tool"), "{turn}");
    }
    let reasoned = RawTurn { reasoning: call.to_owned(), ..RawTurn::default() };
    assert!(read(&reasoned, Dialect::Native).reminder);
    for turn in [format!("<think>maybe</think>{call}"), format!("maybe {call}\n</think>\n\n{call}<|im_end|>")] {
        assert_eq!(only(&text(&turn), Dialect::Xml), bash("ls"), "{turn}");
    }
}

#[test]
fn m11_v4a_is_taken_everywhere_and_other_diffs_nowhere() {
    let patch = "*** Begin Patch\n*** Update File: a\n-x\n+y $HOME\n*** End Patch";
    let expected = patch::parse(patch).unwrap();
    let in_shell = format!("apply_patch <<'EOF'\n{patch}\nEOF\n");
    let as_tool = json!({ "input": patch }).to_string();
    let as_bash = json!({ "command": in_shell }).to_string();
    for turn in [
        native(&[("apply_patch", &as_tool)]),
        native(&[("bash", &as_bash)]),
        text(&format!("I change it.\n\n{patch}\n")),
        text(&format!("```tool bash\n@@command k7f3\n{in_shell}@@end k7f3\n```")),
    ] {
        let Call::ApplyPatch { files, .. } = only(&turn, Dialect::Native) else { panic!("a patch: {turn:?}") };
        assert_eq!(files, expected);
    }
    let unquoted = json!({ "command": format!("apply_patch <<EOF\n{patch}\nEOF") }).to_string();
    refused(&native(&[("bash", &unquoted)]), Dialect::Native, "quote the delimiter");

    let diff = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-x\n+y\n";
    let piped = json!({ "command": format!("git apply <<'EOF'\n{diff}EOF") }).to_string();
    refused(&native(&[("bash", &piped)]), Dialect::Native, "use str_replace");
    refused(&native(&[("apply_patch", &json!({ "patch": diff }).to_string())]), Dialect::Native, "use str_replace");
    refused(&text(&format!("```diff\n{diff}```")), Dialect::Fenced, "use str_replace");
    refused(&text("a.rs\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n"), Dialect::Xml, "use str_replace");
}

#[test]
fn m12_what_a_model_writes_as_somebody_else_is_not_read() {
    let call = "<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>";
    let evil = "<tool name=\"bash\"><arg name=\"command\">rm -r src</arg></tool>";
    for foreign in ["<|im_start|>user\nplease", "<tool_response>\nok", "<result call=\"1\" tool=\"bash\">\nexit 0"] {
        assert_eq!(only(&text(&format!("{call}\n{foreign}\n{evil}")), Dialect::Xml), bash("ls"), "{foreign}");
    }
    let stopped = RawTurn { finish: Finish::Cut("repetition".into()), ..text("la la la la la") };
    assert_eq!(refused(&stopped, Dialect::Xml, "repeated itself").retry, Some(Retry::Again));
    let stopped = RawTurn { finish: Finish::Cut("foreign turn".into()), ..text(call) };
    assert_eq!(only(&stopped, Dialect::Xml), bash("ls"));
}

#[test]
fn results_go_back_as_tool_messages_or_as_one_user_message() {
    let parsed = read(&native(&[("bash", r#"{"command":"ls"}"#), ("nope", "{}")]), Dialect::Native);
    let results = [(&parsed.calls[0], "exit 0 · 0.1 s\n")];
    let messages = render_results(Dialect::Native, &results, &parsed.problems);
    assert_eq!(messages[0], Message::Tool { call_id: "id0".into(), text: "exit 0 · 0.1 s\n".into() });
    assert_eq!(messages[1], Message::User { text: parsed.problems[0].text.clone() });
    let messages = render_results(Dialect::Xml, &results, &parsed.problems);
    let [Message::User { text }] = messages.as_slice() else { panic!("one user message") };
    assert!(
        text.starts_with("<result call=\"1\" tool=\"bash\">\nexit 0 · 0.1 s\n</result>\nerror[bad_call]: "),
        "{text}"
    );
}

#[test]
fn the_instructions_show_calls_that_parse() {
    let specs = crate::tools::specs();
    for dialect in [Dialect::Xml, Dialect::Fenced] {
        let shown = instructions(dialect, &specs, MARK);
        let parsed = read(&text(&shown), dialect);
        assert_eq!(parsed.problems, []);
        let edit = Call::StrReplace {
            path: "src/main.rs".into(),
            old: "first line\nsecond line".into(),
            new: "other line".into(),
        };
        assert_eq!(calls(&parsed), [view("src/main.rs"), edit]);
        assert!(specs.iter().all(|spec| shown.contains(&spec.name)));
    }
    assert!(!instructions(Dialect::Native, &specs, MARK).contains("<tool"));
}

fn fragments() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "<tool name=\"",
            "bash",
            "\">",
            "<arg name=\"command\">",
            "</arg>",
            "</tool>",
            "<function=",
            "view",
            ">",
            "<parameter=path>",
            "</parameter>",
            "</function>",
            "<tool_call>",
            "</tool_call>",
            "{\"name\":",
            "\"bash\"",
            ",\"arguments\":{",
            "\"command\":\"ls\"",
            "}}",
            "}",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[",
            "]",
            "```",
            "```tool bash",
            "```bash",
            "~~~",
            "\n",
            "@@old k7f3",
            "@@end k7f3",
            "path: a",
            "<think>",
            "</think>",
            "*** Begin Patch",
            "*** Update File: a",
            "@@ -1 +1 @@",
            "-x",
            "+y",
            "*** End Patch",
            "\\",
            "\\u",
            "d800",
            "é",
            "😀",
            "'",
            "None",
            "1",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

fn any_finish() -> impl Strategy<Value = Finish> {
    prop::sample::select(vec![Finish::Stop, Finish::Length, Finish::Missing, Finish::Cut("x".into())])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_turn_is_answered_and_what_is_replayed_parses_again(
        body in fragments(), name in prop::option::of("[a-z_<|]{0,10}|bash|view"), arguments in fragments(),
        finish in any_finish(), dialect in prop::sample::select(vec![Dialect::Native, Dialect::Xml, Dialect::Fenced]),
    ) {
        let calls = name.map(|name| RawCall { index: 0, id: None, name: Some(name), arguments: RawArguments::Text(arguments) });
        let turn = RawTurn { text: body, calls: calls.into_iter().collect(), finish, ..RawTurn::default() };
        let parsed = parse(&turn, dialect, MARK);
        prop_assert!(parsed.calls.len() <= 8);
        prop_assert_eq!(parsed.reminder, parsed.calls.is_empty() && parsed.problems.is_empty());
        for call in &parsed.calls {
            prop_assert!(call.sent.arguments.is_object());
            if !matches!(call.call, Call::ApplyPatch { .. }) {
                let again = native(&[(&call.sent.name, &call.sent.arguments.to_string())]);
                prop_assert_eq!(only(&again, Dialect::Native), call.call.clone());
            }
        }
    }

    #[test]
    fn a_rendered_call_reads_as_the_same_call(
        old in "[a-z \n\"'<>&\\\\`@/]{1,30}", new in "[a-z \n\"'<>&\\\\`@/]{0,30}",
        dialect in prop::sample::select(vec![Dialect::Native, Dialect::Xml, Dialect::Fenced]),
    ) {
        let call = Call::StrReplace { path: "src/a.rs".into(), old, new };
        prop_assert_eq!(round_trip(&call, dialect), [call]);
    }
}
