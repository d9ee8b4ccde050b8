//! Notices a Run that gets nowhere. Looks at what each call did, never at what the model says about it.
//!
//! Rules R1, R2, R4, R5 and R6. R3 (malformed turns) belongs to the dialect switch and R7 (silence) to the model adapter.

use std::collections::{BTreeMap, BTreeSet};

use crate::object::{BlobId, TreeId};

/// One finished tool call, with everything volatile (times, addresses, process ids) already taken out of its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    pub tool: String,
    /// Digest of tool and arguments.
    pub call: BlobId,
    /// Digest of the normalised result.
    pub result: BlobId,
    /// `no_match`, … when the call failed, with the path it was about.
    pub error: Option<(String, String)>,
    /// The workspace after the call.
    pub tree: TreeId,
    /// The call showed a file not seen before.
    pub new_file_seen: bool,
    /// Counts for R6.
    pub in_fix_phase: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoopVerdict {
    Continue,
    /// The model is told.
    Note(String),
    /// The Run ends, with the rule's name for the log and a sentence for people.
    Stop {
        rule: &'static str,
        why: String,
    },
}

/// R1: the same call with the same result.
const SAME_CALL_NOTE: u32 = 3;
const SAME_CALL_STOP: u32 = 5;
/// R2: steps in which two calls alternate.
const ALTERNATION_STEPS: usize = 6;
/// R2: returns of the workspace to one earlier tree.
const TREE_RETURNS_STOP: u32 = 3;
/// R5: the same error of one tool on one path.
const SAME_ERROR_NOTE: u32 = 2;
const SAME_ERROR_STOP: u32 = 5;
/// R6: calls of the fix phase without a new tree or a newly seen file.
const IDLE_NOTE: u32 = 25;
const IDLE_STOP: u32 = 40;
/// R4: turns without a call, in a row.
const SILENT_TURNS_STOP: u32 = 3;

/// The memory of one Run. Fed with replayed calls as well, so that a resumed Run counts on.
#[derive(Debug, Clone, Default)]
pub struct LoopWatch {
    same: BTreeMap<(BlobId, BlobId), u32>,
    recent: Vec<(BlobId, BlobId)>,
    tree: Option<TreeId>,
    seen_trees: BTreeSet<TreeId>,
    returns: BTreeMap<TreeId, u32>,
    errors: BTreeMap<(String, String, String), u32>,
    idle: u32,
    silent_turns: u32,
}

impl LoopWatch {
    /// A turn without any call.
    pub fn silent_turn(&mut self) -> LoopVerdict {
        self.silent_turns += 1;
        if self.silent_turns >= SILENT_TURNS_STOP {
            stop(
                "R4",
                format!(
                    "the model answered {SILENT_TURNS_STOP} times in a row without using a tool; mostly its server, or the model itself, does not support tool calls"
                ),
            )
        } else {
            LoopVerdict::Continue
        }
    }

    pub fn observe(&mut self, seen: &Observation) -> LoopVerdict {
        self.silent_turns = 0;
        let new_tree = self.note_tree(seen.tree);
        let mut verdicts = vec![self.same_call(seen), self.alternation(seen, new_tree)];
        if let Some((code, path)) = &seen.error {
            verdicts.push(self.same_error(&seen.tool, code, path));
        }
        verdicts.push(self.no_progress(seen, new_tree));
        worst(verdicts)
    }

    /// Whether the tree was never seen; a return to an earlier one is counted.
    fn note_tree(&mut self, tree: TreeId) -> bool {
        let first = self.tree.is_none();
        let changed = self.tree != Some(tree);
        self.tree = Some(tree);
        let new = self.seen_trees.insert(tree);
        if changed && !new {
            *self.returns.entry(tree).or_default() += 1;
        }
        new && !first
    }

    fn same_call(&mut self, seen: &Observation) -> LoopVerdict {
        let count = self.same.entry((seen.call, seen.result)).or_default();
        *count += 1;
        match *count {
            SAME_CALL_STOP.. => stop(
                "R1",
                format!(
                    "the model made the same {} call {SAME_CALL_STOP} times and got the same result each time",
                    seen.tool
                ),
            ),
            SAME_CALL_NOTE => LoopVerdict::Note(format!(
                "This {} call has given the same result {SAME_CALL_NOTE} times. Do something else.",
                seen.tool
            )),
            _ => LoopVerdict::Continue,
        }
    }

    fn alternation(&mut self, seen: &Observation, new_tree: bool) -> LoopVerdict {
        if self.returns.get(&seen.tree).is_some_and(|n| *n >= TREE_RETURNS_STOP) {
            return stop("R2", format!("the model went back to the same state of the code {TREE_RETURNS_STOP} times"));
        }
        if new_tree {
            self.recent.clear();
        }
        self.recent.push((seen.call, seen.result));
        if self.recent.len() > ALTERNATION_STEPS {
            self.recent.remove(0);
        }
        let alternates = self.recent.len() == ALTERNATION_STEPS
            && self.recent[0] != self.recent[1]
            && self.recent.iter().skip(2).zip(&self.recent).all(|(later, earlier)| later == earlier);
        if alternates {
            stop(
                "R2",
                format!(
                    "the model went back and forth between two calls, {ALTERNATION_STEPS} in a row, with the same results"
                ),
            )
        } else {
            LoopVerdict::Continue
        }
    }

    fn same_error(&mut self, tool: &str, code: &str, path: &str) -> LoopVerdict {
        let count = self.errors.entry((tool.to_owned(), code.to_owned(), path.to_owned())).or_default();
        *count += 1;
        match *count {
            SAME_ERROR_STOP.. => stop(
                "R5",
                format!(
                    "the model called {tool} on {path} {SAME_ERROR_STOP} times and failed each time in the same way ({code})"
                ),
            ),
            SAME_ERROR_NOTE if tool == "str_replace" => LoopVerdict::Note(format!(
                "str_replace has failed {SAME_ERROR_NOTE} times on {path}. View the file again and copy the text exactly, or rewrite it whole with create."
            )),
            _ => LoopVerdict::Continue,
        }
    }

    fn no_progress(&mut self, seen: &Observation, new_tree: bool) -> LoopVerdict {
        if !seen.in_fix_phase || new_tree || seen.new_file_seen {
            self.idle = 0;
            return LoopVerdict::Continue;
        }
        self.idle += 1;
        match self.idle {
            IDLE_STOP.. => stop(
                "R6",
                format!("the model made {IDLE_STOP} calls that brought neither a change nor a file it had not seen"),
            ),
            IDLE_NOTE => LoopVerdict::Note(format!(
                "{IDLE_NOTE} calls have brought neither a change nor a new file. Make the change now, or finish and say what is missing."
            )),
            _ => LoopVerdict::Continue,
        }
    }
}

fn stop(rule: &'static str, why: String) -> LoopVerdict {
    LoopVerdict::Stop { rule, why }
}

fn worst(verdicts: Vec<LoopVerdict>) -> LoopVerdict {
    let mut result = LoopVerdict::Continue;
    for verdict in verdicts {
        match (&result, &verdict) {
            (_, LoopVerdict::Stop { .. }) => return verdict,
            (LoopVerdict::Continue, _) => result = verdict,
            _ => {}
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(n: u8) -> TreeId {
        TreeId::from_bytes([n; 20])
    }

    fn seen(call: &str, result: &str, tree_no: u8) -> Observation {
        Observation {
            tool: "bash".into(),
            call: BlobId::of(call.as_bytes()),
            result: BlobId::of(result.as_bytes()),
            error: None,
            tree: tree(tree_no),
            new_file_seen: false,
            in_fix_phase: true,
        }
    }

    fn rule(verdict: &LoopVerdict) -> &str {
        match verdict {
            LoopVerdict::Continue => "-",
            LoopVerdict::Note(_) => "note",
            LoopVerdict::Stop { rule, .. } => rule,
        }
    }

    #[test]
    fn the_same_call_with_the_same_result_is_noted_then_stopped() {
        let mut watch = LoopWatch::default();
        let verdicts: Vec<_> = (0..5).map(|_| watch.observe(&seen("ls", "a", 1))).collect();
        assert_eq!(verdicts.iter().map(rule).collect::<Vec<_>>(), ["-", "-", "note", "-", "R1"]);
    }

    #[test]
    fn two_alternating_calls_are_stopped_unless_the_workspace_moves() {
        let mut watch = LoopWatch::default();
        let last = (0..6).map(|i| watch.observe(&seen(["a", "b"][i % 2], "same", 1))).last().expect("six");
        assert_eq!(rule(&last), "R2");
        let mut watch = LoopWatch::default();
        let stopped = (0..6).any(|i| {
            rule(&watch.observe(&seen(["a", "b"][i % 2], &i.to_string(), u8::try_from(i).expect("small")))) == "R2"
        });
        assert!(!stopped);
    }

    #[test]
    fn a_workspace_that_keeps_coming_back_is_stopped() {
        let mut watch = LoopWatch::default();
        let verdicts: Vec<_> =
            (0..8).map(|i: u8| rule(&watch.observe(&seen(&i.to_string(), &i.to_string(), i % 2))).to_owned()).collect();
        assert!(verdicts.contains(&"R2".to_owned()), "{verdicts:?}");
    }

    #[test]
    fn idle_calls_of_the_fix_phase_are_noted_and_stopped_at_the_figures() {
        let mut watch = LoopWatch::default();
        let verdicts: Vec<_> =
            (0..41).map(|i| rule(&watch.observe(&seen(&i.to_string(), &i.to_string(), 1))).to_owned()).collect();
        assert_eq!(verdicts.iter().position(|v| v == "note"), Some(24));
        assert_eq!(verdicts.iter().position(|v| v == "R6"), Some(39));
    }

    #[test]
    fn three_turns_without_a_call_stop_the_run_and_a_call_starts_the_count_over() {
        let mut watch = LoopWatch::default();
        assert_eq!(rule(&watch.silent_turn()), "-");
        assert_eq!(rule(&watch.silent_turn()), "-");
        watch.observe(&seen("ls", "a", 1));
        assert_eq!(rule(&watch.silent_turn()), "-");
        assert_eq!(rule(&watch.silent_turn()), "-");
        assert_eq!(rule(&watch.silent_turn()), "R4");
    }
}
