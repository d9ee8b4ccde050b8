//! Makes text from a model or an issue harmless before it is written to a forge.
//!
//! What a reader sees stays readable; what would notify people, close foreign issues, load remote images, trigger Fettle
//! or hide from sight is defused.

use std::sync::LazyLock;

use regex::Regex;

/// Longest title and body, in characters.
pub const MAX_TITLE_CHARS: usize = 120;
pub const MAX_BODY_CHARS: usize = 60_000;

static HTML_COMMENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)<!--.*?(?:-->|$)"));
static HTML_OPENING: LazyLock<Regex> = LazyLock::new(|| pattern(r"<([A-Za-z/!?])"));
static ENTITY: LazyLock<Regex> = LazyLock::new(|| pattern(r"&(#[0-9xX]|commat;|num;)"));
static MENTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"@([A-Za-z0-9])"));
static CLOSING: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)\b(close[sd]?|fix(?:e[sd])?|resolve[sd]?)\b(:?\s+)((?:[\w.-]+/[\w.-]+)?#|GH-|https?://\S+/issues/)(\d+)",
    )
});
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)(^|[^\w&`])((?:[\w.-]+/[\w.-]+)?#|GH-)(\d+)"));
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
    if let Some(fence) = open_fence(&kept) {
        kept = format!("{kept}\n{fence}");
    }
    kept
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
    let text = CLOSING.replace_all(&text, "$1$2$3\u{2060}$4");
    let text = REFERENCE.replace_all(&text, "$1$2\u{2060}$3");
    let text = MENTION.replace_all(&text, "@\u{2060}$1");
    let text = COMMAND.replace_all(&text, "$1\u{2060}/$2");
    let text = SKIP_CI.replace_all(&text, "[\u{2060}$1$2]");
    text.replace("ai-help", "ai\u{2060}-help")
}

/// The fence that ends a code block which `text` leaves open: what follows would become a part of it.
fn open_fence(text: &str) -> Option<String> {
    let mut open: Option<(char, usize)> = None;
    for line in text.lines() {
        let line = line.trim_start();
        let Some(sign) = line.chars().next().filter(|c| matches!(c, '`' | '~')) else { continue };
        let length = line.chars().take_while(|c| *c == sign).count();
        let rest = &line[length..];
        open = match open {
            None if length >= 3 && !(sign == '`' && rest.contains('`')) => Some((sign, length)),
            Some((begun, least)) if begun == sign && length >= least && rest.trim().is_empty() => None,
            unchanged => unchanged,
        };
    }
    open.map(|(sign, length)| sign.to_string().repeat(length))
}

/// Without control, bidirectional and zero-width characters, except line ends and tabs.
pub fn visible(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .filter(|c| matches!(c, '\n' | '\t') || !(c.is_control() || is_hidden(*c)))
        .collect()
}

fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
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
