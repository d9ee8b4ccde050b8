//! Output as a model may see it: no terminal control, cut in the middle with a note where all of it is.

/// What is left of terminal output when its control sequences are carried out or dropped: colours and cursor moves go, a
/// line that was written over shows its last state.
pub fn without_control(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut line_start = 0;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' => {
                out.push('\n');
                line_start = out.len();
            }
            '\t' => out.push('\t'),
            '\r' => {
                let ends_line = chars.peek().is_none_or(|next| matches!(next, '\n' | '\r'));
                if !ends_line {
                    out.truncate(line_start);
                }
            }
            '\u{1b}' => skip_escape(&mut chars),
            '\u{9b}' => skip_csi(&mut chars),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.peek() {
        Some('[') => {
            chars.next();
            skip_csi(chars);
        }
        // Operating system commands, device control and their like run to BEL or ST; never past the line, so that a lone
        // escape hides no more than it must.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            chars.next();
            while let Some(&c) = chars.peek() {
                if c == '\n' {
                    return;
                }
                chars.next();
                if c == '\u{7}' || c == '\u{9c}' {
                    return;
                }
                if c == '\u{1b}' {
                    chars.next_if_eq(&'\\');
                    return;
                }
            }
        }
        Some('(' | ')' | '*' | '+' | '#' | '%') => {
            chars.next();
            chars.next_if(|c| *c != '\n');
        }
        Some(c) if !c.is_control() => {
            chars.next();
        }
        _ => {}
    }
}

/// Parameters and the final letter of a control sequence.
fn skip_csi(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
    chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
}

/// Head and tail of a text within the given characters, at line ends where one is near; `true` when something was left out.
pub fn head_and_tail(text: &str, head_chars: usize, tail_chars: usize, log: &str) -> (String, bool) {
    let total = text.chars().count();
    if total <= head_chars + tail_chars {
        return (text.to_owned(), false);
    }
    let head_end = byte_of(text, head_chars);
    let tail_start = byte_of(text, total - tail_chars);
    // At most half of each part is given up for a whole line.
    let head = match text[..head_end].rfind('\n') {
        Some(at) if at >= head_end / 2 => &text[..=at],
        _ => &text[..head_end],
    };
    let tail = match text[tail_start..].find('\n') {
        Some(at) if at <= (text.len() - tail_start) / 2 => &text[tail_start + at + 1..],
        _ => &text[tail_start..],
    };
    let middle = &text[head.len()..text.len() - tail.len()];
    let (chars, lines) = (middle.chars().count(), middle.matches('\n').count());
    let note = format!("[… {chars} characters, {lines} lines left out; all of it: {log} …]");
    let line_end = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    (format!("{head}{line_end}{note}\n{tail}"), true)
}

fn byte_of(text: &str, chars: usize) -> usize {
    text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn colours_titles_and_progress_are_hidden() {
        let raw = "\u{1b}[1;31merror\u{1b}[0m: x\r\n\u{1b}]0;title\u{7}10%\r50%\r100%\ndone\u{8}\u{1b}(B";
        assert_eq!(without_control(raw), "error: x\n100%\ndone");
    }

    #[test]
    fn a_cut_prefers_line_ends_and_names_the_log() {
        let text: String = (0..100).map(|n| format!("line {n:02}\n")).collect();
        let (cut, truncated) = head_and_tail(&text, 20, 20, "@out/17.log");
        assert!(truncated);
        assert_eq!(
            cut,
            "line 00\nline 01\n[… 768 characters, 96 lines left out; all of it: @out/17.log …]\nline 98\nline 99\n"
        );
    }

    proptest! {
        #[test]
        fn a_cut_is_bounded_and_made_of_whole_characters(text in "\\PC{0,400}", head in 1usize..60, tail in 1usize..60) {
            let (cut, truncated) = head_and_tail(&text, head, tail, "@out/1.log");
            if truncated {
                let (first, rest) = cut.split_once("[… ").expect("a cut has its note");
                let (_, last) = rest.rsplit_once(" …]\n").expect("a cut has its note");
                prop_assert!(text.starts_with(first.trim_end_matches('\n')));
                prop_assert!(text.ends_with(last));
                prop_assert!(first.chars().count() <= head + 1 && last.chars().count() <= tail);
            } else {
                prop_assert_eq!(cut, text);
            }
        }
    }
}
