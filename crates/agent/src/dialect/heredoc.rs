//! Patches that models hand to the shell: `apply_patch <<'EOF'`, `git apply`, `patch -p1`.

use std::sync::LazyLock;

use regex::Regex;

use crate::edit::patch;

pub(super) enum Embedded<'c> {
    None,
    /// The command is nothing but this V4A patch.
    Patch(&'c str),
    /// A V4A patch in a heredoc without quotes whose text a shell would change.
    Expanding,
    /// A diff with line numbers on its way into a patch program.
    NumberedDiff,
}

static HEREDOC: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"\A\s*(?:apply_patch|applypatch)\s*<<-?\s*(["']?)([A-Za-z_][A-Za-z0-9_]*)(["']?)[ \t]*\n"#)
        .expect("the heredoc pattern is valid")
});

static PATCH_PROGRAM: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?m)(?:^|[;&|(]\s*|\s)(?:git\s+(?:-\S+\s+)*apply|patch|apply_patch)(?:\s|$)")
        .expect("the patch program pattern is valid")
});

pub(super) fn patch_in(command: &str) -> Embedded<'_> {
    if command.lines().any(patch::is_numbered_hunk) && PATCH_PROGRAM.is_match(command) {
        return Embedded::NumberedDiff;
    }
    let Some(found) = HEREDOC.captures(command) else { return Embedded::None };
    let (open, delimiter, close) = (&found[1], &found[2], &found[3]);
    let body = &command[found[0].len()..];
    let Some(end) = body.trim_end().strip_suffix(delimiter).filter(|text| text.ends_with('\n')) else {
        return Embedded::None;
    };
    if open != close || !end.trim_start().starts_with(patch::BEGIN) {
        return Embedded::None;
    }
    if open.is_empty() && end.contains(['$', '`', '\\']) {
        return Embedded::Expanding;
    }
    Embedded::Patch(end)
}
