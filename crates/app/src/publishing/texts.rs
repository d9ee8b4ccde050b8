//! Every text that Fettle writes to a forge. Pure: the same facts give the same words.
//!
//! A model's prose never states test results; those come from the Proof alone.

use std::fmt::Write as _;

use fettle_domain::id::TaskId;
use fettle_domain::outgoing::{self, inline_code, paragraph};
use fettle_domain::progress;
use fettle_domain::proof::{Executed, Granularity, Level, NewTest, Outcome, Proof, SuiteDelta};
use fettle_domain::proposal::Verdict;
use fettle_domain::run::{ProvenChange, RunOutcome, RunResult};
use fettle_domain::task::TaskState;

use super::Story;
use crate::ports::ledger::Publication;

/// Who Fettle's commits are by.
pub struct Identity;

impl Identity {
    pub const NAME: &'static str = "Fettle";
    pub const EMAIL: &'static str = "fettle@localhost.invalid";
}

/// Ties a commit to the Task that made it.
const TRAILER: &str = "Fettle-Task: ";
/// Prose of a model in a pull request.
const SUMMARY_LINES: usize = 10;
const SUMMARY_CHARS: usize = 2_000;
/// How verification calls the run of the whole suite on the change.
const SUITE_ON_HEAD: &str = "tests on head";
/// Reasons of a draft that are told; a body has an end.
const REASONS: usize = 20;
/// Names listed before "and n more".
const LISTED: usize = 8;

pub struct PullTexts {
    pub title: String,
    pub body: String,
}

/// Title and body as for a proven change; see [`PullTexts::with_verdict`] for a draft.
pub fn pull_request(publication: &Publication, change: &ProvenChange) -> PullTexts {
    PullTexts { title: title(publication, change), body: body(publication, change) }
}

impl PullTexts {
    /// A draft says first why it is one.
    #[must_use]
    pub fn with_verdict(self, verdict: &Verdict, level: Level) -> Self {
        match verdict {
            Verdict::Draft(reasons) | Verdict::NeedsHuman(reasons) | Verdict::Reject(reasons) => {
                let body = format!("{}\n\n{}", why_a_draft(reasons, level), without_closing(self.body));
                Self { body, ..self }
            }
            Verdict::Publish => self,
        }
    }
}

/// Our own `Fixes #7` becomes `Refs #7`. A model's words have no digit behind the sign and stay.
fn without_closing(mut body: String) -> String {
    const CLOSES: &str = "\n\nFixes #";
    let ours = |(at, _): &(usize, &str)| body[at + CLOSES.len()..].starts_with(|c: char| c.is_ascii_digit());
    if let Some((at, _)) = body.match_indices(CLOSES).find(ours) {
        body.replace_range(at..at + CLOSES.len(), "\n\nRefs #");
    }
    body
}

/// The head of a draft's description. A change may be proven and all the same be a draft, because of its size.
pub(super) fn why_a_draft(reasons: &[String], level: Level) -> String {
    let mut text = match level {
        Level::Proven => "**Proven, and a draft because:**\n".to_owned(),
        Level::Weak | Level::Unproven => "**Not proven:**\n".to_owned(),
    };
    for reason in reasons.iter().take(REASONS) {
        let _ = write!(text, "\n- {}", outgoing::line(reason, 400));
    }
    if reasons.len() > REASONS {
        let _ = write!(text, "\n- and {} more", reasons.len() - REASONS);
    }
    text
}

fn title(publication: &Publication, change: &ProvenChange) -> String {
    let title = outgoing::title(&change.title);
    if title.is_empty() { outgoing::title(&publication.task.issue.title) } else { title }
}

fn body(publication: &Publication, change: &ProvenChange) -> String {
    let proof = &change.proof;
    let mut text = paragraph(&change.summary, SUMMARY_LINES, SUMMARY_CHARS);
    if let Some(number) = publication.task.issue.number {
        let verb = if proof.level == Level::Proven { "Fixes" } else { "Refs" };
        let _ = write!(text, "\n\n{verb} #{number}");
    }
    let _ = write!(text, "\n\n{}\n", proof_line(proof));
    let _ = write!(text, "\n| what | on base `{}` | with this change |\n|---|---|---|\n", proof.base.short());
    for test in &proof.new_tests {
        let _ = writeln!(text, "{}", new_test_row(test));
    }
    if proof.new_tests.is_empty() {
        text.push_str("| new test | none | none |\n");
    }
    if let Some(suite) = &proof.suite {
        let _ = writeln!(text, "{}", suite_row(suite));
    }
    let _ = write!(text, "{}", checks_rows(proof));
    if let Some(suite) = &proof.suite {
        for (what, names) in [
            ("Fixed with it", &suite.fixed),
            ("Broken", &suite.broken),
            ("No longer run", &suite.vanished),
            ("Failed before and after", &suite.known_failures),
            ("Flaky, proves nothing either way", &suite.flaky),
        ] {
            if !names.is_empty() {
                let _ = write!(text, "\n{what}: {}\n", listed(names));
            }
        }
    }
    if !proof.touched_tests.is_empty() {
        let touched: Vec<String> = proof
            .touched_tests
            .iter()
            .map(|t| {
                format!(
                    "{} (its version on base: {})",
                    inline_code(&t.path.lossy()),
                    outcome_word(t.base_version_on_head)
                )
            })
            .collect();
        let _ = write!(text, "\nExisting tests touched: {}\n", touched.join(", "));
    }
    let _ = write!(text, "\n{}", check_yourself(publication, proof));
    let _ = write!(text, "\n{}", cost_line(publication));
    text
}

fn proof_line(proof: &Proof) -> String {
    let level = match proof.level {
        Level::Proven => "PROVEN",
        Level::Weak => "WEAK",
        Level::Unproven => "UNPROVEN",
    };
    format!(
        "**Proof: {level}** · base `{}` → tree `{}` · {} · sandbox {} · environment `{}`",
        proof.base.short(),
        proof.head_tree.short(),
        cell(&proof.env.architecture),
        cell(&proof.env.sandbox_level),
        proof.env.digest.short(),
    )
}

fn new_test_row(test: &NewTest) -> String {
    let tally = |outcomes: &[Outcome], word: &str, wanted: Outcome| {
        let hits = outcomes.iter().filter(|o| **o == wanted).count();
        format!("{word} {hits}/{}", outcomes.len())
    };
    let why = match test.base_failure {
        Some(fettle_domain::proof::FailureKind::Assertion) => " (assertion)",
        Some(fettle_domain::proof::FailureKind::Error) => " (error)",
        Some(fettle_domain::proof::FailureKind::Build) => " (does not build)",
        Some(fettle_domain::proof::FailureKind::Timeout) => " (timeout)",
        None => "",
    };
    format!(
        "| new test {} | {}{why} | {} |",
        inline_code(&test.id),
        tally(&test.base, "failed", Outcome::Failed),
        tally(&test.head, "passed", Outcome::Passed),
    )
}

fn suite_row(suite: &SuiteDelta) -> String {
    let counts = |c: &fettle_domain::proof::SuiteCounts| match suite.granularity {
        Granularity::Test => format!("{} ok, {} failed, {} skipped", c.passed, c.failed, c.skipped),
        Granularity::Command if c.failed == 0 => "exit 0".to_owned(),
        Granularity::Command => "failed".to_owned(),
    };
    let late = if suite.timed_out { " (timed out)" } else { "" };
    format!("| whole suite{late} | {} | {} |", counts(&suite.base), counts(&suite.head))
}

fn checks_rows(proof: &Proof) -> String {
    let exit = |code: Option<i32>| {
        code.map_or("not ended".to_owned(), |c| if c == 0 { "ok".to_owned() } else { format!("exit {c}") })
    };
    proof
        .checks
        .iter()
        .map(|c| format!("| {} | {} | {} |\n", cell(&c.name), exit(c.base_exit), exit(c.head_exit)))
        .collect()
}

/// A word of the worker between cell borders.
fn cell(text: &str) -> String {
    outgoing::title(text).replace('|', "¦")
}

fn check_yourself(publication: &Publication, proof: &Proof) -> String {
    let head = |command: &&Executed| command.tree == proof.head_tree && command.exit == Some(0);
    let whole = proof.commands.iter().filter(head).find(|command| command.purpose == SUITE_ON_HEAD);
    let command = whole.or_else(|| proof.commands.iter().rev().find(head));
    let fetch = format!("git fetch origin {0} && git checkout {0}", publication.branch);
    match command {
        Some(test) => format!("Check it yourself: {} then {}\n", inline_code(&fetch), inline_code(&test.command)),
        None => format!("Check it yourself: {}\n", inline_code(&fetch)),
    }
}

fn cost_line(publication: &Publication) -> String {
    let spent = publication.task.run.spent;
    let wall = match spent.wall_s {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    };
    let model = publication.task.run.result.as_ref().map_or("", |r| r.model.as_str());
    format!(
        "Cost: {} model calls · {} tokens read, {} written · {} · model {} · task `{}`\n\n<sub>Code under test can forge its own report; exit codes and counts here were taken outside of it, in a fresh checkout.</sub>",
        spent.calls,
        spent.prompt_tokens,
        spent.generated_tokens,
        wall,
        inline_code(model),
        publication.task.id,
    )
}

fn listed(names: &[String]) -> String {
    let mut text = names.iter().take(LISTED).map(|n| inline_code(n)).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        let _ = write!(text, " and {} more", names.len() - LISTED);
    }
    text
}

fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passes on the new code",
        Outcome::Failed => "fails on the new code",
        Outcome::Skipped => "is skipped on the new code",
        Outcome::Absent => "was not run on the new code",
    }
}

/// Subject, what and why, and the trailer that ties the commit to its Task.
pub fn commit_message(publication: &Publication, change: &ProvenChange) -> String {
    format!(
        "{}\n\n{}\n\n{}\n",
        title(publication, change),
        paragraph(&change.summary, SUMMARY_LINES, SUMMARY_CHARS),
        trailer(publication.task.id)
    )
}

/// The last line of a commit message. It also makes commits of different Tasks differ that have everything else in common.
pub fn trailer(task: TaskId) -> String {
    format!("{TRAILER}{task}")
}

/// Whether the message's last paragraph names `task`.
pub fn carries_trailer(message: &str, task: TaskId) -> bool {
    let wanted = trailer(task);
    message.trim_end().lines().rev().take_while(|line| !line.trim().is_empty()).any(|line| line.trim() == wanted)
}

/// The one comment on the issue: what is done about it, and then what came of it, in words for the person who asked.
pub(crate) fn comment(publication: &Publication, story: &Story, marker: &str) -> String {
    let mut text = match &publication.phase {
        Some(phase) if phase == progress::CHOICE => "Several changes for this are ready, each with what was observed about it. \
            A person with access to Fettle chooses which one becomes the pull request; until then nothing is pushed.\n\n\
            This comment is kept up to date; the comment `/stop` ends the work."
            .to_owned(),
        Some(phase) => format!(
            "Fettle is at work on this. Now: {}.\n\nThis comment is kept up to date; the comment `/stop` ends the work.",
            outgoing::line(progress::doing(phase), 80)
        ),
        None if publication.task.state == TaskState::Cancelled => stopped(story),
        None => end(publication, story),
    };
    let _ = write!(text, "\n\n<sub>Task `{}`</sub>\n{marker}", publication.task.id);
    text
}

/// A person took the wish back.
fn stopped(story: &Story) -> String {
    match &story.pull {
        Some((number, _, _)) => {
            format!("The work on this was stopped, as asked. Pull request #{number} stays as it is.")
        }
        None => "The work on this was stopped, as asked. No pull request was opened.".to_owned(),
    }
}

fn end(publication: &Publication, story: &Story) -> String {
    match (&story.pull, &publication.task.run.result) {
        (Some((number, _, false)), result) if shows_a_new_test(result.as_ref()) => format!(
            "Pull request #{number} fixes this, with a test that fails before the change and passes after it. The proof is in its description."
        ),
        (Some((number, _, false)), _) => format!(
            "Pull request #{number} is for this. It changes no code, so no new test was asked for; what was observed is in its description."
        ),
        (Some((number, _, true)), result) => match result.as_ref().map(|r| &r.outcome) {
            Some(RunOutcome::DraftPr { reasons }) => {
                format!("Draft pull request #{number} has a change for this, but it is not proven.{}", bullets(reasons))
            }
            _ => format!(
                "Draft pull request #{number} has a change for this. Its description begins with why it is a draft."
            ),
        },
        (None, Some(result)) => no_pull_request(&result.outcome, story.withheld.as_deref()),
        (None, None) => {
            let why = publication.run_failure.as_deref().unwrap_or("the run ended without a result");
            format!("Fettle could not work on this: {}. An operator can try again; nothing was changed.", sentence(why))
        }
    }
}

fn shows_a_new_test(result: Option<&RunResult>) -> bool {
    result.and_then(|result| result.change.as_ref()).is_some_and(|change| !change.proof.new_tests.is_empty())
}

fn no_pull_request(outcome: &RunOutcome, withheld: Option<&str>) -> String {
    match outcome {
        RunOutcome::ReadyPr | RunOutcome::DraftPr { .. } => {
            let why = withheld.unwrap_or("it was held back");
            format!("There is a change for this, but no pull request was opened: {}.", sentence(why))
        }
        RunOutcome::Question { questions } => {
            format!("Before work on this can begin, please answer:{}", bullets(questions))
        }
        RunOutcome::NoChangeNeeded { why } => format!("No change seems to be needed.\n\n{}", paragraph(why, 10, 2_000)),
        RunOutcome::Declined { reason } => format!("Fettle did not try to fix this: {}.", sentence(reason)),
        RunOutcome::Unsolved { notes } => {
            format!("Fettle found no fix. What it learned:\n\n{}", quoted(&paragraph(notes, 30, 4_000)))
        }
        RunOutcome::Stopped { limit, notes } => format!(
            "Fettle stopped before it had a fix: {}. What it learned:\n\n{}",
            sentence(limit),
            quoted(&paragraph(notes, 30, 4_000))
        ),
        RunOutcome::ProbePassed => "The probe came through.".to_owned(),
    }
}

/// What is said instead of a comment that would have given a secret away.
pub(crate) fn redacted_comment(publication: &Publication, rules: &[String], marker: &str) -> String {
    format!(
        "Fettle finished, but its answer is held back because it contains what looks like a secret ({}). An operator can read it in task `{}`.\n{marker}",
        rules.join(", "),
        publication.task.id
    )
}

fn bullets(items: &[String]) -> String {
    items.iter().fold(String::from("\n"), |text, item| text + "\n- " + &outgoing::line(item, 400))
}

fn quoted(text: &str) -> String {
    text.lines().map(|line| format!("> {line}\n")).collect()
}

fn sentence(text: &str) -> String {
    outgoing::line(text, 800).trim_end_matches('.').to_owned()
}

/// A forge's words, shortened for a reason.
pub(crate) fn short(text: &str) -> String {
    outgoing::visible(text).chars().take(300).collect()
}

/// How a Task ended, as a label on its issue. A projection: nothing reads it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutcomeLabel {
    Proven,
    Draft,
    NeedsPerson,
}

impl OutcomeLabel {
    pub(crate) const ALL: [Self; 3] = [Self::Proven, Self::Draft, Self::NeedsPerson];

    pub(crate) fn of(story: &Story) -> Self {
        match &story.pull {
            Some((_, _, false)) => Self::Proven,
            Some((_, _, true)) => Self::Draft,
            None => Self::NeedsPerson,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Proven => "fettle: proven",
            Self::Draft => "fettle: draft",
            Self::NeedsPerson => "fettle: needs a person",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_closes_no_issue_even_when_the_prose_speaks_of_closing() {
        let prose = outgoing::paragraph("What.\n\nFixes #7", 9, 99);
        let body = without_closing(format!("{prose}\n\nFixes #7\n\nproof"));
        assert_eq!(body, format!("{prose}\n\nRefs #7\n\nproof"));
    }
}
