//! JUnit XML, as pytest and many others write it.

use fettle_domain::proof::FailureKind;

use super::{Case, Report};

/// Ids are pytest's node ids where the file is known, else `classname::name`. `None`: not a JUnit document.
pub fn parse(xml: &str) -> Option<Report> {
    let document = roxmltree::Document::parse(xml).ok()?;
    if !matches!(document.root_element().tag_name().name(), "testsuites" | "testsuite") {
        return None;
    }
    let mut report = Report::default();
    for node in document.descendants().filter(|node| node.has_tag_name("testcase")) {
        let child = |tag: &str| node.children().find(|child| child.has_tag_name(tag));
        let name = node.attribute("name").unwrap_or_default();
        let class = node.attribute("classname").unwrap_or_default();
        let file = node.attribute("file");
        let case = if let Some(error) = child("error") {
            let (message, text) = parts(error);
            if message == "collection failure" {
                report.not_built = true;
                report.add(file.unwrap_or(name), Case::failed(FailureKind::Build, text));
                continue;
            }
            Case::failed(FailureKind::Error, if message.is_empty() { text } else { message })
        } else if let Some(failure) = child("failure") {
            let (message, text) = parts(failure);
            Case::failed(kind_of(message, failure.attribute("type")), if message.is_empty() { text } else { message })
        } else if child("skipped").is_some() {
            Case::skipped()
        } else {
            Case::passed()
        };
        report.add(&id(file, class, name), case);
    }
    Some(report)
}

fn parts<'a>(node: roxmltree::Node<'a, '_>) -> (&'a str, &'a str) {
    (node.attribute("message").unwrap_or_default(), node.text().unwrap_or_default())
}

/// `tests/test_a.py`, `tests.test_a.TestC`, `test_p[1]` → `tests/test_a.py::TestC::test_p[1]`.
fn id(file: Option<&str>, class: &str, name: &str) -> String {
    let Some(file) = file else {
        return if class.is_empty() { name.to_owned() } else { format!("{class}::{name}") };
    };
    let module = file.strip_suffix(".py").unwrap_or(file).replace('/', ".");
    match class.strip_prefix(&module).map(|rest| rest.trim_start_matches('.')) {
        Some("") => format!("{file}::{name}"),
        Some(classes) => format!("{file}::{}::{name}", classes.replace('.', "::")),
        None if class.is_empty() => format!("{file}::{name}"),
        None => format!("{file}::{class}::{name}"),
    }
}

fn kind_of(message: &str, type_name: Option<&str>) -> FailureKind {
    let asserted = message.starts_with("AssertionError")
        || message.starts_with("assert ")
        || message.starts_with("Failed: ")
        || type_name.is_some_and(|name| name.contains("Assert") || name.contains("ComparisonFailure"));
    if asserted { FailureKind::Assertion } else { FailureKind::Error }
}
