//! Finds the lines by which a model leaves out code it should have written.

use std::sync::LazyLock;

use regex::Regex;

/// A comment that stands for code: an ellipsis beside words like "existing code", or "rest of the file unchanged".
static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| {
    let dots = r"(?:\.\.\.+|…)";
    let what = r"(?:existing|rest|remaining|unchanged|same|previous|other|omitted|original)";
    let thing = r"(?:code|file|function|functions|method|methods|class|implementation|content|contents|imports|tests|body|above|before|logic|lines|unchanged)";
    let open = r"(?://+|\#+|--+|;+|/\*+|<!--|\*|%+|\(|\[|\{/\*)";
    let close = r"(?:\*/|-->|\)|\]|\*/\})?";
    Regex::new(&format!(
        r"(?ix) ^ {open}? \s* {dots} \s* (?: .{{0,40}} \b{what}\b .{{0,40}} | (?:keep|as) \b .{{0,40}} ) \s* {close} $
          | ^ {open} \s* .{{0,40}} \b{what}\b .{{0,20}} \b{thing}\b .{{0,40}} {dots} \W* $
          | ^ {open} \s* (?:the\s+)? rest \s+ of \s+ (?:the\s+|your\s+)? (?:\w+\s+)? {thing} \b
            .{{0,30}} \b(?:unchanged|same|as\s+before|here|goes\s+here)\b .{{0,20}} $"
    ))
    .expect("the placeholder pattern is valid")
});

/// A line above this length is no placeholder.
const MAX_LINE_BYTES: usize = 160;

/// The first line of `content` that replaces code by a placeholder. Lines that `before` has already are real.
pub fn placeholder<'c>(content: &'c str, before: Option<&str>) -> Option<&'c str> {
    content.lines().map(str::trim).find(|line| {
        line.len() <= MAX_LINE_BYTES
            && PLACEHOLDER.is_match(line)
            && !before.is_some_and(|text| text.lines().any(|old| old.trim() == *line))
    })
}
