//! What lies at the top of the tree: these entries and no others.

use std::collections::BTreeSet;

use cargo_metadata::camino::Utf8PathBuf;

use super::Findings;

const REQUIRED: &[&str] = &[
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".github",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "charts",
    "crates",
    "installer",
    "nixos",
    "systemd",
    "tests",
];
/// Present as soon as something needs them.
const OPTIONAL: &[&str] = &[".config"];
/// Still to be written: their absence is told, not refused.
const EXPECTED: &[&str] = &["flake.nix", "flake.lock"];

/// The findings, and notes beside them.
pub(super) fn check(files: &[Utf8PathBuf]) -> (Findings, Vec<String>) {
    let present: BTreeSet<&str> =
        files.iter().filter_map(|file| file.components().next()).map(|first| first.as_str()).collect();
    let known = |entry: &str| [REQUIRED, OPTIONAL, EXPECTED].iter().any(|list| list.contains(&entry));
    let strange = present.iter().filter(|entry| !known(entry));
    let absent = |list: &'static [&'static str]| list.iter().filter(|entry| !present.contains(**entry));
    let findings = strange
        .map(|entry| format!("`{entry}` has no place at the top level"))
        .chain(absent(REQUIRED).map(|entry| format!("`{entry}` is missing at the top level")))
        .collect();
    (findings, absent(EXPECTED).map(|entry| format!("`{entry}` is not there yet")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[&str]) -> Vec<Utf8PathBuf> {
        entries.iter().map(|entry| Utf8PathBuf::from(format!("{entry}/file"))).collect()
    }

    #[test]
    fn strange_and_missing_entries_are_found_and_expected_ones_are_noted() {
        let whole = tree(&[REQUIRED, &["flake.nix"]].concat());
        assert_eq!(check(&whole), (Findings::new(), vec!["`flake.lock` is not there yet".to_owned()]));
        let (findings, _) = check(&tree(&[&REQUIRED[1..], &["scripts"]].concat()));
        assert_eq!(findings, ["`scripts` has no place at the top level", "`.cargo` is missing at the top level"]);
    }
}
