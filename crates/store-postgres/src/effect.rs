//! Wanted writes to the forge and the publish job that brings them about: one intent before each, one receipt after.

use fettle_app::ports::ledger::{Fenced, LedgerError};
use fettle_domain::effect::{Effect, EffectKind, EffectState, Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::id::{EffectId, JobId, TaskId};
use fettle_domain::job::{Job, JobKind, JobState};
use fettle_domain::lease::LeaseRef;
use fettle_domain::publication::{CANCELLED, owes_last_word};
use sqlx::PgConnection;

use crate::error::{OrLedger, R, unreadable};
use crate::writer::{Tx, Verb};
use crate::{event, job, run, stored, task};

/// Of one Task, in the order they are brought about.
pub(crate) async fn list(conn: &mut PgConnection, task: TaskId) -> R<Vec<Effect>> {
    let uuid = task.as_uuid();
    let rows = sqlx::query!("SELECT id, kind, state, intent, receipt FROM effect WHERE task_id = $1", uuid,)
        .fetch_all(conn)
        .await
        .or_ledger()?;
    let mut effects = Vec::with_capacity(rows.len());
    for row in rows {
        let id = EffectId::from_uuid(row.id);
        let missing = |what: &str| unreadable(format!("{id} has no {what}"));
        let state = match row.state.as_str() {
            "wanted" => EffectState::Wanted,
            "intended" => {
                EffectState::Intended { intent: stored::read(row.intent.as_deref().ok_or_else(|| missing("intent"))?)? }
            }
            "settled" => EffectState::Settled {
                receipt: stored::read(row.receipt.as_deref().ok_or_else(|| missing("receipt"))?)?,
            },
            other => return Err(unreadable(format!("{id} has the unknown state `{other}`")).into()),
        };
        let before = match state {
            EffectState::Settled { .. } => None,
            EffectState::Wanted | EffectState::Intended { .. } => {
                row.receipt.as_deref().map(stored::read).transpose()?
            }
        };
        effects.push(Effect { id, task, kind: kind(&row.kind)?, state, before });
    }
    effects.sort_by_key(|effect| effect.kind);
    Ok(effects)
}

fn kind(text: &str) -> R<EffectKind> {
    EffectKind::named(text).ok_or_else(|| unreadable(format!("unknown effect kind `{text}`")).into())
}

pub(crate) async fn unfinished_publish_job(conn: &mut PgConnection, task: TaskId) -> R<Option<JobId>> {
    let uuid = task.as_uuid();
    let id = sqlx::query_scalar!(
        r#"SELECT id FROM job
           WHERE task_id = $1 AND kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled')"#,
        uuid,
    )
    .fetch_optional(conn)
    .await
    .or_ledger()?;
    Ok(id.map(JobId::from_uuid))
}

pub(crate) struct Want {
    pub(crate) task: TaskId,
    pub(crate) kinds: Vec<EffectKind>,
}

impl Verb for Want {
    type Out = JobId;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<JobId> {
        task::lock(tx, self.task).await?;
        task::may_become_active(tx, self.task, JobKind::Publish).await?;
        let job = want(tx, self.task, &self.kinds).await?;
        task::refresh(tx, self.task).await?;
        Ok(job)
    }
}

/// Whether a patch of the Task is pushed or is to be.
pub(crate) async fn is_published(conn: &mut PgConnection, task: TaskId) -> R<bool> {
    let (task, push) = (task.as_uuid(), EffectKind::Push.name());
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM effect WHERE task_id = $1 AND kind = $2) AS "is!""#, task, push,)
        .fetch_one(conn)
        .await
        .or_ledger()
}

pub(crate) struct WantProgress {
    pub(crate) task: TaskId,
}

impl Verb for WantProgress {
    type Out = bool;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<bool> {
        task::lock(tx, self.task).await?;
        let leading = run::leading_job(tx.conn, self.task).await?;
        if !matches!(job::get(tx.conn, leading).await?.job.state, JobState::Leased { .. }) {
            return Ok(false);
        }
        want(tx, self.task, &[EffectKind::Progress]).await?;
        Ok(true)
    }
}

/// Wants `kinds` (a settled one again, and what it brought is kept) and gives them to the Task's unfinished publish job or to a new one.
pub(crate) async fn want(tx: &mut Tx<'_>, task: TaskId, kinds: &[EffectKind]) -> R<JobId> {
    let task_id = task.as_uuid();
    for kind in kinds {
        let (id, kind) = (tx.ids.uuid(), kind.name());
        sqlx::query!(
            "INSERT INTO effect (id, task_id, kind, state) VALUES ($1, $2, $3, 'wanted')
             ON CONFLICT (task_id, kind) DO UPDATE SET state = 'wanted', fence = NULL, intent = NULL
             WHERE effect.state = 'settled'",
            id,
            task_id,
            kind,
        )
        .execute(&mut *tx.conn)
        .await
        .or_ledger()?;
    }
    if let Some(id) = unfinished_publish_job(tx.conn, task).await? {
        if let JobState::Cancelling { .. } = job::get(tx.conn, id).await?.job.state {
            return Err(LedgerError::Invalid(format!("the publication of {task} is being cancelled")).into());
        }
        return Ok(id);
    }
    let new = Job::queued(JobId::from_uuid(tx.ids.uuid()), JobKind::Publish);
    let place = task::get(tx, task).await?.publish_place();
    job::insert(tx, &new, task, &place).await?;
    Ok(new.id)
}

/// Who was told of the beginning is told that the Task was cancelled, once nobody publishes for it any more.
pub(crate) async fn want_last_word(tx: &mut Tx<'_>, task: TaskId) -> R<()> {
    let uuid = task.as_uuid();
    let newest = sqlx::query_scalar!(
        "SELECT id FROM job WHERE task_id = $1 AND kind = 'publish' ORDER BY seq DESC LIMIT 1",
        uuid,
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()?;
    let newest = match newest {
        Some(id) => Some(job::get(tx.conn, JobId::from_uuid(id)).await?.job.state),
        None => None,
    };
    let owes = owes_last_word(&list(tx.conn, task).await?, newest.as_ref());
    if owes && unfinished_publish_job(tx.conn, task).await?.is_none() {
        want(tx, task, &[EffectKind::Comment]).await?;
    }
    Ok(())
}

/// Cancels the unfinished publish job and withholds what it has not begun. `None`: there is none to cancel.
pub(crate) async fn cancel_publication(tx: &mut Tx<'_>, task: TaskId) -> R<Option<JobState>> {
    let Some(id) = unfinished_publish_job(tx.conn, task).await? else { return Ok(None) };
    let mut row = job::get(tx.conn, id).await?;
    if let Some(cancelled) = row.job.clone().cancel() {
        row.job = cancelled;
        job::store(tx, &row).await?;
    }
    let (uuid, receipt) = (task.as_uuid(), stored::write(&Receipt::Withheld { reason: CANCELLED.to_owned() })?);
    sqlx::query!(
        "UPDATE effect SET state = 'settled', receipt = coalesce(receipt, $1) WHERE task_id = $2 AND state = 'wanted'",
        receipt,
        uuid
    )
    .execute(&mut *tx.conn)
    .await
    .or_ledger()?;
    Ok(Some(row.job.state))
}

/// One effect's row, as the two journaling verbs need it.
struct EffectRow {
    kind: EffectKind,
    state: String,
    fence: Option<i64>,
    intent: Option<String>,
    receipt: Option<String>,
}

async fn get(tx: &mut Tx<'_>, id: EffectId, task: TaskId) -> R<EffectRow> {
    let (uuid, task_id) = (id.as_uuid(), task.as_uuid());
    let row = sqlx::query!(
        "SELECT kind, state, fence, intent, receipt FROM effect WHERE id = $1 AND task_id = $2",
        uuid,
        task_id,
    )
    .fetch_optional(&mut *tx.conn)
    .await
    .or_ledger()?
    .ok_or_else(|| LedgerError::Invalid(format!("{id} is not an effect of {task}")))?;
    Ok(EffectRow {
        kind: kind(&row.kind)?,
        state: row.state,
        fence: row.fence,
        intent: row.intent,
        receipt: row.receipt,
    })
}

pub(crate) struct Intend {
    pub(crate) lease: LeaseRef,
    pub(crate) effect: EffectId,
    pub(crate) intent: Intent,
}

impl Verb for Intend {
    type Out = Fenced;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let row = match job::held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let effect = get(tx, self.effect, row.task).await?;
        if effect.kind != self.intent.effect() {
            return Err(LedgerError::Invalid(format!("{} is a {}", self.effect, effect.kind.name())).into());
        }
        let (id, fence) = (self.effect.as_uuid(), job::column(self.lease.fence));
        let intent = stored::write(&self.intent)?;
        if effect.state == "settled" {
            return match row.job.state {
                // Withheld by the cancellation that the holder has yet to hear of: it must stop.
                JobState::Cancelling { .. } => Ok(Fenced::Stale),
                _ => Err(LedgerError::Invalid(format!("{} is settled", self.effect)).into()),
            };
        }
        if effect.state == "intended" && effect.fence == Some(fence) && effect.intent.as_deref() == Some(&intent) {
            return Ok(Fenced::AlreadyApplied);
        }
        sqlx::query!("UPDATE effect SET state = 'intended', fence = $1, intent = $2 WHERE id = $3", fence, intent, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        let body = EventBody::EffectIntended { effect: effect.kind.name().to_owned(), what: self.intent.told() };
        event::append(tx, row.task, &body).await?;
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

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let row = match job::held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        let effect = get(tx, self.effect, row.task).await?;
        if self.receipt.effect().is_some_and(|kind| kind != effect.kind) {
            return Err(LedgerError::Invalid(format!("{} is a {}", self.effect, effect.kind.name())).into());
        }
        let (id, fence) = (self.effect.as_uuid(), job::column(self.lease.fence));
        let receipt = stored::write(&self.receipt)?;
        match effect.state.as_str() {
            "settled" if effect.receipt.as_deref() == Some(&receipt) => return Ok(Fenced::AlreadyApplied),
            "settled" => return Err(LedgerError::Invalid(format!("{} is settled", self.effect)).into()),
            "wanted" if !matches!(self.receipt, Receipt::Withheld { .. }) => {
                return Err(LedgerError::Invalid(format!("{} has no intent", self.effect)).into());
            }
            _ => {}
        }
        sqlx::query!("UPDATE effect SET state = 'settled', fence = $1, receipt = $2 WHERE id = $3", fence, receipt, id)
            .execute(&mut *tx.conn)
            .await
            .or_ledger()?;
        let (what, url) = (self.receipt.told(), self.receipt.url().map(str::to_owned));
        let body = EventBody::EffectSettled { effect: effect.kind.name().to_owned(), what, url };
        event::append(tx, row.task, &body).await?;
        Ok(Fenced::Applied)
    }
}

pub(crate) struct CompletePublish {
    pub(crate) lease: LeaseRef,
}

impl Verb for CompletePublish {
    type Out = Fenced;

    async fn apply(&self, tx: &mut Tx<'_>) -> R<Fenced> {
        let mut row = match job::held(tx, &self.lease).await? {
            Ok(row) => row,
            Err(fenced) => return Ok(fenced),
        };
        if row.job.kind != JobKind::Publish {
            return Err(LedgerError::Invalid(format!("{} is not a publish job", row.job.id)).into());
        }
        let effects = list(tx.conn, row.task).await?;
        if let Some(open) = effects.iter().find(|effect| matches!(effect.state, EffectState::Intended { .. })) {
            return Err(LedgerError::Invalid(format!("{} is intended and not settled", open.id)).into());
        }
        let more = effects.iter().any(|effect| effect.state == EffectState::Wanted);
        let fence = self.lease.fence;
        row.job = if more { row.job.again(fence) } else { row.job.complete(fence) }.map_err(unreadable)?;
        job::store(tx, &row).await?;
        task::refresh(tx, row.task).await?;
        Ok(Fenced::Applied)
    }
}
