//! People and other programs: they label issues, comment, order, cancel and retry; and a webhook that was not answered is
//! sent again, since the forge shows it as failed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use fettle_app::ports::clock::{Clock as _, IdSource as _};
use fettle_app::ports::ledger::{Delivery, Ledger as _, RunPlan};
use fettle_domain::id::{CorrelationId, DeliveryId, JobId, RunId, TaskId};
use fettle_domain::incoming::{Incoming, IncomingIssue, IncomingUser, IssueChange, IssueState};
use fettle_domain::task::TaskState;
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::forge::{LABEL, repo};
use crate::nature::{Nature, Who, lock};
use crate::world::{Size, World};

/// What somebody does at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// `told`: the forge tells of it by a webhook.
    Label {
        issue: u64,
        told: bool,
    },
    Order {
        issue: u64,
        with_id: bool,
    },
    Cancel,
    Retry,
    Say,
    /// Lets further models work on it, too.
    Compare,
    /// Stops one of the Runs.
    StopRun,
}

pub(crate) struct People {
    nature: Arc<Nature>,
    size: Size,
    /// Webhooks by their key, and whether they were answered.
    webhooks: Arc<Mutex<BTreeMap<String, (Bytes, bool)>>>,
    /// Bodies of orders, by their id if they have one.
    pub(crate) orders: Mutex<Vec<(Option<String>, Bytes)>>,
    /// Issues that were labelled without a webhook.
    pub(crate) untold: Mutex<Vec<u64>>,
    waiting: Mutex<JoinSet<()>>,
}

impl People {
    pub(crate) fn new(nature: Arc<Nature>, size: Size) -> Self {
        Self {
            nature,
            size,
            webhooks: Arc::default(),
            orders: Mutex::default(),
            untold: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    pub(crate) fn wishes(&self) -> Vec<Wish> {
        let dice = &self.nature.dice;
        let mut wishes: Vec<Wish> =
            (1..=self.size.issues).map(|issue| Wish::Label { issue, told: dice.below(8) > 0 }).collect();
        for _ in 0..self.size.letters {
            // Sometimes about an issue that somebody labels as well.
            let issue = dice.between(1, self.size.issues + 2);
            wishes.push(Wish::Order { issue, with_id: dice.below(2) == 0 });
        }
        for _ in 0..self.size.wishes {
            wishes.push(match dice.below(7) {
                0 => Wish::Label { issue: dice.between(1, self.size.issues), told: true },
                1 => Wish::Cancel,
                2 => Wish::Retry,
                3 => Wish::Compare,
                4 => Wish::StopRun,
                _ => Wish::Say,
            });
        }
        wishes
    }

    pub(crate) fn wish(&self, world: &World, wish: Wish) {
        self.nature.note(Who::Outside, || format!("{wish:?}"));
        match wish {
            Wish::Label { issue, told: false } => {
                world.forge.label(issue);
                lock(&self.untold).push(issue);
            }
            Wish::Label { issue, told: true } => {
                let event = world.forge.label(issue);
                let key = format!("github:{event}");
                lock(&self.webhooks).insert(key.clone(), (webhook(issue), false));
                self.deliver(world, &key);
                if self.nature.wrong(300) {
                    self.deliver(world, &key);
                }
            }
            Wish::Order { issue, with_id } => {
                world.forge.label(issue);
                let body = format!(
                    r#"{{"repo_url":"https://forge.test/acme/tools","issue_id":{issue},"trigger_user":"ada","n":{}}}"#,
                    self.nature.dice.roll()
                );
                let body = Bytes::from(body);
                let id = with_id.then(|| self.nature.uuid().simple().to_string());
                lock(&self.orders).push((id.clone(), body.clone()));
                world.broker.put(id, body);
            }
            Wish::Cancel | Wish::Retry | Wish::Say | Wish::Compare | Wish::StopRun => self.ask(world, wish),
        }
    }

    /// About a Task that somebody picks.
    fn ask(&self, world: &World, wish: Wish) {
        let tasks: Vec<(TaskId, TaskState)> =
            world.durable.rows().tasks.values().map(|task| (task.id, task.state)).collect();
        if tasks.is_empty() {
            return;
        }
        let (task, _) = tasks[usize::try_from(self.nature.dice.below(tasks.len() as u64)).unwrap_or(0)];
        let said = format!("word {}", self.nature.dice.below(1_000_000));
        let runs: Vec<RunPlan> = (0..self.nature.dice.between(1, 2)).map(|_| self.run()).collect();
        let stopped = usize::try_from(self.nature.dice.below(3)).unwrap_or(0);
        let _ = world.at_any_dashboard(|ledger| async move {
            match wish {
                Wish::Cancel => ledger.cancel(task, "ada").await.map(|_| ()),
                Wish::Retry => ledger.retry(task, "ada").await.map(|_| ()),
                Wish::Compare => ledger.add_runs(task, "ada", &runs).await,
                Wish::StopRun => match ledger.runs(task).await?.get(stopped) {
                    Some(run) => ledger.stop_run(task, run.id, "ada").await.map(|_| ()),
                    None => Ok(()),
                },
                _ => ledger.post_message(task, "ada", &said).await,
            }
        });
    }

    fn run(&self) -> RunPlan {
        let (run, job) = (RunId::from_uuid(self.nature.uuid()), JobId::from_uuid(self.nature.uuid()));
        RunPlan { run, job, model: None, instruction: None }
    }

    /// Somebody chooses, wherever there is a choice.
    pub(crate) fn choose(&self, world: &World) {
        let waiting: Vec<(TaskId, RunId)> = world.durable.rows().to_be_chosen();
        for (task, run) in waiting {
            let _ = world.at_any_dashboard(|ledger| async move { ledger.choose_run(task, run, false, "ada").await });
        }
    }

    fn deliver(&self, world: &World, key: &str) {
        let Some((body, _)) = lock(&self.webhooks).get(key).cloned() else { return };
        let dashboard = world.any_dashboard();
        let delivery = Delivery {
            id: DeliveryId::from_uuid(self.nature.uuid()),
            key: key.to_owned(),
            event: "issues".to_owned(),
            body,
            correlation: CorrelationId::from_uuid(self.nature.uuid()),
            received_at: self.nature.clock(dashboard).now(),
        };
        let Some(answer) = world.at_dashboard(dashboard, |ledger| async move { ledger.accept(delivery).await }) else {
            return;
        };
        let (key, webhooks) = (key.to_owned(), self.webhooks.clone());
        let mut waiting = lock(&self.waiting);
        while waiting.try_join_next().is_some() {}
        waiting.spawn(async move {
            if let Ok(Ok(_)) = answer.await
                && let Some((_, answered)) = lock(&webhooks).get_mut(&key)
            {
                *answered = true;
            }
        });
    }

    /// Somebody redelivers what the forge shows as failed.
    pub(crate) fn ask_again(&self, world: &World) {
        let failed = |(key, (_, answered)): (&String, &(Bytes, bool))| (!answered).then(|| key.clone());
        let failed: Vec<String> = lock(&self.webhooks).iter().filter_map(failed).collect();
        for key in failed {
            self.deliver(world, &key);
        }
    }

    pub(crate) fn answered(&self) -> Vec<String> {
        lock(&self.webhooks).iter().filter(|(_, (_, answered))| *answered).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn all_answered(&self) -> bool {
        lock(&self.webhooks).values().all(|(_, answered)| *answered)
    }
}

fn webhook(issue: u64) -> Bytes {
    let ada = IncomingUser { id: 1, login: "ada".to_owned(), is_bot: false };
    let incoming = Incoming::Issue(Box::new(IncomingIssue {
        change: IssueChange::Labeled { label: LABEL.to_owned() },
        repo: repo(),
        sender: ada.clone(),
        issue: IssueState {
            number: issue,
            title: format!("issue {issue}"),
            body: "it fails".to_owned(),
            author: ada,
            labels: vec![LABEL.to_owned()],
            open: true,
            locked: false,
            url: format!("https://forge.test/acme/tools/issues/{issue}"),
            is_pull_request: false,
            updated_at: Timestamp::UNIX_EPOCH,
        },
    }));
    serde_json::to_vec(&incoming).expect("a webhook is JSON").into()
}
