//! How well a model calls tools: two hundred small orders with one right answer each, and what follows from the score.
//!
//! A model is its weights, its template, its server's parser and its server's flags together, and each of these breaks tool
//! calls in its own way. So nobody is believed: what a model is asked with is what it was seen to do.

mod cases;
mod suite;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use fettle_app::ports::model::{Message, ToolCalls, ToolSpec};
use serde::{Deserialize, Serialize};

use crate::dialect::{Dialect, instructions};
use crate::solve::estimate_tokens;
use crate::tools::specs;
use cases::PATCH_FORM;

pub use cases::{Case, CaseKind, cases};
pub use suite::{Examination, Extent, Unfinished, examine};

/// Dialects in the order in which they are tried, with the share of right answers that is enough, in thousandths. Native calls
/// cost the fewest tokens, so they have to be nearly perfect to be worth more than a text dialect that is.
pub const NEEDED: [(Dialect, u32); 3] = [(Dialect::Native, 980), (Dialect::Xml, 950), (Dialect::Fenced, 900)];

/// Right answers out of those asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Score {
    pub right: u32,
    pub asked: u32,
}

impl Score {
    fn count(&mut self, right: bool) {
        self.asked += 1;
        self.right += u32::from(right);
    }

    /// In thousandths, rounded down; nothing asked is nothing right.
    pub fn permille(self) -> u32 {
        (self.right * 1_000).checked_div(self.asked).unwrap_or(0)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.right, self.asked)
    }
}

/// How a file is changed by one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EditFormat {
    StrReplace,
    /// The whole file anew.
    Create,
    /// A V4A patch.
    ApplyPatch,
}

impl EditFormat {
    pub const ALL: [Self; 3] = [Self::StrReplace, Self::Create, Self::ApplyPatch];

    pub fn name(self) -> &'static str {
        match self {
            Self::StrReplace => "str_replace",
            Self::Create => "create",
            Self::ApplyPatch => "apply_patch",
        }
    }
}

/// What was seen of a model in one dialect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub dialect: Dialect,
    pub score: Score,
    pub by_kind: BTreeMap<CaseKind, Score>,
    /// The same answer streamed as at once.
    pub streaming: Score,
    pub edits: BTreeMap<EditFormat, Score>,
    /// Some of the wrong answers: which case, and what came instead.
    pub wrong: Vec<(String, String)>,
}

/// How a model is asked to call tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    pub dialect: Dialect,
    pub edits: EditFormat,
    /// Answers with calls may be streamed.
    pub stream: bool,
}

impl Default for Form {
    /// Of a model that nobody has examined.
    fn default() -> Self {
        Self { dialect: Dialect::Native, edits: EditFormat::StrReplace, stream: true }
    }
}

impl Form {
    /// By the names that travel; `None` when one is not known here.
    pub fn named(dialect: &str, edits: &str, stream: bool) -> Option<Self> {
        let (dialect, _) = NEEDED.into_iter().find(|(known, _)| known.name() == dialect)?;
        let edits = EditFormat::ALL.into_iter().find(|known| known.name() == edits)?;
        Some(Self { dialect, edits, stream })
    }

    /// How calls are made and files are changed, for the first message.
    pub fn instructions(self, specs: &[ToolSpec], mark: &str) -> String {
        let mut text = instructions(self.dialect, specs, mark);
        match self.edits {
            // As the tool's own description says.
            EditFormat::StrReplace => {}
            EditFormat::Create => {
                text.push_str("Change a file by viewing all of it and writing it anew with create.\n")
            }
            EditFormat::ApplyPatch => {
                text.push_str(&format!("Change files with patches in your text, not with str_replace. {PATCH_FORM}\n"));
            }
        }
        text
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Works(Form),
    /// The sentence says what it did in each dialect.
    ChatOnly(String),
}

/// The first dialect that is good enough. Pure: the same answers give the same form.
pub fn verdict(seen: &[Seen]) -> Verdict {
    let enough = |seen: &&Seen| seen.score.permille() >= needed(seen.dialect);
    let Some(best) = seen.iter().find(enough) else {
        let said: Vec<String> = seen
            .iter()
            .map(|one| {
                let needed = needed(one.dialect) / 10;
                format!("{} calls were right {} times, and {needed} % are needed", one.dialect.name(), one.score)
            })
            .collect();
        return Verdict::ChatOnly(said.join("; "));
    };
    // The first of equals: `max_by_key` would take the last.
    let edits = EditFormat::ALL.into_iter().rev().max_by_key(|format| best.edits.get(format).map(|s| s.permille()));
    Verdict::Works(Form {
        dialect: best.dialect,
        edits: edits.unwrap_or(EditFormat::StrReplace),
        stream: best.streaming.asked > 0 && best.streaming.right == best.streaming.asked,
    })
}

/// The same, as others are told.
pub fn told(seen: &[Seen]) -> ToolCalls {
    match verdict(seen) {
        Verdict::ChatOnly(why) => ToolCalls::ChatOnly { why },
        Verdict::Works(form) => {
            let score = seen.iter().find(|one| one.dialect == form.dialect).map(|one| one.score).unwrap_or_default();
            ToolCalls::Form {
                dialect: form.dialect.name().to_owned(),
                edits: form.edits.name().to_owned(),
                stream: form.stream,
                right: score.right,
                asked: score.asked,
            }
        }
    }
}

/// About how many tokens an examination sends in one dialect; each further one sends as many again.
pub fn prompt_tokens(window: u64) -> u64 {
    let rules = estimate_tokens(&[Message::System { text: instructions(Dialect::Xml, &specs(), "") }]);
    cases(window).iter().map(|case| rules + estimate_tokens(&case.messages(Dialect::Xml, ""))).sum()
}

fn needed(dialect: Dialect) -> u32 {
    NEEDED.iter().find(|(known, _)| *known == dialect).map_or(1_000, |(_, needed)| *needed)
}
