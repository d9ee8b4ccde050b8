//! The tools on real folders; commands run in a stand-in sandbox that has the port's contract but no walls.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use fettle_app::ports::sandbox::{Mount, SandboxCommand, SandboxLevel, SandboxOutput, SandboxReport};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::edit::patch;

/// Runs commands as they are, and remembers the last one.
struct OpenSandbox {
    report: SandboxReport,
    last: Mutex<Option<SandboxCommand>>,
}

#[async_trait]
impl Sandbox for OpenSandbox {
    fn report(&self) -> &SandboxReport {
        &self.report
    }

    fn workspace_inside(&self, workspace: &Utf8Path) -> Utf8PathBuf {
        workspace.to_owned()
    }

    async fn run(&self, command: &SandboxCommand, _cancel: &CancellationToken) -> Result<SandboxOutput, SandboxError> {
        *self.last.lock().unwrap() = Some(command.clone());
        let started = Instant::now();
        let child = tokio::process::Command::new(&command.argv[0])
            .args(&command.argv[1..])
            .current_dir(command.workspace.join(&command.cwd))
            .env_clear()
            .envs(&command.env)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let (end, output) = match tokio::time::timeout(command.limits.time, child).await {
            Ok(output) => {
                let output = output.map_err(|e| SandboxError::Failed(Box::new(e)))?;
                let end = output.status.code().map_or(CommandEnd::Signalled(9), CommandEnd::Exited);
                (end, [output.stdout, output.stderr].concat())
            }
            Err(_) => (CommandEnd::TimedOut, b"so far\n".to_vec()),
        };
        let bytes_total = output.len() as u64;
        Ok(SandboxOutput {
            end,
            output,
            bytes_total,
            truncated: false,
            took: started.elapsed(),
            denied_hosts: Vec::new(),
        })
    }
}

struct ScriptedTests(TestText);

#[async_trait]
impl TestRunner for ScriptedTests {
    async fn run(&self, _: &Utf8Path, _: Option<&str>, _: &CancellationToken) -> Result<TestText, SandboxError> {
        Ok(self.0.clone())
    }
}

struct Bench {
    _folder: TempDir,
    root: Utf8PathBuf,
    sandbox: Arc<OpenSandbox>,
    tools: ToolBox,
    step: u32,
}

impl Bench {
    fn new() -> Self {
        Self::with_context(64_000)
    }

    fn with_context(working_context_tokens: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let base = Utf8PathBuf::from_path_buf(folder.path().canonicalize().unwrap()).unwrap();
        let root = base.join("workspace");
        fs_err::create_dir_all(&root).unwrap();
        let report = SandboxReport { level: SandboxLevel::Full, cgroup: false, landlock_abi: 0, notes: Vec::new() };
        let sandbox = Arc::new(OpenSandbox { report, last: Mutex::new(None) });
        let tests = TestText {
            end: CommandEnd::Exited(101),
            counts: Some(TestCounts { passed: 3, failed: 4, skipped: 0 }),
            failing: ["a", "b", "c", "d"].map(str::to_owned).to_vec(),
            messages: (1..=4).map(|n| format!("message {n}")).collect(),
            note: None,
            output: Bytes::from_static(b"\x1b[31mraw\x1b[0m output\n"),
            bytes_total: 20,
        };
        let mut bench = Workbench::default();
        bench.env.insert("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
        let tools = ToolBox::new(ToolBoxOptions {
            workspace: root.clone(),
            out_dir: base.join("out"),
            sandbox: sandbox.clone(),
            bench,
            path_rules: Arc::new(|path| path.lossy().ends_with(".key").then(|| "*.key".to_owned())),
            tests: Arc::new(ScriptedTests(tests)),
            working_context_tokens,
        })
        .unwrap();
        Self { _folder: folder, root, sandbox, tools, step: 0 }
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root.join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        fs_err::read(self.root.join(path)).unwrap()
    }

    async fn run_as(&mut self, tool: &str, arguments: Value, access: Access) -> ToolResult {
        let given =
            arguments.as_object().unwrap().clone().into_iter().map(|(k, v)| (k, spec::Given::Json(v))).collect();
        let (call, _) = spec::find(tool).unwrap().0.check(given).unwrap();
        self.step += 1;
        let cancel = CancellationToken::new();
        // A tool that hangs (on a FIFO, say) fails the test instead of the suite.
        let run = self.tools.execute(self.step, &call, access, &cancel);
        tokio::time::timeout(Duration::from_secs(60), run).await.expect("a tool answers").unwrap().result
    }

    async fn run(&mut self, tool: &str, arguments: Value) -> ToolResult {
        self.run_as(tool, arguments, Access::ReadWrite).await
    }

    async fn text(&mut self, tool: &str, arguments: Value) -> String {
        self.run(tool, arguments).await.text
    }

    async fn patch(&mut self, text: &str) -> ToolResult {
        let call = Call::ApplyPatch { text: text.to_owned(), files: patch::parse(text).unwrap() };
        self.step += 1;
        self.tools.execute(self.step, &call, Access::ReadWrite, &CancellationToken::new()).await.unwrap().result
    }
}

#[test]
fn the_schemas_are_the_pinned_ones() {
    let path = json!({"type": "string"});
    let pinned = [
        (
            "bash",
            json!(["command"]),
            json!({
                "command": {"type": "string", "minLength": 1, "maxLength": 16000},
                "timeout_s": {"type": "integer", "minimum": 1, "maximum": 1800},
            }),
        ),
        (
            "view",
            json!(["path"]),
            json!({
                "path": path,
                "start_line": {"type": "integer", "minimum": 1},
                "end_line": {"type": "integer", "minimum": 1},
            }),
        ),
        (
            "search",
            json!(["pattern"]),
            json!({
                "pattern": {"type": "string", "minLength": 1, "maxLength": 1000},
                "path": path,
                "max_results": {"type": "integer", "minimum": 1, "maximum": 200},
            }),
        ),
        (
            "str_replace",
            json!(["path", "old", "new"]),
            json!({
                "path": path,
                "old": {"type": "string", "minLength": 1},
                "new": {"type": "string"},
            }),
        ),
        (
            "create",
            json!(["path", "content"]),
            json!({
                "path": path,
                "content": {"type": "string", "maxLength": 400_000},
            }),
        ),
        ("run_tests", json!([]), json!({"target": {"type": "string", "maxLength": 500}})),
        (
            "finish",
            json!(["summary"]),
            json!({
                "summary": {"type": "string", "minLength": 1, "maxLength": 4000},
            }),
        ),
    ];
    let specs = specs();
    assert_eq!(specs.len(), pinned.len());
    for (spec, (name, required, properties)) in specs.iter().zip(pinned) {
        assert_eq!(spec.name, name);
        assert_eq!(
            spec.parameters,
            json!({"type": "object", "additionalProperties": false, "required": required, "properties": properties})
        );
        assert!(!spec.description.is_empty());
    }
}

#[tokio::test]
async fn view_numbers_lines_and_says_what_is_unusual() {
    let mut bench = Bench::new();
    bench.put("src/a.rs", b"\xEF\xBB\xBFone\r\n\ttwo\r\n");
    assert_eq!(
        bench.text("view", json!({"path": "src/a.rs"})).await,
        "src/a.rs · lines 1–2 of 2 · crlf · bom\n1\tone\n2\t\ttwo"
    );
    let long: String = (1..=812).map(|n| format!("line {n}\n")).collect();
    bench.put("long.txt", &long);
    let text = bench.text("view", json!({"path": "./long.txt"})).await;
    assert!(
        text.starts_with("./long.txt · lines 1–200 of 812\n1\tline 1\n") && text.ends_with("200\tline 200"),
        "{text}"
    );
    let text = bench.text("view", json!({"path": "long.txt", "start_line": 101, "end_line": 900})).await;
    assert!(text.starts_with("long.txt · lines 101–500 of 812\n101\tline 101\n"), "{text}");
    bench.put("wide.txt", "é".repeat(600));
    let text = bench.text("view", json!({"path": "wide.txt"})).await;
    assert_eq!(text, format!("wide.txt · lines 1–1 of 1 · no final newline\n1\t{}…", "é".repeat(500)));
    assert_eq!(
        bench.run("view", json!({"path": "long.txt", "start_line": 813})).await.code.as_deref(),
        Some("bad_call")
    );
    bench.put("data.bin", b"\0\x01");
    assert_eq!(bench.run("view", json!({"path": "data.bin"})).await.code.as_deref(), Some("binary"));
    assert_eq!(
        bench.text("view", json!({"path": "src/b.rs"})).await,
        "error[not_found]: src/b.rs does not exist; nothing was changed. Nearest names: src/a.rs."
    );
}

#[tokio::test]
async fn a_folder_is_shown_two_levels_deep_without_git_and_ignored_files() {
    let mut bench = Bench::new();
    for path in ["a/b/c/deep.rs", "a/x.rs", "target/debug/big", ".git/config", ".gitignore", "z.txt", "a/skip.log"] {
        bench.put(path, "x");
    }
    bench.put(".gitignore", "/target\n*.log\n!keep.log\n");
    bench.put("keep.log", "x");
    assert_eq!(
        bench.text("view", json!({"path": "."})).await,
        ". · folder · 6 entries\n.gitignore\na/\na/b/\na/x.rs\nkeep.log\nz.txt"
    );
    assert_eq!(bench.text("view", json!({"path": "a/"})).await, "a/ · folder · 3 entries\nb/\nb/c/\nx.rs");
}

#[tokio::test]
async fn nothing_outside_the_workspace_can_be_named() {
    use std::os::unix::fs::symlink;
    let mut bench = Bench::new();
    bench.put("real/a.txt", "secret\n");
    bench.put(".git/config", "[core]\n");
    symlink("/etc", bench.root.join("etc")).unwrap();
    symlink("/proc/self/root/etc/hostname", bench.root.join("magic")).unwrap();
    symlink("../out", bench.root.join("up")).unwrap();
    symlink(".git/config", bench.root.join("gitlink")).unwrap();
    symlink("real", bench.root.join("inner")).unwrap();
    symlink("missing", bench.root.join("dangling")).unwrap();
    for path in [
        "/etc/passwd",
        "../out/1.log",
        "real/../../x",
        "etc/passwd",
        "magic",
        "up/1.log",
        ".git/config",
        "gitlink",
        "sub/.GIT/x",
        "@out/../workspace/real/a.txt",
    ] {
        let result = bench.run("view", json!({"path": path})).await;
        assert_eq!(result.text, format!("error[outside]: {path} is outside the workspace."), "{path}");
        let create = bench.run("create", json!({"path": path, "content": "x"})).await;
        assert!(matches!(create.code.as_deref(), Some("outside" | "forbidden_path")), "{path}: {}", create.text);
        let edit = bench.run("str_replace", json!({"path": path, "old": "r", "new": "x"})).await;
        assert!(matches!(edit.code.as_deref(), Some("outside" | "forbidden_path")), "{path}: {}", edit.text);
    }
    // A link that stays inside may be read, and is not written through.
    assert_eq!(bench.text("view", json!({"path": "inner/a.txt"})).await, "inner/a.txt · lines 1–1 of 1\n1\tsecret");
    assert_eq!(
        bench.text("str_replace", json!({"path": "inner/a.txt", "old": "secret", "new": "x"})).await,
        "error[forbidden_path]: inner/a.txt must not be changed (rule no links; it leads to real/a.txt)."
    );
    let dangling = bench.run("create", json!({"path": "dangling", "content": "x"})).await;
    assert!(!dangling.ok && !bench.root.join("missing").exists(), "{}", dangling.text);
    assert_eq!(bench.bytes("real/a.txt"), b"secret\n");
    assert_eq!(bench.bytes(".git/config"), b"[core]\n");
    assert!(!bench.text("search", json!({"pattern": "root|core", "path": "."})).await.contains("passwd"));
}

#[tokio::test]
async fn a_fifo_is_refused_at_once_wherever_it_lies() {
    let mut bench = Bench::new();
    bench.put("sub/a.txt", "needle\n");
    let made = bench.run("bash", json!({"command": "mkfifo pipe .gitignore sub/.gitignore sub/p"})).await;
    assert!(made.ok, "{}", made.text);
    assert_eq!(bench.run("view", json!({"path": "pipe"})).await.code.as_deref(), Some("binary"));
    assert_eq!(bench.run("create", json!({"path": "pipe", "content": "x"})).await.code.as_deref(), Some("binary"));
    assert_eq!(
        bench.run("str_replace", json!({"path": "pipe", "old": "a", "new": "b"})).await.code.as_deref(),
        Some("binary")
    );
    assert_eq!(bench.text("search", json!({"pattern": "needle"})).await, "sub/a.txt:1: needle");
    assert!(bench.text("view", json!({"path": "."})).await.contains("pipe (not a regular file)"));
}

#[tokio::test]
async fn str_replace_keeps_the_mode_and_shows_the_region() {
    let mut bench = Bench::new();
    let lines: String = (1..=20).map(|n| format!("x{n} = {n}\n")).collect();
    bench.put("tool.py", &lines);
    let file = bench.root.join("tool.py");
    fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o555)).unwrap();
    let result = bench.run("str_replace", json!({"path": "tool.py", "old": "x10 = 10", "new": "x10 = (\n\n"})).await;
    assert!(result.ok && result.wrote == [RepoPath::parse("tool.py").unwrap()]);
    let expected = "changed tool.py, lines 10–11\n6\tx6 = 6\n7\tx7 = 7\n8\tx8 = 8\n9\tx9 = 9\n10\tx10 = (\n11\t\n12\t\n13\tx11 = 11\n";
    assert!(result.text.starts_with(expected), "{}", result.text);
    assert!(result.text.contains("\nsyntax: new error at line 10: x10 = ("), "{}", result.text);
    assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(fs_err::read_dir(&bench.root).unwrap().count(), 1, "no temporary file is left");
}

#[tokio::test]
async fn errors_carry_their_code_and_say_that_nothing_changed() {
    let mut bench = Bench::new();
    bench.put("a.txt", "one\ntwo\none\n");
    bench.put("server.key", "k\n");
    bench.put("latin.txt", b"caf\xE9\n");
    let mut edit = async |path: &str, old: &str, new: &str| {
        bench.text("str_replace", json!({"path": path, "old": old, "new": new})).await
    };
    assert_eq!(
        edit("a.txt", "zzzzqqqq", "x").await,
        "error[no_match]: old does not occur in a.txt; nothing was changed."
    );
    assert!(edit("a.txt", "one", "x").await.starts_with(
        "error[not_unique]: old occurs 2 times in a.txt (lines 1, 3); nothing was changed. Add surrounding lines until it is unique.\nregion 1, lines 1–3:\n"
    ));
    assert_eq!(
        edit("a.txt", "1\tone\n2\ttwo", "x").await,
        "error[line_numbers]: old carries the line numbers printed by view; send the text without them. Nothing was changed."
    );
    assert_eq!(edit("a.txt", "two", "two").await, "error[no_change]: old and new are equal.");
    assert_eq!(
        edit("server.key", "k", "x").await,
        "error[forbidden_path]: server.key must not be changed (rule *.key)."
    );
    assert_eq!(
        edit("latin.txt", "café", "€").await,
        "error[not_encodable]: latin.txt is encoded in iso-8859-1, which lacks '€' (U+20AC); nothing was changed."
    );
    let read_only = bench.run_as("create", json!({"path": "n", "content": "x"}), Access::ReadOnly).await;
    assert_eq!(read_only.text, "error[read_only]: this phase only reads.");
    assert_eq!(bench.bytes("a.txt"), b"one\ntwo\none\n");
}

#[tokio::test]
async fn create_writes_new_files_and_rewrites_only_what_was_seen_in_full() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.text("create", json!({"path": "src/new.rs", "content": "fn a() {}\n"})).await,
        "created src/new.rs: +1\nsyntax: ok"
    );
    // What was just written is known.
    assert_eq!(
        bench.text("create", json!({"path": "src/new.rs", "content": "fn a() {}\nfn b() {}\n"})).await,
        "rewrote src/new.rs: +1 −0\nsyntax: ok"
    );
    bench.put("old.txt", "1\r\n2\r\n3\r\n");
    let unseen =
        "error[exists_unseen]: old.txt exists and was not seen in full in this run; view it, or use str_replace.";
    let rewrite = json!({"path": "old.txt", "content": "1\n2\nthree\n"});
    assert_eq!(bench.text("create", rewrite.clone()).await, unseen);
    bench.run("view", json!({"path": "old.txt", "end_line": 1})).await;
    bench.run("view", json!({"path": "old.txt", "start_line": 3})).await;
    assert_eq!(bench.text("create", rewrite.clone()).await, unseen);
    bench.run("view", json!({"path": "old.txt", "start_line": 2, "end_line": 2})).await;
    bench.put("old.txt", "changed meanwhile\r\n");
    assert_eq!(bench.text("create", rewrite.clone()).await, unseen);
    bench.put("old.txt", "1\r\n2\r\n3\r\n");
    assert_eq!(bench.text("create", rewrite.clone()).await, "rewrote old.txt: +1 −1");
    assert_eq!(bench.bytes("old.txt"), b"1\r\n2\r\nthree\r\n");
    bench.tools.forget_seen();
    assert_eq!(bench.text("create", json!({"path": "old.txt", "content": "x"})).await, unseen);
    assert_eq!(
        bench.text("create", json!({"path": "b.rs", "content": "fn a() {}\n// ... existing code ...\n"})).await,
        "error[elided_content]: content replaces code by a placeholder (\"// ... existing code ...\"); send the whole file or use str_replace. Nothing was changed."
    );
    assert!(!bench.root.join("b.rs").exists());
}

#[tokio::test]
async fn a_patch_is_applied_to_all_files_or_to_none() {
    let mut bench = Bench::new();
    bench.put("a.txt", "one\ntwo\n");
    bench.put("b.txt", "three\n");
    bench.put("c.txt", "gone\n");
    let half = "*** Begin Patch\n*** Update File: a.txt\n-two\n+2\n*** Update File: b.txt\n-four\n+4\n*** End Patch";
    assert_eq!(bench.patch(half).await.code.as_deref(), Some("no_match"));
    assert_eq!(bench.bytes("a.txt"), b"one\ntwo\n");
    let forbidden = "*** Begin Patch\n*** Update File: a.txt\n-two\n+2\n*** Add File: x.key\n+k\n*** End Patch";
    assert_eq!(bench.patch(forbidden).await.code.as_deref(), Some("forbidden_path"));
    assert_eq!(bench.bytes("a.txt"), b"one\ntwo\n");
    let whole = "*** Begin Patch\n*** Update File: a.txt\n one\n-two\n+2\n*** Update File: b.txt\n*** Move to: sub/b.txt\n-three\n+3\n\
                 *** Delete File: c.txt\n*** Add File: d.txt\n+new\n*** End Patch";
    let result = bench.patch(whole).await;
    assert!(result.ok, "{}", result.text);
    let wrote: Vec<String> = result.wrote.iter().map(RepoPath::lossy).collect();
    assert_eq!(wrote, ["a.txt", "sub/b.txt", "b.txt", "c.txt", "d.txt"]);
    assert_eq!(
        (bench.bytes("a.txt"), bench.bytes("sub/b.txt"), bench.bytes("d.txt")),
        (b"one\n2\n".to_vec(), b"3\n".to_vec(), b"new\n".to_vec())
    );
    assert!(!bench.root.join("b.txt").exists() && !bench.root.join("c.txt").exists());
    // A folder where a file must go fails the last write, and takes back the first.
    bench.put("late/file", "x");
    let late = "*** Begin Patch\n*** Update File: a.txt\n-2\n+two\n*** Add File: d.txt/x\n+k\n*** End Patch";
    assert!(!bench.patch(late).await.ok);
    assert_eq!(bench.bytes("a.txt"), b"one\n2\n");
}

#[tokio::test]
async fn search_puts_the_definition_first_and_counts_what_it_leaves_out() {
    let mut bench = Bench::new();
    bench.put("a/use.rs", "use crate::parse_header;\nlet h = parse_header(x);\n");
    bench.put("b/def.rs", "mod m;\npub(crate) fn parse_header(x: &str) {}\n");
    bench.put("ignored/x.rs", "parse_header\n");
    bench.put(".gitignore", "ignored/\n");
    bench.put("blob.bin", b"parse_header\0");
    assert_eq!(
        bench.text("search", json!({"pattern": "parse_header"})).await,
        "b/def.rs:2: def: pub(crate) fn parse_header(x: &str) {}\na/use.rs:1: use crate::parse_header;\na/use.rs:2: let h = parse_header(x);"
    );
    assert_eq!(
        bench.text("search", json!({"pattern": "parse_header", "max_results": 1})).await,
        "b/def.rs:2: def: pub(crate) fn parse_header(x: &str) {}\n… 2 more in 1 files"
    );
    assert_eq!(bench.text("search", json!({"pattern": "header", "path": "a"})).await.lines().count(), 2);
    assert_eq!(bench.text("search", json!({"pattern": "mod", "path": "b/def.rs"})).await, "b/def.rs:1: mod m;");
    assert_eq!(bench.text("search", json!({"pattern": "header", "path": "**/use.*"})).await.lines().count(), 2);
    assert_eq!(bench.text("search", json!({"pattern": "nothing here"})).await, "no match");
    let bad = bench.run("search", json!({"pattern": "foo("})).await;
    assert_eq!(bad.code.as_deref(), Some("bad_call"));
    // A pattern that would take exponential time elsewhere is answered.
    bench.put("evil.txt", "a".repeat(50_000));
    assert_eq!(bench.text("search", json!({"pattern": "(a+)+$b", "path": "evil.txt"})).await, "no match");
}

#[tokio::test]
async fn bash_reports_exit_output_and_keeps_every_byte() {
    let mut bench = Bench::new();
    let result = bench.run("bash", json!({"command": "printf 'a\\033[1mb\\n'; printf oops >&2; exit 3"})).await;
    assert_eq!((result.ok, result.exit, result.code.as_deref()), (false, Some(3), None));
    let (first, rest) = result.text.split_once('\n').unwrap();
    assert!(first.starts_with("exit 3 · ") && first.ends_with(" s"), "{first}");
    assert_eq!(rest, "ab\noops");
    assert_eq!(bench.text("view", json!({"path": "@out/1.log"})).await, "@out/1.log · lines 1–2 of 2\n1\tab\n2\toops");

    let result = bench.run("bash", json!({"command": "seq 1 5000; echo needle"})).await;
    assert!(result.truncated && result.bytes_total > 20_000);
    assert!(result.text.contains("lines left out; all of it: @out/3.log …]\n"), "{}", result.text);
    assert!(result.text.ends_with("needle\n"), "{}", result.text);
    assert_eq!(
        bench.text("search", json!({"pattern": "needle", "path": "@out/3.log"})).await,
        "@out/3.log:5001: needle"
    );
    let found = bench.run("bash", json!({"command": "tail -n 1 \"$FETTLE_OUT/3.log\""})).await;
    assert!(found.text.ends_with("needle\n"), "{}", found.text);
    let last = bench.sandbox.last.lock().unwrap().clone().unwrap();
    let out = last.env["FETTLE_OUT"].clone();
    assert_eq!(last.mounts, [Mount { host: out.clone().into(), inside: out.into(), access: Access::ReadOnly }]);

    let result = bench.run_as("bash", json!({"command": "sleep 30", "timeout_s": 1}), Access::ReadOnly).await;
    assert!(result.timed_out && result.code.as_deref() == Some("timed_out"));
    assert_eq!(
        result.text,
        "error[timed_out]: ended after 1 s; what it changed until then stays. Output so far:\nso far\n"
    );
    assert_eq!(bench.sandbox.last.lock().unwrap().as_ref().unwrap().workspace_access, Access::ReadOnly);
}

#[tokio::test]
async fn run_tests_names_the_failing_and_explains_three() {
    let mut bench = Bench::new();
    let result = bench.run("run_tests", json!({})).await;
    let (first, rest) = result.text.split_once('\n').unwrap();
    assert!(first.starts_with("exit 101 · "), "{first}");
    assert_eq!(
        rest,
        "3 passed, 4 failed, 0 skipped\nfailing:\n  a\n  b\n  c\n  d\n---\nmessage 1\n---\nmessage 2\n---\nmessage 3\n--- output\nraw output\n"
    );
    assert!(!result.ok);
}

#[tokio::test]
async fn no_result_is_larger_than_a_quarter_of_the_working_context() {
    let mut bench = Bench::with_context(2_000);
    bench.put("long.txt", "some words on a line\n".repeat(1000));
    for (tool, arguments) in [
        ("bash", json!({"command": "seq 1 5000"})),
        ("view", json!({"path": "long.txt", "end_line": 400})),
        ("search", json!({"pattern": "words", "max_results": 200})),
    ] {
        let result = bench.run(tool, arguments).await;
        assert!(result.text.chars().count() <= 2_000 && result.truncated, "{tool}: {}", result.text.len());
    }
}

#[tokio::test]
async fn a_replay_restores_what_was_seen_and_the_outputs() {
    let mut first = Bench::new();
    first.put("a.txt", "x\n");
    let view = Call::View { path: "a.txt".into(), start_line: None, end_line: None };
    let done = first.tools.execute(1, &view, Access::ReadWrite, &CancellationToken::new()).await.unwrap();
    let journaled: ToolResult = serde_json::from_value(serde_json::to_value(&done.result).unwrap()).unwrap();
    assert_eq!(journaled, done.result);

    let mut second = Bench::new();
    second.put("a.txt", "x\n");
    second.tools.absorb(1, &journaled, done.full_output);
    second.step = 1;
    assert_eq!(
        second.text("view", json!({"path": "@out/1.log"})).await,
        "@out/1.log · lines 1–2 of 2\n1\ta.txt · lines 1–1 of 1\n2\t1\tx"
    );
    assert!(second.run("create", json!({"path": "a.txt", "content": "y\n"})).await.ok);
}

#[test]
fn a_failed_edit_skips_the_rest_and_a_failed_command_does_not() {
    let edit = Call::Create { path: "a".into(), content: String::new() };
    let command = Call::Bash { command: "false".into(), timeout_s: None };
    let failed = Outcome::refused("no_match", "x".into()).result;
    assert!(failed.skips_rest(&edit));
    let exited = ToolResult { ok: false, code: None, exit: Some(1), ..failed.clone() };
    assert!(!exited.skips_rest(&command));
    assert!(ToolResult { code: Some("timed_out".into()), ..exited }.skips_rest(&command));
    assert_eq!(ToolResult::skipped(2).text, "error[skipped]: not executed because call 2 of the same message failed.");
}
