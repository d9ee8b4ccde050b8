//! Path components that no tree of ours may hold: what some file system would take for `.git`, `.` or `..`.

use unicode_normalization::UnicodeNormalization;

/// Whether a folder entry of this name could stand for a repository's own folder, or leave the tree.
///
/// Covers case, code points that HFS+ ignores, NTFS short names, trailing dots and blanks, stream suffixes and separators.
pub(crate) fn is_refused(component: &[u8]) -> bool {
    if component.is_empty()
        || component == b"."
        || component == b".."
        || component.contains(&b'/')
        || component.contains(&0)
    {
        return true;
    }
    // Cheap way out for nearly every name: the look-alikes begin with a dot, `g`, or something outside ASCII.
    if component[0].is_ascii() && !matches!(component[0], b'.' | b'g' | b'G') {
        return false;
    }
    let text: String =
        String::from_utf8_lossy(component).nfkc().filter(|&c| !is_ignorable(c)).flat_map(char::to_lowercase).collect();
    let before_stream = text.split([':', '\\']).next().unwrap_or_default();
    let trimmed = before_stream.trim_end_matches(['.', ' ']);
    trimmed == ".git" || trimmed == "git~1"
}

/// Code points that HFS+ leaves out when it compares names (the list of git's `utf8.c`).
fn is_ignorable(c: char) -> bool {
    matches!(c, '\u{200c}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{206a}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_file_system_takes_for_the_repository_folder_is_refused() {
        for name in [
            ".git",
            ".GIT",
            ".Git.",
            ".git ",
            "git~1",
            "GIT~1",
            ".g\u{200c}it",
            ".git:stream",
            ".git\\hooks",
            "..",
            ".",
            "",
            "\u{feff}.git",
        ] {
            assert!(is_refused(name.as_bytes()), "{name:?}");
        }
        for name in [".gitignore", ".github", "git", "git~2", "x.git", "...", ".gitmodules", "a", "é"] {
            assert!(!is_refused(name.as_bytes()), "{name:?}");
        }
        assert!(!is_refused(b"\xff\xfe"));
    }
}
