//! Instants as PostgreSQL keeps them, and whose clock the ledger goes by: the server's, which all dashboards share.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

/// 2000-01-01T00:00:00Z, from which `timestamptz` counts, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;
/// `timestamptz` in `pg_type`.
const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));

/// A `timestamptz`, to the microsecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant(pub Timestamp);

impl Type<Postgres> for Instant {
    fn type_info() -> PgTypeInfo {
        TIMESTAMPTZ
    }
}

impl Encode<'_, Postgres> for Instant {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = self.0.as_microsecond() - EPOCH;
        <i64 as Encode<Postgres>>::encode_by_ref(&micros, buf)
    }

    fn size_hint(&self) -> usize {
        size_of::<i64>()
    }
}

impl<'r> Decode<'r, Postgres> for Instant {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = <i64 as Decode<Postgres>>::decode(value)?;
                Ok(Self(from_micros(micros.saturating_add(EPOCH))))
            }
            // Only the simple protocol sends text, and no query here uses it for rows.
            PgValueFormat::Text => Err("an instant was sent as text".into()),
        }
    }
}

/// An instant beyond what a `Timestamp` holds is cut to the end of time.
fn from_micros(micros: i64) -> Timestamp {
    let last = Timestamp::MAX.as_microsecond();
    Timestamp::from_microsecond(micros.clamp(-last / 2, last)).unwrap_or(Timestamp::MAX)
}

/// `at` plus `duration`; a duration beyond the end of time gives the end of time.
pub(crate) fn after(at: Timestamp, duration: Duration) -> Timestamp {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4);
    from_micros(at.as_microsecond().saturating_add(micros))
}

/// `at` minus `duration`.
pub(crate) fn before(at: Timestamp, duration: Duration) -> Timestamp {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 4);
    from_micros(at.as_microsecond().saturating_sub(micros))
}

/// From `now` until `then`; zero when it has passed.
pub(crate) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(then.as_microsecond() - now.as_microsecond()).unwrap_or(0))
}
