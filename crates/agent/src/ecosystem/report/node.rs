//! Node's own test runner: TAP where the output is no terminal, `spec` lines in newer versions.

use fettle_domain::proof::FailureKind;

use super::{Case, Report};

/// Ids are `group > test`; a file that could not be loaded is named relative to `root`, the workspace as the command saw it.
pub fn parse(output: &str, root: &str) -> Report {
    if output.lines().any(|line| line.trim_end() == "TAP version 13") { tap(output, root) } else { spec(output, root) }
}

/// A result line seen at a depth, with what is needed to tell a group from a test.
struct Line {
    depth: usize,
    ok: bool,
    name: String,
    skipped: bool,
    details: String,
}

fn tap(output: &str, root: &str) -> Report {
    let mut lines: Vec<Line> = Vec::new();
    for text in output.lines() {
        let indent = text.len() - text.trim_start().len();
        let body = text.trim_start();
        let (ok, rest) = match (body.strip_prefix("ok "), body.strip_prefix("not ok ")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => {
                if let Some(last) = lines.last_mut().filter(|_| !body.starts_with('#')) {
                    last.details.push_str(body);
                    last.details.push('\n');
                }
                continue;
            }
        };
        let Some((_, title)) = rest.split_once(" - ") else { continue };
        let (name, directive) = title.split_once(" # ").unwrap_or((title, ""));
        let skipped = directive.starts_with("SKIP") || directive.starts_with("TODO");
        lines.push(Line { depth: indent / 4, ok, name: name.trim().to_owned(), skipped, details: String::new() });
    }
    collect(&lines, Order::GroupLast, root)
}

fn spec(output: &str, root: &str) -> Report {
    let mut lines: Vec<Line> = Vec::new();
    for text in output.lines() {
        let indent = text.len() - text.trim_start().len();
        let body = text.trim_start();
        // The list below this heading repeats the failures.
        if body.starts_with("✖ failing tests:") {
            break;
        }
        let mark = body.chars().next();
        let Some(mark) = mark.filter(|mark| matches!(mark, '✔' | '✖' | '﹣' | '▶')) else {
            if let Some(last) = lines.last_mut() {
                last.details.push_str(body);
                last.details.push('\n');
            }
            continue;
        };
        let title = body[mark.len_utf8()..].trim();
        let (title, directive) = title.split_once(" # ").unwrap_or((title, ""));
        let name = title.rsplit_once(" (").filter(|(_, time)| time.ends_with("ms)")).map_or(title, |(name, _)| name);
        let skipped = mark == '﹣' || directive.starts_with("SKIP") || directive.starts_with("TODO");
        lines.push(Line {
            depth: indent / 2, ok: mark != '✖', name: name.to_owned(), skipped, details: String::new()
        });
        if mark == '▶' {
            // The opening line of a group; its closing line, also with this mark, is told apart by its time.
            let last = lines.last_mut().expect("a line was just pushed");
            last.details = if title == name { OPENS.to_owned() } else { CLOSES.to_owned() };
        }
    }
    collect(&lines, Order::GroupFirst, root)
}

const OPENS: &str = "opens a group";
const CLOSES: &str = "closes a group";

#[derive(PartialEq, Eq)]
enum Order {
    GroupFirst,
    GroupLast,
}

fn collect(lines: &[Line], order: Order, root: &str) -> Report {
    let mut report = Report::default();
    let mut groups: Vec<&str> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        match order {
            Order::GroupFirst => {
                groups.truncate(line.depth);
                if line.details.starts_with(OPENS) {
                    groups.push(&line.name);
                    continue;
                }
                let closes = line.details.starts_with(CLOSES) || closes_spec_group(lines, at);
                if closes {
                    continue;
                }
            }
            Order::GroupLast => {
                if at > 0 && lines[at - 1].depth > line.depth && !alone_at_fault(lines, at) {
                    continue;
                }
                groups = parents(lines, at);
            }
        }
        let name = relative(&line.name, root);
        let is_file = groups.is_empty() && name != line.name;
        let mut id = String::new();
        for group in &groups {
            id.push_str(group);
            id.push_str(" > ");
        }
        id.push_str(name);
        let case = if line.skipped {
            Case::skipped()
        } else if line.ok {
            Case::passed()
        } else if is_file {
            report.not_built = true;
            Case::failed(FailureKind::Build, &line.details)
        } else {
            let asserted = line.details.contains("ERR_ASSERTION") || line.details.contains("AssertionError");
            Case::failed(if asserted { FailureKind::Assertion } else { FailureKind::Error }, &line.details)
        };
        report.add(&id, case);
    }
    report
}

/// TAP names a group after its members: the names to come at each lower depth.
fn parents(lines: &[Line], at: usize) -> Vec<&str> {
    let mut depth = lines[at].depth;
    let mut names = Vec::new();
    for line in &lines[at + 1..] {
        if depth == 0 {
            break;
        }
        if line.depth < depth {
            names.push(line.name.as_str());
            depth = line.depth;
        }
    }
    names.reverse();
    names
}

/// A test with subtests that all passed can still fail by itself.
fn alone_at_fault(lines: &[Line], at: usize) -> bool {
    let depth = lines[at].depth;
    let inside = lines[..at].iter().rev().take_while(|line| line.depth > depth);
    !lines[at].ok && !inside.into_iter().any(|line| !line.ok && !line.skipped)
}

/// A failed group is closed by a line with the mark of a failed test.
fn closes_spec_group(lines: &[Line], at: usize) -> bool {
    let line = &lines[at];
    let opening = lines[..at].iter().rev().find(|before| before.depth <= line.depth);
    opening.is_some_and(|before| {
        before.depth == line.depth && before.name == line.name && before.details.starts_with(OPENS)
    })
}

fn relative<'a>(name: &'a str, root: &str) -> &'a str {
    name.strip_prefix(root).map_or(name, |rest| rest.trim_start_matches('/'))
}
