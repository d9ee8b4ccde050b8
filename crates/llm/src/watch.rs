//! Watches a turn while it streams and says where to cut it: the model repeats itself without end, or it goes on to
//! write the next user or tool turn itself.
//!
//! Pure. The verdict depends on the text alone, never on how it was split into pieces. It errs towards letting text
//! pass: what it misses ends at the output limit, what it cuts wrongly is lost.

/// A stretch that only repeats one unit is endless when it is at least this long in prose. Tables, rulers and test data
/// that people want are shorter.
const REPEATED_BYTES: usize = 6_000;
/// The same within the arguments of a call, where generated tables and fixtures are longer.
const REPEATED_BYTES_IN_ARGUMENTS: usize = 24_000;
/// How often the unit must at least occur: a long paragraph said three times may be meant.
const REPEATS: usize = 8;
/// The longest unit, in bytes: a few paragraphs. Bounds the work of one check.
const LONGEST_UNIT: usize = 3_000;
/// Bytes between two checks for repetition, counted from the start of the text so that pieces do not matter.
const CHECK_EVERY: usize = 1_024;

/// Chat template tokens that open somebody else's turn, and the tags in which tool results are handed to a model.
const FOREIGN_TURN: [&str; 19] = [
    "<|im_start|>user",
    "<|im_start|>tool",
    "<|im_start|>system",
    "<|start_header_id|>user",
    "<|start_header_id|>ipython",
    "<|start_header_id|>tool",
    "<|start|>user",
    "<|start|>functions.",
    "<start_of_turn>user",
    "<|user|>",
    "<|observation|>",
    "<｜User｜>",
    "<｜tool▁outputs▁begin｜>",
    "[INST]",
    "[TOOL_RESULTS]",
    "<tool_response>",
    "<tool_result>",
    "<function_results>",
    "<function_response>",
];
/// Role names as base models write them. They count only after a blank line: a list may hold such a key.
const FOREIGN_ROLE: [&str; 2] = ["Human:", "User:"];
/// Tokens by which a model ends its own turn; a foreign turn may follow on the same line.
const END_OF_TURN: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "<|endoftext|>"];
/// No end token and marker together are longer.
const MARKER_BYTES: usize = 64;
/// Calls in text carry files raw, and a file may hold any of the above: between these nothing is foreign.
const CALL_BLOCKS: [(&str, &str); 3] =
    [("<tool ", "</tool>"), ("<function=", "</function>"), ("<tool_call>", "</tool_call>")];

/// Which text is watched, and so which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Text,
    /// A thinking model may quote a foreign turn; only repetition counts.
    Reasoning,
    Arguments,
}

/// Keep the first `keep` bytes (a character boundary); the rest is not the model's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) keep: usize,
    pub(crate) reason: String,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    channel: Channel,
    next_check: usize,
    lines: Lines,
}

impl Watcher {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, next_check: CHECK_EVERY, lines: Lines::default() }
    }

    /// Looks at what was added to `text` since the last look. `text` is the whole channel so far.
    pub(crate) fn look(&mut self, text: &str) -> Option<Cut> {
        let foreign = match self.channel {
            Channel::Text => self.lines.foreign_turn(text),
            Channel::Reasoning | Channel::Arguments => None,
        };
        // Whichever could be known first counts, as if the text had come byte by byte.
        let until = foreign.as_ref().map_or(text.len(), |foreign| foreign.keep);
        self.repetition(text, until).or(foreign)
    }

    fn repetition(&mut self, text: &str, until: usize) -> Option<Cut> {
        let shortest = match self.channel {
            Channel::Text | Channel::Reasoning => REPEATED_BYTES,
            Channel::Arguments => REPEATED_BYTES_IN_ARGUMENTS,
        };
        while self.next_check <= until {
            let end = self.next_check;
            self.next_check += CHECK_EVERY;
            if let Some(again) = repeated(&text.as_bytes()[..end], shortest) {
                let keep = text.floor_char_boundary(end - again.bytes);
                let reason = format!("the same {} bytes were repeated without end", again.unit);
                return Some(Cut { keep, reason });
            }
        }
        None
    }
}

struct Repetition {
    unit: usize,
    /// How many bytes at the end only say again what stands one unit earlier.
    bytes: usize,
}

/// The shortest unit that the end of `bytes` repeats long and often enough.
fn repeated(bytes: &[u8], shortest: usize) -> Option<Repetition> {
    let window = shortest.max(REPEATS * LONGEST_UNIT).min(bytes.len());
    let tail: Vec<u8> = bytes[bytes.len() - window..].iter().rev().copied().collect();
    let same = z_function(&tail);
    (1..=LONGEST_UNIT.min(tail.len().saturating_sub(1)))
        .find(|&unit| same[unit] + unit >= shortest.max(REPEATS * unit))
        .map(|unit| Repetition { unit, bytes: same[unit] })
}

/// For each position, how many bytes from there on equal the beginning (Gusfield's Z algorithm, linear time).
fn z_function(bytes: &[u8]) -> Vec<usize> {
    let mut z = vec![0; bytes.len()];
    let (mut left, mut right) = (0, 0);
    for i in 1..bytes.len() {
        let mut length = if i < right { z[i - left].min(right - i) } else { 0 };
        while i + length < bytes.len() && bytes[length] == bytes[i + length] {
            length += 1;
        }
        z[i] = length;
        if i + length > right {
            (left, right) = (i, i + length);
        }
    }
    z
}

/// Reads line by line, knowing what is quoted: fenced blocks and calls in text.
#[derive(Debug, Default)]
struct Lines {
    line_start: usize,
    /// Up to here the text was searched; a long line that grows by a few bytes is not searched anew each time.
    searched: usize,
    after_blank: bool,
    inside: Inside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Inside {
    #[default]
    Prose,
    Fence {
        mark: char,
        length: usize,
    },
    Call {
        close: &'static str,
    },
}

impl Lines {
    fn foreign_turn(&mut self, text: &str) -> Option<Cut> {
        while let Some(length) = text[self.searched..].find('\n') {
            let line_end = self.searched + length;
            if let Some(cut) = self.foreign_in(&text[..line_end]) {
                return Some(cut);
            }
            let line = &text[self.line_start..line_end];
            self.inside = self.inside.after(line);
            self.after_blank = line.trim().is_empty();
            self.line_start = line_end + 1;
            self.searched = self.line_start;
        }
        let cut = self.foreign_in(text);
        self.searched = text.len();
        cut
    }

    /// Looks at the last line of `text`, complete or not.
    fn foreign_in(&self, text: &str) -> Option<Cut> {
        if self.inside != Inside::Prose {
            return None;
        }
        let opens = |at: usize| FOREIGN_TURN.iter().any(|marker| text[at..].starts_with(marker));
        let line = &text[self.line_start..];
        let begin = text.len() - line.trim_start().len();
        let at = if self.after_blank && FOREIGN_ROLE.iter().any(|role| line.starts_with(role)) {
            self.line_start
        } else if opens(begin) {
            begin
        } else {
            let from = text.floor_char_boundary(self.searched.saturating_sub(MARKER_BYTES)).max(self.line_start);
            END_OF_TURN
                .iter()
                .flat_map(|token| text[from..].match_indices(token).map(|(at, _)| from + at + token.len()))
                .filter(|&at| opens(at))
                .min()?
        };
        Some(Cut { keep: at, reason: "the model wrote the next user or tool turn itself".to_owned() })
    }
}

impl Inside {
    /// Where the line after `line` stands.
    fn after(self, line: &str) -> Self {
        let text = line.trim();
        match self {
            Self::Prose => {
                if let Some((mark, length)) = fence(text) {
                    return Self::Fence { mark, length };
                }
                CALL_BLOCKS
                    .iter()
                    .find(|(open, close)| text.starts_with(open) && !text.contains(close))
                    .map_or(Self::Prose, |(_, close)| Self::Call { close })
            }
            Self::Fence { mark, length } => match fence(text) {
                Some((other, run)) if other == mark && run >= length && text.chars().all(|c| c == mark) => Self::Prose,
                _ => self,
            },
            Self::Call { close } if text.contains(close) => Self::Prose,
            Self::Call { .. } => self,
        }
    }
}

/// The mark and length of the fence that opens or closes a block on this line.
fn fence(text: &str) -> Option<(char, usize)> {
    let mark = text.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let length = text.chars().take_while(|&c| c == mark).count();
    (length >= 3).then_some((mark, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The verdict when `text` comes in pieces of `size` characters.
    fn verdict(channel: Channel, text: &str, size: usize) -> Option<Cut> {
        let mut watcher = Watcher::new(channel);
        let mut seen = String::new();
        for (at, c) in text.chars().enumerate() {
            seen.push(c);
            if (at + 1) % size == 0
                && let Some(cut) = watcher.look(&seen)
            {
                return Some(cut);
            }
        }
        watcher.look(&seen)
    }

    fn kept(text: &str) -> &str {
        verdict(Channel::Text, text, usize::MAX).map_or(text, |cut| &text[..cut.keep])
    }

    #[test]
    fn endless_repetition_is_cut_after_its_first_unit() {
        for unit in
            ["la", "I will look at the file again.\n", "é😀", &"a long thought, ".repeat(100).replacen('a', "b", 1)]
        {
            let text = format!("Let me think.\n{}", unit.repeat(30_000 / unit.len()));
            let cut = verdict(Channel::Text, &text, 7).expect("repetition without end");
            let start = "Let me think.\n".len();
            assert!((start..start + 2 * unit.len() + 1).contains(&cut.keep), "{unit:?} was cut at {}", cut.keep);
        }
    }

    #[test]
    fn repetition_that_people_want_passes() {
        let table = format!("const ZEROS: [u8; 1024] = [{}];", "0, ".repeat(1_024));
        let numbered: String = (0..2_000).map(|n| format!("line {n} of the list\n")).collect();
        let paragraph = "A paragraph with a thought of its own, and then some more. ".repeat(2);
        for text in [table.as_str(), &"=".repeat(2_000), &numbered, &paragraph.repeat(3)] {
            assert_eq!(verdict(Channel::Text, text, 100), None);
        }
        assert_eq!(verdict(Channel::Arguments, &"0x00, ".repeat(3_000), 100), None);
        assert!(verdict(Channel::Arguments, &"0x00, ".repeat(10_000), 100).is_some());
    }

    #[test]
    fn a_foreign_turn_is_cut_at_its_start() {
        assert_eq!(kept("Done.\n<|im_start|>user\nThanks"), "Done.\n");
        assert_eq!(kept("Done.<|im_end|><|im_start|>user\nThanks"), "Done.<|im_end|>");
        assert_eq!(
            kept("<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>\n<tool_response>\na.rs"),
            "<tool name=\"bash\"><arg name=\"command\">ls</arg></tool>\n"
        );
        assert_eq!(kept("It works.\n\nHuman: and now?"), "It works.\n\n");
    }

    #[test]
    fn what_is_quoted_or_part_of_a_call_is_not_foreign() {
        for text in [
            "The template writes `<|im_start|>user` first.",
            "```\n<|im_start|>user\nhi\n```\nas above",
            "````\n```\n<|user|>\n````",
            "<tool name=\"create\"><arg name=\"content\">\n[INST] hi\n\nUser: x\n</arg></tool>\n",
            "<tool_call>\n{\"a\":1}\n\n<tool_response>\n</tool_call>",
            "fields:\nUser: the person",
        ] {
            assert_eq!(kept(text), text);
        }
        assert_eq!(verdict(Channel::Reasoning, "a\n<|user|>\n", 1), None);
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_pieces(
            head in "[a-zé\n]{0,40}", unit in "[xyß]{1,6}", times in 900usize..3_000,
            tail in "(\n<\\|im_start\\|>user|\n\nHuman: x|\n```\n|[a-z ]{0,20}){0,3}", first in any::<bool>(), size in 1usize..900,
        ) {
            let again = unit.repeat(times);
            let text = if first { format!("{head}{tail}{again}") } else { format!("{head}{again}{tail}") };
            prop_assert_eq!(verdict(Channel::Text, &text, size), verdict(Channel::Text, &text, usize::MAX));
        }
    }
}
