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
    "flake.lock",
    "flake.nix",
    "installer",
    "nixos",
    "systemd",
    "tests",
];
/// Present as soon as something needs them.
const OPTIONAL: &[&str] = &[".config"];

pub(super) fn check(files: &[Utf8PathBuf]) -> Findings {
    let present: BTreeSet<&str> =
        files.iter().filter_map(|file| file.components().next()).map(|first| first.as_str()).collect();
    let strange = present.iter().filter(|entry| !REQUIRED.contains(entry) && !OPTIONAL.contains(entry));
    let absent = REQUIRED.iter().filter(|entry| !present.contains(**entry));
    strange
        .map(|entry| format!("`{entry}` has no place at the top level"))
        .chain(absent.map(|entry| format!("`{entry}` is missing at the top level")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[&str]) -> Vec<Utf8PathBuf> {
        entries.iter().map(|entry| Utf8PathBuf::from(format!("{entry}/file"))).collect()
    }

    #[test]
    fn strange_and_missing_entries_are_found_and_optional_ones_may_be_there() {
        assert_eq!(check(&tree(REQUIRED)), Findings::new());
        assert_eq!(check(&tree(&[REQUIRED, OPTIONAL].concat())), Findings::new());
        let findings = check(&tree(&[&REQUIRED[1..], &["scripts"]].concat()));
        assert_eq!(findings, ["`scripts` has no place at the top level", "`.cargo` is missing at the top level"]);
    }
}
