//! The lines of `cargo test`.

use fettle_domain::proof::FailureKind;

use super::{Case, Report};

/// Ids are `binary::module::test`, for documentation `crate (doc)::file - item` without the line, which moves with every edit.
pub fn parse(output: &str) -> Report {
    let mut report = Report::default();
    let mut binaries: Vec<String> = Vec::new();
    let mut binary = String::new();
    for line in output.lines() {
        let trimmed = line.trim();
        if let Some(name) = running(trimmed) {
            binary = enter(&mut binaries, name);
        } else if let Some(name) = trimmed.strip_prefix("Doc-tests ") {
            binary = enter(&mut binaries, format!("{name} (doc)"));
        } else if trimmed.starts_with("error: could not compile") || trimmed.starts_with("error: couldn't compile") {
            report.not_built = true;
        } else if let Some((name, word)) = result(line) {
            let id = if binary.is_empty() { name.to_owned() } else { format!("{binary}::{}", without_line(name)) };
            match word {
                "ok" => report.add(&id, Case::passed()),
                "FAILED" => {
                    let message = message_of(output, name);
                    report.add(&id, Case::failed(kind_of(&message), &message));
                }
                _ => report.add(&id, Case::skipped()),
            }
        }
    }
    report
}

/// `Running unittests src/lib.rs (target/debug/deps/fx-4a99a53287a4b62f)` → `fx`.
fn running(line: &str) -> Option<String> {
    let path = line.strip_prefix("Running ")?.rsplit_once('(')?.1.strip_suffix(')')?;
    let file = path.rsplit('/').next()?;
    let name = file.rsplit_once('-').filter(|(_, hash)| hash.len() == 16).map_or(file, |(name, _)| name);
    Some(name.to_owned())
}

fn enter(binaries: &mut Vec<String>, name: String) -> String {
    binaries.push(name.clone());
    match binaries.iter().filter(|seen| **seen == name).count() {
        1 => name,
        n => format!("{name}#{n}"),
    }
}

/// `test tests::good ... ok` → (`tests::good`, `ok`).
fn result(line: &str) -> Option<(&str, &str)> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let word = result.split([',', ' ', '\t']).next()?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    matches!(word, "ok" | "FAILED" | "ignored").then_some((name, word))
}

fn without_line(name: &str) -> String {
    match name.rsplit_once(" (line ") {
        Some((before, _)) => before.trim_end().to_owned(),
        None => name.to_owned(),
    }
}

/// What stands below `---- name stdout ----`, up to the next heading.
fn message_of(output: &str, name: &str) -> String {
    let heading = format!("---- {name} stdout ----");
    let lines = output.lines().skip_while(|line| line.trim() != heading).skip(1);
    let body: Vec<&str> =
        lines.take_while(|line| !line.starts_with("---- ") && *line != "failures:").take(20).collect();
    body.join("\n")
}

fn kind_of(message: &str) -> FailureKind {
    if message.contains("assertion `") || message.contains("assertion failed") || message.contains("did not panic") {
        FailureKind::Assertion
    } else {
        FailureKind::Error
    }
}
