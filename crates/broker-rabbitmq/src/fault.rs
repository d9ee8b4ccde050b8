//! Why something did not work, by what can be done about it.

use std::time::Duration;

use fettle_app::ports::transport::TransportError;
use lapin::ErrorKind;

/// Cloned for each of those who waited for the same connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Fault {
    #[error("while {during}")]
    Failed { during: String, source: lapin::Error },
    #[error("the broker did not answer within {limit:?} while {during}")]
    Silent { during: String, limit: Duration },
    /// Passes by itself.
    #[error("{0}")]
    Unfit(String),
    /// Somebody has to change something.
    #[error("{0}")]
    Refused(String),
}

impl Fault {
    pub(crate) fn of(during: impl Into<String>, error: lapin::Error) -> Self {
        let during = during.into();
        match error.kind() {
            ErrorKind::ProtocolError(told) if lasts(told.get_id()) => {
                Self::Refused(format!("while {during}: {}", told.get_message()))
            }
            ErrorKind::AuthProviderError(told) => Self::Refused(format!("while {during}: {told}")),
            // How TLS says that it does not trust the certificate, or that there is no TLS at that port.
            ErrorKind::IOError(told) if told.kind() == std::io::ErrorKind::InvalidData => {
                Self::Refused(format!("while {during}: {told}"))
            }
            _ => Self::Failed { during, source: error },
        }
    }
}

impl From<Fault> for TransportError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(why) => Self::Refused(why),
            other => Self::Unreachable(Box::new(other)),
        }
    }
}

/// Reply codes that stay until somebody changes rights, a policy or a queue. 404 is not among them: what was deleted is made
/// again.
fn lasts(reply: u16) -> bool {
    const CONTENT_TOO_LARGE: u16 = 311;
    const ACCESS_REFUSED: u16 = 403;
    const RESOURCE_LOCKED: u16 = 405;
    const PRECONDITION_FAILED: u16 = 406;
    const NOT_ALLOWED: u16 = 530;
    const NOT_IMPLEMENTED: u16 = 540;
    matches!(
        reply,
        CONTENT_TOO_LARGE | ACCESS_REFUSED | RESOURCE_LOCKED | PRECONDITION_FAILED | NOT_ALLOWED | NOT_IMPLEMENTED
    )
}

pub(crate) fn not_found(error: &lapin::Error) -> bool {
    const NOT_FOUND: u16 = 404;
    matches!(error.kind(), ErrorKind::ProtocolError(told) if told.get_id() == NOT_FOUND)
}
