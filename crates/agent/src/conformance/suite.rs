//! Asks a model the orders and counts.

use std::collections::BTreeMap;
use std::time::Duration;

use fettle_app::ports::chain;
use fettle_app::ports::model::{Message, Model, ModelError, ModelRequest, RawTurn};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cases::{Case, CaseKind, cases};
use super::{NEEDED, Score, Seen};
use crate::dialect::{Dialect, ParsedTurn, instructions, parse};
use crate::tools::specs;

/// Of the fenced dialect. Nothing hostile is read here, so it need not be secret.
const MARK: &str = "c0nf0rm4nce";
/// The longest right answer is a file of some hundred bytes; reasoning comes before it.
const ANSWER_TOKENS: u64 = 4_096;
/// Wrong answers that are kept for people, each so long.
const KEPT_WRONG: usize = 10;
const WRONG_CHARS: usize = 300;
/// A model that is busy with others is asked again.
const BUSY_PAUSE: Duration = Duration::from_secs(2);
/// A dialect is given up when so many of its first answers are wrong: it can no longer be chosen, and the rest costs time.
const HOPELESS_AFTER: usize = 40;
/// Cases of a smoke run: one in so many.
const SMOKE_STRIDE: usize = 17;

/// How much is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All cases, dialect by dialect, until one is good enough.
    Whole,
    /// A dozen in the dialect that was found good enough before.
    Smoke(Dialect),
}

#[derive(Debug, Clone, Copy)]
pub struct Examination {
    pub extent: Extent,
    /// Questions at once.
    pub parallel: usize,
    /// Of the whole examination.
    pub limit: Duration,
}

/// Nothing follows from what was seen so far.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    #[error("the time for it was over after {asked} of {of} questions in {}", dialect.name())]
    Late { dialect: Dialect, asked: usize, of: usize },
    #[error("the model could not be asked: {0}")]
    Away(String),
    #[error("it was cancelled")]
    Cancelled,
}

/// What was seen in each dialect that was tried, in order; the last one is good enough, or all were tried.
pub async fn examine(
    model: &dyn Model,
    examination: Examination,
    cancel: &CancellationToken,
) -> Result<Vec<Seen>, Unfinished> {
    let until = Instant::now() + examination.limit;
    let all = cases(model.info().context_tokens);
    let mut seen = Vec::new();
    match examination.extent {
        Extent::Smoke(dialect) => {
            let some: Vec<&Case> = all.iter().step_by(SMOKE_STRIDE).collect();
            seen.push(in_dialect(model, dialect, &some, examination.parallel, until, cancel).await?);
        }
        Extent::Whole => {
            for (dialect, needed) in NEEDED {
                // Those about streaming come first, because the rest is asked as they say.
                let (streamed, others): (Vec<&Case>, Vec<&Case>) =
                    all.iter().partition(|case| case.kind == CaseKind::Streaming);
                let ordered: Vec<&Case> = streamed.into_iter().chain(others).collect();
                let found = in_dialect(model, dialect, &ordered, examination.parallel, until, cancel).await?;
                let enough = found.score.permille() >= needed;
                seen.push(found);
                if enough {
                    break;
                }
            }
        }
    }
    Ok(seen)
}

async fn in_dialect(
    model: &dyn Model,
    dialect: Dialect,
    cases: &[&Case],
    parallel: usize,
    until: Instant,
    cancel: &CancellationToken,
) -> Result<Seen, Unfinished> {
    let mut seen = Seen {
        dialect,
        score: Score::default(),
        by_kind: BTreeMap::new(),
        streaming: Score::default(),
        edits: BTreeMap::new(),
        wrong: Vec::new(),
    };
    let asker = Asker { model, dialect, until, cancel };
    // Boxed, because the compiler cannot see otherwise that they may move between threads.
    let questions: Vec<BoxFuture<'_, _>> = cases.iter().map(|case| asker.answer(case).boxed()).collect();
    let mut answers = futures::stream::iter(questions).buffered(parallel.max(1)).zip(futures::stream::iter(cases));
    while let Some((answer, case)) = answers.next().await {
        let answer = answer.map_err(|why| match why {
            Unfinished::Late { .. } => Unfinished::Late { dialect, asked: seen.score.asked as usize, of: cases.len() },
            other => other,
        })?;
        seen.count(case, answer);
        if seen.is_hopeless(cases.len()) {
            break;
        }
    }
    Ok(seen)
}

/// What came of a case.
struct Answer {
    fault: Option<String>,
    /// Whether the answer was the same streamed; of cases about that.
    streamed_alike: Option<bool>,
}

impl Seen {
    fn count(&mut self, case: &Case, answer: Answer) {
        let right = answer.fault.is_none();
        self.score.count(right);
        self.by_kind.entry(case.kind).or_default().count(right);
        if let Some(format) = case.format {
            self.edits.entry(format).or_default().count(right);
        }
        if let Some(alike) = answer.streamed_alike {
            self.streaming.count(alike);
        }
        if let Some(fault) = answer.fault.filter(|_| self.wrong.len() < KEPT_WRONG) {
            self.wrong.push((case.id.clone(), fault.chars().take(WRONG_CHARS).collect()));
        }
    }

    /// Even if all the rest were right it would not be enough.
    fn is_hopeless(&self, of: usize) -> bool {
        let (asked, wrong) = (self.score.asked as usize, self.score.asked - self.score.right);
        let best = Score {
            right: u32::try_from(of).unwrap_or(u32::MAX).saturating_sub(wrong),
            asked: u32::try_from(of).unwrap_or(u32::MAX),
        };
        asked >= HOPELESS_AFTER && best.permille() < super::needed(self.dialect)
    }
}

struct Asker<'a> {
    model: &'a dyn Model,
    dialect: Dialect,
    until: Instant,
    cancel: &'a CancellationToken,
}

impl Asker<'_> {
    async fn answer(&self, case: &Case) -> Result<Answer, Unfinished> {
        let at_once = self.ask(case, Way::AtOnce).await?;
        let fault = case.fault(&at_once);
        let streamed_alike = match case.kind {
            CaseKind::Streaming => Some(calls(&self.ask(case, Way::Streamed).await?) == calls(&at_once)),
            _ => None,
        };
        Ok(Answer { fault, streamed_alike })
    }

    async fn ask(&self, case: &Case, way: Way) -> Result<ParsedTurn, Unfinished> {
        let system = format!(
            "You are a software engineer who works by calling tools. Do exactly what is asked, with exactly the values that are \
             given, and call nothing else.\n\n{}",
            instructions(self.dialect, &specs(), MARK)
        );
        let mut messages = vec![Message::System { text: system }];
        messages.extend(case.messages(self.dialect, MARK));
        let request = ModelRequest {
            messages,
            tools: if self.dialect == Dialect::Native { specs() } else { Vec::new() },
            max_tokens: ANSWER_TOKENS,
            stream: way == Way::Streamed,
        };
        loop {
            let asking = self.model.call(&request, &|_, _| (), self.cancel);
            let Ok(turn) = tokio::time::timeout_at(self.until, asking).await else { return Err(late()) };
            match turn {
                Ok(turn) => return Ok(parse(&turn, self.dialect, MARK)),
                Err(ModelError::Busy { retry_after, .. }) => {
                    let pause = retry_after.unwrap_or(BUSY_PAUSE);
                    if Instant::now() + pause >= self.until {
                        return Err(late());
                    }
                    sleep(pause).await;
                }
                // It is the model's own fault when it cannot take what its configuration promises.
                Err(ModelError::ContextExceeded) => return Ok(parse(&RawTurn::default(), self.dialect, MARK)),
                Err(ModelError::Cancelled) => return Err(Unfinished::Cancelled),
                Err(error @ (ModelError::Unavailable(_) | ModelError::Refused(_))) => {
                    return Err(Unfinished::Away(chain(&error)));
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    AtOnce,
    Streamed,
}

/// Whoever knows how far it came fills in the rest.
fn late() -> Unfinished {
    Unfinished::Late { dialect: Dialect::Native, asked: 0, of: 0 }
}

fn calls(turn: &ParsedTurn) -> Vec<&crate::tools::Call> {
    turn.calls.iter().map(|call| &call.call).collect()
}
