//! The bodies of the worker API, for both of its ends. Durations travel as milliseconds left: the clocks of worker and
//! ledger are never compared.
//!
//! What a worker reads and hands over carries a version of its own, so that an old worker meets a new dashboard in a
//! rolling upgrade.

use std::time::Duration;

use fettle_app::ports::ledger::{Admission, Beat, BeatAnswer, Fenced, Leased, Order, RunOrder, Then, Wake};
use fettle_app::ports::model::ModelInfo;
use fettle_app::ports::words::Words;
use fettle_domain::id::{JobId, RequestId, TaskId, WorkerId};
use fettle_domain::label::Labels;
use fettle_domain::lease::{Fence, LeaseRef};
use fettle_domain::object::BlobId;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use fettle_domain::words::Piece;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseBody {
    pub(crate) job: JobId,
    pub(crate) fence: Fence,
}

/// Workers lease Runs and nothing else, so the kind does not travel.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseRequest {
    pub(crate) worker: WorkerId,
    pub(crate) name: String,
    pub(crate) versions: Vec<u16>,
    /// What this worker has. Workers of before there were labels say nothing.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub(crate) labels: Labels,
    pub(crate) max: u8,
    pub(crate) wait_ms: u64,
    pub(crate) request: RequestId,
}

/// Empty: nothing runnable.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeasesBody {
    pub(crate) leases: Vec<LeasedBody>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeasedBody {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) time_left_ms: u64,
    #[serde(default)]
    pub(crate) attempts: u16,
    pub(crate) order: OrderBody,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "v")]
pub(crate) enum OrderBody {
    #[serde(rename = "1")]
    V1 { run: Box<RunOrder> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewRequest {
    pub(crate) beats: Vec<BeatBody>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BeatBody {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) progress: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) received: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewBody {
    pub(crate) answers: Vec<BeatAnswerBody>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum BeatAnswerBody {
    Renewed {
        time_left_ms: u64,
        messages: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        received: Option<u64>,
    },
    Cancel {
        reason: String,
    },
    Lost,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RecordRequest {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) step: StepBody,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "v")]
pub(crate) enum StepBody {
    #[serde(rename = "1")]
    V1 { record: StepRecord },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepsBody {
    pub(crate) steps: Vec<StepBody>,
}

/// Of a model call that goes on: `from` pieces of it came before.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WordsRequest {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) task: TaskId,
    pub(crate) call: u32,
    pub(crate) step: u32,
    pub(crate) from: u32,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) over: bool,
}

impl From<WordsRequest> for Words {
    fn from(body: WordsRequest) -> Self {
        let WordsRequest { lease, task, call, step, from, pieces, over } = body;
        Self { lease: lease.into(), task, call, step, from, pieces, over }
    }
}

impl From<Words> for WordsRequest {
    fn from(words: Words) -> Self {
        let Words { lease, task, call, step, from, pieces, over } = words;
        Self { lease: lease.into(), task, call, step, from, pieces, over }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HeardBody {
    pub(crate) has: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CompleteRequest {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) result: ResultBody,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "v")]
pub(crate) enum ResultBody {
    #[serde(rename = "1")]
    V1 { run: Box<RunResult> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FailRequest {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) why: String,
    pub(crate) then: ThenBody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ThenBody {
    AfterMs(u64),
    Never,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DeferRequest {
    #[serde(flatten)]
    pub(crate) lease: LeaseBody,
    pub(crate) until: WakeBody,
    pub(crate) why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WakeBody {
    AfterMs(u64),
    Event,
}

/// A fenced write that changed something, or had done so before. A stale one is 409.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FencedBody {
    pub(crate) fenced: FencedWord,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FencedWord {
    Applied,
    AlreadyApplied,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "admission", rename_all = "snake_case")]
pub(crate) enum AdmissionBody {
    Go {
        /// The two secrets on this wire; only on the internal listener.
        read_token: Option<String>,
        /// Dashboards of before the gateway say nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run_token: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelInfo>,
    },
    Withdrawn {
        reason: String,
    },
    Later {
        wait_ms: u64,
        why: String,
    },
    Refused {
        why: String,
    },
}

impl From<Admission> for AdmissionBody {
    fn from(admission: Admission) -> Self {
        match admission {
            Admission::Go { read_token, run_token, model } => {
                let shown = |token: Option<SecretString>| token.map(|token| token.expose_secret().to_owned());
                Self::Go { read_token: shown(read_token), run_token: shown(run_token), model }
            }
            Admission::Withdrawn { reason } => Self::Withdrawn { reason },
            Admission::Later { wait, why } => Self::Later { wait_ms: millis(wait), why },
            Admission::Refused { why } => Self::Refused { why },
        }
    }
}

impl From<AdmissionBody> for Admission {
    fn from(body: AdmissionBody) -> Self {
        match body {
            AdmissionBody::Go { read_token, run_token, model } => {
                let [read_token, run_token] = [read_token, run_token].map(|token| token.map(SecretString::from));
                Self::Go { read_token, run_token, model }
            }
            AdmissionBody::Withdrawn { reason } => Self::Withdrawn { reason },
            AdmissionBody::Later { wait_ms, why } => Self::Later { wait: Duration::from_millis(wait_ms), why },
            AdmissionBody::Refused { why } => Self::Refused { why },
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlobBody {
    pub(crate) blob: BlobId,
}

impl From<LeaseRef> for LeaseBody {
    fn from(lease: LeaseRef) -> Self {
        Self { job: lease.job, fence: lease.fence }
    }
}

impl From<LeaseBody> for LeaseRef {
    fn from(lease: LeaseBody) -> Self {
        Self { job: lease.job, fence: lease.fence }
    }
}

/// The ledger granted something other than a Run.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the lease of a Run")]
pub(crate) struct NotARun(LeaseRef);

impl TryFrom<Leased> for LeasedBody {
    type Error = NotARun;

    fn try_from(leased: Leased) -> Result<Self, NotARun> {
        let order = match leased.order {
            Order::Run(run) => OrderBody::V1 { run },
            Order::Publish { .. } => return Err(NotARun(leased.lease)),
        };
        Ok(Self {
            lease: leased.lease.into(),
            time_left_ms: millis(leased.time_left),
            attempts: leased.attempts,
            order,
        })
    }
}

impl From<LeasedBody> for Leased {
    fn from(body: LeasedBody) -> Self {
        let OrderBody::V1 { run } = body.order;
        let time_left = Duration::from_millis(body.time_left_ms);
        Self { lease: body.lease.into(), time_left, attempts: body.attempts, order: Order::Run(run) }
    }
}

impl From<&Beat> for BeatBody {
    fn from(beat: &Beat) -> Self {
        Self { lease: beat.lease.into(), progress: beat.progress, received: beat.received }
    }
}

impl From<BeatBody> for Beat {
    fn from(body: BeatBody) -> Self {
        Self { lease: body.lease.into(), progress: body.progress, received: body.received }
    }
}

impl From<BeatAnswer> for BeatAnswerBody {
    fn from(answer: BeatAnswer) -> Self {
        match answer {
            BeatAnswer::Renewed { time_left, messages, received } => {
                Self::Renewed { time_left_ms: millis(time_left), messages, received }
            }
            BeatAnswer::Cancel { reason } => Self::Cancel { reason },
            BeatAnswer::Lost => Self::Lost,
        }
    }
}

impl From<BeatAnswerBody> for BeatAnswer {
    fn from(body: BeatAnswerBody) -> Self {
        match body {
            BeatAnswerBody::Renewed { time_left_ms, messages, received } => {
                Self::Renewed { time_left: Duration::from_millis(time_left_ms), messages, received }
            }
            BeatAnswerBody::Cancel { reason } => Self::Cancel { reason },
            BeatAnswerBody::Lost => Self::Lost,
        }
    }
}

impl From<Then> for ThenBody {
    fn from(then: Then) -> Self {
        match then {
            Then::RetryAfter(wait) => Self::AfterMs(millis(wait)),
            Then::Never => Self::Never,
        }
    }
}

impl From<ThenBody> for Then {
    fn from(body: ThenBody) -> Self {
        match body {
            ThenBody::AfterMs(ms) => Self::RetryAfter(Duration::from_millis(ms)),
            ThenBody::Never => Self::Never,
        }
    }
}

impl From<Wake> for WakeBody {
    fn from(wake: Wake) -> Self {
        match wake {
            Wake::After(wait) => Self::AfterMs(millis(wait)),
            Wake::Event => Self::Event,
        }
    }
}

impl From<WakeBody> for Wake {
    fn from(body: WakeBody) -> Self {
        match body {
            WakeBody::AfterMs(ms) => Self::After(Duration::from_millis(ms)),
            WakeBody::Event => Self::Event,
        }
    }
}

impl From<FencedWord> for Fenced {
    fn from(word: FencedWord) -> Self {
        match word {
            FencedWord::Applied => Self::Applied,
            FencedWord::AlreadyApplied => Self::AlreadyApplied,
        }
    }
}

/// Rounded down: a lease never seems longer than it is.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
