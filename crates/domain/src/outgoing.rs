//! Makes text from a model or an issue harmless before it is written to a forge.
//!
//! What a reader sees stays readable; what would notify people, close foreign issues, load remote images, trigger Fettle
//! or hide from sight is defused.

use std::sync::LazyLock;

use regex::Regex;

use crate::unseen::is_hidden;

/// Longest title and body, in characters.
pub const MAX_TITLE_CHARS: usize = 120;
pub const MAX_BODY_CHARS: usize = 60_000;

static HTML_COMMENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)<!--.*?(?:-->|$)"));
static HTML_OPENING: LazyLock<Regex> = LazyLock::new(|| pattern(r"<([A-Za-z/!?])"));
static ENTITY: LazyLock<Regex> = LazyLock::new(|| pattern(r"&(#[0-9xX]|commat;|num;)"));
static MENTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"@([A-Za-z0-9])"));
static CLOSING: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)(\b|_)(close[sd]?|fix(?:e[sd])?|resolve[sd]?)(:?\s+)((?:[\w.-]+/[\w.-]+)?#|GH-|https?://\S+/issues/)(\d+)",
    )
});
/// Whatever stands before it: markup such as `_` is gone when the forge looks for references, and `user#7` is one as
/// well.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)(#|GH-)(\d)"));
/// In a commit's message these keep continuous integration from looking at it.
static SKIP_CI: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)\[(skip ci|ci skip|no ci|skip actions|actions skip)\]|\*\*\*(NO_CI)\*\*\*"));
static COMMAND: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?m)^(\s*)/(fix|refine|stop|plan|retry|revert|explain)\b"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern")
}

/// One line of at most [`MAX_TITLE_CHARS`].
pub fn title(text: &str) -> String {
    let line: String = visible(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = prose(&line);
    let mut title: String = line.chars().take(MAX_TITLE_CHARS).collect();
    if title.len() < line.len() {
        title = title.chars().take(MAX_TITLE_CHARS - 1).collect::<String>().trim_end().to_owned() + "…";
    }
    title
}

/// Prose of at most `max_lines` lines and `max_chars` characters, defused.
pub fn paragraph(text: &str, max_lines: usize, max_chars: usize) -> String {
    let defused = prose(&visible(text));
    let mut kept: String = defused.trim().lines().take(max_lines).collect::<Vec<_>>().join("\n");
    if kept.chars().count() > max_chars {
        kept = kept.chars().take(max_chars).collect::<String>() + "…";
    } else if defused.trim().lines().count() > max_lines {
        kept.push_str("\n…");
    }
    with_closed_fences(&kept)
}

/// Prose of one line and at most `max_chars` characters, defused: for where a line's beginning is not its own, as in a
/// list or a sentence. A block of code could be opened there, and be ended elsewhere.
pub fn line(text: &str, max_chars: usize) -> String {
    let line: String = visible(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let line = prose(&line);
    if line.chars().count() > max_chars { line.chars().take(max_chars).collect::<String>() + "…" } else { line }
}

/// Text that stands inside a fenced block whose fence it cannot end.
pub fn fenced(text: &str, language: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}", visible(text).trim_end())
}

/// A value inside a table cell or a sentence: one line, no cell border, no code end.
pub fn inline_code(text: &str) -> String {
    let line: String =
        visible(text).split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "'").replace('|', "¦");
    let short: String = line.chars().take(200).collect();
    format!("`{short}`")
}

/// Only the first step takes something away; the others put a character in between, so that none makes what another defused.
fn prose(text: &str) -> String {
    let text = HTML_COMMENT.replace_all(text, "");
    let text = HTML_OPENING.replace_all(&text, "<\u{2060}$1");
    let text = text.replace("![", "!\u{2060}[");
    let text = ENTITY.replace_all(&text, "&\u{2060}$1");
    let text = CLOSING.replace_all(&text, "$1$2$3$4\u{2060}$5");
    let text = REFERENCE.replace_all(&text, "$1\u{2060}$2");
    let text = MENTION.replace_all(&text, "@\u{2060}$1");
    let text = COMMAND.replace_all(&text, "$1\u{2060}/$2");
    let text = SKIP_CI.replace_all(&text, "[\u{2060}$1$2]");
    text.replace("ai-help", "ai\u{2060}-help")
}

/// Ends the code block that `text` leaves open: what follows would become a part of it.
///
/// The fences of a block are moved to the first column. Indented, they might belong to an item of a list, which ends
/// where the indentation does, and then what looks like the end of a block begins another.
fn with_closed_fences(text: &str) -> String {
    let mut open: Option<Fence> = None;
    let mut lines: Vec<&str> = Vec::new();
    for line in text.split('\n') {
        let found = Fence::of(line);
        let is_fence = match (&open, &found) {
            (None, Some(found)) => found.can_open(),
            (Some(open), Some(found)) => found.closes(open),
            (_, None) => false,
        };
        lines.push(if is_fence { line.trim_start_matches(' ') } else { line });
        if is_fence {
            open = if open.is_none() { found } else { None };
        }
    }
    let mut text = lines.join("\n");
    if let Some(fence) = open {
        text.push('\n');
        text.extend(std::iter::repeat_n(fence.sign, fence.length));
    }
    text
}

/// A line that may begin or end a block of code, as CommonMark has it.
struct Fence<'a> {
    sign: char,
    length: usize,
    info: &'a str,
}

impl<'a> Fence<'a> {
    /// From four columns of indentation on a line is no fence; a tab is four.
    const INDENT_MAX: usize = 3;

    fn of(line: &'a str) -> Option<Self> {
        let text = line.trim_start_matches(' ');
        let sign = text.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = text.trim_start_matches(sign);
        let length = text.len() - info.len();
        (line.len() - text.len() <= Self::INDENT_MAX && length >= 3).then_some(Self { sign, length, info })
    }

    fn can_open(&self) -> bool {
        self.sign != '`' || !self.info.contains('`')
    }

    fn closes(&self, open: &Self) -> bool {
        self.sign == open.sign && self.length >= open.length && self.info.trim_matches([' ', '\t']).is_empty()
    }
}

/// Without control, bidirectional and zero-width characters, except line ends and tabs.
pub fn visible(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || is_hidden(*c)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_model_notifies_nobody_closes_nothing_and_loads_nothing() {
        let text = "Thanks @octocat! Fixes #12, closes foo/bar#3 and resolves https://example.org/o/r/issues/9.\n\
                    /fix again ai-help\n![x](https://evil.example/p.png)<img src=https://evil.example/q><!-- fettle:task_1:result -->";
        let text = format!("{text}\n/stop");
        let out = paragraph(&text, 50, 5000);
        for bad in ["@octocat", "#12", "bar#3", "issues/9", "ai-help", "![", "<img", "<!--"] {
            assert!(!out.contains(bad), "{bad} in {out}");
        }
        assert!(!out.lines().any(|line| line.starts_with('/')), "{out}");
        assert!(out.contains("Thanks"));
    }

    #[test]
    fn what_is_taken_away_leaves_nothing_behind_that_works() {
        let text = "<<b>img src=https://evil.example/q> <!<b>-- fettle:task_1:result --> <<!-- -->details> !![x](https://evil.example/p.png)\n\
                    &#64;octocat &commat;octocat fixes &#35;9, fixes GH-12, see gh-13";
        let out = paragraph(text, 50, 5000);
        for bad in ["<img", "<!--", "<b>", "<details", "![", "&#64;", "&commat;", "&#35;", "GH-12", "gh-13"] {
            assert!(!out.contains(bad), "{bad} in {out}");
        }
    }

    #[test]
    fn a_message_does_not_switch_continuous_integration_off() {
        for text in ["Half [skip ci]", "[CI skip] x", "[no ci]", "[skip actions]", "[actions skip]", "***NO_CI***"] {
            let out = title(text).to_lowercase();
            assert!(!out.contains(&text.to_lowercase()) && !out.contains("***no_ci***"), "{out}");
        }
    }

    #[test]
    fn a_block_of_code_that_prose_leaves_open_is_ended() {
        assert_eq!(paragraph("a\n````\nb\n```", 9, 99), "a\n````\nb\n```\n````");
        assert_eq!(paragraph("~~~\nb", 9, 99), "~~~\nb\n~~~");
        assert_eq!(paragraph("```rust\nb\n```\n```c`", 9, 99), "```rust\nb\n```\n```c`");
    }

    #[test]
    fn a_fence_counts_only_where_the_forge_sees_one() {
        for (text, out) in [
            ("a\n```\nb\n    ```", "a\n```\nb\n    ```\n```"),
            ("a\n```\nb\n\t```", "a\n```\nb\n\t```\n```"),
            ("a\n```\nb\n \t```", "a\n```\nb\n \t```\n```"),
            ("a\n\n    ```\n\nb", "a\n\n    ```\n\nb"),
            ("a\n   ```\nb\n  ``` ", "a\n```\nb\n```"),
            ("```\nb\n``` c", "```\nb\n``` c\n```"),
            ("```\nb\n~~~", "```\nb\n~~~\n```"),
            ("~~~ `\nb\n~~~~", "~~~ `\nb\n~~~~"),
            ("\u{a0}```\nb", "```\nb\n```"),
            ("a\n\u{a0}```\nb", "a\n\u{a0}```\nb"),
        ] {
            assert_eq!(paragraph(text, 9, 99), out, "{text:?}");
        }
    }

    #[test]
    fn a_block_in_a_list_does_not_go_on_behind_the_list() {
        assert_eq!(paragraph("- a\n  ```\n  b\n```\nc", 9, 99), "- a\n```\n  b\n```\nc");
        assert_eq!(paragraph("- a\n  ```\n  b", 9, 99), "- a\n```\n  b\n```");
        assert_eq!(line("```\nb\n```", 99), "``` b ```");
    }

    #[test]
    fn a_reference_is_defused_whatever_markup_surrounds_it() {
        for text in ["_#7_", "__#7__", "`#7", "(#7)", "\\#7", "a#7", "_o/r#7_", "_GH-7_", "*gh-7*", "#7#8", "é#7"] {
            let out = paragraph(text, 9, 99);
            for bad in ["#7", "#8", "GH-7", "gh-7"] {
                assert!(!out.contains(bad), "{text} became {out}");
            }
        }
        assert!(!paragraph("_fixes https://example.org/o/r/issues/9_", 9, 99).contains("issues/9"));
    }

    #[test]
    fn a_fence_cannot_be_ended_from_inside() {
        let block = fenced("a\n```\nb\n````\nc", "text");
        assert!(block.starts_with("`````text\n") && block.ends_with("\n`````"));
    }

    #[test]
    fn a_title_is_one_short_line() {
        let long = title(&format!("a\nb {}", "x".repeat(300)));
        assert_eq!(long.chars().count(), MAX_TITLE_CHARS);
        assert!(long.starts_with("a b x") && long.ends_with('…'));
    }
}
