//! Looking for labels with a clock that is not the forge's.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::intake::{DAILY_TASKS, IntakeOptions};
use fettle_app::live::Live;
use fettle_app::polling::{LookAt, Poller, Remembered};
use fettle_app::ports::clock::{Clock, IdSource};
use fettle_app::ports::forge::{
    Changed, F, ForgeError, ForgeReader, ForgeWatch, HookLog, Issue, IssueComment, LabeledEvent, Permission, Reach,
};
use fettle_app::ports::ledger::Ledger as _;
use fettle_app::reconciling::Reconcile as _;
use fettle_app::vitals::Vitals;
use fettle_domain::incoming::{IncomingUser, IssueState};
use fettle_domain::intake::IntakeRules;
use fettle_domain::lease::Timing;
use fettle_domain::repo::{Repo, RepoName};
use fettle_domain::task::Mode;
use fettle_domain::turn::Slots;
use fettle_simulation::{Durable, MemoryLedger, Surroundings};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::sync::watch;
use uuid::Uuid;

const LABEL: &str = "ai-help";

/// What the forge's clock says. Ten minutes ago somebody set the label on its one issue.
fn forge_time() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap()
}

struct Off(SignedDuration);

impl Clock for Off {
    fn now(&self) -> Timestamp {
        forge_time() + self.0
    }
}

struct Ids(AtomicU64);

impl IdSource for Ids {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(1, self.0.fetch_add(1, Ordering::Relaxed))
    }
}

struct OneIssue;

impl OneIssue {
    fn labeled_at() -> Timestamp {
        forge_time() - SignedDuration::from_mins(10)
    }

    fn ada() -> IncomingUser {
        IncomingUser { id: 1, login: "ada".to_owned(), is_bot: false }
    }
}

fn not_asked<T>() -> F<T> {
    Err(ForgeError::NotFound("nobody asks for this".to_owned()))
}

#[async_trait]
impl ForgeReader for OneIssue {
    async fn repository(&self, name: &RepoName) -> F<Repo> {
        let clone_url = "https://forge.test/acme/tools".to_owned();
        let (name, default_branch) = (name.clone(), "main".to_owned());
        Ok(Repo { forge_id: 77, name, clone_url, default_branch, private: false, installation: None })
    }

    async fn issue(&self, _: &Repo, _: u64) -> F<Issue> {
        not_asked()
    }

    async fn comments(&self, _: &Repo, _: u64) -> F<Vec<IssueComment>> {
        not_asked()
    }

    async fn labeled(&self, _: &Repo, _: u64, _: &str) -> F<Option<LabeledEvent>> {
        Ok(Some(LabeledEvent { id: 5, actor: Self::ada(), at: Self::labeled_at() }))
    }

    async fn permission(&self, _: &Repo, _: &str) -> F<Permission> {
        not_asked()
    }

    async fn read_token(&self, _: &Repo) -> F<Option<SecretString>> {
        not_asked()
    }

    async fn own_login(&self) -> F<String> {
        not_asked()
    }
}

#[async_trait]
impl ForgeWatch for OneIssue {
    async fn reachable(&self, _: usize) -> F<Reach> {
        not_asked()
    }

    async fn changed_issues(&self, _: &Repo, label: &str, since: Timestamp, _: Option<&str>) -> F<Changed> {
        let issue = IssueState {
            number: 1,
            title: "it fails".to_owned(),
            body: String::new(),
            author: Self::ada(),
            labels: vec![label.to_owned()],
            open: true,
            locked: false,
            url: "https://forge.test/acme/tools/issues/1".to_owned(),
            is_pull_request: false,
            updated_at: Self::labeled_at(),
        };
        let issues = if issue.updated_at >= since { vec![issue] } else { Vec::new() };
        Ok(Changed::Issues { issues, cut: false, tag: None, at: forge_time() })
    }

    async fn hook_attempts(&self, _: Option<Timestamp>) -> F<HookLog> {
        not_asked()
    }

    async fn redeliver(&self, _: u64) -> F<()> {
        not_asked()
    }
}

/// The labels that two looks find, the first ones at this repository.
async fn found_with(clock: Off) -> usize {
    let (clock, ids): (Arc<dyn Clock>, Arc<dyn IdSource>) = (Arc::new(clock), Arc::new(Ids(AtomicU64::new(1))));
    let around = Surroundings {
        clock: clock.clone(),
        stopwatch: Arc::new(|| Duration::ZERO),
        ids: ids.clone(),
        timing: Timing::default(),
        slots: Slots::default(),
        admissions: None,
    };
    let ledger = Arc::new(MemoryLedger::open(Durable::default(), around));
    let rules = IntakeRules { label: LABEL.to_owned(), label_mode: Mode::Quickfix, allowed_bots: Vec::new() };
    let mut poller = Poller {
        ledger: ledger.clone(),
        forge: Arc::new(OneIssue),
        clock,
        ids,
        options: Live::new(IntakeOptions { rules, daily_tasks: DAILY_TASKS, needs: Vec::new() }),
        at: LookAt::Named(vec!["acme/tools".parse().unwrap()]),
        added: watch::channel(Arc::default()).1,
        remembered: Remembered::default(),
    };
    let pulse = Arc::new(Vitals::default()).pulse("poll", Duration::MAX);
    for _ in 0..2 {
        poller.tick(&pulse).await.unwrap();
    }
    ledger.open_deliveries(10).await.unwrap().len()
}

// The mark goes by the forge's clock. A first question by our own, an hour and a half ahead, saw nothing, and the mark
// left the label behind for good. The simulation found it.
#[tokio::test]
async fn a_first_look_finds_a_label_wherever_our_clock_is() {
    for minutes in [0, 90, -90, 60 * 24 * 365] {
        assert_eq!(found_with(Off(SignedDuration::from_mins(minutes))).await, 1, "{minutes} minutes ahead");
    }
}
