//! A patch taken apart: its tests, the existing tests it touches, and what else decides how far it can be proven. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;
use fettle_app::ports::git::TreeEdit;
use fettle_domain::patch::FileMode;
use fettle_domain::path::RepoPath;
use fettle_domain::proof::Touch;
use globset::{Glob, GlobSet, GlobSetBuilder};
use similar::{ChangeTag, TextDiff};

use super::influence;
use super::inline;
use super::symbols;

/// Files that hold tests, whatever the language. A repository adds its own in `.fettle.toml`.
const TEST_GLOBS: &[&str] = &[
    "**/tests/**",
    "**/test/**",
    "**/__tests__/**",
    "**/spec/**",
    "**/testdata/**",
    "**/test_*.py",
    "**/conftest.py",
    "**/*_test.*",
    "**/*_tests.*",
    "**/*_spec.*",
    "**/*.test.*",
    "**/*.spec.*",
    "**/tests.rs",
    "**/test.rs",
    "**/tests.py",
    "**/*Test.java",
    "**/*Tests.java",
    "**/*Test.kt",
];

/// Which files are tests.
#[derive(Debug, Clone)]
pub struct TestPaths(GlobSet);

impl TestPaths {
    /// The common ones and those of the repository. A glob that does not parse was refused when `.fettle.toml` was read.
    pub fn new(own: &[String]) -> Self {
        let mut builder = GlobSetBuilder::new();
        for glob in TEST_GLOBS.iter().copied().chain(own.iter().map(String::as_str)) {
            if let Ok(glob) = Glob::new(glob) {
                builder.add(glob);
            }
        }
        Self(builder.build().unwrap_or_else(|_| GlobSet::empty()))
    }

    pub fn contains(&self, path: &RepoPath) -> bool {
        self.0.is_match(path.lossy())
    }
}

/// One changed file with both contents.
#[derive(Debug, Clone)]
pub struct FileChange {
    pub path: RepoPath,
    pub before: Option<(FileMode, Bytes)>,
    pub after: Option<(FileMode, Bytes)>,
}

/// The parts of a patch.
#[derive(Debug, Clone, Default)]
pub struct Split {
    /// Put upon the base: its code with the tests of the patch.
    pub test_part: Vec<TreeEdit>,
    /// Put upon the head: the patched code with the existing tests as they were.
    pub old_tests: Vec<TreeEdit>,
    /// Files of the head whose tests are new or changed.
    pub test_files: Vec<RepoPath>,
    /// Existing tests that the patch changes.
    pub touched: Vec<(RepoPath, Touch)>,
    /// Changed files that decide which tests run, or how.
    pub configuration: Vec<String>,
    /// Changed lockfiles and dependency lists.
    pub dependencies: Vec<String>,
    pub documentation_only: bool,
    /// The lines that the patch adds to tests.
    pub added_test_text: String,
    /// Public names that the patch adds to the code.
    pub added_names: BTreeSet<String>,
}

impl Split {
    /// Whether the added test lines name something public that the patch adds.
    pub fn tests_name_an_added_symbol(&self) -> bool {
        self.added_names.iter().any(|name| symbols::names_word(&self.added_test_text, name))
    }
}

pub fn split(changes: &[FileChange], tests: &TestPaths) -> Split {
    let mut split = Split { documentation_only: !changes.is_empty(), ..Split::default() };
    for change in changes {
        let name = change.path.lossy();
        if influence::is_runner_configuration(&name, text(&change.before), text(&change.after)) {
            split.configuration.push(name.clone());
        }
        if influence::is_dependency_change(&name, text(&change.before), text(&change.after)) {
            split.dependencies.push(name.clone());
        }
        split.documentation_only &= is_documentation(&name, change, tests);
        if tests.contains(&change.path) {
            whole_file(change, &mut split);
        } else if name.ends_with(".rs") {
            rust_file(change, &mut split);
        } else {
            let (before, after) = (text(&change.before).unwrap_or_default(), text(&change.after).unwrap_or_default());
            split.added_names.extend(symbols::added_public_names(&name, before, after));
        }
    }
    split
}

/// A file of tests and their data belongs to the test part as it is.
fn whole_file(change: &FileChange, split: &mut Split) {
    split.test_part.push(TreeEdit { path: change.path.clone(), put: change.after.clone() });
    let (before, after) = (text(&change.before).unwrap_or_default(), text(&change.after).unwrap_or_default());
    add_new_lines(before, after, &mut split.added_test_text);
    if change.after.is_some() {
        split.test_files.push(change.path.clone());
    }
    if change.before.is_some() {
        let how = match &change.after {
            None => Touch::Deleted,
            Some(_) if is_extended(before, after) => Touch::Extended,
            Some(_) => Touch::Changed,
        };
        split.touched.push((change.path.clone(), how));
        split.old_tests.push(TreeEdit { path: change.path.clone(), put: change.before.clone() });
    }
}

/// A Rust source file may hold both; a file that cannot be parsed is code.
fn rust_file(change: &FileChange, split: &mut Split) {
    let (before, after) = (text(&change.before).unwrap_or_default(), text(&change.after).unwrap_or_default());
    let code = |text: &str| inline::code_of(text).unwrap_or_else(|| text.to_owned());
    split.added_names.extend(symbols::added_public_names("code.rs", &code(before), &code(after)));
    let (Some(old), Some(new)) = (inline::tests_of(before), inline::tests_of(after)) else { return };
    if old == new {
        return;
    }
    let path = &change.path;
    // On a base without the file nothing would compile its tests, so a new file brings no test part.
    if let Some((mode, _)) = &change.before
        && let Some(composed) = inline::compose(before, after)
    {
        split.test_part.push(TreeEdit { path: path.clone(), put: Some((*mode, Bytes::from(composed))) });
    }
    if change.after.is_some() {
        split.test_files.push(path.clone());
    }
    let mut worst: Option<Touch> = None;
    for (key, was) in &old {
        let how = match new.get(key) {
            None => Touch::Deleted,
            Some(is) if is == was => continue,
            Some(is) if is_extended(was, is) => Touch::Extended,
            Some(_) => Touch::Changed,
        };
        worst = Some(worst.map_or(how, |other| worse(other, how)));
    }
    for (key, is) in &new {
        add_new_lines(old.get(key).map_or("", String::as_str), is, &mut split.added_test_text);
    }
    if let Some(how) = worst {
        split.touched.push((path.clone(), how));
        if let Some((mode, _)) = &change.after
            && let Some(composed) = inline::compose(after, before)
        {
            split.old_tests.push(TreeEdit { path: path.clone(), put: Some((*mode, Bytes::from(composed))) });
        }
    }
}

fn worse(a: Touch, b: Touch) -> Touch {
    let rank = |touch| match touch {
        Touch::Extended => 0,
        Touch::Changed => 1,
        Touch::Deleted => 2,
    };
    if rank(a) >= rank(b) { a } else { b }
}

/// Nothing was taken away.
fn is_extended(before: &str, after: &str) -> bool {
    !TextDiff::from_lines(before, after).iter_all_changes().any(|change| change.tag() == ChangeTag::Delete)
}

fn add_new_lines(before: &str, after: &str, to: &mut String) {
    for change in TextDiff::from_lines(before, after).iter_all_changes().filter(|c| c.tag() == ChangeTag::Insert) {
        to.push_str(change.value());
    }
    to.push('\n');
}

/// Nothing that runs can differ. In doubt it is no documentation: all that costs is a test that is asked for.
fn is_documentation(name: &str, change: &FileChange, tests: &TestPaths) -> bool {
    let mode = |side: &Option<(FileMode, Bytes)>| side.as_ref().map(|(mode, _)| *mode);
    let (was, is) = (mode(&change.before), mode(&change.after));
    let first_lines = [text(&change.before), text(&change.after)].map(|text| text.and_then(|text| text.lines().next()));
    let is_script = first_lines.iter().flatten().any(|line| line.starts_with("#!"));
    if (was.is_some() && is.is_some() && was != is) || (is_script && first_lines[0] != first_lines[1]) {
        return false;
    }
    let file = name.rsplit('/').next().unwrap_or(name);
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    let prose = matches!(extension, "md" | "rst" | "adoc") || matches!(file, "LICENSE" | "AUTHORS" | "NOTICE");
    // Prose among the tests may be what a test expects, and an executable file or a link is no prose.
    let is_plain = [was, is].into_iter().flatten().all(|mode| mode == FileMode::Regular);
    if prose && is_plain && !tests.contains(&change.path) {
        return true;
    }
    matches!((text(&change.before), text(&change.after)), (Some(a), Some(b)) if symbols::same_code(name, a, b))
}

fn text(side: &Option<(FileMode, Bytes)>) -> Option<&str> {
    side.as_ref().and_then(|(_, bytes)| std::str::from_utf8(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, before: Option<&str>, after: Option<&str>) -> FileChange {
        let side = |text: Option<&str>| text.map(|text| (FileMode::Regular, Bytes::copy_from_slice(text.as_bytes())));
        FileChange { path: RepoPath::parse(path).unwrap(), before: side(before), after: side(after) }
    }

    fn parted(changes: &[FileChange]) -> Split {
        split(changes, &TestPaths::new(&[]))
    }

    fn put<'a>(edits: &'a [TreeEdit], path: &str) -> Option<&'a str> {
        let edit = edits.iter().find(|edit| edit.path.lossy() == path)?;
        edit.put.as_ref().map(|(_, bytes)| std::str::from_utf8(bytes).unwrap())
    }

    #[test]
    fn test_files_are_known_by_their_names_in_every_ecosystem() {
        let tests = TestPaths::new(&["checks/**".to_owned()]);
        let is = |path: &str| tests.contains(&RepoPath::parse(path).unwrap());
        for path in [
            "tests/it.rs",
            "a/tests/data/x.json",
            "test_a.py",
            "pkg/test_a.py",
            "a_test.go",
            "src/a.test.js",
            "src/a.spec.ts",
            "src/__tests__/a.js",
            "conftest.py",
            "src/parser/tests.rs",
            "checks/one.sh",
        ] {
            assert!(is(path), "{path}");
        }
        for path in ["src/lib.rs", "attest.py", "src/latest.js", "contest/a.py", "docs/testing.md", "Cargo.toml"] {
            assert!(!is(path), "{path}");
        }
    }

    #[test]
    fn a_patch_of_code_and_a_new_test_file_has_only_the_file_in_its_test_part() {
        let split = parted(&[
            change("calc.py", Some("def f(): return 1\n"), Some("def f(): return 2\ndef g(): pass\n")),
            change("tests/test_calc.py", None, Some("from calc import g\n")),
        ]);
        assert_eq!(split.test_part.len(), 1);
        assert_eq!(put(&split.test_part, "tests/test_calc.py"), Some("from calc import g\n"));
        assert!(split.touched.is_empty() && split.old_tests.is_empty());
        assert!(split.tests_name_an_added_symbol());
        assert!(!split.documentation_only);
    }

    #[test]
    fn a_rust_file_with_both_is_taken_apart() {
        let before = "pub fn half(n: u32) -> u32 { n }\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n}\n";
        let after = "pub fn half(n: u32) -> u32 { n / 2 }\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn a() {}\n    #[test]\n    fn b() { assert_eq!(super::half(4), 2); }\n}\n";
        let split = parted(&[change("src/lib.rs", Some(before), Some(after))]);
        let on_base = put(&split.test_part, "src/lib.rs").unwrap();
        assert!(on_base.contains("{ n }") && on_base.contains("fn b()"));
        let on_head = put(&split.old_tests, "src/lib.rs").unwrap();
        assert!(on_head.contains("n / 2") && !on_head.contains("fn b()"));
        assert_eq!(split.touched[0].1, Touch::Extended);
        assert!(!split.tests_name_an_added_symbol());
    }

    #[test]
    fn code_alone_has_no_test_part() {
        let split = parted(&[change("src/lib.rs", Some("pub fn f() {}\n"), Some("pub fn f() { g() }\n"))]);
        assert!(split.test_part.is_empty() && split.touched.is_empty());
    }

    #[test]
    fn existing_tests_are_extended_changed_or_deleted() {
        let how = |before: &str, after: Option<&str>| {
            let split = parted(&[change("tests/a.py", Some(before), after)]);
            assert_eq!(put(&split.old_tests, "tests/a.py"), Some(before));
            split.touched[0].1
        };
        assert_eq!(how("a\n", Some("a\nb\n")), Touch::Extended);
        assert_eq!(how("a\n", Some("b\n")), Touch::Changed);
        assert_eq!(how("a\n", None), Touch::Deleted);
        let inline = |tests: &str| format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{tests}}}\n");
        let before = inline("    #[test]\n    fn a() { assert!(true); }\n");
        let weaker = inline("    #[test]\n    fn a() {}\n");
        let split = parted(&[change("src/lib.rs", Some(&before), Some(&weaker))]);
        assert_eq!(split.touched[0].1, Touch::Changed);
        let split = parted(&[change("src/lib.rs", Some(&before), Some("fn f() {}\n"))]);
        assert_eq!(split.touched[0].1, Touch::Deleted);
    }

    #[test]
    fn prose_and_comments_are_documentation_and_one_code_token_is_not() {
        let prose = change("README.md", Some("a"), Some("b"));
        let comment = change("src/lib.rs", Some("fn f() {}\n"), Some("/// What.\nfn f() {}\n"));
        assert!(parted(&[prose.clone(), comment]).documentation_only);
        let code = change("src/lib.rs", Some("fn f() {}\n"), Some("fn g() {}\n"));
        assert!(!parted(&[prose, code]).documentation_only);
        assert!(!parted(&[]).documentation_only);
    }

    #[test]
    fn a_mode_an_interpreter_or_an_expected_text_is_no_documentation() {
        let is_documentation = |change: FileChange| parted(&[change]).documentation_only;
        let with_modes = |path: &str, was: Option<FileMode>, is: Option<FileMode>| {
            let side = |mode: FileMode, text: &'static str| (mode, Bytes::from_static(text.as_bytes()));
            FileChange {
                path: RepoPath::parse(path).unwrap(),
                before: was.map(|mode| side(mode, "x = 1\n")),
                after: is.map(|mode| side(mode, "x = 1  # a\n")),
            }
        };
        let (regular, executable) = (Some(FileMode::Regular), Some(FileMode::Executable));
        assert!(is_documentation(with_modes("a.py", regular, regular)));
        assert!(is_documentation(with_modes("a.py", executable, executable)));
        assert!(is_documentation(with_modes("a.md", None, regular)));
        for (path, was, is) in [
            ("a.py", regular, executable),
            ("a.md", executable, regular),
            ("a.md", None, executable),
            ("a.md", executable, None),
            ("a.md", executable, executable),
            ("a.md", None, Some(FileMode::Symlink)),
            ("LICENSE", regular, Some(FileMode::Symlink)),
            ("tests/expected.md", regular, regular),
        ] {
            assert!(!is_documentation(with_modes(path, was, is)), "{path} {was:?} {is:?}");
        }
        let interpreter = |before: &str, after: &str| is_documentation(change("a.py", Some(before), Some(after)));
        assert!(!interpreter("#!/usr/bin/python3\nx = 1\n", "#!/tmp/evil\nx = 1\n"));
        assert!(!interpreter("x = 1\n", "#!/tmp/evil\nx = 1\n"));
        assert!(interpreter("#!/usr/bin/python3\nx = 1\n", "#!/usr/bin/python3\n# What.\nx = 1\n"));
        assert!(!is_documentation(change("a.md", Some("a\n"), Some("#!/bin/sh\na\n"))));
    }
}
