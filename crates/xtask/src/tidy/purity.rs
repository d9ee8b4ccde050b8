//! `domain`, `placement` and `protocols` have no I/O, clock, randomness, environment or async: their libraries, their own
//! clippy bans, and their sources, for what clippy cannot ban.

use std::collections::BTreeSet;

use cargo_metadata::camino::Utf8Path;

use super::Findings;
use super::layers::Member;

/// The crates of values.
pub(super) const PURE: &[&str] = &["domain", "placement", "protocols"];

/// Libraries of values: none of them opens a file or a socket, or waits.
const LIBRARIES: &[&str] = &[
    "base64",
    "bytes",
    "hex",
    "jiff",
    "memchr",
    "regex",
    // Its maps are banned from the standard library for their random order; with this hasher they have none of it.
    "rustc-hash",
    "serde",
    "serde_json",
    "sha2",
    "smallvec",
    "thiserror",
    "unicode-normalization",
    "uuid",
];

/// Beyond the bans of the root.
const BANS: &[&str] = &[
    "disallowed-types: std::collections::HashMap",
    "disallowed-types: std::collections::HashSet",
    "disallowed-types: std::fs::File",
    "disallowed-types: std::fs::OpenOptions",
    "disallowed-types: std::process::Command",
    "disallowed-types: std::time::SystemTime",
    "disallowed-methods: std::env::current_dir",
    "disallowed-methods: std::env::vars",
    "disallowed-methods: std::thread::sleep",
    "disallowed-methods: std::thread::spawn",
];

/// Whole modules and syntax, which clippy has no ban for.
const WORDS: &[&str] =
    &["std::fs", "std::env", "std::net", "std::process", "std::thread", "std::io", "async fn", "async move", ".await"];

pub(super) fn check_dependencies(members: &[Member]) -> Findings {
    let mut findings = Findings::new();
    for member in members.iter().filter(|member| PURE.contains(&member.name.as_str())) {
        for library in member.others.iter().filter(|library| !LIBRARIES.contains(&library.as_str())) {
            let name = &member.name;
            findings.push(format!("`{name}` depends on `{library}`, which is not on the list of pure libraries"));
        }
    }
    findings
}

pub(super) fn check_bans(file: &str, bans: &BTreeSet<String>) -> Findings {
    BANS.iter().filter(|ban| !bans.contains(**ban)).map(|ban| format!("{file} lacks `{ban}`")).collect()
}

pub(super) fn check_source(file: &Utf8Path, source: &str) -> Findings {
    let mut findings = Findings::new();
    for (number, line) in (1..).zip(source.lines()).filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let found = WORDS.iter().filter(|word| line.contains(**word));
        findings.extend(found.map(|word| format!("{file}:{number}: `{word}` has no place in a crate of values")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::layers::tests::member;
    use super::*;

    #[test]
    fn a_library_that_could_wait_or_read_is_found() {
        let found = check_dependencies(&[member("domain", &[], &["serde", "tokio"]), member("app", &[], &["tokio"])]);
        assert!(found.len() == 1 && found[0].contains("`tokio`"), "{found:?}");
    }

    #[test]
    fn every_ban_of_the_pure_crates_is_asked_for() {
        let whole: BTreeSet<String> = BANS.iter().map(|&ban| ban.to_owned()).collect();
        assert_eq!(check_bans("file", &whole), Findings::new());
        assert_eq!(check_bans("file", &BTreeSet::new()).len(), BANS.len());
    }

    #[test]
    fn effects_in_a_source_are_found_but_not_in_a_comment() {
        let source = "// std::fs is far away\nuse std::time::Duration;\nlet x = std::env::args();\n";
        assert_eq!(
            check_source(Utf8Path::new("job.rs"), source),
            ["job.rs:3: `std::env` has no place in a crate of values"]
        );
    }
}
