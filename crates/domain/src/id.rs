//! The registry of ids. Each is a UUID v7 in its own type, written as a prefix and 32 hex digits: `job_018f…`.
//!
//! Ids are made only by the `IdSource` port of `app`; this module parses and prints them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id: expected `{kind}_` and 32 hex digits")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: $prefix, text: text.chars().take(80).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// What somebody asked for.
    TaskId = "task",
    /// One try at a Task.
    RunId = "run",
    /// One unit of queued work.
    JobId = "job",
    /// One raw webhook or foreign message, as it arrived.
    DeliveryId = "delivery",
    /// One wanted write to the forge.
    EffectId = "effect",
    /// One worker process, new at each start.
    WorkerId = "worker",
    /// One lease request, repeated when its answer was lost.
    RequestId = "request",
    /// One HTTP exchange's or Task's thread through logs, events and journal.
    CorrelationId = "corr",
    /// One account.
    UserId = "user",
    /// One sign-in of a browser, or one family of refresh tokens.
    SessionId = "session",
    /// One key of an account for programs.
    ApiKeyId = "key",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_wrote_and_refuses_another_kind() {
        let job = JobId::from_uuid(Uuid::from_u128(7));
        assert_eq!(job.to_string().parse::<JobId>(), Ok(job));
        assert!(job.to_string().parse::<TaskId>().is_err());
        assert!("job_7".parse::<JobId>().is_err());
    }
}
