//! What payload columns hold, in every ledger: versioned JSON, so that a newer binary reads what an older one wrote, and one
//! ledger what another did.

use fettle_domain::effect::{Intent, Receipt};
use fettle_domain::event::EventBody;
use fettle_domain::issue::IssueSnapshot;
use fettle_domain::label::Labels;
use fettle_domain::repo::Repo;
use fettle_domain::run::RunResult;
use fettle_domain::step::StepRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ports::ledger::{L, LedgerError};

/// What a Task works on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub repo: Option<Repo>,
    pub issue: IssueSnapshot,
    pub model: Option<String>,
    pub base: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub needs: Labels,
}

/// A value with a versioned stored form.
pub trait Payload: Sized + Clone {
    type Stored: Serialize + DeserializeOwned + From<Self> + Into<Self>;
    /// Names the column when it cannot be read.
    const NAME: &'static str;
}

macro_rules! payloads {
    ($($stored:ident of $value:ident = $name:literal),* $(,)?) => {$(
        #[derive(Serialize, Deserialize)]
        #[serde(tag = "v")]
        pub enum $stored {
            #[serde(rename = "1")]
            V1 { value: $value },
        }

        impl From<$value> for $stored {
            fn from(value: $value) -> Self {
                Self::V1 { value }
            }
        }

        impl From<$stored> for $value {
            fn from(stored: $stored) -> Self {
                match stored {
                    $stored::V1 { value } => value,
                }
            }
        }

        impl Payload for $value {
            type Stored = $stored;
            const NAME: &'static str = $name;
        }
    )*};
}

payloads! {
    StoredSubject of Subject = "task subject",
    StoredStep of StepRecord = "step record",
    StoredResult of RunResult = "run result",
    StoredIntent of Intent = "effect intent",
    StoredReceipt of Receipt = "effect receipt",
    StoredEvent of EventBody = "event body",
}

/// Errors with [`LedgerError::Unreadable`] for a value that JSON cannot hold.
pub fn write<P: Payload>(value: &P) -> L<String> {
    serde_json::to_string(&P::Stored::from(value.clone())).map_err(unreadable::<P>)
}

/// Errors with [`LedgerError::Unreadable`] for what no version has written.
pub fn read<P: Payload>(text: &str) -> L<P> {
    let stored: P::Stored = serde_json::from_str(text).map_err(unreadable::<P>)?;
    Ok(stored.into())
}

fn unreadable<P: Payload>(error: serde_json::Error) -> LedgerError {
    LedgerError::Unreadable(format!("{}: {error}", P::NAME))
}
