//! The JSON of jest and vitest, which share it.

use fettle_domain::proof::FailureKind;
use serde::Deserialize;

use super::{Case, Report};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    test_results: Vec<File>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    name: String,
    status: String,
    #[serde(default)]
    message: String,
    assertion_results: Vec<Assertion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Assertion {
    #[serde(default)]
    ancestor_titles: Vec<String>,
    title: String,
    status: String,
    #[serde(default)]
    failure_messages: Vec<String>,
}

/// Ids are `file > group > test`, the file relative to `root`, the workspace as the command saw it.
pub fn parse(json: &str, root: &str) -> Option<Report> {
    let document: Document = serde_json::from_str(json).ok()?;
    let mut report = Report::default();
    for file in document.test_results {
        let name = file.name.strip_prefix(root).map_or(file.name.as_str(), |rest| rest.trim_start_matches('/'));
        if file.assertion_results.is_empty() && file.status == "failed" {
            report.not_built = true;
            report.add(name, Case::failed(FailureKind::Build, &file.message));
        }
        for test in &file.assertion_results {
            let mut id = name.to_owned();
            for part in test.ancestor_titles.iter().chain([&test.title]).filter(|part| !part.is_empty()) {
                id.push_str(" > ");
                id.push_str(part);
            }
            let case = match test.status.as_str() {
                "passed" => Case::passed(),
                "failed" => {
                    let message = test.failure_messages.join("\n");
                    let asserted = message.contains("AssertionError") || message.contains("expect(");
                    Case::failed(if asserted { FailureKind::Assertion } else { FailureKind::Error }, &message)
                }
                _ => Case::skipped(),
            };
            report.add(&id, case);
        }
    }
    Some(report)
}
