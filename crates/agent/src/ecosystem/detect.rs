//! Ecosystems by the files at the root.

use fettle_domain::path::RepoPath;
use fettle_domain::proof::{Check, CommandSource};

use super::files::{BaseFiles, is_requirements};
use super::{CheckCommand, Commands, Ecosystem, ReportForm, Suite, TargetForm};

pub(super) fn at_root(files: &BaseFiles) -> Commands {
    let mut commands = Commands::default();
    cargo(files, &mut commands);
    npm(files, &mut commands);
    pytest(files, &mut commands);
    make(files, &mut commands);
    if commands.ecosystems.is_empty()
        && let Some(nested) = files.paths().find(|p| p.ends_with("/Cargo.toml") || p.ends_with("/package.json"))
    {
        commands.notes.push(format!("`{nested}` lies below the root; name its commands in `.fettle.toml`"));
    }
    commands
}

fn check(commands: &mut Commands, name: &str, command: &str) {
    let check = CheckCommand { name: name.to_owned(), command: command.to_owned(), source: CommandSource::Ecosystem };
    commands.checks.push(check);
}

fn suite(commands: &mut Commands, command: &str, target: TargetForm, report: ReportForm) {
    commands.suites.push(Suite { source: CommandSource::Ecosystem, command: command.to_owned(), target, report });
}

fn cargo(files: &BaseFiles, commands: &mut Commands) {
    if !files.has("Cargo.toml") {
        return;
    }
    commands.ecosystems.push(Ecosystem::Cargo);
    let locked = if files.has("Cargo.lock") {
        " --locked"
    } else {
        commands.by_products.push(RepoPath::parse("Cargo.lock").expect("a plain file name is a path"));
        ""
    };
    check(commands, Check::BUILD, &format!("cargo build{locked} --all-targets"));
    let ci: Vec<String> = files.ci_texts().collect();
    if ci.iter().any(|text| text.contains("cargo clippy")) {
        check(commands, "lint", &format!("cargo clippy{locked} --all-targets -- -D warnings"));
    }
    if ci.iter().any(|text| text.contains("cargo fmt")) {
        check(commands, "format", "cargo fmt --all --check");
    }
    let command = format!("cargo test{locked} --workspace --no-fail-fast");
    suite(commands, &command, TargetForm::Cargo, ReportForm::Libtest);
}

fn npm(files: &BaseFiles, commands: &mut Commands) {
    let Some(package) = files.text("package.json") else { return };
    let Ok(package) = serde_json::from_str::<serde_json::Value>(&package) else {
        commands.notes.push("`package.json` is not JSON and was not used".to_owned());
        return;
    };
    commands.ecosystems.push(Ecosystem::Npm);
    let script = |name: &str| package["scripts"][name].as_str().map(str::trim);
    let used = ["pretest", "test", "posttest", "build", "lint", "typecheck"];
    commands.scripts.extend(used.into_iter().filter_map(script).map(str::to_owned));
    for (name, key) in [(Check::BUILD, "build"), ("lint", "lint"), ("typecheck", "typecheck")] {
        if script(key).is_some() {
            check(commands, name, &format!("npm run --silent {key}"));
        }
    }
    // The text that `npm init` writes is no test.
    let Some(script) = script("test").filter(|script| !script.contains("no test specified")) else { return };
    let (target, report) = runner_of(script);
    suite(commands, "npm test", target, report);
}

/// What the `test` script runs. Words are only added behind a script of one plain command: behind `a && b` they would reach
/// the wrong program.
fn runner_of(script: &str) -> (TargetForm, ReportForm) {
    let plain = !script.contains(['&', '|', ';', '>', '<', '`', '$', '(']);
    let mut words = script.split_whitespace().skip_while(|word| word.contains('=') || *word == "cross-env").peekable();
    let program = words.next().unwrap_or_default();
    match program {
        "node" if script.contains("--test") => {
            let flags: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
            let target = if plain { TargetForm::Node { flags: flags.join(" ") } } else { TargetForm::None };
            (target, ReportForm::Node)
        }
        "jest" if plain => (TargetForm::Script, ReportForm::Json { words: "--json --outputFile={report}" }),
        "vitest" if plain => (TargetForm::Script, ReportForm::Json { words: "--reporter=json --outputFile={report}" }),
        _ => (TargetForm::None, ReportForm::Exit),
    }
}

fn pytest(files: &BaseFiles, commands: &mut Commands) {
    let configured = files.has("pytest.ini")
        || files.text("pyproject.toml").is_some_and(|text| text.contains("[tool.pytest"))
        || files.text("tox.ini").is_some_and(|text| text.contains("[pytest]"))
        || files.text("setup.cfg").is_some_and(|text| text.contains("[tool:pytest]"));
    let python = ["pyproject.toml", "setup.py", "setup.cfg", "tox.ini"].iter().any(|name| files.has(name))
        || files.paths().any(is_requirements);
    let mut has_tests = false;
    let mut has_source_folder = false;
    for path in files.paths() {
        let name = path.rsplit('/').next().unwrap_or(path);
        has_tests |= name.ends_with("_test.py") || (name.starts_with("test_") && name.ends_with(".py"));
        has_source_folder |= path.starts_with("src/") && path.ends_with(".py");
    }
    if !configured && !has_tests {
        if python {
            commands.notes.push("this is a Python project without tests that pytest would find".to_owned());
        }
        return;
    }
    commands.ecosystems.push(Ecosystem::Pytest);
    if files.text("pyproject.toml").is_some_and(|text| text.contains("[tool.ruff")) {
        check(commands, "lint", "ruff check .");
    }
    if files.text("pyproject.toml").is_some_and(|text| text.contains("[tool.mypy")) {
        check(commands, "typecheck", "mypy .");
    }
    // A `src` layout is found only when it is installed or on the path; preparation does not install the project itself.
    let path = if has_source_folder { "PYTHONPATH=src " } else { "" };
    suite(commands, &format!("{path}python3 -m pytest -q"), TargetForm::Pytest, ReportForm::Pytest);
}

fn make(files: &BaseFiles, commands: &mut Commands) {
    let Some(makefile) = ["GNUmakefile", "makefile", "Makefile"].iter().find_map(|name| files.text(name)) else {
        return;
    };
    if !commands.suites.is_empty() {
        return;
    }
    let has = |target: &str| {
        makefile.lines().any(|line| line.strip_prefix(target).is_some_and(|rest| rest.trim_start().starts_with(':')))
    };
    let Some(target) = ["test", "check"].into_iter().find(|target| has(target)) else { return };
    commands.ecosystems.push(Ecosystem::Make);
    if commands.checks.is_empty() {
        check(commands, Check::BUILD, "make");
    }
    suite(commands, &format!("make {target}"), TargetForm::None, ReportForm::Exit);
}
