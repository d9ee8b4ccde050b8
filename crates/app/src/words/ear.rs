//! The dashboard's side: the end of what each Run's model is saying, until the call has ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fettle_domain::id::{JobId, TaskId};
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::words::{Piece, Veil, joins};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::live::Live;
use crate::ports::ledger::{L, Ledger};
use crate::ports::words::{Heard, Listen, Words};
use crate::publishing::PublishOptions;

/// Runs whose words are kept at once, each with some 20 KB. More workers than that is a fleet, of which nobody watches all.
const MAX_RUNS: usize = 256;
/// Of each Run: some screens.
const TAIL_BYTES: usize = 16 * 1024;
/// For so long a lease that was looked at counts as live; then the ledger is asked again.
const CHECKED_FOR: Duration = Duration::from_secs(2);
/// A Run that has said nothing for so long has lost its worker, or waits for a model that will begin anew.
const QUIET: Duration = Duration::from_secs(120);

/// Hears workers and tells followers. Each follower reads from what is kept, at its own pace: a slow one misses words and holds
/// up nobody.
pub struct Ear {
    ledger: Arc<dyn Ledger>,
    /// What is searched for in what leaves is searched for here too.
    options: Live<PublishOptions>,
    runs: Mutex<HashMap<JobId, Saying>>,
    news: watch::Sender<u64>,
}

struct Saying {
    task: TaskId,
    run: u16,
    fence: Fence,
    checked_at: Instant,
    heard_at: Instant,
    call: u32,
    step: u32,
    /// Pieces that came.
    has: u32,
    veil: Veil,
    tail: Vec<Piece>,
    /// Bytes that were ever shown of this call; `tail` has the last of them.
    shown: u64,
}

/// How far a follower of one Task is, by Run.
#[derive(Debug, Default)]
pub struct Listened(BTreeMap<u16, At>);

#[derive(Debug, Clone, Copy)]
struct At {
    fence: Fence,
    call: u32,
    step: u32,
    shown: u64,
    hidden: bool,
}

/// What a follower is told of one Run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Which of the Task's Runs, from 1.
    pub run: u16,
    /// The number that the step will have.
    pub step: u32,
    /// These take the place of whatever was told of this Run; else they follow it.
    pub whole: bool,
    pub pieces: Vec<Piece>,
    /// Something in it looks like a secret: no more of this call is shown.
    pub hidden: bool,
    /// The call has ended.
    pub over: bool,
}

impl Ear {
    pub fn new(ledger: Arc<dyn Ledger>, options: Live<PublishOptions>) -> Self {
        Self { ledger, options, runs: Mutex::default(), news: watch::Sender::new(0) }
    }

    /// Changes whenever something was heard.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What a follower of `task` has not been told yet.
    pub fn since(&self, task: TaskId, listened: &mut Listened) -> Vec<Told> {
        let runs = self.lock();
        let now: BTreeMap<u16, &Saying> = runs.values().filter(|s| s.task == task).map(|s| (s.run, s)).collect();
        let mut told = Vec::new();
        listened.0.retain(|run, at| {
            let goes_on = now.contains_key(run);
            if !goes_on {
                let (run, step) = (*run, at.step);
                told.push(Told { run, step, whole: true, pieces: Vec::new(), hidden: false, over: true });
            }
            goes_on
        });
        for (run, saying) in now {
            let at = At {
                fence: saying.fence,
                call: saying.call,
                step: saying.step,
                shown: saying.shown,
                hidden: saying.veil.is_drawn(),
            };
            let before = listened.0.insert(run, at).filter(|old| (old.fence, old.call) == (at.fence, at.call));
            let kept = saying.tail.iter().map(|piece| piece.text.len() as u64).sum();
            // A call that is begun anew has shown less than before.
            let follows = before.and_then(|old| at.shown.checked_sub(old.shown)).filter(|missing| *missing <= kept);
            let hidden_now = at.hidden && !before.is_some_and(|old| old.hidden);
            if follows == Some(0) && !hidden_now {
                continue;
            }
            let pieces = last(&saying.tail, usize::try_from(follows.unwrap_or(kept)).unwrap_or(usize::MAX));
            let (step, whole, hidden) = (at.step, follows.is_none(), at.hidden);
            told.push(Told { run, step, whole, pieces, hidden, over: false });
        }
        told
    }

    /// Which of its Task's Runs holds this very lease. `None`: none does.
    async fn holder(&self, task: TaskId, lease: LeaseRef) -> L<Option<u16>> {
        let runs = self.ledger.runs(task).await?;
        let held = |state: &str| matches!(state, "leased" | "cancelling");
        let run = runs.iter().find(|run| {
            run.job == lease.job && run.fence == lease.fence.get() && run.result.is_none() && held(&run.job_state)
        });
        Ok(run.map(|run| run.ordinal))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Saying>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Listen for Ear {
    async fn hear(&self, words: Words) -> L<Heard> {
        let known = self.lock().get(&words.lease.job).and_then(|saying| {
            let is_it = saying.task == words.task && saying.fence == words.lease.fence;
            (is_it && saying.checked_at.elapsed() < CHECKED_FOR).then_some(saying.run)
        });
        let (run, checked) = match known {
            Some(run) => (run, false),
            None => match self.holder(words.task, words.lease).await? {
                Some(run) => (run, true),
                None => {
                    // Whoever holds it now begins anew. A fence that was never given ends nobody's words.
                    self.lock().retain(|job, saying| *job != words.lease.job || saying.fence != words.lease.fence);
                    return Ok(Heard::Stale);
                }
            },
        };
        let options = self.options.now();
        let now = Instant::now();
        let mut runs = self.lock();
        let of_call = |s: &Saying| s.fence == words.lease.fence && s.call == words.call;
        if !runs.get(&words.lease.job).is_some_and(of_call) {
            runs.retain(|_, saying| now.duration_since(saying.heard_at) < QUIET);
            if words.over && words.pieces.is_empty() || runs.len() >= MAX_RUNS && !runs.contains_key(&words.lease.job) {
                runs.remove(&words.lease.job);
                self.news.send_modify(|n| *n += 1);
                return Ok(Heard::Has(end_of(&words)));
            }
            runs.insert(words.lease.job, Saying::new(&words, run, now));
        }
        let Some(saying) = runs.get_mut(&words.lease.job) else { return Ok(Heard::Has(0)) };
        saying.heard_at = now;
        if checked {
            saying.checked_at = now;
        }
        if words.from <= saying.has {
            let end = end_of(&words);
            let fresh = words.pieces.into_iter().skip((saying.has - words.from) as usize);
            saying.has = saying.has.max(end);
            let shown = saying.veil.pass(&options.secrets, fresh);
            saying.show(shown);
        }
        let has = saying.has;
        if words.over {
            runs.remove(&words.lease.job);
        }
        drop(runs);
        self.news.send_modify(|n| *n += 1);
        Ok(Heard::Has(has))
    }
}

/// How many pieces of its call there are when it was heard.
fn end_of(words: &Words) -> u32 {
    words.from.saturating_add(u32::try_from(words.pieces.len()).unwrap_or(u32::MAX))
}

impl Saying {
    fn new(words: &Words, run: u16, now: Instant) -> Self {
        Self {
            task: words.task,
            run,
            fence: words.lease.fence,
            checked_at: now,
            heard_at: now,
            call: words.call,
            step: words.step,
            has: 0,
            veil: Veil::default(),
            tail: Vec::new(),
            shown: 0,
        }
    }

    fn show(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.shown += piece.text.len() as u64;
            match self.tail.last_mut() {
                Some(last) if joins(last.voice, piece.voice) => last.text.push_str(&piece.text),
                _ => self.tail.push(piece),
            }
        }
        self.tail = last(&self.tail, TAIL_BYTES);
    }
}

/// The last `bytes` of what the pieces say, or a character less.
fn last(pieces: &[Piece], bytes: usize) -> Vec<Piece> {
    let mut left = bytes;
    let mut kept = Vec::new();
    for piece in pieces.iter().rev() {
        if left == 0 {
            break;
        }
        let from = piece.text.ceil_char_boundary(piece.text.len().saturating_sub(left));
        left = left.saturating_sub(piece.text.len());
        if from < piece.text.len() {
            kept.push(Piece::new(piece.voice, &piece.text[from..]));
        }
    }
    kept.reverse();
    kept
}
