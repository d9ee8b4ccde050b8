//! Redis's errors in the port's words: who can do something about it.

use std::sync::Arc;

use fettle_app::ports::transport::TransportError;
use redis::{ErrorKind, RedisError, ServerError, ServerErrorKind};

/// Codes that mean the same tomorrow unless somebody changes something. Everything else may pass by itself: loading, a
/// failover, a lost connection.
const REFUSALS: [&str; 8] = ["ERR", "MISCONF", "NOAUTH", "NOPERM", "OOM", "WRONGPASS", "WRONGTYPE", "CROSSSLOT"];

pub(crate) fn from_redis(error: RedisError) -> TransportError {
    if is_refusal(&error) {
        TransportError::Refused(said(&error))
    } else {
        TransportError::Unreachable(Box::new(error))
    }
}

/// In the server's own words, where it said something.
fn said(error: &RedisError) -> String {
    let first = within(error).first().map(|(_, one)| format!("{} {}", one.code(), one.details().unwrap_or_default()));
    first.unwrap_or_else(|| error.to_string())
}

pub(crate) fn unreachable(why: &'static str) -> TransportError {
    TransportError::Unreachable(why.into())
}

fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::UnexpectedReturnType => true,
        // A cluster, which one connection cannot serve.
        ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => true,
        ErrorKind::Server(_) | ErrorKind::Extension => {
            codes(error).iter().any(|code| REFUSALS.contains(&code.as_str()))
        }
        _ => false,
    }
}

/// The stream or its group is gone: deleted, or never there. A reader that was waiting is told `UNBLOCKED`.
pub(crate) fn is_no_group(error: &RedisError) -> bool {
    codes(error).iter().any(|code| code == "NOGROUP" || code == "UNBLOCKED")
}

pub(crate) fn is_busy_group(error: &RedisError) -> bool {
    codes(error).iter().any(|code| code == "BUSYGROUP")
}

pub(crate) fn is_out_of_memory(error: &RedisError) -> bool {
    codes(error).iter().any(|code| code == "OOM")
}

pub(crate) fn is_no_permission(error: &RedisError) -> bool {
    codes(error).iter().any(|code| code == "NOPERM")
}

/// Whether the server that was asked is the one to ask again: anything but a lost connection and an answer that a failover
/// or a restart passes by.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    is_refusal(error) || is_no_group(error) || is_busy_group(error)
}

fn codes(error: &RedisError) -> Vec<String> {
    within(error).iter().map(|(_, error)| error.code().to_owned()).collect()
}

/// What the server said: an aborted transaction says why in the answers of its commands.
fn within(error: &RedisError) -> Arc<[(usize, ServerError)]> {
    error.clone().into_server_errors().unwrap_or_default()
}
