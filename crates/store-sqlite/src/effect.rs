//! Wanted writes to the forge and the publish job that brings them about: one intent before each, one receipt after.

use fettle_app::ports::ledger::{Fenced, L, LedgerError};
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{EffectId, JobId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::publication::{CANCELLED, owes_last_word};
use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::error::unreadable;
use crate::job::{self, JobRow};
use crate::sql::{Sql as _, first};
use crate::task::{self, TaskRow};
use crate::writer::{Tx, Verb};
use crate::{event, run, stored};

/// Of one Task, in the order they are brought about.
pub(crate) fn list(conn: &Connection, task: TaskId) -> L<Vec<Effect>> {
    let uuid = task.as_uuid();
    type Row = (Uuid, String, String, Option<String>, Option<String>);
    let rows: Vec<Row> =
        conn.all("SELECT id, kind, state, intent, receipt FROM effect WHERE task_id = ?", params![uuid], |row| {
            row.try_into()
        })?;
    let mut effects = Vec::with_capacity(rows.len());
    for (id, kind, state, intent, receipt) in rows {
        let id = EffectId::from_uuid(id);
        let missing = |what: &str| unreadable(format!("{id} has no {what}"));
        let state = match state.as_str() {
            "wanted" => EffectState::Wanted,
            "intended" => {
                EffectState::Intended { intent: stored::read(intent.as_deref().ok_or_else(|| missing("intent"))?)? }
            }
            "settled" => {
                EffectState::Settled { receipt: stored::read(receipt.as_deref().ok_or_else(|| missing("receipt"))?)? }
            }
            other => return Err(unreadable(format!("{id} has the unknown state `{other}`"))),
        };
        let before = match state {
            EffectState::Settled { .. } => None,
            EffectState::Wanted | EffectState::Intended { .. } => receipt.as_deref().map(stored::read).transpose()?,
        };
        effects.push(Effect { id, task, kind: kind_named(&kind)?, state, before });
    }
    effects.sort_by_key(|effect| effect.kind);
    Ok(effects)
}

fn kind_named(text: &str) -> L<EffectKind> {
    EffectKind::named(text).ok_or_else(|| unreadable(format!("unknown effect kind `{text}`")))
}

/// Whether a patch of the Task is pushed or is to be.
pub(crate) fn is_published(conn: &Connection, task: TaskId) -> L<bool> {
    let push = EffectKind::Push.name();
    conn.one(
        "SELECT EXISTS (SELECT 1 FROM effect WHERE task_id = ? AND kind = ?)",
        params![task.as_uuid(), push],
        first,
    )
}

pub(crate) fn unfinished_publish_job(conn: &Connection, task: TaskId) -> L<Option<JobRow>> {
    let id: Option<Uuid> = conn.maybe(
        "SELECT id FROM job WHERE task_id = ? AND kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled')",
        params![task.as_uuid()],
        first,
    )?;
    id.map(|id| job::get(conn, JobId::from_uuid(id))).transpose()
}

pub(crate) struct Want {
    pub(crate) task: TaskId,
    pub(crate) kinds: Vec<EffectKind>,
}

impl Verb for Want {
    type Out = JobId;

    fn apply(&self, tx: &mut Tx<'_>) -> L<JobId> {
        task::may_become_active(tx, self.task, JobKind::Publish)?;
        let task = task::get(tx, self.task)?;
        let publish = want(tx, &task, &self.kinds)?;
        task::refresh(tx, self.task)?;
        Ok(publish.job.id)
    }
}

pub(crate) struct WantProgress {
    pub(crate) task: TaskId,
}

impl Verb for WantProgress {
    type Out = bool;

    fn apply(&self, tx: &mut Tx<'_>) -> L<bool> {
        let leading = run::leading_job(tx.conn, self.task)?;
        if !matches!(job::get(tx.conn, leading)?.job.state, JobState::Leased { .. }) {
            return Ok(false);
        }
        let task = task::get(tx, self.task)?;
        want(tx, &task, &[EffectKind::Progress])?;
        Ok(true)
    }
}

/// Wants `kinds` (a settled one again, and what it brought is kept) and gives them to the Task's unfinished publish job or to a
/// new one.
pub(crate) fn want(tx: &mut Tx<'_>, task: &TaskRow, kinds: &[EffectKind]) -> L<JobRow> {
    for kind in kinds {
        tx.conn.run(
            "INSERT INTO effect (id, task_id, kind, state) VALUES (?, ?, ?, 'wanted')
             ON CONFLICT (task_id, kind) DO UPDATE SET state = 'wanted', fence = NULL, intent = NULL
             WHERE state = 'settled'",
            params![tx.ids.uuid(), task.id.as_uuid(), kind.name()],
        )?;
    }
    if let Some(publish) = unfinished_publish_job(tx.conn, task.id)? {
        if let JobState::Cancelling { .. } = publish.job.state {
            return Err(LedgerError::Invalid(format!("the publication of {} is being cancelled", task.id)));
        }
        return Ok(publish);
    }
    let new = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    job::insert(tx, new, task.id, &task.publish_place())
}

/// Who was told of the beginning is told that the Task was cancelled, once nobody publishes for it any more.
pub(crate) fn want_last_word(tx: &mut Tx<'_>, task: &TaskRow) -> L<()> {
    let id = task.id.as_uuid();
    let newest: Option<Uuid> = tx.conn.maybe(
        "SELECT id FROM job WHERE task_id = ? AND kind = 'publish' ORDER BY seq DESC LIMIT 1",
        params![id],
        first,
    )?;
    let newest = newest.map(|id| job::get(tx.conn, JobId::from_uuid(id))).transpose()?;
    let owes = owes_last_word(&list(tx.conn, task.id)?, newest.as_ref().map(|row| &row.job.state));
    if owes && unfinished_publish_job(tx.conn, task.id)?.is_none() {
        want(tx, task, &[EffectKind::Comment])?;
    }
    Ok(())
}

/// Cancels the unfinished publish job and withholds what it has not begun. `None`: there is none to cancel.
pub(crate) fn cancel_publication(tx: &mut Tx<'_>, task: TaskId) -> L<Option<JobRow>> {
    let Some(mut row) = unfinished_publish_job(tx.conn, task)? else { return Ok(None) };
    if let Some(cancelled) = row.job.clone().cancel() {
        row.job = cancelled;
        job::store(tx, &row)?;
    }
    let receipt = stored::write(&Receipt::Withheld { reason: CANCELLED.to_owned() })?;
    tx.conn.run(
        "UPDATE effect SET state = 'settled', receipt = coalesce(receipt, ?) WHERE task_id = ? AND state = 'wanted'",
        params![receipt, task.as_uuid()],
    )?;
    Ok(Some(row))
}

/// One effect's row, as the two journaling verbs need it.
struct EffectRow {
    kind: EffectKind,
    state: String,
    fence: Option<i64>,
    intent: Option<String>,
    receipt: Option<String>,
}

fn get(tx: &mut Tx<'_>, id: EffectId, task: TaskId) -> L<EffectRow> {
    let (uuid, task_id) = (id.as_uuid(), task.as_uuid());
    type Row = (String, String, Option<i64>, Option<String>, Option<String>);
    let row: Option<Row> = tx.conn.maybe(
        "SELECT kind, state, fence, intent, receipt FROM effect WHERE id = ? AND task_id = ?",
        params![uuid, task_id],
        |row| row.try_into(),
    )?;
    let (kind, state, fence, intent, receipt) =
        row.ok_or_else(|| LedgerError::Invalid(format!("{id} is not an effect of {task}")))?;
    Ok(EffectRow { kind: kind_named(&kind)?, state, fence, intent, receipt })
}

pub(crate) struct Intend {
    pub(crate) lease: LeaseRef,
    pub(crate) effect: EffectId,
    pub(crate) intent: Intent,
}

impl Verb for Intend {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let row = match job::held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let effect = get(tx, self.effect, row.task)?;
        if effect.kind != self.intent.effect() {
            return Err(LedgerError::Invalid(format!("{} is a {}", self.effect, effect.kind.name())));
        }
        let (id, fence) = (self.effect.as_uuid(), job::column(self.lease.fence));
        let intent = stored::write(&self.intent)?;
        if effect.state == "settled" {
            return match row.job.state {
                // Withheld by the cancellation that the holder has yet to hear of: it must stop.
                JobState::Cancelling { .. } => Ok(Fenced::Stale),
                _ => Err(LedgerError::Invalid(format!("{} is settled", self.effect))),
            };
        }
        if effect.state == "intended" && effect.fence == Some(fence) && effect.intent.as_deref() == Some(&intent) {
            return Ok(Fenced::AlreadyApplied);
        }
        tx.conn.run(
            "UPDATE effect SET state = 'intended', fence = ?, intent = ? WHERE id = ?",
            params![fence, intent, id],
        )?;
        let body = EventBody::EffectIntended { effect: effect.kind.name().to_owned(), what: self.intent.told() };
        event::append(tx, row.task, &body)?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct Settle {
    pub(crate) lease: LeaseRef,
    pub(crate) effect: EffectId,
    pub(crate) receipt: Receipt,
}

impl Verb for Settle {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let row = match job::held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let effect = get(tx, self.effect, row.task)?;
        if self.receipt.effect().is_some_and(|kind| kind != effect.kind) {
            return Err(LedgerError::Invalid(format!("{} is a {}", self.effect, effect.kind.name())));
        }
        let (id, fence) = (self.effect.as_uuid(), job::column(self.lease.fence));
        let receipt = stored::write(&self.receipt)?;
        match effect.state.as_str() {
            "settled" if effect.receipt.as_deref() == Some(&receipt) => return Ok(Fenced::AlreadyApplied),
            "settled" => return Err(LedgerError::Invalid(format!("{} is settled", self.effect))),
            "wanted" if !matches!(self.receipt, Receipt::Withheld { .. }) => {
                return Err(LedgerError::Invalid(format!("{} has no intent", self.effect)));
            }
            _ => {}
        }
        tx.conn.run(
            "UPDATE effect SET state = 'settled', fence = ?, receipt = ? WHERE id = ?",
            params![fence, receipt, id],
        )?;
        let (what, url) = (self.receipt.told(), self.receipt.url().map(str::to_owned));
        let body = EventBody::EffectSettled { effect: effect.kind.name().to_owned(), what, url };
        event::append(tx, row.task, &body)?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct CompletePublish {
    pub(crate) lease: LeaseRef,
}

impl Verb for CompletePublish {
    type Out = Fenced;

    fn apply(&self, tx: &mut Tx<'_>) -> L<Fenced> {
        let mut row = match job::held(tx, &self.lease)? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        if row.job.kind != JobKind::Publish {
            return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)));
        }
        let effects = list(tx.conn, row.task)?;
        if let Some(open) = effects.iter().find(|effect| matches!(effect.state, EffectState::Intended { .. })) {
            return Err(LedgerError::Invalid(format!("{} is intended and not settled", open.id)));
        }
        let more = effects.iter().any(|effect| effect.state == EffectState::Wanted);
        let fence = self.lease.fence;
        row.job = if more { row.job.again(fence) } else { row.job.complete(fence) }.map_err(unreadable)?;
        job::store(tx, &row)?;
        task::refresh(tx, row.task)?;
        Ok(Fenced::Applied)
    }
}
