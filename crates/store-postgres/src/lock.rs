//! The advisory locks, all in one place, since nothing but their numbers keeps them apart.
//!
//! In a transaction the order is: a request's or an issue's lock, then that of a kind's leases, then a Task's row, then its jobs' rows, then the feed. Who needs several
//! Tasks takes them in the order of their ids, or takes only those that nobody holds. Of accounts, it is: that of the admins or the
//! signing keys, an account's row, a session's row, the audit log.

use fettle_domain::id::RequestId;
use fettle_domain::job::JobKind;
use sqlx::PgConnection;

use crate::error::{OrLedger, R};

/// "FE" of Fettle; other users of the database have other classes. Lock 1 of it, the feed's, is taken by `next_event()` of
/// migration 1.
const FETTLE: i32 = 17989;
/// "FF": one lock for each lease request.
const REQUESTS: i32 = 17990;
/// "FG": one lock for each issue.
const ISSUES: i32 = 17991;
/// "FH": one lock for each kind of job.
const LEASES: i32 = 17992;
/// Shared by the sessions of all dashboards that are alive; see [`crate::presence`].
const PRESENCE: i32 = 2;
/// For whoever appends to the audit log.
const AUDIT_LOG: i32 = 3;
/// For whoever may make the first admin or take away the last.
const ADMINS: i32 = 4;
/// For whoever may make a signing key.
const SIGNING_KEYS: i32 = 5;
/// For whoever adds a model or a repository.
const ADDITIONS: i32 = 6;

/// Keeps the same lease request, come twice, from being answered with two different leases. Two requests that share a lock
/// only wait for each other.
pub(crate) async fn request(conn: &mut PgConnection, request: RequestId) -> R<()> {
    // The last bytes of a UUID v7 are random.
    let (_, low) = request.as_uuid().as_u64_pair();
    let key = i32::from_ne_bytes(low.to_ne_bytes()[..4].try_into().expect("eight bytes begin with four"));
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", REQUESTS, key).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Lets only one at a time decide what a wish for an issue becomes: the unique indexes would refuse all but one as well, but a
/// loser would try again and might lose again. Two issues that share a lock only wait for each other.
pub(crate) async fn issue(conn: &mut PgConnection, repo: u64, issue: u64) -> R<()> {
    let mixed = repo.rotate_left(16) ^ issue;
    let key = i32::from_ne_bytes(mixed.to_le_bytes()[..4].try_into().expect("eight bytes begin with four"));
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", ISSUES, key).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Lets only one at a time give leases of a kind, so that slots which it counted as free still are when it takes them.
pub(crate) async fn leases(conn: &mut PgConnection, kind: JobKind) -> R<()> {
    let key = match kind {
        JobKind::Run => 1,
        JobKind::Publish => 2,
    };
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LEASES, key).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Until the commit, nobody else appends to the audit log, so that each entry follows the one before. Taken last.
pub(crate) async fn audit_log(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", FETTLE, AUDIT_LOG).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Until the commit, nobody else makes an admin or takes the role from one.
pub(crate) async fn admins(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", FETTLE, ADMINS).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Until the commit, nobody else makes a signing key.
pub(crate) async fn signing_keys(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", FETTLE, SIGNING_KEYS).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Until the commit, nobody else adds a model or a repository.
pub(crate) async fn additions(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", FETTLE, ADDITIONS).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Takes the presence lock for this session alone, if no session has it.
pub(crate) async fn try_presence_alone(conn: &mut PgConnection) -> R<bool> {
    sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1, $2) AS "alone!""#, FETTLE, PRESENCE)
        .fetch_one(conn)
        .await
        .or_ledger()
}

/// Takes the presence lock beside others; waits while one has it alone.
pub(crate) async fn presence(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_lock_shared($1, $2)", FETTLE, PRESENCE).execute(conn).await.or_ledger()?;
    Ok(())
}

/// Lets others have the presence lock that this session took alone.
pub(crate) async fn presence_no_longer_alone(conn: &mut PgConnection) -> R<()> {
    sqlx::query!("SELECT pg_advisory_unlock($1, $2)", FETTLE, PRESENCE).fetch_one(conn).await.or_ledger()?;
    Ok(())
}
