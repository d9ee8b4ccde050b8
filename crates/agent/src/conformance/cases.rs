//! The two hundred orders. Each says exactly what is wanted, so that an answer is right or wrong and nobody has to judge it.

use fettle_app::ports::model::{Message, SentCall};
use serde::{Deserialize, Serialize};

use super::EditFormat;
use crate::dialect::{Dialect, ParsedCall, ParsedTurn, render_results, render_turn};
use crate::edit::encoding::Decoded;
use crate::edit::{patch, rewrite, str_replace};
use crate::solve::estimate_tokens;
use crate::tools::Call;

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseKind {
    EachTool,
    Types,
    Code,
    AfterText,
    Parallel,
    NoCall,
    Recovery,
    LongContext,
    Streaming,
    Edit,
}

/// One order.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// `code-17`
    pub id: String,
    pub kind: CaseKind,
    /// Of an edit.
    pub format: Option<EditFormat>,
    told: Vec<Told>,
    pub(super) expected: Expected,
}

/// What is said before the answer.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    User(String),
    /// An earlier call of the model's and what came of it.
    Called {
        call: Call,
        result: String,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expected {
    /// These calls and no others; several in any order.
    Calls(Vec<Call>),
    /// Words alone.
    Silence,
    /// One edit that makes `after` of `before`.
    Edited { path: String, before: String, after: String },
}

impl Case {
    /// The conversation in a dialect, without the first message.
    pub(super) fn messages(&self, dialect: Dialect, mark: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        for told in &self.told {
            match told {
                Told::User(text) => messages.push(Message::User { text: text.clone() }),
                Told::Called { call, result } => {
                    let sent = SentCall { id: "call_1".into(), name: call.tool().into(), arguments: call.arguments() };
                    let parsed = ParsedCall { id: sent.id.clone(), call: call.clone(), sent };
                    let turn = ParsedTurn { calls: vec![parsed.clone()], ..ParsedTurn::default() };
                    messages.push(render_turn(dialect, mark, &turn));
                    messages.extend(render_results(dialect, &[(&parsed, result)], &[]));
                }
            }
        }
        messages
    }

    /// Why the answer is wrong; `None`: it is right.
    pub(super) fn fault(&self, answer: &ParsedTurn) -> Option<String> {
        if let Some(problem) = answer.problems.first() {
            return Some(problem.text.clone());
        }
        let calls: Vec<&Call> = answer.calls.iter().map(|call| &call.call).collect();
        match &self.expected {
            Expected::Silence if calls.is_empty() && !answer.prose.is_empty() => None,
            Expected::Silence => Some(format!("words alone were asked for; it called {}", names(&calls))),
            Expected::Calls(wanted) => same_calls(wanted, &calls),
            Expected::Edited { path, before, after } => match edited(path, before, &calls) {
                Ok(text) if ends_alike(&text, after) => None,
                Ok(text) => Some(format!("the edit gives another file: {text:?}")),
                Err(why) => Some(why),
            },
        }
    }
}

fn names(calls: &[&Call]) -> String {
    if calls.is_empty() {
        return "nothing".to_owned();
    }
    calls.iter().map(|call| call.tool()).collect::<Vec<_>>().join(", ")
}

/// Of a call, as much as tells one from another.
const SHOWN_CHARS: usize = 70;

fn shown(call: &Call) -> String {
    let text = format!("{} {}", call.tool(), call.arguments());
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

fn shown_all(calls: &[&Call]) -> String {
    if calls.is_empty() {
        return "nothing".to_owned();
    }
    calls.iter().map(|call| shown(call)).collect::<Vec<_>>().join(", ")
}

fn same_calls(wanted: &[Call], calls: &[&Call]) -> Option<String> {
    let mut left: Vec<&Call> = calls.to_vec();
    for want in wanted {
        match left.iter().position(|call| alike(want, call)) {
            Some(at) => drop(left.remove(at)),
            None => return Some(format!("{} was asked for; it called {}", shown(want), shown_all(calls))),
        }
    }
    (!left.is_empty()).then(|| format!("it also called {}", names(&left)))
}

/// A last line break more or less changes no file that anybody cares about, and prompts cannot say which is meant.
fn alike(wanted: &Call, call: &Call) -> bool {
    match (wanted, call) {
        (Call::Create { path, content }, Call::Create { path: other, content: given }) => {
            path == other && ends_alike(content, given)
        }
        (Call::Finish { summary }, Call::Finish { summary: given }) => summary.trim() == given.trim(),
        (Call::Bash { command, timeout_s }, Call::Bash { command: given, timeout_s: other }) => {
            command.trim() == given.trim() && timeout_s == other
        }
        (wanted, call) => wanted == call,
    }
}

fn ends_alike(one: &str, other: &str) -> bool {
    one.trim_end_matches('\n') == other.trim_end_matches('\n')
}

/// The file after the one edit that the answer makes.
fn edited(path: &str, before: &str, calls: &[&Call]) -> Result<String, String> {
    let [call] = calls else { return Err(format!("one edit was asked for; it called {}", names(calls))) };
    let refused = |why: &dyn std::fmt::Debug| format!("the edit does not fit: {why:?}");
    let file = Decoded::new(before.as_bytes()).map_err(|why| refused(&why))?;
    let edited = match call {
        Call::StrReplace { path: given, old, new } if given == path => {
            str_replace(&file, old, new).map_err(|why| refused(&why))?
        }
        Call::Create { path: given, content } if given == path => {
            rewrite(&file, content).map_err(|why| refused(&why))?
        }
        Call::ApplyPatch { files, .. } => match files.as_slice() {
            [patch::FilePatch { path: given, change: patch::FileChange::Update { move_to: None, hunks } }]
                if given == path =>
            {
                patch::apply(before.as_bytes(), hunks).map_err(|why| refused(&why))?
            }
            _ => return Err("the patch changes something else".to_owned()),
        },
        other => return Err(format!("an edit of {path} was asked for; it called {}", shown(other))),
    };
    String::from_utf8(edited.bytes).map_err(|_| "the edit leaves no text".to_owned())
}

/// All two hundred, in the same order each time. `window` in tokens: some fill most of it.
pub fn cases(window: u64) -> Vec<Case> {
    let mut all = Vec::with_capacity(200);
    each_tool(&mut all);
    types(&mut all);
    code(&mut all);
    after_text(&mut all);
    parallel(&mut all);
    no_call(&mut all);
    recovery(&mut all);
    long_context(&mut all, window);
    streaming(&mut all);
    edits(&mut all);
    all
}

fn push(all: &mut Vec<Case>, kind: CaseKind, told: Vec<Told>, expected: Expected) {
    let nth = all.iter().filter(|case| case.kind == kind).count() + 1;
    let name = serde_json::to_value(kind).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
    all.push(Case { id: format!("{name}-{nth}"), kind, format: None, told, expected });
}

fn order(all: &mut Vec<Case>, kind: CaseKind, text: impl Into<String>, call: Call) {
    push(all, kind, vec![Told::User(text.into())], Expected::Calls(vec![call]));
}

fn bash(command: &str) -> Call {
    Call::Bash { command: command.into(), timeout_s: None }
}

fn view(path: &str) -> Call {
    Call::View { path: path.into(), start_line: None, end_line: None }
}

fn lines(path: &str, from: u64, to: u64) -> Call {
    Call::View { path: path.into(), start_line: Some(from), end_line: Some(to) }
}

fn search(pattern: &str, path: Option<&str>) -> Call {
    Call::Search { pattern: pattern.into(), path: path.map(str::to_owned), max_results: None }
}

fn create(path: &str, content: &str) -> Call {
    Call::Create { path: path.into(), content: content.into() }
}

fn finish(summary: &str) -> Call {
    Call::Finish { summary: summary.into() }
}

const PATHS: [&str; 4] = ["src/main.rs", "README.md", "tests/it/café.py", "web/ui/App.tsx"];

fn each_tool(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::EachTool;
    for path in PATHS {
        order(all, KIND, format!("Show the file `{path}`, all of it."), view(path));
    }
    for command in ["git status", "ls -la src", "cargo check --quiet", "wc -l README.md"] {
        order(all, KIND, format!("Run exactly this command: `{command}`"), bash(command));
    }
    for (pattern, path) in [("fn main", None), ("TODO", Some("src")), ("class User", Some("app")), ("timeout", None)] {
        let place = path.map_or_else(|| "everywhere, without a path".to_owned(), |path| format!("in `{path}`"));
        order(all, KIND, format!("Search for `{pattern}` {place}."), search(pattern, path));
    }
    for path in PATHS {
        let call = Call::StrReplace { path: path.into(), old: "alpha".into(), new: "beta".into() };
        order(
            all,
            KIND,
            format!("In `{path}` replace the one occurrence of `alpha` by `beta`, with str_replace."),
            call,
        );
    }
    for (path, content) in
        [("notes.txt", "hello"), ("VERSION", "1.2.3"), ("src/lib.rs", "pub mod api;"), ("a/b/c.md", "# Title")]
    {
        order(all, KIND, format!("Create the file `{path}` with this one line: `{content}`"), create(path, content));
    }
    for target in [None, Some("tests/test_api.py"), Some("tests/cli.rs"), Some("parser::reads_a_date")] {
        let which =
            target.map_or_else(|| "all tests of the repository".to_owned(), |target| format!("only `{target}`"));
        let call = Call::RunTests { target: target.map(str::to_owned) };
        order(all, KIND, format!("Run {which}, with run_tests."), call);
    }
    for summary in ["done", "no test: the issue is about documentation", "fixed the off-by-one error", "go"] {
        order(all, KIND, format!("Call finish with exactly this summary: `{summary}`"), finish(summary));
    }
}

fn types(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::Types;
    for (path, from, to) in [("src/lib.rs", 1, 40), ("a.py", 100, 180), ("go.mod", 3, 3), ("x/y.ts", 250, 400)] {
        order(all, KIND, format!("Show lines {from} to {to} of `{path}`."), lines(path, from, to));
    }
    for (command, seconds) in [("make", 600), ("npm test", 120), ("sleep 1", 5), ("./run.sh", 1800)] {
        let call = Call::Bash { command: command.into(), timeout_s: Some(seconds) };
        order(all, KIND, format!("Run `{command}` with timeout_s {seconds}."), call);
    }
    for (pattern, most) in [("unwrap", 10), (r"\d{3}-\d{4}", 50), (r"^import\s", 200), ("a|b", 1)] {
        let call = Call::Search { pattern: pattern.into(), path: None, max_results: Some(most) };
        order(all, KIND, format!("Search for the regular expression `{pattern}`, max_results {most}, no path."), call);
    }
    for text in ["42", "true", "null", "[1, 2]"] {
        let told = format!("Create `value.txt` whose whole content is the text `{text}`, as text.");
        order(all, KIND, told, create("value.txt", text));
    }
}

/// What breaks out of quotes, tags and fences.
const SNIPPETS: [&str; 8] = [
    "fn main() {\n    println!(\"a \\\"quoted\\\" word and a \\\\ backslash\");\n}\n",
    "html = '<arg name=\"x\">&amp; &lt;b&gt;</arg></tool>'\nprint(html)\n",
    "# Title\n\n```rust\nlet x = 1;\n```\n\nText with `code` in it.\n",
    "def f():\n\tif True:\n\t\treturn {'a': [1, 2], \"b\": None}\n",
    "const s = `line ${1 + 1}\\n second`;\nconst re = /[\"'\\\\]/g;\n",
    "naïve = \"Grüße, 世界, ✓\"\nprint(naïve)\n",
    "{\n  \"name\": \"x\",\n  \"list\": [true, null, \"</tool>\"],\n  \"n\": 1.50\n}\n",
    "sed -e 's/\\([a-z]*\\)/\\1 \"$1\"/' <<'EOF'\n$HOME is not expanded\nEOF\n",
];

fn code(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::Code;
    for (nth, snippet) in SNIPPETS.iter().enumerate() {
        for (folder, times) in [("src", 1), ("lib", 1), ("a/deep/folder", 2), ("tests", 3), ("docs", 4)] {
            // The same again and again is what a long file is to a server's parser.
            let content = snippet.repeat(times);
            let path = format!("{folder}/file{nth}.txt");
            let told = format!(
                "Create `{path}` with exactly the content between the two lines of equals signs, without them.\n=====\n{content}====="
            );
            order(all, KIND, told, create(&path, &content));
        }
    }
}

fn after_text(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::AfterText;
    let before = [
        "First say in one sentence what you will do. Then, in the same message,",
        "Think it over step by step, write down your thoughts, and then, in the same message,",
        "Begin with the words `All right.` and then, in the same message,",
        "Explain in two sentences what a unit test is, and then, in the same message,",
    ];
    for first in before {
        order(all, KIND, format!("{first} show the file `src/main.rs`."), view("src/main.rs"));
        order(all, KIND, format!("{first} run the command `git log -1`."), bash("git log -1"));
        order(all, KIND, format!("{first} search for `fn new` without a path."), search("fn new", None));
        order(all, KIND, format!("{first} call finish with the summary `ready`."), finish("ready"));
    }
}

fn parallel(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::Parallel;
    let files = ["a.rs", "b.rs", "c/d.py", "README.md"];
    let mut push_pair =
        |text: String, calls: Vec<Call>| push(all, KIND, vec![Told::User(text)], Expected::Calls(calls));
    for (nth, one) in files.iter().enumerate() {
        for other in &files[nth + 1..] {
            let told = format!("In one single message, show both files, `{one}` and `{other}`, with two calls.");
            push_pair(told, vec![view(one), view(other)]);
        }
    }
    for (pattern, path) in [("alpha", "a.rs"), ("beta", "b.rs"), ("gamma", "c.rs"), ("delta", "d.rs"), ("eps", "e.rs")]
    {
        let told = format!("In one single message: search for `{pattern}` without a path, and show the file `{path}`.");
        push_pair(told, vec![search(pattern, None), view(path)]);
    }
    for words in [
        ["x.md", "y.md", "z.md"],
        ["1.txt", "2.txt", "3.txt"],
        ["k.c", "l.c", "m.c"],
        ["p.go", "q.go", "r.go"],
        ["u.ts", "v.ts", "w.ts"],
    ] {
        let told = format!("In one single message, show these three files with three calls: {}.", words.join(", "));
        push_pair(told, words.iter().map(|path| view(path)).collect());
    }
}

fn no_call(all: &mut Vec<Case>) {
    let questions = [
        "What is 2 + 3?",
        "What does `git rebase` do? One sentence.",
        "Name three prime numbers.",
        "Is Rust a compiled language?",
        "What does HTTP status 404 mean?",
        "Say hello.",
        "What is the capital of France?",
        "Which is larger, 9.11 or 9.9?",
        "What is a linked list? One sentence.",
        "Translate `good morning` into German.",
        "How many days has a leap year?",
        "What does the tool `view` do, by its description?",
    ];
    for question in questions {
        let told = format!("{question} Answer in words, and call no tool in this message.");
        push(all, CaseKind::NoCall, vec![Told::User(told)], Expected::Silence);
    }
}

fn recovery(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::Recovery;
    let after = |all: &mut Vec<Case>, told: &str, call: Call, result: String, then: &str, wanted: Call| {
        let told = vec![Told::User(told.to_owned()), Told::Called { call, result }, Told::User(then.to_owned())];
        push(all, KIND, told, Expected::Calls(vec![wanted]));
    };
    for (wrong, right) in [
        ("src/mian.rs", "src/main.rs"),
        ("readme.md", "README.md"),
        ("test/a.py", "tests/a.py"),
        ("lib.ts", "src/lib.ts"),
        ("go.mdo", "go.mod"),
    ] {
        let result = format!("error[not_found]: there is no file {wrong}. Nearest: {right}");
        after(
            all,
            "Show the main file.",
            view(wrong),
            result,
            "Show the nearest file instead, all of it.",
            view(right),
        );
    }
    for (old, better) in
        [("x = 1", "    x = 1"), ("foo()", "self.foo()"), ("port", "port: 8080"), ("a", "a = b"), ("end", "end if")]
    {
        let call = |old: &str| Call::StrReplace { path: "src/app.py".into(), old: old.into(), new: "changed".into() };
        let result = format!("error[not_unique]: `{old}` stands there 3 times. Give more of the line.");
        let then = format!("Try again with `{better}` as old and the same new.");
        after(all, "Change it to `changed`.", call(old), result, &then, call(better));
    }
    for (command, seconds) in
        [("make", 900), ("pytest", 300), ("npm ci", 600), ("go test ./...", 1200), ("cargo test", 1800)]
    {
        let result = "error[timeout]: ended after 120 s.".to_owned();
        let wanted = Call::Bash { command: command.into(), timeout_s: Some(seconds) };
        let then = format!("Run the same command again with timeout_s {seconds}.");
        after(all, "Build it.", bash(command), result, &then, wanted);
    }
    for (from, to) in [(1, 50), (200, 260), (90, 91), (400, 500), (7, 70)] {
        let result = "The file has 612 lines; 1 to 200 are shown.".to_owned();
        let then = format!("Now lines {from} to {to} of the same file.");
        after(all, "Show src/big.rs.", view("src/big.rs"), result, &then, lines("src/big.rs", from, to));
    }
}

/// Left free for instructions and the answer.
const ROOM_TOKENS: u64 = 3_000;

fn long_context(all: &mut Vec<Case>, window: u64) {
    const KIND: CaseKind = CaseKind::LongContext;
    for percent in [50, 75, 90] {
        for word in ["heron-41", "maple-77", "quartz-19", "ember-63"] {
            let told = format!("Remember this word: {word}\n\nA log follows; it does not matter.\n");
            let filled = fill(told, window.saturating_sub(ROOM_TOKENS) * percent / 100);
            let told = format!("{filled}\nCall finish with exactly the word from the very beginning as the summary.");
            order(all, KIND, told, finish(word));
        }
    }
}

/// Lines that repeat nothing, up to about so many tokens.
fn fill(mut text: String, tokens: u64) -> String {
    let mut nth: u64 = 0;
    while estimate_tokens(&[Message::User { text: text.clone() }]) < tokens {
        // In blocks, because the whole text is measured each time.
        for _ in 0..200 {
            nth += 1;
            let noise = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            text.push_str(&format!("{nth:06} worker {} handled request {noise:06x} in {} ms\n", nth % 17, noise % 900));
        }
    }
    text
}

fn streaming(all: &mut Vec<Case>) {
    const KIND: CaseKind = CaseKind::Streaming;
    for (nth, snippet) in SNIPPETS.iter().enumerate() {
        let path = format!("streamed/{nth}.txt");
        let told = format!(
            "Create `{path}` with exactly the content between the two lines of equals signs, without them.\n=====\n{snippet}====="
        );
        order(all, KIND, told, create(&path, snippet));
    }
    for path in PATHS {
        order(all, KIND, format!("Show lines 5 to 25 of `{path}`."), lines(path, 5, 25));
    }
    for command in ["git diff --stat", "ls", "cat Cargo.toml", "printf '%s\\n' \"a b\""] {
        order(all, KIND, format!("Run exactly this command, between the arrows: >>>{command}<<<"), bash(command));
    }
    for pair in [["a.rs", "b.rs"], ["c.rs", "d.rs"], ["e.rs", "f.rs"], ["g.rs", "h.rs"]] {
        let told = format!("In one single message, show both files, `{}` and `{}`, with two calls.", pair[0], pair[1]);
        push(all, KIND, vec![Told::User(told)], Expected::Calls(pair.iter().map(|path| view(path)).collect()));
    }
}

/// Files, with a change in words and what they are after it.
const CHANGES: [(&str, &str, &str, &str); 7] = [
    (
        "src/clamp.rs",
        "pub fn clamp(x: i32, low: i32, high: i32) -> i32 {\n    if x < low {\n        return low;\n    }\n    if x > high {\n        return low;\n    }\n    x\n}\n",
        "When x is above high it must return high",
        "pub fn clamp(x: i32, low: i32, high: i32) -> i32 {\n    if x < low {\n        return low;\n    }\n    if x > high {\n        return high;\n    }\n    x\n}\n",
    ),
    (
        "app/greet.py",
        "def greet(name):\n    return \"Hello, \" + name\n\n\ndef part(name):\n    return \"Bye, \" + name\n",
        "Change the word `Bye` to `Goodbye`, and nothing else",
        "def greet(name):\n    return \"Hello, \" + name\n\n\ndef part(name):\n    return \"Goodbye, \" + name\n",
    ),
    (
        "web/sum.js",
        "export function sum(list) {\n  let total = 1;\n  for (const n of list) total += n;\n  return total;\n}\n",
        "`total` must begin at 0",
        "export function sum(list) {\n  let total = 0;\n  for (const n of list) total += n;\n  return total;\n}\n",
    ),
    (
        "conf/app.toml",
        "[server]\nport = 8080\nhost = \"127.0.0.1\"\n\n[log]\nlevel = \"info\"\n",
        "Set the log level to debug",
        "[server]\nport = 8080\nhost = \"127.0.0.1\"\n\n[log]\nlevel = \"debug\"\n",
    ),
    (
        "pkg/even.go",
        "package pkg\n\n// Even says whether n is even.\nfunc Even(n int) bool {\n\treturn n%2 == 1\n}\n",
        "The comparison must be with 0 instead of 1",
        "package pkg\n\n// Even says whether n is even.\nfunc Even(n int) bool {\n\treturn n%2 == 0\n}\n",
    ),
    (
        "docs/use.md",
        "# Use\n\nRun `tool --help`.\n\n## Limits\n\nAt most 10 files.\n",
        "The limit is 20 files",
        "# Use\n\nRun `tool --help`.\n\n## Limits\n\nAt most 20 files.\n",
    ),
    (
        "bin/say.sh",
        "#!/bin/sh\nname=\"$1\"\necho \"Hi $name\"\nexit 1\n",
        "The last line must be `exit 0`",
        "#!/bin/sh\nname=\"$1\"\necho \"Hi $name\"\nexit 0\n",
    ),
];

fn edits(all: &mut Vec<Case>) {
    let formats = EditFormat::ALL.into_iter().flat_map(|format| CHANGES.iter().map(move |change| (format, change)));
    // Twenty: the last patch is left out.
    for (format, (path, before, change, after)) in formats.take(20) {
        let how = match format {
            EditFormat::StrReplace => "with one call of str_replace".to_owned(),
            EditFormat::Create => "by writing the whole file anew with create; you have seen all of it".to_owned(),
            EditFormat::ApplyPatch => format!("with one patch in your text and no other call. {PATCH_FORM}"),
        };
        let told = format!(
            "`{path}` is, between the two lines of equals signs:\n=====\n{before}=====\n{change}. Change it {how}."
        );
        let expected =
            Expected::Edited { path: (*path).to_owned(), before: (*before).to_owned(), after: (*after).to_owned() };
        push(all, CaseKind::Edit, vec![Told::User(told)], expected);
        if let Some(case) = all.last_mut() {
            case.format = Some(format);
        }
    }
}

/// How a patch is written, for whoever is to write one.
pub(crate) const PATCH_FORM: &str = "A patch is:\n*** Begin Patch\n*** Update File: path\n@@\n line before\n-old line\n+new line\n line after\n*** End Patch";
