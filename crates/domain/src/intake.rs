//! Which webhook asks for work, and whether it may. The forge is asked in between; these functions only decide.

use jiff::Timestamp;

use crate::incoming::{IncomingIssue, IncomingUser, IssueChange};
use crate::task::Mode;

/// Text that Fettle alone writes; a delivery that carries it is never a trigger.
const OWN_MARKER: &str = "<!-- fettle:";

/// What the operator decides about triggers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntakeRules {
    /// The label that asks for work.
    pub label: String,
    /// The mode of a Task that a label asked for.
    pub label_mode: Mode,
    /// Bots that may trigger, by numeric id.
    pub allowed_bots: Vec<u64>,
}

impl IntakeRules {
    pub fn is_trigger(&self, label: &str) -> bool {
        is_same_label(label, &self.label)
    }
}

/// A forge knows labels without regard to case: `AI-Help` and `ai-help` cannot both exist.
pub fn is_same_label(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// What a delivery asks for, before anybody's permission was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    Label,
    Command {
        command: Command,
        comment_id: u64,
        at: Timestamp,
        /// What stands below the command, if anything.
        said: Option<String>,
    },
    /// Nothing; the reason is kept with the delivery.
    None(&'static str),
}

/// A command in the first line of a new comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Fix(Mode),
    Stop,
}

impl Command {
    /// Reads `/fix [quickfix|refine]`, `/refine` or `/stop` from the first line. Quotes and code do not begin with a
    /// slash, so they are no commands.
    pub fn parse(body: &str) -> Option<Self> {
        let mut words = body.lines().next()?.split_whitespace();
        match (words.next()?, words.next(), words.next()) {
            ("/fix", None | Some("quickfix"), None) => Some(Self::Fix(Mode::Quickfix)),
            ("/fix", Some("refine"), None) | ("/refine", None, None) => Some(Self::Fix(Mode::Refine)),
            ("/stop", None, None) => Some(Self::Stop),
            _ => None,
        }
    }
}

impl IntakeRules {
    /// An App's bot cannot be a collaborator, so no forge says that it may write: the operator's list is its permission.
    pub fn is_allowed_bot(&self, user: &IncomingUser) -> bool {
        user.is_bot && self.allowed_bots.contains(&user.id)
    }
}

/// What `incoming` asks for.
pub fn trigger_of(incoming: &IncomingIssue, rules: &IntakeRules) -> Trigger {
    if is_unwelcome_bot(&incoming.sender, rules) {
        return Trigger::None(BOT);
    }
    if incoming.issue.is_pull_request {
        return Trigger::None("it is a pull request, not an issue");
    }
    match &incoming.change {
        IssueChange::Opened if incoming.issue.labels.iter().any(|label| rules.is_trigger(label)) => Trigger::Label,
        IssueChange::Opened => Trigger::None("the new issue does not carry the trigger label"),
        IssueChange::Labeled { label } if rules.is_trigger(label) => Trigger::Label,
        IssueChange::Labeled { .. } => Trigger::None("another label"),
        IssueChange::Commented { comment } => {
            if is_unwelcome_bot(&comment.author, rules) {
                return Trigger::None(BOT);
            }
            if comment.body.contains(OWN_MARKER) {
                return Trigger::None("our own comment");
            }
            match Command::parse(&comment.body) {
                Some(command) => Trigger::Command {
                    command,
                    comment_id: comment.id,
                    at: comment.created_at,
                    said: below_first_line(&comment.body),
                },
                None => Trigger::None("a comment without a command in its first line"),
            }
        }
        IssueChange::Other { .. } => Trigger::None("this change of an issue asks for nothing"),
    }
}

fn below_first_line(body: &str) -> Option<String> {
    let (_, below) = body.split_once('\n')?;
    Some(below.trim().to_owned()).filter(|below| !below.is_empty())
}

/// Tasks in a row that bots may ask for on one issue; then a person must. Two bots that answer each other would never end.
pub const BOT_TURNS: u16 = 5;

/// Whether `actor` may not open another Task on an issue: a bot, and the issue's newest Tasks were all asked for by bots.
/// `earlier` has their actors, the newest first. A forge's bots have logins that people cannot have: `renovate[bot]`.
pub fn bots_talk_alone(actor: &str, earlier: &[String]) -> bool {
    let is_bot = |login: &str| login.ends_with("[bot]");
    is_bot(actor) && earlier.iter().take_while(|login| is_bot(login)).count() >= usize::from(BOT_TURNS)
}

const BOT: &str = "a bot that is not on the allow-list";

/// Our own App is a bot like any other. With a personal access token we write as a person, whose labels and commands are
/// that person's own; what we wrote ourselves is known by [`OWN_MARKER`] alone.
fn is_unwelcome_bot(user: &IncomingUser, rules: &IntakeRules) -> bool {
    user.is_bot && !rules.is_allowed_bot(user)
}

/// Unique per wish: opened and labeled, redelivery and polling meet in one key.
pub fn intent_key(repo_forge_id: u64, issue: u64, trigger: &str, object: u64) -> String {
    format!("github:{repo_forge_id}:{issue}:{trigger}:{object}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incoming::{IncomingComment, IssueState};
    use crate::repo::Repo;

    fn rules() -> IntakeRules {
        IntakeRules { label: "ai-help".into(), label_mode: Mode::Quickfix, allowed_bots: vec![77] }
    }

    fn user(login: &str, is_bot: bool, id: u64) -> IncomingUser {
        IncomingUser { id, login: login.into(), is_bot }
    }

    fn incoming(change: IssueChange, labels: &[&str], sender: IncomingUser) -> IncomingIssue {
        IncomingIssue {
            change,
            repo: Repo {
                forge_id: 1,
                name: "o/r".parse().expect("a name"),
                clone_url: "https://forge.example/o/r.git".into(),
                default_branch: "main".into(),
                private: false,
                installation: None,
            },
            sender,
            issue: IssueState {
                number: 7,
                title: "t".into(),
                body: "b".into(),
                author: user("ann", false, 1),
                labels: labels.iter().map(|l| (*l).to_owned()).collect(),
                open: true,
                locked: false,
                url: String::new(),
                is_pull_request: false,
                updated_at: Timestamp::UNIX_EPOCH,
            },
        }
    }

    fn commented(body: &str, author: IncomingUser) -> IncomingIssue {
        let comment = IncomingComment {
            id: 5,
            author: author.clone(),
            body: body.into(),
            url: String::new(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        };
        incoming(IssueChange::Commented { comment }, &[], author)
    }

    #[test]
    fn the_label_triggers_when_set_or_there_from_the_start() {
        let ann = || user("ann", false, 1);
        let labeled = |label: &str| IssueChange::Labeled { label: label.into() };
        assert_eq!(trigger_of(&incoming(labeled("ai-help"), &["ai-help"], ann()), &rules()), Trigger::Label);
        assert_eq!(trigger_of(&incoming(IssueChange::Opened, &["ai-help"], ann()), &rules()), Trigger::Label);
        assert_eq!(trigger_of(&incoming(labeled("AI-Help"), &["AI-Help"], ann()), &rules()), Trigger::Label);
        assert_eq!(trigger_of(&incoming(IssueChange::Opened, &["AI-Help"], ann()), &rules()), Trigger::Label);
        assert!(matches!(
            trigger_of(&incoming(labeled("bug"), &["ai-help", "bug"], ann()), &rules()),
            Trigger::None(_)
        ));
        assert!(matches!(trigger_of(&incoming(IssueChange::Opened, &[], ann()), &rules()), Trigger::None(_)));
    }

    #[test]
    fn a_command_counts_only_in_the_first_line_of_a_comment() {
        assert_eq!(Command::parse("/fix"), Some(Command::Fix(Mode::Quickfix)));
        assert_eq!(Command::parse("/fix refine\nplease"), Some(Command::Fix(Mode::Refine)));
        assert_eq!(Command::parse("/refine"), Some(Command::Fix(Mode::Refine)));
        assert_eq!(Command::parse("/stop"), Some(Command::Stop));
        for text in ["please /fix", "> /fix", "`/fix`", "hello\n/fix", "/fix everything", "/fixme", "", "/ fix"] {
            assert_eq!(Command::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_stands_below_a_command_is_said() {
        let said = |body: &str| match trigger_of(&commented(body, user("ann", false, 1)), &rules()) {
            Trigger::Command { said, .. } => said,
            other => panic!("{other:?}"),
        };
        assert_eq!(said("/fix\r\n\r\nkeep `parse`\n"), Some("keep `parse`".to_owned()));
        assert_eq!((said("/fix"), said("/fix\n \n")), (None, None));
    }

    #[test]
    fn bots_alone_get_five_turns_on_an_issue_and_a_person_begins_the_count_anew() {
        let logins = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let five = logins("a[bot] b[bot] a[bot] b[bot] a[bot]");
        assert!(bots_talk_alone("a[bot]", &five));
        assert!(!bots_talk_alone("ann", &five));
        assert!(!bots_talk_alone("a[bot]", &five[1..]));
        assert!(!bots_talk_alone("a[bot]", &logins("a[bot] ann a[bot] b[bot] a[bot] b[bot]")));
    }

    #[test]
    fn our_own_words_and_unknown_bots_never_trigger() {
        let none = |incoming| matches!(trigger_of(&incoming, &rules()), Trigger::None(_));
        assert!(none(commented("/fix", user("fettle[bot]", true, 9))));
        assert!(none(commented("/fix", user("dependabot[bot]", true, 8))));
        assert!(none(commented("/fix\n<!-- fettle:task_1:result -->", user("ann", false, 1))));
        assert!(!none(commented("/fix", user("helper[bot]", true, 77))));
        assert!(!none(commented("/fix", user("ann", false, 1))));
    }
}
